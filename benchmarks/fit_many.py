"""Training 8 victims at once against 8 separate fits, in one run.

    MISCUE_DATA=../shared/data python benchmarks/fit_many.py [--record] [--only cnn] [--rounds 5]

Separate fits are taken at their best: one after another with one thread, or with as many as there are. The ratio is
their time over that of `fit_many`, so that more than 1 is a gain. On a GPU `fit_many` is the batched program, and
separate fits are made there too, one after another.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from common import interleaved, record
from miscue.data import Data
from miscue.dice import Dice
from miscue.population import Member, population, stacked_fits
from miscue.readers import read
from miscue.tables.poisoned import device as here
from miscue.train import Recipe
from miscue.victims import Victim
from miscue.workers import cores

MEMBERS, IMAGES = 8, 6400
NETWORKS = ("cnn-plain", "cnn")


def main() -> None:
    """Time every way in turn, workers started beforehand as in a search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    device = here()
    data = read("mnist").train.take(slice(0, IMAGES)).to(device)
    for network in asked.only.split(","):
        victim = Victim(network=network, recipe=Recipe(optimizer="adam", lr=1e-3, epochs=1, batch_size=128))
        members = [Member(victim=victim, dice=Dice(seed)) for seed in range(MEMBERS)]
        with population(data, device=device) as fit_many:
            cases = {
                "fit_many": lambda members=members, fit=fit_many: list(fit(members)),
                "one thread": lambda members=members: separate(data, members, 1, device),
            }
            if device == "cpu":
                cases |= {
                    "all threads": lambda members=members: separate(data, members, cores(), device),
                    "stacked": lambda members=members: stacked(data, members),
                }
            times = interleaved(cases, rounds=asked.rounds, warm=1)
        ways = [name for name in cases if name not in ("fit_many", "stacked")]
        for name in ("fit_many", "stacked") if device == "cpu" else ("fit_many",):
            ratios = [min(times[w][i] for w in ways) / times[name][i] for i in range(asked.rounds)]
            row = {"benchmark": "fit_many of 8", "way": name, "network": network, "device": device, "images": IMAGES}
            best = min(ways, key=lambda w: statistics.median(times[w]))
            rate, took = MEMBERS * IMAGES / min(times[name]), min(times[best])
            note = f"against separate fits with {best}, {took:.2f} s at best; {rate:.0f} images a second at best"
            spread = (max(ratios) - min(ratios)) / 2
            record(row, "ratio", statistics.median(ratios), spread, asked.rounds, note=note, device=device)


def separate(data: Data, members: list[Member], threads: int, device: str) -> None:
    """One fit after another."""
    torch.set_num_threads(threads)
    for member in members:
        member.victim(data, member.dice, device=device)


def stacked(data: Data, members: list[Member]) -> None:
    """The batched program, with as many threads as there are."""
    torch.set_num_threads(cores())
    list(stacked_fits((data,), members))


if __name__ == "__main__":
    main()
