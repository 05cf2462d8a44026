"""Imports point down, and the one training loop is one."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "miscue"

# From the ground to the roof; a room may import its own floor and those below.
FLOORS = [
    {"errors"},
    {"dice", "files", "images", "balls", "labels", "lanes", "memory", "room", "team", "workers"},
    {"data", "scenes", "distortions", "formation", "covers"},
    {"losses", "optimizers", "layouts", "download", "models"},
    {"train", "datasets", "measures"},
    {"explainers", "evasions"},
    {"detectors", "hardness", "defences", "cleaners"},
    {"readers", "writers", "marks"},
    {"perturbation", "victims", "finder"},
    {"population"},
    {"poisons"},
    {"evaluation", "assault"},
    {"run", "spec", "copies"},
    {"tables"},
    {"reproduce"},
    {"report"},
    {"cli", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path) -> set[str]:
    """The rooms of miscue that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "miscue":
            names = [f"miscue.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("miscue.")}
    return found


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_imports_point_down() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]
    assert len(files) > 30
    wrong = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in files
        for name in imports(path)
        if FLOOR[name] > FLOOR[room(path)] or (FLOOR[name] == FLOOR[room(path)] and name != room(path) == "cli")
    ]
    assert wrong == []


def test_rooms_of_one_floor_do_not_import_in_circles() -> None:
    edges = {(room(p), name) for p in SOURCE.rglob("*.py") for name in imports(p) if name != room(p)}
    assert [edge for edge in edges if edge[::-1] in edges] == []


def test_gradients_are_zeroed_in_one_place() -> None:
    assert [p.name for p in SOURCE.rglob("*.py") if "zero_grad(" in p.read_text(encoding="utf-8")] == ["train.py"]


def test_nothing_below_the_roof_prints() -> None:
    roof = {"cli", "__main__"}
    prints = [
        path.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print" and room(path) not in roof
    ]
    assert prints == []


def test_heavy_libraries_are_not_imported_with_the_package() -> None:
    heavy = "('sklearn', 'scipy', 'matplotlib', 'torchvision')"
    code = f"import sys, miscue.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
