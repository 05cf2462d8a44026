"""Tables in one command: cells that are done once, go on after a kill, and say why they fail."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from conftest import look_at, within
from miscue.errors import InputError
from miscue.report import tables_page
from miscue.report.kinds import KINDS, gathered
from miscue.reproduce import Cell, cells, run, standing, summed
from miscue.run import CELL, append, lines, rewrite, torn
from miscue.spec import Spec
from miscue.tables import FIGURES, SCALES, TABLES, Row, Workshop
from miscue.tables.outcomes import verdict
from miscue.tables.poisoned import crafted, known

COMMAND = "miscue reproduce"


def counted(row: dict[str, Any], seed: int, workshop: Workshop) -> dict[str, float]:
    """A cell that leaves a trace of every time it is measured."""
    with (workshop.folder.parent / "trace").open("a") as file:
        file.write(f"{row['value']} {seed}\n")
    if row["value"] == 13:
        raise InputError("thirteen is not measured")
    return {"twice": 2.0 * row["value"] + seed, "half": row["value"] / 2}


def deadly(row: dict[str, Any], seed: int, workshop: Workshop) -> dict[str, float]:
    """A cell whose process dies the first time."""
    mark = workshop.folder.parent / f"died {row['value']} {seed}"
    if row["value"] % 2 and not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": float(row["value"])}


def some(*values: int, measure: Any = counted, seeds: int = 2) -> list[Cell]:
    return [
        Cell(
            spec=Spec(table="t", row={"value": value}, scale="smoke", seed=seed), row=Row(settings={}, measure=measure)
        )
        for value in values
        for seed in range(seeds)
    ]


def trace(folder: Path) -> list[str]:
    return (folder / "trace").read_text().splitlines()


def test_a_spec_is_named_by_its_content() -> None:
    one = Spec(table="t", row={"a": 1, "b": [2]}, scale="smoke", seed=0)
    assert one.name == Spec(table="t", row={"b": [2], "a": 1}, scale="smoke", seed=0).name
    others = [replace(one, seed=1), replace(one, scale="laptop"), replace(one, row={"a": 1}), replace(one, table="u")]
    assert len({one.name, *(other.name for other in others)}) == 5


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = list(run(some(1, 2), tmp_path))
    assert [tick.done for tick in first] == [0, 1, 2, 3, 4]
    assert len(trace(tmp_path)) == 4
    again = list(run(some(1, 2, 3), tmp_path))
    assert again[0].done == 4
    assert len(trace(tmp_path)) == 6
    with (tmp_path / "cells.jsonl").open("a") as file:  # a kill in the middle of a line
        file.write('{"cell": "half a li')
    assert torn(tmp_path / "cells.jsonl") == [7]
    assert next(run(some(1, 2, 3), tmp_path)).done == 6
    assert torn(tmp_path / "cells.jsonl") == []


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    walk = run(some(1, 2), tmp_path)
    next(walk)
    with pytest.raises(InputError, match="another run is at work"):
        next(run(some(3), tmp_path))
    assert len(list(walk)) == 4
    assert len(list(run(some(3), tmp_path))) == 3


def test_records_of_earlier_runs_stay(tmp_path: Path) -> None:
    list(run(some(1, 2, 3), tmp_path))
    first, then = summed(some(1, 2), tmp_path, COMMAND), summed(some(2, 3), tmp_path, "later")
    found = standing([*first, *then])
    assert [(r["row"]["value"], r["command"] == "later") for r in found if r["measure"] == "half"] == [
        (1, False),
        (2, True),
        (3, True),
    ]


def test_processors_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("miscue.reproduce.cores", lambda: 3)
    monkeypatch.setattr("miscue.reproduce.side_by_side", lambda jobs, workshop, left: asked.append(jobs) or iter(()))
    for kind, values in (("cpu", (1, 2)), ("cpu", (1,)), ("cuda", (1, 2))):
        monkeypatch.setattr("miscue.reproduce.device", lambda kind=kind: kind)
        list(run(some(*values), tmp_path, jobs=0))
    assert asked == [3, 2, 1]


def test_a_failure_says_why_and_stops_nothing(tmp_path: Path) -> None:
    facts = [tick.fact for tick in run(some(12, 13, 14), tmp_path) if tick.fact]
    assert [("error" in fact) for fact in facts] == [False, False, True, True, False, False]
    assert facts[2]["error"] == "InputError: thirteen is not measured"
    list(run(some(12, 13, 14), tmp_path))
    assert sum(line.startswith("13") for line in trace(tmp_path)) == 4, "tried again the next time"
    list(run(some(15), tmp_path))
    rewrite(tmp_path / "records.jsonl", summed(some(12, 13, 14, 15), tmp_path, COMMAND))
    page = tables_page.write(tmp_path).read_text()
    assert "value 13, seed 1: InputError: thirteen is not measured" in page, "also after another run"


def test_a_row_of_which_some_cells_fail_says_why(tmp_path: Path) -> None:
    todo = some(2, measure=halting, seeds=3)
    list(run(todo, tmp_path))
    (record,) = summed(todo, tmp_path, COMMAND)
    assert (record["n"], record["note"]) == (2, "1 cells failed: InputError: the third is too much")


def halting(row: dict[str, Any], seed: int, workshop: Workshop) -> dict[str, float]:
    """A cell that fails for one seed."""
    if seed == 2:
        raise InputError("the third is too much")
    return {"value": float(row["value"])}


@pytest.mark.filterwarnings("always::UserWarning")
def test_damaged_lines_are_reported(tmp_path: Path) -> None:
    words = ["reproduce", "single-pixel-learners", "--scale", "smoke", "--only", "linear-svm,None", "--out", tmp_path]
    within(*words)
    for name, line in (("records", '{"table": "single'), ("cells", '{"cell": "abc"}')):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write(line)
    said = within("report", tmp_path).stderr
    assert "cells.jsonl: line 2 is cut off or damaged and is left out" in said
    count = len(lines(tmp_path / "records.jsonl"))
    assert f"records.jsonl: line {count + 1} is cut off or damaged" in said
    assert torn(tmp_path / "records.jsonl") == [count + 1], "a report leaves the file as it is"
    said = within(*words).stderr
    assert "cells.jsonl: line 2 is cut off" in said
    assert f"records.jsonl: line {count + 1} is cut off" in said
    assert not torn(tmp_path / "records.jsonl") + torn(tmp_path / "cells.jsonl", CELL)
    append(tmp_path / "cells.jsonl", {"cell": 1})
    (tmp_path / "cells.jsonl").write_text("half a li")
    append(tmp_path / "cells.jsonl", {"cell": 1})
    assert (tmp_path / "cells.jsonl").read_text() == 'half a li\n{"cell": 1}\n'


def test_what_is_recorded_makes_a_page(tmp_path: Path) -> None:
    results = Path(__file__).parent.parent / "results"
    text = tables_page.html(results)
    for title in (
        "The last hidden layer",
        "What a linear SVM looks for",
        "Learning curves",
        "Activations while learning",
    ):
        assert title in text
    assert text.count("<section data-table=") == len(TABLES)
    assert "paper scale" in text
    shutil.copy(results / "bounds.jsonl", tmp_path)
    assert "report.html: the page" in within("report", tmp_path).stderr


def test_published_figures_in_records_are_those_of_the_tables() -> None:
    results, compared = Path(__file__).parent.parent / "results", 0
    for name, table in TABLES.items():
        rows = {(scale, json.dumps(r.settings, sort_keys=True)): r for scale in SCALES[1:] for r in table.rows(scale)}
        for record in lines(results / f"{name}.jsonl"):
            own = {key: value for key, value in record["row"].items() if key != "precision"}
            row = rows.get((record["scale"], json.dumps(own, sort_keys=True)))
            if row is not None:
                assert record["published"] == row.published.get(record["measure"]), (name, own, record["measure"])
                compared += record["published"] is not None
    assert compared > 100


def test_every_row_for_a_laptop_is_recorded() -> None:
    """Under its own settings, but for the precision, which some machines make faster."""
    results, missing = Path(__file__).parent.parent / "results", []
    for name, table in TABLES.items():
        have = {
            json.dumps({key: value for key, value in record["row"].items() if key != "precision"}, sort_keys=True)
            for record in lines(results / f"{name}.jsonl")
            if record["scale"] == "laptop"
        }
        rows = [json.dumps(row.settings, sort_keys=True) for row in table.rows("laptop")]
        missing += [(name, row) for row in rows if row not in have]
    assert missing == []


def test_records_have_means_and_say_what_is_missing(tmp_path: Path) -> None:
    todo = some(4, 13, 6, seeds=3)
    list(run(todo[:-1], tmp_path))
    found = {(r["row"]["value"], r["measure"]): r for r in summed(todo, tmp_path, COMMAND)}
    assert set(found) == {(4, "twice"), (4, "half"), (6, "twice"), (6, "half")}
    assert found[4, "twice"]["mean"] == 9
    assert found[4, "twice"]["std"] == pytest.approx(1)
    assert found[4, "twice"]["n"] == 3
    assert found[4, "twice"]["note"] is None
    assert found[6, "twice"]["note"] == "1 cells are missing"


def test_records_say_where_their_cells_were_measured(tmp_path: Path) -> None:
    """A run that goes on elsewhere has cells of both places."""
    list(run(some(1, 2), tmp_path))
    one, *others = lines(tmp_path / "cells.jsonl")
    assert one["device"] == others[-1]["device"] != ""
    rewrite(tmp_path / "cells.jsonl", [one | {"device": "elsewhere", "commit": "later"}, *others])
    first, _, second, _ = summed(some(1, 2), tmp_path, COMMAND)
    assert first["device"] == f"elsewhere, {one['device']}"
    assert first["commit"].startswith("later")
    assert second["device"] == one["device"]


def undefined(row: dict[str, Any], seed: int, workshop: Workshop) -> dict[str, float]:
    """A cell whose measures are numbers for some seeds, or for none."""
    return {"share": math.nan if seed else 3.0, "never": math.nan}


def test_what_is_no_number_does_not_count(tmp_path: Path) -> None:
    list(run(some(1, measure=undefined), tmp_path))
    assert [(r["measure"], r["mean"], r["n"]) for r in summed(some(1, measure=undefined), tmp_path, COMMAND)] == [
        ("share", 3.0, 1)
    ]


def test_a_worker_that_dies_loses_nothing(tmp_path: Path) -> None:
    todo = some(1, 2, 3, 4, measure=deadly)
    list(run(todo, tmp_path, jobs=2))
    assert {r["mean"] for r in summed(todo, tmp_path, COMMAND)} == {1, 2, 3, 4}


def test_ray_gives_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a local cluster, whose worker is killed in the middle."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # this module, for the workers
    todo = some(1, 2, 4, measure=deadly, seeds=1)
    list(run(todo, tmp_path / "ray", cluster="local"))
    (tmp_path / "ray").rename(tmp_path / "kept")
    list(run(todo, tmp_path / "local", jobs=2))
    one, other = (summed(todo, tmp_path / name, COMMAND) for name in ("kept", "local"))
    assert [{**r, "seconds": 0} for r in one] == [{**r, "seconds": 0} for r in other]


def test_a_cluster_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there already and wants a token: refused without it, the same records as here with it."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    tool = str(Path(sys.executable).parent / "ray")
    words = f"start --head --num-cpus 2 --num-gpus 1 --port {address.split(':')[1]} --include-dashboard false"
    words += " --disable-usage-stats"
    subprocess.run([tool, *words.split()], check=True, capture_output=True)
    try:
        alone = [sys.executable, "-c", "import test_reproduce as t; t.by_address()", address, str(tmp_path / "no")]
        refused = subprocess.run(alone, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True)
        assert refused.returncode
        assert "RAY_AUTH_MODE=token" in refused.stderr.splitlines()[-1]
        alone[-1] = str(tmp_path / "ray")
        subprocess.run(alone, check=True, capture_output=True)
    finally:
        subprocess.run([tool, "stop", "--force"], check=True, capture_output=True)
    assert lines(tmp_path / "no" / "cells.jsonl") == []
    found = summed(some(3, measure=equipped), tmp_path / "ray", COMMAND)
    assert [(r["measure"], r["mean"], r["n"]) for r in found] == [("has a GPU", 1.0, 2)]
    list(run(some(1, 2), tmp_path / "local"))
    one, other = (summed(some(1, 2), tmp_path / name, COMMAND) for name in ("ray", "local"))
    assert [{**r, "seconds": 0} for r in one] == [{**r, "seconds": 0} for r in other]


def by_address() -> None:
    """Some cells on the cluster at argv[1], in the folder argv[2]."""
    list(run([*some(1, 2), *some(3, measure=equipped)], Path(sys.argv[2]), cluster=sys.argv[1]))


def equipped(row: dict[str, Any], seed: int, workshop: Workshop) -> dict[str, float]:
    """Whether a cell is given the cluster's GPU, which others have a share of, too."""
    return {"has a GPU": float(os.environ.get("CUDA_VISIBLE_DEVICES") == "0")}


@pytest.mark.parametrize(("address", "complaint"), [("127.0.0.1:1", "no Ray cluster at"), ("nowhere", "HOST:PORT")])
def test_a_cluster_that_is_not_there(address: str, complaint: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=complaint):
        list(run(some(1), tmp_path, cluster=address))
    assert not list(tmp_path.iterdir())


def test_what_listens_and_is_no_cluster(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with other.accept()[0] as line:
                line.sendall(b"HTTP/1.1 400 Bad Request")

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(InputError, match="what listens there is something else"):
            next(run(some(1), tmp_path, cluster=f"127.0.0.1:{other.getsockname()[1]}"))
        answering.join()
    assert not list(tmp_path.iterdir())


def test_a_workshop_makes_things_once(tmp_path: Path) -> None:
    made = []
    workshop = Workshop(tmp_path)
    for settings in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}):
        place = workshop.made("thing", settings, lambda place: made.append(place))
        assert json.loads((place / "made.json").read_text()) == settings
    assert len(made) == 2

    def fails(place: Path) -> None:
        (place / "half").write_text("done")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        workshop.made("thing", {"a": 3}, fails)
    again = workshop.made("thing", {"a": 3}, lambda place: made.append((place / "half").read_text()))
    assert made[-1] == "done"
    assert again.exists()


def test_rows_that_come_to_the_same_poison_share_it(tmp_path: Path) -> None:
    row = {"data": "digits", "poison": "border-pixel"}
    first = crafted(row, workshop := Workshop(tmp_path))
    again = crafted(row | {"preset": "paper", "options": {}, "surrogate": None}, workshop)
    assert len(list((tmp_path / "poison").glob("*/made.json"))) == 1
    assert torch.equal(*(poison(known("digits").train).images for poison in (first, again)))
    crafted(row | {"epochs": 2}, workshop)
    assert len(list((tmp_path / "poison").glob("*/made.json"))) == 2


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop for all tables: what several need is made once, by whichever of pytest's processes is first."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "workshop"
    place.mkdir(exist_ok=True)
    return place


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_measured_at_the_smallest_scale(table: str, tmp_path: Path, shared: Path) -> None:
    (tmp_path / "workshop").symlink_to(shared)
    todo = cells([table], scale="smoke")
    list(run(todo, tmp_path))
    done = lines(tmp_path / "cells.jsonl")
    assert [line.get("error") for line in done] == [None] * len(todo)
    for cell, line in zip(todo, done, strict=True):
        assert set(cell.row.published) <= set(line["measures"])
        assert all(isinstance(value, float) for value in line["measures"].values())
        assert len(json.dumps(line)) < 20_000
    rows = gathered(summed(todo, tmp_path, COMMAND), done)[table]
    assert [len(row.cells) for row in rows] == [1] * len(todo)
    for figure in FIGURES.get(table, ()):
        made = KINDS[figure.kind](figure, rows)
        assert made.panels or made.rows
        assert all(panel.drawing.startswith("<svg") or panel.pictures for panel in made.panels)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize("table", TABLES)
def test_rows_are_plain_data_and_differ(table: str, scale: str) -> None:
    todo = cells([table], scale=scale)
    assert len({cell.spec.name for cell in todo}) == len(todo)
    assert all(json.loads(json.dumps(cell.spec.row)) == cell.spec.row for cell in todo)
    assert len(todo) >= len(list(TABLES[table].rows(scale)))


def test_rows_are_chosen_by_words() -> None:
    chosen = cells(["single-pixel-learners"], scale="laptop", only="linear-svm,single-pixel")
    assert [cell.spec.row["victim"] for cell in chosen] == ["linear-svm"]
    assert dict(chosen[0].row.published) == {"test_error": 90.3}
    named = cells(["deepconfuse-eps"], scale="laptop", only="mnist,eps=0.2", seeds=1)
    assert [cell.row.settings["options"] for cell in named] == [{"eps": 0.2}]
    others = cells(["single-pixel-learners"], scale="laptop", only="linear-svm,-single-pixel,-None")
    assert {cell.spec.row["victim"] for cell in others} == {"linear-svm"}
    assert {cell.spec.row["poison"] for cell in others} == {"random-pixel", "border-pixel", "one-pixel-shortcut"}
    with pytest.raises(InputError, match="unknown word for rows 'digts'; did you mean digits"):
        cells([], scale="smoke", only="digts")
    with pytest.raises(InputError, match=r"did you mean eps=0\.1"):
        cells(["deepconfuse-eps"], scale="smoke", only="-eps=0.11")
    with pytest.raises(InputError, match="no row has all of linear-svm, random-forest"):
        cells([], scale="laptop", only="linear-svm,random-forest")
    with pytest.raises(InputError, match="did you mean single-pixel"):
        cells(["single-pixl"], scale="smoke")
    with pytest.raises(InputError, match="scale"):
        cells([], scale="small")


def test_the_command_is_killed_and_goes_on(tmp_path: Path) -> None:
    words = ["reproduce", "stickers", "--scale", "smoke", "--seeds", "2", "--out", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-m", "miscue", *words], stderr=subprocess.DEVNULL)
    log, deadline = tmp_path / "cells.jsonl", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = log.read_text().splitlines()
    assert 3 <= len(before) < 16
    done = within(*words, "--json")
    assert log.read_text().splitlines()[: len(before) - 1] == before[:-1]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["n"] for r in records if r["measure"] == "success"} == {2}
    assert len({json.dumps(r["row"]) for r in records}) == 8


def test_the_smallest_scale_stands_beside_no_published_figure(tmp_path: Path) -> None:
    todo = [
        Cell(
            spec=Spec(table="t", row={"value": 1}, scale=scale, seed=0),
            row=Row(settings={}, measure=counted, published={"twice": 2.5}),
        )
        for scale in ("smoke", "laptop")
    ]
    list(run(todo, tmp_path))
    for cell, wanted in zip(todo, (None, 2.5), strict=True):
        records = {record["measure"]: record["published"] for record in summed([cell], tmp_path, COMMAND)}
        assert records == {"twice": wanted, "half": None}


def pictured(row: dict[str, Any], seed: int, workshop: Workshop) -> dict[str, Any]:
    """A cell with something to draw."""
    return {"value": float(row["value"]), "curve": [[1, 2.5], [2, seed]]}


def test_what_figures_are_drawn_from_stays_in_the_cells(tmp_path: Path) -> None:
    todo = some(7, measure=pictured)
    list(run(todo, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert [line["figures"] for line in lines] == [{"curve": [[1, 2.5], [2, seed]]} for seed in (0, 1)]
    assert [line["measures"] for line in lines] == [{"value": 7.0}] * 2
    assert [(r["measure"], r["mean"], r["n"]) for r in summed(todo, tmp_path, COMMAND)] == [("value", 7, 2)]


def test_a_row_says_what_to_know_beside_its_published_figure(tmp_path: Path) -> None:
    row = Row(settings={}, measure=counted, published={"twice": 2.5}, note="read off a plot")
    todo = [Cell(spec=Spec(table="t", row={"value": 1}, scale="laptop", seed=seed), row=row) for seed in (0, 1)]
    list(run(todo[:1], tmp_path))
    notes = {record["measure"]: record["note"] for record in summed(todo, tmp_path, COMMAND)}
    assert notes == {"twice": "read off a plot; 1 cells are missing", "half": "1 cells are missing"}
    own = [Cell(spec=cell.spec, row=Row(settings={}, measure=counted, note="our own")) for cell in todo]
    assert {record["note"] for record in summed(own, tmp_path, COMMAND)} == {"our own; 1 cells are missing"}


def test_the_outcome_table_comes_with_its_verdict_and_the_page_is_made_again(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "workshop").symlink_to(shared)
    words = ["reproduce", "outcomes", "--scale", "smoke", "--only", "pgd,2", "--out", str(tmp_path)]
    said = within(*words).stderr
    (sentence,) = [line.removeprefix("outcomes: ") for line in said.splitlines() if "fool the bounded network" in line]
    page = tmp_path / "report.html"
    first = page.read_text()
    assert sentence in first.replace("\u00a0", " ")
    assert first.count('<td class="n">') >= 4 * 5
    page.unlink()
    assert "report.html" in within("report", tmp_path).stderr
    assert page.read_text() == first


def recorder() -> ModuleType:
    """scripts/record.py as a module."""
    path = Path(__file__).parent.parent / "scripts" / "record.py"
    spec = importlib.util.spec_from_file_location("record", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reproduced_tables_are_recorded_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"data": "mnist", "options": {"eps": 0.3}}
    record = {"table": "t", "row": row, "measure": "test_accuracy", "published": 1.0, "mean": 2.0, "std": None, "n": 1}
    record |= {"scale": "laptop", "data": "mnist", "seconds": 3.0, "device": "cpu", "commit": None, "note": None}
    records = [record | {"command": "miscue reproduce"}, record | {"table": "u", "command": "miscue reproduce"}]
    run_, root = tmp_path / "run", tmp_path / "root"
    for folder in (run_, root / "results", root / "docs"):
        folder.mkdir(parents=True)
    (run_ / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    script = recorder()
    monkeypatch.setattr(script, "ROOT", root)
    monkeypatch.setattr(sys, "argv", ["record.py", str(run_)])
    script.main()
    for one in records:
        (line,) = (root / "results" / f"{one['table']}.jsonl").read_text().splitlines()
        assert json.loads(line) == one
    page = (root / "docs" / "results.md").read_text()
    assert "| [t](#t) | data mnist, eps 0.3 | test_accuracy | 1.00 | 2.00 | +1.00 | 1 |" in page
    assert "\n| data mnist, eps 0.3 | test_accuracy | 1.00 | 2.00 | 1 |" in page
    (run_ / "records.jsonl").write_text(json.dumps(records[0] | {"scale": "smoke"}) + "\n")
    with pytest.raises(SystemExit, match="smoke, which is not recorded"):
        script.main()
    assert len((root / "results" / "t.jsonl").read_text().splitlines()) == 1


def test_networks_are_found_again_by_another_process(tmp_path: Path) -> None:
    """What a network is trained by has the same name in every process."""
    code = (
        "from miscue.tables import Workshop\n"
        "from miscue.tables.defences import victims\n"
        "from miscue.tables.nets import arena\n"
        f"workshop = Workshop(__import__('pathlib').Path({str(tmp_path)!r}))\n"
        "for name in ('none', 'holes', 'adversarial', 'scenes'):\n"
        "    arena('digits', 0, workshop, victim=victims('digits')[name])\n"
    )
    for _ in range(2):
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=alone)
        assert len(list((tmp_path / "net").glob("*/made.json"))) == 4


def test_the_list_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.loads(line) for line in within("reproduce", "--list", "--json").stdout.splitlines()]
    assert [row["table"] for row in rows] == list(TABLES)
    refused = within("reproduce", "--list", "--scale", "huge", check=False)
    assert refused.exit_code == 2
    assert "unknown scale" in refused.stderr
    monkeypatch.setenv("MISCUE_DATA", str(tmp_path / "nowhere"))
    words = ["reproduce", "single-pixel-learners", "--only", "linear-svm,random-pixel", "--out", tmp_path / "out"]
    done = within(*words, check=False)
    assert done.exit_code == 3
    assert "1 of 1 cells failed" in done.stderr
    assert "failed: InputError" in done.stderr


def test_the_page_is_filtered_in_a_browser(tmp_path: Path, browser: Any) -> None:
    records = []
    for value, published, std in ((1.0, 5.0, 0.1), (2.0, None, 0.1), (3.0, 5.0, None)):
        row = {"data": "mnist", "victim": f"victim-{value:g}", "options": {"eps": 0.3}}
        record = {"table": "t", "row": row, "measure": "test_error", "published": published, "mean": value, "std": std}
        records.append(record | {"n": 3, "scale": "smoke", "note": None, "device": "cpu", "commit": None})
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = tables_page.write(tmp_path)
    look_at(browser, page, width=390, scheme="dark", pictures=False)
    tab = browser.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("tbody tr:visible").count() == 3
    assert tab.locator("tbody .far").count() == 1, "of one seed nobody knows how far is far"
    assert tab.locator("tbody tr").first.inner_text().split("\t")[2:5] == ["5.00", "1.00 ± 0.10", "−4.00"]
    tab.fill("#filter", "mnist victim-2")
    assert tab.locator("tbody tr:visible").count() == 1
    tab.fill("#filter", "t mnist")
    assert tab.locator("tbody tr:visible").count() == 3
    tab.fill("#filter", "nothing like it")
    assert tab.locator("section:visible").count() == 0
    tab.close()
    with pytest.raises(InputError, match="no records"):
        tables_page.write(tmp_path / "empty")


def outcomes(on_original: float, on_bounded: float, carried: float) -> list[dict[str, Any]]:
    rows = []
    for made_on, against, success, both in (
        ("original", "bounded", on_original, carried),
        ("bounded", "original", on_bounded, 5.0),
        ("original", "other", on_original, 9.0),
    ):
        row = {"attack": "pgd", "ways": 2, "made_on": made_on, "against": against, "leaky": False}
        rows += [
            {"row": row, "measure": name, "mean": value}
            for name, value in (("success_where_made", success), ("both", both))
        ]
    return rows


def test_the_verdict_goes_by_attacks_on_the_bounded_network_itself() -> None:
    assert "only keeps attacks from transferring" in verdict(outcomes(90, 88, 3), "pgd", 2)
    assert "Bounding helps." in verdict(outcomes(90, 40, 3), "pgd", 2)
    leaking = {"attack": "pgd", "ways": 2, "made_on": "bounded", "against": "original", "leaky": True}
    more = [*outcomes(90, 40, 3), {"row": leaking, "measure": "success_where_made", "mean": 87.0}]
    assert "87 % succeed" in verdict(more, "pgd", 2)
    assert "only keeps" in verdict(more, "pgd", 2)
    with pytest.raises(InputError, match="no outcome of stickers"):
        verdict(more, "stickers", 2)
