"""Test-time attacks on real data: how often each succeeds, and what is left of it after a distortion.

    MISCUE_DATA=../shared/data:CACHE python benchmarks/test_time.py [--only NAME,...] [--seeds 3] [--record]

CACHE is the folder that the data's unpack.py wrote to; runs/nets keeps the trained networks, so that a stopped run goes
on. Each row is of fresh networks, one a seed, attacked on test images that are evenly spread over the set: accuracies
over all of them, success over those that the network reads right. What is shared by all images (universal, patch) is
made from training images alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import Measures, Row, measure_rows
from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.distortions import DISTORTIONS
from miscue.evasions import (
    Adversarial,
    deepfool,
    fgsm,
    one_pixel,
    one_pixel_exhaustive,
    patch,
    pgd,
    physical,
    scene,
    soft_stickers,
    stickers,
    universal,
)
from miscue.evasions.attempt import scored
from miscue.evasions.patch import pasted
from miscue.evasions.physical import views
from miscue.measures.accuracy import accuracy
from miscue.measures.robustness import robust_to
from miscue.models.modes import frozen
from miscue.models.networks import placed
from miscue.models.store import load_model, save_model
from miscue.readers import read
from miscue.train import Recipe
from miscue.victims import Victim

NETS = Path(__file__).parent.parent / "runs" / "nets"
RECIPE = Recipe(lr=0.05, momentum=0.9, weight_decay=5e-4, batch_size=128, schedule="cosine")
VICTIMS = {
    "cifar10-jpeg": Victim(network="conv5", recipe=replace(RECIPE, epochs=12, shift=2)),
    "gtsrb": Victim(network="conv5", recipe=replace(RECIPE, epochs=40, shift=2)),
    "mnist": Victim(network="cnn-padded", recipe=replace(RECIPE, lr=0.02, epochs=3)),
}
SAID = {"cifar10-jpeg": "CIFAR-10 (JPEG q75)", "gtsrb": "GTSRB, 43 x 200 / 60", "mnist": "MNIST"}
EPS = 8 / 255


@dataclass(frozen=True, kw_only=True)
class Arena:
    """A network and images to attack."""

    model: nn.Module
    train: Data
    test: Data

    def images(self, count: int, *, of: Data | None = None) -> tuple[Tensor, Tensor]:
        """So many test images, evenly spread, and their classes."""
        some = (of or self.test).spread(count)
        return floats(some.images, channels_last=True), some.labels


def arena(data: str, seed: int, *, victim: Victim | None = None, name: str = "") -> Arena:
    """The network of a seed, trained at its first use; another `victim`'s is kept under a `name` of its own."""
    splits = read(data)
    assert splits.test is not None
    path, victim = NETS / f"{name or data}-{seed}.safetensors", victim or VICTIMS[data]
    dice = Dice(seed).named("net", name or data)
    if not path.exists():
        model = victim(splits.train, dice)
        save_model(path, model, victim.plan(splits.train), classes=list(splits.train.classes))
    model = placed(load_model(path)[0], "cpu")
    return Arena(model=model, train=splits.train, test=splits.test)


def outcome(found: Adversarial) -> Measures:
    """The usual measures."""
    right = ~found.already
    return {
        "robust_accuracy": 100 * float((right & ~found.success).double().mean()),
        "success": 100 * float(found.success[right].double().mean()),
        "queries": float(found.queries.double().mean()),
    }


def plain(data: str, count: int, attack: Callable[..., Adversarial], seed: int) -> Measures:
    """An attack on each image by itself."""
    here = arena(data, seed)
    return outcome(attack(here.model, *here.images(count)))


def clean(data: str, seed: int) -> Measures:
    """Right on all test images, without any attack."""
    here = arena(data, seed)
    return {"test_accuracy": accuracy(here.model, here.test)}


def fooled(data: str, eps: float, seed: int) -> Measures:
    """The share of test images whose class changes under what is made from training images; signs of noise beside."""
    here = arena(data, seed)
    x, _ = here.images(2000)
    v = universal(here.model, *here.images(2000, of=here.train), eps=eps, dice=Dice(seed)).shared
    assert v is not None
    noise = eps * (2 * torch.randint(2, v.shape, generator=Dice(seed).named("noise").generator()) - 1)
    with frozen(here.model):
        before = scored(here.model, x).argmax(1)
        changed = [
            (scored(here.model, (x + one).clamp(0, 1)).argmax(1) != before).double().mean() for one in (v, noise)
        ]
    return {"fooling_rate": 100 * float(changed[0]), "fooling_rate_of_noise": 100 * float(changed[1])}


def patched(data: str, form: str, area: float, label: int | None, seed: int) -> Measures:
    """Test images with a patch made from training images, and with one of noise, at fresh random places."""
    here, dice = arena(data, seed), Dice(seed).named("patch")
    (made_from, labels), (x, y) = here.images(4000, of=here.train), here.images(1000)
    if label is not None:
        made_from, labels = made_from[labels != label], labels[labels != label]
        x, y = x[y != label], y[y != label]
    target = None if label is None else torch.full_like(labels, label)
    made = patch(here.model, made_from, labels, target=target, area=area, form=form, steps=1000, dice=dice).shared
    assert made is not None
    noise = torch.rand(made.shape, generator=dice.named("noise").generator())
    found: Measures = {}
    with frozen(here.model):
        right = scored(here.model, x).argmax(1) == y
        for name, one in (("success", made), ("success_of_noise", noise)):
            generator = dice.named("places").generator()
            seen = pasted(one, x, form=form, turn=22.5, shrink=1.0, generator=generator)
            named = scored(here.model, seen).argmax(1)
            hit = named != y if label is None else named == label
            found[name] = 100 * float(hit[right].double().mean())
    return found


ATTACKS: dict[str, Callable[[int], Callable[..., Adversarial]]] = {
    "fgsm": lambda seed: partial(fgsm, eps=EPS),
    "pgd": lambda seed: partial(pgd, eps=EPS, steps=40, dice=Dice(seed)),
    "pgd, expecting": lambda seed: partial(pgd, eps=EPS, steps=40, transform=views, samples=8, dice=Dice(seed)),
    "pgd, eps 16/255": lambda seed: partial(pgd, eps=2 * EPS, steps=40, dice=Dice(seed)),
    "pgd, expecting, eps 16/255": lambda seed: partial(
        pgd, eps=2 * EPS, steps=40, transform=views, samples=8, dice=Dice(seed)
    ),
    "stickers": lambda seed: partial(stickers, area=0.1, until="sure", dice=Dice(seed)),
    "physical": lambda seed: partial(physical, area=0.1, dice=Dice(seed)),
    "scene": lambda seed: partial(scene, dice=Dice(seed)),
    "patch": lambda seed: partial(patch, area=0.1, steps=600, dice=Dice(seed)),
}


def lasting(data: str, name: str, count: int, seed: int) -> Measures:
    """What is left of an attack's success after each distortion, at each strength; clean accuracy beside."""
    here = arena(data, seed)
    x, y = here.images(count)
    attacked = ATTACKS[name](seed)(here.model, x, y)
    found: Measures = {}
    for kind, distortion in DISTORTIONS.items():
        for point in robust_to(distortion, here.model, x, attacked.x, y, draws=3, dice=Dice(seed).named(kind)):
            for measure in ("kept", "accuracy"):
                found[f"{measure} {kind} {point['strength']:g}"] = point[measure]
    return found


def rows() -> Iterator[tuple[str, Row]]:
    """(what --only chooses by, the row)."""
    for data in VICTIMS:
        yield f"clean-{data}", ({"data": data, "attack": None}, partial(clean, data))
    for data, eps in (("cifar10-jpeg", EPS), ("gtsrb", EPS), ("mnist", 0.3)):
        row: dict[str, object] = {"data": data, "eps": round(eps, 4)}
        step = eps / 8
        yield f"fgsm-{data}", (row | {"attack": "fgsm"}, partial(plain, data, 1000, partial(fgsm, eps=eps)))
        strong = partial(pgd, eps=eps, alpha=step, steps=40, restarts=2)
        yield f"pgd-{data}", (row | {"attack": "pgd", "steps": 40, "restarts": 2}, partial(plain, data, 1000, strong))
        yield f"deepfool-{data}", ({"data": data, "attack": "deepfool"}, partial(plain, data, 500, deepfool))
    for data in ("cifar10-jpeg", "gtsrb"):
        for kind, attack, count in (
            ("de", partial(one_pixel), 100),
            ("de, until another class is named", partial(one_pixel, until="named"), 100),
            ("exhaustive", one_pixel_exhaustive, 100),
        ):
            row = {"data": data, "attack": "one-pixel", "search": kind}
            yield f"one-pixel-{data}", (row, partial(plain, data, count, attack))
        row = {"data": data, "attack": "universal", "eps": round(10 / 255, 4)}
        yield f"universal-{data}", (row, partial(fooled, data, 10 / 255))
    for area in (0.02, 0.05, 0.1):
        for white, black in ((1, 0), (0, 1), (1, 1), (2, 2)):
            for kind, searched in (("evolution", stickers), ("gradient", soft_stickers)):
                row = {"data": "gtsrb", "attack": "stickers", "by": kind}
                row |= {"area": area, "white": white, "black": black}
                attack = partial(searched, area=area, white=white, black=black)
                yield f"stickers-{kind}", (row, partial(plain, "gtsrb", 172, attack))
    for form, area, label in (
        ("square", 0.1, None),
        ("circle", 0.1, None),
        ("square", 0.1, 14),
        ("square", 0.05, None),
    ):
        row = {"data": "gtsrb", "attack": "patch", "form": form, "area": area, "target": label}
        yield "patch", (row, partial(patched, "gtsrb", form, area, label))
    for name in ATTACKS:
        yield "distortions", ({"data": "gtsrb", "attack": name}, partial(lasting, "gtsrb", name, 430))


if __name__ == "__main__":
    with_networks = (
        (name, (row | {"network": VICTIMS[str(row["data"])].network}, measured)) for name, (row, measured) in rows()
    )
    measure_rows(with_networks, "test-time", __doc__, data=SAID)
