"""What the open choices of the single-pixel search are worth, at one budget of candidates.

    MISCUE_DATA=../shared/data python benchmarks/ablate_single_pixel.py [--record] [--data mnist] [NAME ...]

Each setting searches with 160 candidates (or what its name says), then its pixels, like those of the baselines, are
judged under five fresh seeds by the gap of the search's own victim: accuracy on poisoned training images less that on
clean held-out ones, in percentage points. Only training images are used.
"""

from __future__ import annotations

import argparse
import statistics
import time

from common import RESULTS
from miscue.data import Data
from miscue.dice import Dice
from miscue.poisons import POISONS, PRESETS, Attacker
from miscue.poisons.single_pixel import gap, parts
from miscue.population import Member, population
from miscue.readers import read
from miscue.run import append, commit, device_name
from miscue.victims import Victim

PRESET = PRESETS["single_pixel"]["paper"]
VICTIM = Victim(network=PRESET.surrogate, recipe=PRESET.recipe)
IMAGES, HELD_OUT, SEEDS = 6000, 2000, 5
BASE = {"generations": 8, "candidates": 20}

SETTINGS: dict[str, tuple[str, dict]] = {
    "random_pixel": ("random_pixel", {}),
    "border_pixel": ("border_pixel", {}),
    "one_pixel_shortcut": ("one_pixel_shortcut", {}),
    "base": ("single_pixel", BASE),
    "no region of interest": ("single_pixel", BASE | {"interest": 0.0}),
    "larger region of interest": ("single_pixel", BASE | {"interest": 0.5}),
    "divergence term": ("single_pixel", BASE | {"divergence": 20.0}),
    "start from one_pixel_shortcut": ("single_pixel", BASE | {"start": "shortcut"}),
    "the same, sigma 0.1": ("single_pixel", BASE | {"start": "shortcut", "sigma": 0.1}),
    "16 generations of 10": ("single_pixel", BASE | {"generations": 16, "candidates": 10}),
    "4 generations of 40": ("single_pixel", BASE | {"generations": 4, "candidates": 40}),
    "24 generations of 20": ("single_pixel", BASE | {"generations": 24}),
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
        gaps = list(dict(fit_many(members, then=gap)).values())
    return {
        "table": "single-pixel-ablation",
        "row": {"setting": name, "method": method, **options, "network": VICTIM.network},
        "measure": "gap",
        "published": None,
        "mean": round(statistics.mean(gaps), 2),
        "std": round(statistics.stdev(gaps), 2),
        "n": SEEDS,
        "scale": "laptop",
        "data": f"{label}, {IMAGES} training images, {HELD_OUT} held out",
        "seconds": round(seconds, 1),
        "device": device_name("cpu"),
        "commit": commit(),
        "command": "python benchmarks/ablate_single_pixel.py",
        "note": "; ".join(f"{key} {value:.1f}" for key, value in last.measures.items()),
    }


def main() -> None:
    """Try the named settings, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SETTINGS))
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    data = read(asked.data).train
    for name in asked.names:
        line = tried(name, data, asked.data)
        print(
            f"{name:32} {line['mean']:6.2f} +- {line['std']:.2f}  {line['seconds']:5.0f} s  {line['note']}", flush=True
        )
        if asked.record:
            append(RESULTS / "single-pixel-ablation.jsonl", line)


if __name__ == "__main__":
    main()
