"""Interleaved timing in one run, and records of the ratios."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from miscue.run import append, commit, device_name
from miscue.tables.poisoned import device as here

RESULTS = Path(__file__).parent.parent / "results"


def done(case: Callable[[], object]) -> None:
    """Run a case to its end, on a GPU too."""
    case()
    if here() == "cuda":
        torch.cuda.synchronize()


def interleaved(cases: dict[str, Callable[[], object]], *, rounds: int, warm: int = 3) -> dict[str, list[float]]:
    """Seconds of each case in each round; cases take turns, so that a busy machine slows all of them alike."""
    for _ in range(warm):
        for case in cases.values():
            done(case)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            started = time.perf_counter()
            done(case)
            times[name].append(time.perf_counter() - started)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> tuple[float, float]:
    """Median of the rounds' ratios and half the distance of their quartiles."""
    ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, (high - low) / 2


def line(
    table: str,
    row: dict[str, object],
    measure: str,
    values: Sequence[float],
    *,
    data: str,
    seconds: float,
    command: str,
    note: str,
    device: str = "cpu",
) -> dict:
    """A record of the mean and spread of `values`, measured on a device of this machine."""
    return {
        "table": table,
        "row": row,
        "measure": measure,
        "published": None,
        "mean": round(statistics.mean(values), 3),
        "std": round(statistics.stdev(values), 3) if len(values) > 1 else None,
        "n": len(values),
        "scale": "laptop",
        "data": data,
        "seconds": round(seconds, 1),
        "device": device_name(device),
        "commit": commit(),
        "command": command,
        "note": note,
    }


def record(
    row: dict[str, object],
    measure: str,
    mean: float,
    spread: float,
    n: int,
    *,
    note: str,
    data: str = "mnist",
    device: str = "cpu",
) -> None:
    """Print a row, and add it to results/benchmarks.jsonl where --record is given."""
    print(f"{row} {measure} {mean:.3f} +- {spread:.3f} ({n} rounds)  {note}")
    if "--record" in sys.argv:
        line = {"table": "benchmarks", "row": row, "measure": measure, "published": None, "mean": round(mean, 4)}
        line |= {"std": round(spread, 4) if n > 1 else None, "n": n, "scale": "laptop", "data": data, "seconds": None}
        line |= {
            "device": device_name(device),
            "commit": commit(),
            "command": f"python {' '.join(sys.argv)}",
            "note": note,
        }
        append(RESULTS / "benchmarks.jsonl", json.loads(json.dumps(line)))
