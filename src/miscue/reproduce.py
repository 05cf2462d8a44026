"""Run the cells of tables that are not there yet, here or on a cluster, and sum them up.

A cell is a `Spec`; cells.jsonl has a line for each that is done, by its name. A killed run goes on. A cell that fails
is recorded with its reason, does not stop the rest, and is tried again the next time that it is asked for.
"""

from __future__ import annotations

import functools
import json
import math
import os
import socket
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from miscue.errors import InputError, lookup
from miscue.files import locked
from miscue.run import CELL, Tick, append, commit, device_name, lines, rewrite, torn
from miscue.spec import Spec
from miscue.tables import SCALES, TABLES, Row, Workshop
from miscue.tables.poisoned import device
from miscue.workers import LostWorkerError, Workers, cores

SHARING = 4  # cells that share a GPU of a cluster
SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # the first frame of either side of HTTP/2, which gRPC speaks


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A spec and the row it is of."""

    spec: Spec
    row: Row


def cells(tables: Sequence[str], *, scale: str, seeds: int | None = None, only: str = "") -> list[Cell]:
    """The cells of some tables, or of all.

    Args:
        tables: names; all of TABLES if none.
        scale: "smoke", "laptop" or "paper".
        seeds: for each row; as many as the seed's table has if None, one at the scale "smoke".
        only: keep rows whose settings have all of these words, with commas between, and none of those after a -. A
            word is a value, as in mnist, or a name and its value, as in eps=0.2.

    Raises:
        InputError: an unknown table, scale or word, or nothing left.
    """
    lookup(dict.fromkeys(SCALES), scale, "scale")
    words = [word for word in only.split(",") if word]
    rows = [(name, row) for name in tables or TABLES for row in lookup(TABLES, name, "table").rows(scale)]
    known = dict.fromkeys(word for _, row in rows for word in spoken(row))
    for word in words:
        lookup(known, word.removeprefix("-"), "word for rows")
    found = []
    for name, row in rows:
        there = spoken(row)
        if all((word.removeprefix("-") in there) != word.startswith("-") for word in words):
            count = seeds or (1 if scale == "smoke" else row.seeds)
            found += [
                Cell(spec=Spec(table=name, row=row.settings, scale=scale, seed=seed), row=row) for seed in range(count)
            ]
    if not found:
        raise InputError(f"no row has all of {', '.join(words)}")
    return found


def spoken(row: Row) -> set[str]:
    """The words that a row can be chosen by."""
    return {word for name, value in flat(row.settings) for word in (str(value), f"{name}={value}")}


def flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a row by name, also those of the options within."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value)
        else:
            yield name, value


def measured(workshop: Workshop, cell: Cell) -> dict[str, Any]:
    """The line of a cell: its spec, its measures and what its figures are drawn from, or why there are none.

    It says on what it was measured and by which sources, as a run may go on elsewhere.
    """
    started = time.monotonic()
    line: dict[str, Any] = {"cell": cell.spec.name, "spec": asdict(cell.spec)}
    try:
        found = cell.row.measure(cell.spec.row, cell.spec.seed, workshop)
        line["measures"] = {name: value for name, value in found.items() if isinstance(value, float)}
        if drawn := {name: value for name, value in found.items() if not isinstance(value, float)}:
            line["figures"] = drawn
    except Exception as error:  # whatever it is, the rest goes on
        line["error"] = f"{type(error).__name__}: {error}{place(error)}"
    return line | {"seconds": round(time.monotonic() - started, 2)} | whereabouts()


def place(error: Exception) -> str:
    """Where an error that says nothing to a user came up."""
    if isinstance(error, InputError):
        return ""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({Path(last.filename).name}, line {last.lineno})"


@functools.cache
def whereabouts() -> dict[str, Any]:
    """The device and the commit of this process's cells."""
    return {"device": device_name(device()), "commit": commit()}


def run(todo: Sequence[Cell], folder: Path, *, jobs: int = 1, cluster: str | None = None) -> Iterator[Tick]:
    """Measure the cells that `folder` does not have.

    Args:
        todo: the cells.
        folder: gets cells.jsonl, and a workshop for what cells share.
        jobs: processes side by side on this machine, of one thread each; 0 for one a processor, or one with a GPU.
        cluster: the address of a Ray cluster that sees `folder` too, or "local" for one started here.

    Yields:
        a Tick for each cell; its fact is the cell's line.

    Raises:
        InputError: another run is at work in `folder`; there is no such cluster.
    """
    if cluster:
        refuse_absent(cluster)
    with locked(folder / "run.lock", wait=False):
        log, workshop = folder / "cells.jsonl", Workshop((folder / "workshop").resolve())
        whole = lines(log, CELL)
        if torn(log, CELL):
            rewrite(log, whole)
        have = {line["cell"] for line in whole if "measures" in line}
        left = [cell for cell in todo if cell.spec.name not in have]
        done = len(todo) - len(left)
        yield Tick(done=done, total=len(todo))
        if not left:
            return
        side = min(jobs or (1 if device() == "cuda" else cores()), len(left))
        for line in on_ray(cluster, workshop, left) if cluster else side_by_side(side, workshop, left):
            append(log, line)
            done += 1
            yield Tick(done=done, total=len(todo), fact=line)


def side_by_side(jobs: int, workshop: Workshop, left: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """The lines of the cells, by processes of this machine; one whose process died twice says so."""
    with Workers(workshop, jobs) as workers:
        for place, line in workers.map(measured, left):
            if isinstance(line, LostWorkerError):
                spec = left[place].spec
                line = {"cell": spec.name, "spec": asdict(spec), "error": str(line), "seconds": 0.0}
            yield line


def on_ray(address: str, workshop: Workshop, left: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """The lines of the cells, by the workers of a Ray cluster; one that dies loses no more than its own cell's work.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address, or it wants a token.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--cluster needs Ray: pip install 'miscue[cluster]'") from None
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ray.exceptions.RayError) as error:
        if address == "auto":
            raise InputError(f"no Ray cluster to be found from here: {error}") from None
        hint = "if it wants a token, as one of `ray start` may, set RAY_AUTH_MODE=token here too"
        raise InputError(f"the Ray cluster at {address} does not take us in ({error}); {hint}") from None
    try:
        gpu = 1 / SHARING if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(max_retries=2, num_gpus=gpu)(measured)
        waiting = {remote.remote(workshop, cell): cell for cell in left}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            cell = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                line = {"cell": cell.spec.name, "spec": asdict(cell.spec), "seconds": 0.0}
                yield line | {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    finally:
        ray.shutdown()


def refuse_absent(address: str, *, patience: float = 5.0) -> None:
    """Raise an InputError where nothing listens at HOST:PORT or ray://HOST:PORT, or what does speaks no gRPC.

    Ray itself would try for minutes.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("local", "auto"):
        return
    if not colon or not port.isdigit():
        raise InputError(f"--cluster takes HOST:PORT, ray://HOST:PORT, auto or local, got {address!r}")
    try:
        with socket.create_connection((host, int(port)), timeout=patience) as line:
            line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
            answer = b"" if "RAY_USE_TLS" in os.environ else line.recv(len(SETTINGS))
    except OSError as error:
        raise InputError(f"no Ray cluster at {address}: {error}") from None
    if "RAY_USE_TLS" not in os.environ and answer[3:4] != SETTINGS[3:4]:
        raise InputError(f"no Ray cluster at {address}: what listens there is something else")


def summed(todo: Sequence[Cell], folder: Path, command: str) -> list[dict[str, Any]]:
    """Record lines (fields as in results/): the mean, standard deviation and n of each row's cells that are done.

    The smallest scale, on other data and with tiny settings, has nothing to do with the published figures.

    command: what was asked for.
    """
    cells = lines(folder / "cells.jsonl", CELL)
    have, failed = {line["cell"]: line for line in cells if "measures" in line}, failures(cells)
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in todo:
        rows.setdefault((cell.spec.table, repr(cell.spec.row)), []).append(cell)
    found = []
    for (table, _), members in rows.items():
        names = [cell.spec.name for cell in members]
        done = [have[name] for name in names if name in have]
        reasons = [failed[name]["error"] for name in names if name in failed]
        for measure in dict.fromkeys(name for line in done for name in line["measures"]):
            values = [line["measures"][measure] for line in done if measure in line["measures"]]
            values = [value for value in values if math.isfinite(value)]
            if not values:
                continue
            row = members[0].row
            published = None if members[0].spec.scale == "smoke" else row.published.get(measure)
            told = row.note if published is not None or not row.published else ""
            found.append(
                {
                    "table": table,
                    "row": members[0].spec.row,
                    "measure": measure,
                    "published": published,
                    "mean": round(statistics.fmean(values), 4),
                    "std": round(statistics.stdev(values), 4) if len(values) > 1 else None,
                    "n": len(values),
                    "scale": members[0].spec.scale,
                    "data": members[0].spec.row.get("data"),
                    "seconds": sum(line["seconds"] for line in done),
                    "device": every(done, "device"),
                    "commit": every(done, "commit"),
                    "command": command,
                    "note": noted(told, missing=len(members) - len(done) - len(reasons), reasons=reasons),
                }
            )
    return found


def every(done: Sequence[dict[str, Any]], fact: str) -> str | None:
    """What the lines of cells say of a fact, each word once."""
    return ", ".join(dict.fromkeys(str(line[fact]) for line in done if line.get(fact))) or None


def failures(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last line of each cell that failed whenever it was tried, by its name."""
    done = {line["cell"] for line in cells if "measures" in line}
    return {line["cell"]: line for line in cells if "error" in line and line["cell"] not in done}


def noted(note: str, *, missing: int, reasons: Sequence[str]) -> str | None:
    """What a record says beside its numbers."""
    parts = [note, f"{missing} cells are missing" if missing else ""]
    parts.append(f"{len(reasons)} cells failed: {reasons[0]}" if reasons else "")
    return "; ".join(filter(None, parts)) or None


def standing(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last record of each measure of a row at a scale, in the order in which these were written."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        own = json.dumps([record[key] for key in ("table", "row", "scale", "measure")], sort_keys=True)
        found.pop(own, None)
        found[own] = record
    return list(found.values())
