"""The search behind the fast preset: settings compared by what they do to a fresh victim on held-out training data.

    MISCUE_DATA=../shared/data python benchmarks/search_deepconfuse.py [--record] [NAME ...]

Each setting crafts for the same number of surrogate steps on 50,000 training images of MNIST; then a fresh `cnn`,
trained for one pass on the poisoned images, is scored on 10,000 clean training images that nothing else has seen. The
test set has no part in it. Settings differ from the base in what their name says.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import torch

from common import RESULTS
from miscue.data import Data, hold_out
from miscue.dice import Dice
from miscue.measures.accuracy import accuracy
from miscue.poisons import Attacker, deepconfuse
from miscue.readers import read
from miscue.run import append, commit, device_name
from miscue.train import Recipe
from miscue.victims import Victim

STEPS = 900
VICTIM = Victim(network="cnn", recipe=Recipe(lr=0.01, batch_size=64, epochs=1))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is tried: the surrogate, its rate and batch, and options of `deepconfuse`."""

    surrogate: str = "cnn-small-bounded"
    lr: float = 0.01
    batch_size: int = 64
    steps: int = 300
    options: dict = field(default_factory=dict)

    def all_options(self) -> dict:
        """The base setting with this one's options."""
        return {"generator_lr": 1e-3, "alpha": 0.3, "gradient": "difference", "reach": 0.1} | self.options


SETTINGS: dict[str, Setting] = {
    "base": Setting(),
    "exact gradient": Setting(options={"gradient": "exact"}),
    "reach 0.01": Setting(options={"reach": 0.01}),
    "reach 0.3": Setting(options={"reach": 0.3}),
    "scores not bounded": Setting(surrogate="cnn-small"),
    "full-width surrogate": Setting(surrogate="cnn"),
    "released surrogate": Setting(surrogate="cnn-released"),
    "no BatchNorm": Setting(surrogate="cnn-plain"),
    "100 steps a trial": Setting(steps=100),
    "900 steps a trial": Setting(steps=900),
    "surrogate rate 0.1": Setting(lr=0.1),
    "generator rate 3e-3": Setting(options={"generator_lr": 3e-3}),
    "generator rate 3e-4": Setting(options={"generator_lr": 3e-4}),
    "alpha 0.1": Setting(options={"alpha": 0.1}),
    "alpha 1": Setting(options={"alpha": 1.0}),
    "batch 32": Setting(batch_size=32),
    "unlikelihood": Setting(options={"objective": "unlikelihood"}),
    "u-net": Setting(options={"generator": "unet"}),
}


def trial(name: str, setting: Setting, train: Data, kept: Data) -> dict:
    """Craft with `setting`, train a fresh victim, score it on `kept`; a record line."""
    attacker = Attacker(
        surrogate=setting.surrogate,
        recipe=Recipe(lr=setting.lr, batch_size=setting.batch_size),
        dice=Dice(0),
    )
    trials = STEPS // setting.steps
    started = time.monotonic()
    steps = deepconfuse.steps(train, attacker, **setting.all_options(), trials=trials, steps=setting.steps)
    damages = []
    for progress in steps:
        last = progress.checkpoint
        if last is not None:
            damages.append(round(last.measures["held_out_accuracy"], 2))
    seconds = time.monotonic() - started
    poisoned = last.perturbation(train)
    score = accuracy(VICTIM(poisoned, Dice(1)), kept)
    row = {"search": "fast preset", "setting": name, "surrogate": setting.surrogate, "lr": setting.lr}
    row |= {"batch_size": setting.batch_size, "trials": trials, "steps": setting.steps, **setting.all_options()}
    return {
        "table": "deepconfuse-search",
        "row": row,
        "measure": "held_out_accuracy",
        "published": None,
        "mean": round(score, 2),
        "std": None,
        "n": 1,
        "scale": "laptop",
        "data": "mnist, training images only",
        "seconds": round(seconds, 1),
        "device": device_name("cpu"),
        "commit": commit(),
        "command": "python benchmarks/search_deepconfuse.py",
        "note": f"a fresh cnn after one pass over the poisoned images; surrogates read {damages}",
    }


def main() -> None:
    """Try the named settings, or all."""
    torch.set_num_threads(1)
    named = [word for word in sys.argv[1:] if not word.startswith("--")]
    train, kept = hold_out(read("mnist").train, 1 / 6, Dice(0).named("search"))
    for name in named or SETTINGS:
        line = trial(name, SETTINGS[name], train, kept)
        print(f"{name:22} {line['mean']:6.2f} %  {line['seconds']:5.0f} s  {line['note']}", flush=True)
        if "--record" in sys.argv:
            append(RESULTS / "deepconfuse_search.jsonl", line)


if __name__ == "__main__":
    main()
