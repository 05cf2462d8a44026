"""Test-time attacks against the bare loop and the peers, the same work in one run.

    python benchmarks/evasions.py [--record] [--images 32] [--rounds 7] [--only pgd|one-pixel]

On a GPU where there is one.

pgd: ten L-infinity steps on images of 32 x 32, without a random start. The bare loop is ten forward and backward passes
for the image alone, with the parameters frozen, and a signed step. Ratios are times over that of the bare loop.
one-pixel: the same number of queries with no early stop, ours against torchattacks'. A peer that is not installed is
left out (torchattacks: `pip install --no-deps torchattacks==3.5.1 requests`).
"""

from __future__ import annotations

import argparse
import sys
import types
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from common import interleaved, ratio, record
from miscue.dice import Dice
from miscue.evasions import one_pixel, pgd
from miscue.memory import keep_freed_memory
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.tables.poisoned import device as here

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


def bare(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What PGD cannot do without."""
    z = x
    for _ in range(STEPS):
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
        z = torch.minimum(torch.maximum(z + ALPHA * slope.sign(), x - EPS), x + EPS).clamp(0, 1)
    return z.detach()


def pgd_cases(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Ours, the bare loop, and the peers at hand."""

    def alone() -> object:
        model.eval().requires_grad_(False)
        found = bare(model, x, y)
        model.requires_grad_(True)
        return found

    cases: dict[str, Callable[[], object]] = {
        "bare loop": alone,
        "miscue": lambda: pgd(model, x, y, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False),
    }
    warnings.simplefilter("ignore")
    try:
        import foolbox

        theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=ALPHA, random_start=False)
        cases["foolbox"] = lambda: attack(theirs, x, y, epsilons=EPS)
    except ImportError:
        print("foolbox is not installed", file=sys.stderr)
    try:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        shape, classes = tuple(x.shape[1:]), 10
        art_model = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            input_shape=shape,
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )
        art_attack = ProjectedGradientDescentPyTorch(
            art_model, eps=EPS, eps_step=ALPHA, max_iter=STEPS, batch_size=len(x), verbose=False
        )
        images, hot = x.cpu().contiguous().numpy(), np.eye(classes, dtype=np.float32)[y.cpu().numpy()]
        cases["art"] = lambda: art_attack.generate(images, hot)
    except ImportError:
        print("art is not installed", file=sys.stderr)
    torchattacks = installed_torchattacks()
    if torchattacks is not None:
        plain = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
        cases["torchattacks"] = lambda: plain(x, y)
    return cases


def installed_torchattacks() -> types.ModuleType | None:
    """torchattacks, whose wrappers import torchvision's transforms, without them."""
    try:
        import torchattacks
    except ImportError as error:
        print(f"torchattacks is not usable: {error}", file=sys.stderr)
        return None
    return torchattacks


def one_pixel_cases(model: nn.Module, x: Tensor, y: Tensor, population: int) -> dict[str, Callable[[], object]]:
    """The same number of queries, none of which may end an image's evolution early."""
    stubborn, zeros, generations = Stubborn(model).to(x.device), torch.zeros_like(y), 4
    cases: dict[str, Callable[[], object]] = {
        "miscue": lambda: one_pixel(stubborn, x, zeros, population=population, generations=generations, dice=Dice(0)),
    }
    torchattacks = installed_torchattacks()
    if torchattacks is not None:
        attack = torchattacks.OnePixel(stubborn, pixels=1, steps=generations, popsize=population, inf_batch=512)
        cases["torchattacks"] = lambda: attack(x, zeros)
    return cases


class Stubborn(nn.Module):
    """A model that takes every image for class 0, so that no attack ends early."""

    first: Tensor

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.register_buffer("first", torch.eye(10)[0])

    def forward(self, x: Tensor) -> Tensor:
        """Scores a thousandth as large."""
        scores: Tensor = self.model(x) * 1e-3
        return scores + self.first


def main() -> None:
    """Time the cases in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="pgd,one-pixel")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(asked.threads)
    device = here()
    model = build(Plan(name="conv5", shape=(3, 32, 32), options={"classes": 10}), Dice(0))
    model = placed(model, device).eval()
    x = torch.rand(asked.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = model(x).argmax(1)
    kinds = {"pgd": lambda: (pgd_cases(model, x, y), "bare loop")}
    kinds["one-pixel"] = lambda: (one_pixel_cases(model, x, y, 400), "miscue")
    for kind in asked.only.split(","):
        cases, base = kinds[kind]()
        times = interleaved(cases, rounds=asked.rounds, warm=1)
        for name in cases:
            if name == base:
                continue
            middle, spread = ratio(times, name, base)
            row = {"benchmark": kind, "who": name, "over": base, "network": "conv5", "images": asked.images}
            note = f"{base} took {1e3 * min(times[base]):.0f} ms at best"
            row |= {"threads": asked.threads}
            record(row, "ratio", middle, spread, asked.rounds, note=note, device=device)


if __name__ == "__main__":
    main()
