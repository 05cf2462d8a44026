"""The search behind the fast preset: settings compared by what they do to fresh victims on held-out training data.

    MISCUE_DATA=../shared/data python benchmarks/search_deepconfuse.py [--record] [NAME ...]

Each setting crafts on 50,000 training images of MNIST in a few minutes; then fresh victims, trained for one pass on the
poisoned images, are scored on 10,000 clean training images that nothing else has seen. The test set has no part in it.
The base is the fast preset cut to two trials of warm start and three that follow; the others differ from it in what
their name says, those that are quicker a trial have more of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from common import RESULTS, line
from miscue.data import Data, hold_out
from miscue.dice import Dice
from miscue.measures.accuracy import accuracy
from miscue.poisons import PRESETS, Attacker, deepconfuse
from miscue.population import Member, population
from miscue.readers import read
from miscue.run import append
from miscue.train import Recipe
from miscue.victims import Victim
from miscue.workers import cores

RECIPE = Recipe(lr=0.05, momentum=0.9, epochs=1, batch_size=128, schedule="cosine")
FAST = PRESETS["deepconfuse"]["fast"]
BASE = FAST.options | {"warm_up": 2, "online_trials": 3}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is tried in place of the base: the surrogate, its rate and batch, and options of `deepconfuse`."""

    surrogate: str = FAST.surrogate
    lr: float = FAST.recipe.lr
    batch_size: int = FAST.recipe.batch_size
    options: dict = field(default_factory=dict)


SETTINGS: dict[str, Setting] = {
    "base": Setting(),
    "no warm start": Setting(options={"warm_up": 0, "online_trials": 4}),
    "warm start only": Setting(options={"warm_up": 9, "online_trials": 0}),
    "one surrogate at a time": Setting(options={"pool": 1}),
    "Algorithm 2": Setting(options={"online_trials": 0, "trials": 3}),
    "generator rate 3e-3": Setting(options={"generator_lr": 3e-3}),
    "generator rate 3e-4": Setting(options={"generator_lr": 3e-4}),
    "alpha 0.1": Setting(options={"alpha": 0.1}),
    "alpha 1": Setting(options={"alpha": 1.0}),
    "rate 3e-3, alpha 0.1, five minutes": Setting(options={"generator_lr": 3e-3, "alpha": 0.1, "online_trials": 9}),
    "surrogate cnn": Setting(surrogate="cnn"),
}


def tried(name: str, setting: Setting, train: Data, kept: Data) -> Iterator[dict]:
    """Craft with `setting`, train fresh victims, score them on `kept`; yields record lines."""
    recipe = Recipe(lr=setting.lr, batch_size=setting.batch_size)
    attacker = Attacker(surrogate=setting.surrogate, recipe=recipe, dice=Dice(0))
    options = BASE | setting.options
    started = time.monotonic()
    reads = []
    for last in (p.checkpoint for p in deepconfuse.steps(train, attacker, **options) if p.checkpoint):
        reads += [round(value, 2) for key, value in last.measures.items() if key == "held_out_accuracy"]
    seconds = time.monotonic() - started
    poisoned = last.perturbation(train)
    row = {"search": "fast preset", "setting": name, "surrogate": setting.surrogate, "lr": setting.lr}
    row |= {"batch_size": setting.batch_size, **options}
    networks = ("cnn-released", "cnn")
    members = [Member(victim=Victim(network=network, recipe=RECIPE), dice=Dice(1)) for network in networks]
    with population(poisoned, kept) as fit_many:
        scores = dict(fit_many(members, then=on_the_second))
    for i, network in enumerate(networks):
        yield line(
            "deepconfuse-search",
            row | {"victim": network},
            "held_out_accuracy",
            [scores[i]],
            data="mnist, training images only",
            seconds=seconds,
            command="python benchmarks/search_deepconfuse.py",
            note=f"fresh victim after one pass over the poisoned images; surrogates read {reads}",
        )


def on_the_second(model: nn.Module, member: Member, train: Data, kept: Data) -> float:
    """Accuracy on the held-out images."""
    return accuracy(model, kept)


def main() -> None:
    """Try the named settings, or all."""
    torch.set_num_threads(cores())
    named = [word for word in sys.argv[1:] if not word.startswith("--")]
    train, kept = hold_out(read("mnist").train, 1 / 6, Dice(0).named("search"))
    for name in named or SETTINGS:
        for found in tried(name, SETTINGS[name], train, kept):
            victim, mean = found["row"]["victim"], found["mean"]
            print(f"{name:24} {victim:12} {mean:6.2f} %  {found['seconds']:5.0f} s  {found['note']}", flush=True)
            if "--record" in sys.argv:
                append(RESULTS / "deepconfuse-search.jsonl", found)


if __name__ == "__main__":
    main()
