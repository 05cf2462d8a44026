"""What the open choices of the single-pixel search are worth, at one budget of candidates.

    MISCUE_DATA=../shared/data python benchmarks/ablate_single_pixel.py [--record] [--data mnist] [NAME ...]

Each setting searches with about 30 candidates (or what its name says), trained on 16,000 images, then its pixels, like
those of the baselines, are judged under five fresh seeds by the gap of the search's own victim: accuracy on poisoned
training images less that on clean held-out ones, in percentage points. Only training images are used.
"""

from __future__ import annotations

import argparse
import time

from common import RESULTS, line
from miscue.data import Data
from miscue.dice import Dice
from miscue.poisons import POISONS, PRESETS, Attacker
from miscue.poisons.single_pixel import gaps, parts
from miscue.population import Member, population
from miscue.readers import read
from miscue.run import append
from miscue.victims import Victim

PRESET = PRESETS["single-pixel"]["paper"]
VICTIM = Victim(network=PRESET.surrogate, recipe=PRESET.recipe)
IMAGES, HELD_OUT, SEEDS = 16000, 2000, 5
BASE = {"generations": 2, "first_candidates": 12, "images": IMAGES}

SETTINGS: dict[str, tuple[str, dict]] = {
    "random pixel": ("random-pixel", {}),
    "border pixel": ("border-pixel", {}),
    "one-pixel shortcut": ("one-pixel-shortcut", {}),
    "base": ("single-pixel", BASE),
    "no region of interest": ("single-pixel", BASE | {"interest": 0.0}),
    "larger region of interest": ("single-pixel", BASE | {"interest": 0.75}),
    "divergence term": ("single-pixel", BASE | {"divergence": 20.0}),
    "start from the shortcut": ("single-pixel", BASE | {"start": "shortcut"}),
    "one search for all classes": ("single-pixel", BASE | {"joint": True, "candidates": 7}),
    "sigma 0.15": ("single-pixel", BASE | {"sigma": 0.15}),
    "4 generations of 4": ("single-pixel", BASE | {"generations": 4, "candidates": 4}),
    "random candidates, one generation": (
        "single-pixel",
        BASE | {"generations": 1, "candidates": 4, "first_candidates": 20},
    ),
}


def tried(name: str, data: Data, label: str) -> dict:
    """The record of a setting."""
    method, options = SETTINGS[name]
    attacker = Attacker(surrogate=PRESET.surrogate, recipe=PRESET.recipe, dice=Dice(0))
    started = time.monotonic()
    last = [step.checkpoint for step in POISONS[method].steps(data, attacker, **options) if step.checkpoint][-1]
    seconds = time.monotonic() - started
    train, kept = parts(data, IMAGES, HELD_OUT, Dice(1))
    members = [Member(victim=VICTIM, dice=Dice(100 + seed), mark=last.perturbation.mark) for seed in range(SEEDS)]
    with population(train, kept) as fit_many:
        found = [float(parts_of.mean()) for parts_of in dict(fit_many(members, then=gaps)).values()]
    return line(
        "single-pixel-ablation",
        {"setting": name, "method": method, **options, "network": VICTIM.network},
        "gap",
        found,
        data=f"{label}, {IMAGES} training images, {HELD_OUT} held out",
        seconds=seconds,
        command="python benchmarks/ablate_single_pixel.py",
        note="; ".join(f"{key} {value:.1f}" for key, value in last.measures.items()),
    )


def main() -> None:
    """Try the named settings, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SETTINGS))
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    data = read(asked.data).train
    for name in asked.names:
        found = tried(name, data, asked.data)
        score = f"{found['mean']:6.2f} +- {found['std']:.2f}"
        print(f"{name:32} {score}  {found['seconds']:5.0f} s  {found['note']}", flush=True)
        if asked.record:
            append(RESULTS / "single-pixel-ablation.jsonl", found)


if __name__ == "__main__":
    main()
