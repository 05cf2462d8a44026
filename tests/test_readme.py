"""What the README says can be typed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from typer.main import get_command

from miscue.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert not names["model"].training


def test_the_commands_exist() -> None:
    named = {line.split()[1] for line in re.findall(r"`(miscue [^`]*)`", README)}
    assert len(named) >= 5
    assert named <= set(get_command(app).commands)


def test_the_scripts_are_there_and_are_shell() -> None:
    named = {word for word in re.findall(r"scripts/[\w.]*\w", README) if not word.endswith(".py")}
    for script in (*named, ".ci/run", "scripts/environment"):
        assert os.access(ROOT / script, os.X_OK), script
        assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
