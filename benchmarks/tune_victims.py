"""Learning rates of the optimisers' recipes, chosen by clean accuracy on held-out training images alone.

    MISCUE_DATA=../shared/data python benchmarks/tune_victims.py [--recipes A,B] [--precision auto] \\
        [--network NAME] [--epochs N] [--seeds N] [--rates A,B] [--record] [DATA ...]

Every optimiser trains the same network for the same epochs from the same seeds at each rate of its grid. No poisoned
image and no test image has a part in it. The best rates are the ones to put into `miscue.victims.RECIPES`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from torch import nn

from common import RESULTS, line
from miscue.data import Data, hold_out
from miscue.dice import Dice
from miscue.measures.accuracy import accuracy
from miscue.population import Member, population
from miscue.readers import read
from miscue.run import append
from miscue.train import Recipe, settled
from miscue.victims import RECIPES, Victim

GRIDS: dict[str, tuple[float, ...]] = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.01, 0.03, 0.1, 0.3),
    "adam": (3e-4, 1e-3, 3e-3, 1e-2),
    "rmsprop": (3e-4, 1e-3, 3e-3, 1e-2),
    "adabound": (3e-4, 1e-3, 3e-3, 1e-2),
}


def on_held_out(model: nn.Module, member: Member, train: Data, kept: Data) -> float:
    """Accuracy on the held-out images."""
    return accuracy(model, kept)


def main() -> None:
    """Train the grid side by side; print and record each rate's mean over the seeds once it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", default=["mnist", "fashion-mnist"])
    parser.add_argument("--network", default="cnn-padded")
    parser.add_argument("--recipes", default=",".join(GRIDS))
    parser.add_argument("--epochs", type=int, default=RECIPES["adam"].epochs)
    parser.add_argument("--precision", default="float32", help="float32, bfloat16, or auto for the quicker one here")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", default="", help="only these of the grids, with commas between")
    parser.add_argument("--record", action="store_true")
    asked, command = parser.parse_args(), "python benchmarks/tune_victims.py"
    precision = settled(asked.precision, "cpu")
    rates = [float(rate) for rate in asked.rates.split(",") if rate]
    for data in asked.data:
        train, kept = hold_out(read(data).train, 0.1, Dice(0).named("tune"))
        recipes: dict[tuple[str, float], Recipe] = {
            (name, rate): replace(RECIPES[name], lr=rate, epochs=asked.epochs, precision=precision)
            for name in asked.recipes.split(",")
            for rate in GRIDS[name]
            if not rates or rate in rates
        }
        members = [
            Member(victim=Victim(network=asked.network, recipe=recipe), dice=Dice(seed))
            for recipe in recipes.values()
            for seed in range(asked.seeds)
        ]
        started, named = time.monotonic(), list(recipes)
        scores: dict[int, list[float]] = {i: [] for i in range(len(named))}
        with population(train, kept) as fit_many:
            for place, score in fit_many(members, then=on_held_out):
                some = scores[place // asked.seeds]
                some.append(100 - score)
                if len(some) < asked.seeds:
                    continue
                name, rate = named[place // asked.seeds]
                found = line(
                    "victims",
                    {"data": data, "network": asked.network, "recipe": name, "lr": rate}
                    | {"epochs": asked.epochs, "precision": precision},
                    "held_out_error",
                    some,
                    data=f"{data}, training images only",
                    seconds=time.monotonic() - started,
                    command=f"{command} {data} --network {asked.network} --epochs {asked.epochs} --recipes {name} "
                    f"--precision {precision} --seeds {asked.seeds}",
                    note="clean images; seconds since the grid began",
                )
                print(f"{data:14} {name:9} {rate:<7g} {found['mean']:6.2f} +- {found['std'] or 0:.2f} %", flush=True)
                if asked.record:
                    append(RESULTS / "victims.jsonl", found)


if __name__ == "__main__":
    main()
