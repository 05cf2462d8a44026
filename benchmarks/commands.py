"""How long commands take that every user meets: to start, and to measure all tables at the smallest scale.

    python benchmarks/commands.py [--record] [--rounds 5] [--smoke]

Starts are seconds of a fresh process, beside one that imports torch and no more, in turns. With --smoke also
`miscue reproduce --scale smoke` in a fresh folder, once, with its default of jobs: the goal is 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

from common import interleaved, ratio, record
from miscue.workers import cores

STARTS = {"help": ["--help"], "a method's help": ["poison", "deepconfuse", "--help"], "list": ["reproduce", "--list"]}


def ran(words: Sequence[str]) -> None:
    """A process of Python to its end."""
    subprocess.run([sys.executable, *words], check=True, capture_output=True)


def main() -> None:
    """Time them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    cases: dict[str, Callable[[], object]] = {"import torch": partial(ran, ["-c", "import torch"])}
    cases |= {name: partial(ran, ["-m", "miscue", *words]) for name, words in STARTS.items()}
    times = interleaved(cases, rounds=given.rounds, warm=1)
    for name in STARTS:
        note = f"seconds of a fresh process over one that imports torch alone, {min(times[name]):.1f} s at best"
        row: dict[str, object] = {"benchmark": "commands", "start": name}
        record(row, "ratio", *ratio(times, name, "import torch"), given.rounds, note=note, data="none")
    if given.smoke:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            ran(["-m", "miscue", "reproduce", "--scale", "smoke", "--out", folder])
            minutes = (time.perf_counter() - started) / 60
        row = {"benchmark": "commands", "run": "reproduce --scale smoke", "cores": cores()}
        record(row, "minutes", minutes, 0.0, 1, note="all tables; the goal is 5 minutes on two cores", data="digits")


if __name__ == "__main__":
    main()
