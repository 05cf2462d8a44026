"""Do our attacks and torchattacks' give the same answers? Robust accuracy of one model under both.

    python benchmarks/torchattacks_answers.py [--record]

A small network of scikit-learn's digits, its test images, the same budget and steps, no random starts. What DeepFool
leaves is the share of images that it moves by more than 0.8. Then what a success of one_pixel costs in queries, for the
same population and generations, ours asked to stop at another class's name.
torchattacks: `pip install --no-deps torchattacks==3.5.1 requests`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from common import record
from evasions import installed_torchattacks
from miscue.data import floats
from miscue.dice import Dice
from miscue.evasions import deepfool, fgsm, one_pixel, pgd
from miscue.readers import read
from miscue.train import Recipe
from miscue.victims import Victim

EPS, FAR = 0.1, 0.8
ROUNDS = 5  # seeds of one_pixel


def main() -> None:
    """Print, and record where asked, ours, theirs and the difference in points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    parser.parse_args()
    theirs = installed_torchattacks()
    if theirs is None:
        raise SystemExit(1)
    torch.set_num_threads(1)
    splits = read("digits")
    assert splits.test is not None
    recipe = Recipe(lr=0.1, momentum=0.9, epochs=12, batch_size=64, schedule="cosine")
    model = Victim(network="cnn-small", recipe=recipe)(splits.train, Dice(0))
    x, y = floats(splits.test.images), splits.test.labels
    ball = {"alpha": 0.02, "steps": 10, "random_start": False}
    wide = {"eps": FAR, "alpha": 0.2, "steps": 10}
    far = {"eps_for_division": 1e-10, "random_start": False}
    cases: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "fgsm": (lambda: fgsm(model, x, y, eps=EPS).x, lambda: theirs.FGSM(model, eps=EPS)(x, y)),
        "pgd": (lambda: pgd(model, x, y, eps=EPS, **ball).x, lambda: theirs.PGD(model, eps=EPS, **ball)(x, y)),
        "pgd, l2": (
            lambda: pgd(model, x, y, norm="l2", random_start=False, **wide).x,
            lambda: theirs.PGDL2(model, **wide, **far)(x, y),
        ),
        "deepfool": (lambda: deepfool(model, x, y).x, lambda: theirs.DeepFool(model, steps=50, overshoot=0.02)(x, y)),
    }
    for name, both in cases.items():
        ours, other = (left(model, x, attack(), y, by_distance=name == "deepfool") for attack in both)
        note = f"{ours:.2f} % are left by ours, {other:.2f} % by torchattacks'"
        row: dict[str, object] = {"benchmark": "answers", "who": "torchattacks", "attack": name, "images": len(x)}
        record(row, "points apart", abs(ours - other), 0.0, 1, note=note, data="digits")
    x, y = x[:120], y[:120]
    right = model(x).argmax(1) == y
    for steps, size in ((10, 10), (10, 40), (30, 100)):
        ratios, notes = [], []
        for seed in range(ROUNDS):
            np.random.seed(seed)  # theirs draws from here
            counted = Counted(model).eval()  # torchattacks leaves all of a model in the mode that it met
            attacked = theirs.OnePixel(counted, pixels=1, steps=steps, popsize=size, inf_batch=128)(x, y)
            hits = int(((model(attacked).argmax(1) != y) & right).sum())
            found = one_pixel(model, x, y, population=size, generations=steps, until="named", dice=Dice(seed))
            ours, other = int(found.queries.sum()) / int(found.success.sum()), counted.images / hits
            ratios.append(other / ours)
            notes.append(f"{ours:.0f} for {int(found.success.sum())} against {other:.0f} for {hits}")
        row = {"benchmark": "one-pixel queries", "who": "torchattacks", "over": "miscue", "population": size}
        record(
            row | {"generations": steps},
            "ratio of queries a success",
            float(np.mean(ratios)),
            float(np.std(ratios, ddof=1)),
            ROUNDS,
            note="ours against theirs: " + ", ".join(notes),
            data="digits",
        )


class Counted(nn.Module):
    """A model that counts the images it is asked about."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.images = model, 0

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes)."""
        self.images += len(x)
        scores: Tensor = self.model(x)
        return scores


def left(model: nn.Module, x: Tensor, attacked: Tensor, y: Tensor, *, by_distance: bool) -> float:
    """Percent of the images that are still read right, or that were moved far."""
    with torch.no_grad():
        still = model(attacked).argmax(1) == y
        far = (model(x).argmax(1) == y) & ((attacked - x).flatten(1).norm(dim=1) > FAR)
    return 100 * float((far if by_distance else still).double().mean())


if __name__ == "__main__":
    main()
