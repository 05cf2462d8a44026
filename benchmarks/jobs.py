"""How many cells an hour the runner of tables measures: by one job, by two, and on Ray; and what a cell costs besides.

    MISCUE_DATA=DIR python benchmarks/jobs.py [--record] [--cells 8] [--rounds 3] [--empty 200] [--ray]

A cell trains the small network for one pass over MNIST and scores it. Ratios are cells in the same time over those of
one job of one thread, workers started anew in each case, as a run starts them. Beside them two bare processes that
share the cells and have no runner: what the machine itself gives. Overhead: seconds from one cell which measures
nothing to the next. With --ray also on clusters of Ray that have one processor, or two.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

from common import interleaved, ratio, record
from miscue.reproduce import Cell, run
from miscue.spec import Spec
from miscue.tables.poisoned import evaluated
from miscue.tables.rows import Row, Workshop
from miscue.workers import starting

SETTINGS = {"data": "mnist", "poison": None, "victim": "cnn-small", "victim_epochs": 1}


def nothing(row: dict[str, Any], seed: int, workshop: Workshop) -> dict[str, float]:
    """A cell that takes no time."""
    return {"seed": float(seed)}


def cells(count: int, row: Row) -> list[Cell]:
    """So many cells of a row."""
    return [Cell(spec=Spec(table="jobs", row=row.settings, scale="laptop", seed=s), row=row) for s in range(count)]


def anew() -> None:
    """Forget what was imported for workers before: a command imports once, the rounds here must, too."""
    forkserver._forkserver._stop()


def measured(todo: list[Cell], *, threads: int = 1, **where: Any) -> None:
    """All cells in a fresh folder."""
    torch.set_num_threads(threads)
    anew()
    with tempfile.TemporaryDirectory() as folder:
        lines = [tick.fact for tick in run(todo, Path(folder), **where) if tick.fact]
    assert len(lines) == len(todo)
    assert all("measures" in line for line in lines), lines[0]


def bare(count: int, processes: int) -> None:
    """So many cells, shared by processes of one thread each that know nothing of a runner."""
    anew()
    team = [starting().Process(target=alone, args=(range(first, count, processes),)) for first in range(processes)]
    for process in team:
        process.start()
    for process in team:
        process.join()
    assert not any(process.exitcode for process in team)


def alone(seeds: range) -> None:
    """The cells of some seeds in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            evaluated(SETTINGS, seed, Workshop(Path(folder)))


@contextmanager
def cluster(processors: int) -> Iterator[str]:
    """The address of a Ray cluster of this machine with so many processors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of all clusters: this process reads it once
    words = f"start --head --num-cpus {processors} --port {port} --include-dashboard false --disable-usage-stats"
    subprocess.run([ray, *words.split()], check=True, capture_output=True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([ray, "stop", "--force"], check=True, capture_output=True)


def main() -> None:
    """Time the cases in turn, on Ray by themselves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--empty", type=int, default=200)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    todo = cells(asked.cells, Row(settings=SETTINGS, measure=evaluated))
    empty = cells(asked.empty, Row(settings={}, measure=nothing))
    usual: dict[str, Callable[[], object]] = {
        "1 job, 1 thread": lambda: measured(todo, jobs=1),
        "1 job, 2 threads": lambda: measured(todo, jobs=1, threads=2),
        "2 jobs, 1 thread each": lambda: measured(todo, jobs=2),
        "2 processes, no runner": lambda: bare(len(todo), 2),
    }
    times = interleaved(usual, rounds=asked.rounds, warm=0)
    base = times["1 job, 1 thread"]
    for name, taken in times.items():
        note(name, base, taken, asked.cells)
    cost(empty, "2 jobs, 1 thread each", jobs=2)
    for processors in (1, 2) if asked.ray else ():
        name = "Ray, 1 worker" if processors == 1 else f"Ray, {processors} workers"
        with cluster(processors) as address:
            there = {name: lambda at=address: measured(todo, cluster=at)}
            note(name, base, interleaved(there, rounds=asked.rounds, warm=0)[name], asked.cells)
            cost(empty, name, cluster=address)


def note(name: str, base: list[float], taken: list[float], count: int) -> None:
    """Record a way's cells over those of one job in the same time."""
    middle, spread = ratio({"a": base, "b": taken}, "a", "b")
    row = {"benchmark": "cells of tables", "way": name, "over": "1 job, 1 thread"}
    record(row, "ratio", middle, spread, len(taken), note=f"{3600 * count / min(taken):.0f} cells an hour at best")


def cost(empty: list[Cell], name: str, **where: Any) -> None:
    """Record what a cell that measures nothing takes."""
    row = {"benchmark": "cells of tables", "way": name}
    seconds = overhead(empty, **where)
    record(row, "overhead, seconds a cell", seconds, 0.0, len(empty), note="cells that measure nothing")


def overhead(empty: list[Cell], **where: Any) -> float:
    """Seconds from one cell that measures nothing to the next, from the first that is done to the last."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        done = [time.perf_counter() for tick in run(empty, Path(folder), **where) if tick.fact]
    assert len(done) == len(empty)
    return (done[-1] - done[0]) / (len(done) - 1)


if __name__ == "__main__":
    main()
