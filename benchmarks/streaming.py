"""The memory that copying and crafting take for 1,000, 10,000 and 100,000 images of 32 x 32.

    python benchmarks/streaming.py [--record] [--sizes 1000,10000]

Each job runs in a fresh process, which looks every few milliseconds at its anonymous memory, that is all but mapped
files, whose pages the kernel takes back when it needs them. The C library is told to give back what is free. The ratio
is the peak against that of the smallest set, the imports' 150 MiB included. The images would take 3 KiB each. What is
left to grow: the names of the images of a class while a folder is copied; when crafting, names and labels of all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import record
from miscue.copies import Copy
from miscue.dice import Dice
from miscue.marks import Generated
from miscue.memory import anonymous
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.perturbation import Perturbation
from miscue.poisons import Attacker, deepconfuse
from miscue.readers import read
from miscue.room import Room
from miscue.train import Recipe

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # of the C library
SIDE, CLASSES, SHARD, STEPS = 32, 10, 1000, 20


def folder(root: Path, count: int) -> Path:
    """`count` pictures of noise below one folder for each class."""
    dice = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class {label}").mkdir(parents=True)
        for number in range(count // CLASSES):
            pixels = dice.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"class {label}" / f"{number}.png", compress_level=1)
    return root


def shards(root: Path, count: int) -> Path:
    """The same in npz files of `SHARD` images."""
    dice = np.random.default_rng(0)
    root.mkdir(parents=True)
    for number in range(count // SHARD):
        labels = np.arange(SHARD) % CLASSES
        images = dice.integers(0, 256, (SHARD, SIDE, SIDE, 3), np.uint8)
        np.savez(root / f"train-{number}.npz", x_train=images, y_train=labels)
    return root


def copy(source: Path, kind: str) -> None:
    """Poison all images by an untrained generator."""
    plan = Plan(name="encoder-decoder", shape=(3, SIDE, SIDE), options={"eps": 0.03})
    perturbation = Perturbation(mark=Generated(generator=placed(build(plan, Dice(0)), "cpu"), plan=plan), eps=0.03)
    for _ in Copy(perturbation=perturbation, source=source, kind=kind).making(source.parent / "copy", {}):
        pass


def craft(source: Path) -> None:
    """Unpack the images, then a trial of a few steps, with the judgement of its surrogate on a tenth of the images."""
    data = read(source, room=Room(folder=source.parent / "images", memory=0)).train
    attacker = Attacker(surrogate="cnn-small", recipe=Recipe(lr=0.01, batch_size=64))
    for _ in islice(deepconfuse.steps(data, attacker, trials=1, steps=STEPS, alpha=0.1), STEPS + 1):
        pass


MAKERS = {"copy a folder": folder, "copy npz shards": shards, "craft from a folder": folder}
JOBS = {
    "copy a folder": lambda source: copy(source, "folder"),
    "copy npz shards": lambda source: copy(source, "npz"),
    "craft from a folder": craft,
}


@contextmanager
def watched() -> Iterator[list[int]]:
    """A list whose one entry becomes the peak of anonymous memory during the block, in bytes."""
    peak, over = [anonymous()], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def one(job: str, source: Path) -> None:
    """Do a job in this process, and print what it took."""
    torch.set_num_threads(1)
    with watched() as peak:
        JOBS[job](source)
    print(json.dumps({"peak": peak[0] / 2**20}))


def main() -> None:
    """All jobs on sets of all sizes, the smallest first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--one", nargs=2, metavar=("JOB", "SOURCE"))
    asked = parser.parse_known_args()[0]
    if asked.one:
        one(asked.one[0], Path(asked.one[1]))
        return
    for job, make in MAKERS.items():
        base = 0.0
        for count in map(int, asked.sizes.split(",")):
            with tempfile.TemporaryDirectory() as place:
                source = make(Path(place) / "source", count)
                command = [sys.executable, __file__, "--one", job, str(source)]
                environment = os.environ | GIVEN_BACK
                done = json.loads(
                    subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
                )
            base = base or done["peak"]
            held = count * 3 * SIDE**2 / 2**20
            note = f"peak of anonymous memory {done['peak']:.0f} MiB, {done['peak'] - base:.1f} more; "
            note += f"the images are {held:.0f} MiB"
            row: dict[str, object] = {"benchmark": "streaming", "job": job, "images": count}
            record(row, "ratio", done["peak"] / base, 0, 1, note=note, data="noise, 32 x 32")


if __name__ == "__main__":
    main()
