"""Interleaved timing in one run, and records of the ratios."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from miscue.memory import keep_freed_memory
from miscue.run import append, commit, device_name

Measures = dict[str, float]
"""Measure -> value for one seed. "kept blur 0.5" is the measure "kept" of the row with that distortion and strength."""
Row = tuple[dict[str, object], Callable[[int], Measures]]
"""What a row is of, and its measures for a seed."""

RESULTS = Path(__file__).parent.parent / "results"


def interleaved(cases: dict[str, Callable[[], object]], *, rounds: int, warm: int = 3) -> dict[str, list[float]]:
    """Seconds of each case in each round; cases take turns, so that a busy machine slows all of them alike."""
    for _ in range(warm):
        for case in cases.values():
            case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            started = time.perf_counter()
            case()
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
) -> dict:
    """A record of the mean and spread of `values`, measured on this machine's processor."""
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
        "device": device_name("cpu"),
        "commit": commit(),
        "command": command,
        "note": note,
    }


def record(row: dict[str, object], measure: str, mean: float, spread: float, n: int, *, note: str) -> None:
    """Print a row, and add it to results/benchmarks.jsonl where --record is given."""
    print(f"{row} {measure} {mean:.3f} +- {spread:.3f} ({n} rounds)  {note}")
    if "--record" in sys.argv:
        line = {"table": "benchmarks", "row": row, "measure": measure, "published": None, "mean": round(mean, 4)}
        line |= {"std": round(spread, 4), "n": n, "scale": "laptop", "data": "mnist", "seconds": None}
        line |= {
            "device": device_name("cpu"),
            "commit": commit(),
            "command": f"python {' '.join(sys.argv)}",
            "note": note,
        }
        append(RESULTS / "benchmarks.jsonl", json.loads(json.dumps(line)))


def measure_rows(rows: Iterable[tuple[str, Row]], table: str, about: str, *, data: Mapping[str, str]) -> None:
    """The command line of a table's script: measure the rows whose name begins as --only says, one network a seed.

    rows: (name, row); `row["data"]` is a key of `data`, which says what the set is.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name begins with one of these, with commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(asked.threads)
    for name, (row, measured) in rows:
        if not name.startswith(tuple(asked.only.split(","))):
            continue
        started = time.monotonic()
        found = [measured(seed) for seed in range(asked.seeds)]
        for measure in found[0]:
            values = [one[measure] for one in found if not math.isnan(one.get(measure, math.nan))]
            if not values:
                continue
            kind, _, rest = measure.partition(" ")
            distortion, _, strength = rest.partition(" ")
            more: dict[str, object] = {"distortion": distortion, "strength": float(strength)} if rest else {}
            record = line(
                table,
                row | more,
                kind,
                values,
                data=data[str(row["data"])],
                seconds=time.monotonic() - started,
                command=f"python {Path(sys.argv[0]).as_posix()} --only {name} --seeds {asked.seeds}",
                note="one network a seed",
            )
            print(f"{record['row']} {kind} {record['mean']:.2f} +- {record['std'] or 0:.2f}", flush=True)
            if asked.record:
                append(RESULTS / f"{table}.jsonl", record)
