"""The recipe of the road signs' network, chosen by clean accuracy on held-out tracks of the training images alone.

    MISCUE_DATA=DIR python benchmarks/tune_signs.py [--seeds N] [--jobs N] [--only A,B] [--record]

A track is one sign filmed from a car, 30 frames that are nearly the same: held out are the last fifth of each class's
images in the order of the tracks, so that no sign is seen in training. No test image has a part in it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

from common import RESULTS, line
from miscue.data import Data
from miscue.dice import Dice
from miscue.measures.accuracy import accuracy
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.readers import read
from miscue.run import append
from miscue.tables.nets import PLAIN
from miscue.tables.poisoned import device
from miscue.train import Recipe, fitting
from miscue.workers import Workers

BASE = PLAIN["gtsrb"].recipe
STAGED = replace(BASE, scenes=0.5)
CANDIDATES: dict[str, tuple[str, Recipe]] = {
    "as it was": ("conv5", BASE),
    "shift 3": ("conv5", replace(BASE, shift=3)),
    "shift 4": ("conv5", replace(BASE, shift=4)),
    "80 epochs": ("conv5", replace(BASE, epochs=80)),
    "batch 64": ("conv5", replace(BASE, batch_size=64)),
    "rate 0.1": ("conv5", replace(BASE, lr=0.1)),
    "decay 0.002": ("conv5", replace(BASE, weight_decay=2e-3)),
    "holes": ("conv5", replace(BASE, holes=1, hole=7)),
    "adam": ("conv5", replace(BASE, optimizer="adam", lr=3e-3, weight_decay=0.0)),
    "scenes": ("conv5", STAGED),
    "scenes, all": ("conv5", replace(BASE, scenes=1.0)),
    "scenes, decay 0.002": ("conv5", replace(STAGED, weight_decay=2e-3)),
    "scenes, decay 0.005": ("conv5", replace(STAGED, weight_decay=5e-3)),
    "scenes, decay 0.01": ("conv5", replace(STAGED, weight_decay=1e-2)),
    "scenes, all, decay 0.005": ("conv5", replace(STAGED, scenes=1.0, weight_decay=5e-3)),
    "scenes, 80 epochs, decay 0.005": ("conv5", replace(STAGED, epochs=80, weight_decay=5e-3)),
    "alexnet": ("alexnet", BASE),
    "alexnet, scenes": ("alexnet", STAGED),
    "wide": ("conv5-wide", BASE),
    "wide, scenes": ("conv5-wide", STAGED),
    "wide, scenes, decay 0.002": ("conv5-wide", replace(STAGED, weight_decay=2e-3)),
}
"""name -> (network, recipe)."""


def tracks_apart(data: Data) -> tuple[Data, Data]:
    """(rest, held out): of each class's images, which lie in the order of their tracks, the last fifth."""
    place = torch.zeros_like(data.labels)
    for label in range(len(data.classes)):
        own = data.labels == label
        place[own] = torch.arange(int(own.sum())) * 5 // int(own.sum())
    return data.take((place < 4).nonzero()[:, 0]), data.take((place == 4).nonzero()[:, 0])


def tried(sets: tuple[Data, Data], job: tuple[str, int]) -> float:
    """The error on held-out tracks of a candidate's network under a seed, in percent."""
    name, seed = job
    network, recipe = CANDIDATES[name]
    train, kept = (one.to(device()) for one in sets)
    plan = Plan(name=network, shape=train.shape, options={"classes": len(train.classes)})
    model = placed(build(plan, Dice(seed)), device())
    for _ in fitting(model, train, recipe, Dice(seed).named("training")):
        pass
    return 100 - accuracy(model, kept)


def main() -> None:
    """Train all candidates under all seeds; print and record each once all its seeds are known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="names of candidates, with / between")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    names = [name for name in asked.only.split("/") if name] or list(CANDIDATES)
    todo = [(name, seed) for name in names for seed in range(asked.seeds)]
    found: dict[str, list[float]] = {name: [] for name in names}
    started = time.monotonic()
    with Workers(tracks_apart(read("gtsrb").train), asked.jobs) as workers:
        for place, error in workers.map(tried, todo):
            name = todo[place][0]
            found[name].append(error)
            if len(found[name]) < asked.seeds:
                continue
            network, recipe = CANDIDATES[name]
            row = {"data": "gtsrb", "network": network, "recipe": name, "epochs": recipe.epochs, "lr": recipe.lr}
            row |= {"batch_size": recipe.batch_size, "weight_decay": recipe.weight_decay, "shift": recipe.shift}
            made = line(
                "victims",
                row | {"scenes": recipe.scenes},
                "held_out_error",
                found[name],
                data="gtsrb, training images only",
                seconds=time.monotonic() - started,
                command=f"python benchmarks/tune_signs.py --seeds {asked.seeds} --only '{name}'",
                note="clean images of held-out tracks; seconds since the first training",
                device=device(),
            )
            print(f"{name:32} {made['mean']:6.2f} +- {made['std'] or 0:.2f} %", flush=True)
            if asked.record:
                append(RESULTS / "victims.jsonl", made)


if __name__ == "__main__":
    main()
