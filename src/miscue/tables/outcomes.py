"""The slides' outcome table, with its controls: attacks on a network, on the same with bounds, and on others.

An attack on a bounded network is made on that network (white-box), and where its gradients may be masked also through a
copy whose gradients leak, and by queries alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from miscue.data import Data
from miscue.defences import bound, tuning
from miscue.defences.bounded import leaky
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions import Adversarial, deepfool, patch, pgd, stickers
from miscue.evasions.attempt import scored
from miscue.measures.accuracy import accuracy
from miscue.models.modes import Model, frozen
from miscue.models.store import Plan
from miscue.tables.nets import SIDES, SIGNS, VICTIMS, Arena, base, described, kept
from miscue.tables.poisoned import device, known
from miscue.tables.rows import Measures, Row, Workshop
from miscue.victims import Victim

TWO = {"digits": (3, 8), "gtsrb": (14, 17)}  # of road signs: stop, and no entry
STEPS = {"digits": 10, "gtsrb": 60}  # of PGD
TUNED = {"digits": 2, "gtsrb": 4, "mnist": 1}  # epochs with bounds


SLIDES = {
    2: {"none": 3.0, "against_only": 0.0, "made_on_only": 91.0, "both": 6.0},
    43: {"none": 17.0, "against_only": 0.0, "made_on_only": 80.5, "both": 2.5},
}
"""The slides' outcome tables: made on the original network, against a bounded one."""
READINGS = {
    "stickers": ("bounded", "stickers of which the original is sure; the bounded network went on from the original"),
    "deepfool": ("apart", "just enough to fool the original; the bounded network was trained by itself"),
}
"""The attacks that stand beside the slides' figures, the bounded network meant, and what to know of it."""
PAIRS = (("original", "bounded"), ("bounded", "original"), ("original", "other"), ("original", "apart"))
"""What attacks are made on, and whom they meet then. `apart` has nothing in common with the original but the images."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A network, the same with bounds, another seed's, that one with bounds, and images of their classes."""

    original: nn.Module
    bounded: nn.Module
    other: nn.Module
    apart: nn.Module
    train: Data
    test: Data


def only(data: Data, classes: tuple[int, ...]) -> Data:
    """The images of some classes, with labels from 0."""
    here = data.labels.device
    some = data.take(torch.isin(data.labels, torch.tensor(classes, device=here)).nonzero()[:, 0])
    labels = torch.tensor([classes.index(label) for label in some.labels.tolist()], device=here)
    return replace(some, labels=labels, classes=tuple(data.classes[c] for c in classes))


def bounding(data: str) -> Victim:
    """The usual victim, for the epochs with bounds."""
    usual = VICTIMS[data]
    return replace(usual, recipe=replace(usual.recipe, epochs=TUNED[data], lr=usual.recipe.lr / 5))


def with_bounds(model: nn.Module, train: Data, victim: Victim, dice: Dice) -> tuple[nn.Module, Plan]:
    """A copy with bounds, tuned by a victim's recipe, and how to build it."""
    images = train.to(device())
    copy = bound(model, images.spread(2000))
    for _ in tuning(copy, images, victim.recipe, dice):
        pass
    plan = victim.plan(train)
    return copy, replace(plan, options=plan.options | {"bounded": 0.0})


@lru_cache(maxsize=4)
def pair(name: str, ways: int, seed: int, workshop: Workshop) -> Pair:
    """Trained for some epochs fewer than the recipe says, then for these with bounds, and without: the same budget.

    `apart` has its bounds after all these epochs, and some more with them.
    """
    splits = known(name)
    assert splits.test is not None
    train, test = splits.train, splits.test
    if ways == 2:
        train, test = (only(part, TWO[name]) for part in (train, test))
    usual, then = VICTIMS[name], bounding(name)
    first = replace(usual, recipe=replace(usual.recipe, epochs=max(1, usual.recipe.epochs - then.recipe.epochs)))
    plan = usual.plan(train)

    def tuned(model: nn.Module, *words: str) -> tuple[nn.Module, Plan]:
        return with_bounds(model, train, then, Dice(seed).named("tune", ways, *words))

    def trained() -> dict[str, tuple[nn.Module, Plan]]:
        images = train.to(device())
        models = [first(images, Dice(seed).named("pair", ways, number), device=device()) for number in (0, 1)]
        bounded = tuned(models[0])
        for number, model in enumerate(models):
            for _ in then.learning(model, images, Dice(seed).named("on", ways, number)):
                pass
        return {"original": (models[0], plan), "bounded": bounded, "other": (models[1], plan)}

    settings = {"data": name, "seed": seed, "ways": ways, "tuned": described(then)} | described(first)
    nets = kept(workshop, settings, trained)
    nets |= kept(workshop, settings | {"bounds": "apart"}, lambda: {"apart": tuned(nets["other"], "apart")})
    return Pair(**nets, train=train, test=test)


def attacks(data: str, seed: int) -> dict[str, Callable[[Model, Tensor, Tensor], Adversarial]]:
    """The attacks of the outcome table, with their settings."""
    steps, side, dice, small = STEPS[data], SIDES[data], Dice(seed).named("attack"), data == "digits"
    quick: dict[str, Any] = {"population": 8, "generations": 3} if small else {}

    def flat(model: Model, x: Tensor, y: Tensor) -> Adversarial:
        return stickers(model, x, y, area=0.15 if small else 0.1, until="sure", dice=dice, **quick)

    def square(model: Model, x: Tensor, y: Tensor) -> Adversarial:
        return pgd(model, x, y, eps=1.0, alpha=0.05, steps=steps, side=side, restarts=3, dice=dice)

    def ball(model: Model, x: Tensor, y: Tensor) -> Adversarial:
        eps = 0.15 if small else 8 / 255
        return pgd(model, x, y, eps=eps, alpha=eps / 8, steps=steps, dice=dice)

    def everywhere(model: Model, x: Tensor, y: Tensor) -> Adversarial:
        return patch(model, x, y, area=0.2 if small else 0.1, steps=10 * steps, dice=dice)

    return {"stickers": flat, "square": square, "pgd": ball, "patch": everywhere, "deepfool": deepfool}


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images a model errs on: bool (n,)."""
    with frozen(model):
        return scored(model, x).argmax(1) != y


def outcome(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Of attacks made on one network: none, the one, the other or both networks are fooled, in percent.

    Images that either network misreads when clean are left out.
    """
    both = pair(row["data"], row["ways"], seed, workshop)
    first, second = getattr(both, row["made_on"]), getattr(both, row["against"])
    x, y = Arena(model=first, train=both.train, test=both.test).images(row["images"])
    attacked = attacks(row["data"], seed)[row["attack"]](leaky(first) if row["leaky"] else first, x, y).x
    right = ~(wrong(first, x, y) | wrong(second, x, y))
    one, other = wrong(first, attacked, y)[right], wrong(second, attacked, y)[right]
    shares = {"none": ~one & ~other, "made_on_only": one & ~other, "against_only": ~one & other, "both": one & other}
    return {name: 100 * float(share.double().mean()) for name, share in shares.items()} | {
        "success_where_made": 100 * float(one.double().mean())
    }


def verdict(records: list[dict[str, Any]], attack: str, ways: int) -> str:
    """A sentence made from the numbers: does bounding help, or does it only keep attacks from transferring?

    records: lines of the outcome table, as they are summed up.
    """

    def mean(made_on: str, against: str, measure: str, *, leaking: bool = False) -> float:
        for record in records:
            row = record["row"]
            same = (row["attack"], row["ways"], row["made_on"], row["against"]) == (attack, ways, made_on, against)
            if same and row["leaky"] == leaking and record["measure"] == measure:
                return float(record["mean"])
        raise InputError(f"no outcome of {attack}, {ways} ways, made on {made_on}")

    carried = mean("original", "bounded", "both")
    control = mean("original", "other", "both")
    on_original = mean("original", "bounded", "success_where_made")
    on_bounded = mean("bounded", "original", "success_where_made")
    with suppress(InputError):
        on_bounded = max(on_bounded, mean("bounded", "original", "success_where_made", leaking=True))
    helps = on_bounded < on_original - 10
    text = f"{attack}, {ways} classes: of attacks on the original {carried:.0f} % fool the bounded network too, "
    text += f"and {control:.0f} % another one without bounds; made on the bounded network itself "
    text += f"{on_bounded:.0f} % succeed, on the original {on_original:.0f} %. "
    return text + ("Bounding helps." if helps else "Bounding only keeps attacks from transferring, if that.")


def verdicts(records: list[dict[str, Any]]) -> list[str]:
    """The sentence of each attack and number of classes of the outcome table, where all that it needs is there."""
    found = []
    for attack, ways in dict.fromkeys((record["row"]["attack"], record["row"]["ways"]) for record in records):
        with suppress(InputError):
            found.append(verdict(records, attack, ways))
    return found


def kept_accuracy(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Clean accuracy with bounds and without, from the same budget of epochs."""
    both = pair(row["data"], row["ways"], seed, workshop)
    return {
        "accuracy_original": accuracy(both.original, both.test),
        "accuracy_bounded": accuracy(both.bounded, both.test),
    }


def outcomes(scale: str) -> Iterator[Row]:
    """The slides' table with its controls: two-way and forty-way."""
    every = 10 if scale == "smoke" else 43
    for ways in (2, every):
        for attack in attacks(SIGNS[scale], 0):
            for made_on, against in PAIRS:
                if against == "apart" and attack not in READINGS:
                    continue
                given = {"ways": ways, "attack": attack, "made_on": made_on, "against": against, "leaky": False}
                meant, note = READINGS.get(attack, ("", ""))
                slides = (made_on, against) == ("original", meant)
                yield Row(
                    settings=base(scale, 430) | given,
                    measure=outcome,
                    published=SLIDES.get(ways, {}) if slides else {},
                    seeds=3,
                    note=note if slides else "",
                )
        for attack in ("square", "pgd"):
            given = {"ways": ways, "attack": attack, "made_on": "bounded", "against": "original", "leaky": True}
            yield Row(settings=base(scale, 430) | given, measure=outcome, seeds=3)


def bounds(scale: str) -> Iterator[Row]:
    """What bounds cost on clean images."""
    sets = (("digits", 10),) if scale == "smoke" else (("gtsrb", 43), ("mnist", 10))
    for data, ways in sets:
        settings = {"data": data, "network": VICTIMS[data].network, "ways": ways}
        yield Row(settings=settings, measure=kept_accuracy, seeds=3)
