"""How much of a candidate's fitness is its pixels and how much its seed, by the length of its training.

    MISCUE_DATA=../shared/data python benchmarks/single_pixel_fits.py [--record] [--data mnist]

Some random candidates as in a search, each trained under several seeds on so many training images, once over them. The
spread between candidates (of their means) is what a search can use, the spread between seeds is what it must average
away. Only training images are used.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from common import RESULTS, line
from miscue.dice import Dice
from miscue.poisons import PRESETS, Attacker
from miscue.poisons.places import Space, outside, scattered, visibility
from miscue.poisons.single_pixel import gaps, parts
from miscue.population import Member, population
from miscue.readers import read
from miscue.run import append
from miscue.victims import Victim

PRESET = PRESETS["single-pixel"]["paper"]
VICTIM = Victim(network=PRESET.surrogate, recipe=PRESET.recipe)
LENGTHS, CANDIDATES, SEEDS = (16_000, 58_000), 8, 3


def main() -> None:
    """Train every candidate at every length under every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    data = read(asked.data).train
    attacker = Attacker(surrogate=PRESET.surrogate, recipe=PRESET.recipe, dice=Dice(0))
    everywhere = outside(torch.zeros(len(data.classes), *data.shape[1:]), 0.0)
    space = Space(nearest=everywhere, channels=data.shape[0])
    marks = scattered(space, visibility(VICTIM, data, attacker), CANDIDATES, Dice(1))
    members = [Member(victim=VICTIM, dice=Dice(100 + seed), mark=mark) for mark in marks for seed in range(SEEDS)]
    for images in LENGTHS:
        train, kept = parts(data, images, 2000, Dice(0))
        started = time.monotonic()
        with population(train, kept) as fit_many:
            found = dict(fit_many(members, then=gaps))
        each = [[float(found[SEEDS * k + seed].mean()) for seed in range(SEEDS)] for k in range(CANDIDATES)]
        between = statistics.stdev(map(statistics.mean, each))
        within = statistics.mean(statistics.variance(seeds) for seeds in each) ** 0.5
        row = {"benchmark": "single-pixel fits", "images": images, "network": VICTIM.network}
        steps = images // VICTIM.recipe.batch_size
        for measure, value in (("between_candidates", between), ("between_seeds", within)):
            record = line(
                "benchmarks",
                row,
                measure,
                [value],
                data=f"{asked.data}, training images only",
                seconds=time.monotonic() - started,
                command="python benchmarks/single_pixel_fits.py",
                note=f"points of the gap, {CANDIDATES} candidates, {SEEDS} seeds, {steps} steps each",
            )
            print(row, measure, record["mean"], flush=True)
            if asked.record:
                append(RESULTS / "benchmarks.jsonl", record)


if __name__ == "__main__":
    main()
