"""The table of object detectors: what a patch in the photos leaves of their average precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn

from miscue.data import eight_bit, floats
from miscue.dice import Dice
from miscue.evasions.dpatch import blinded, dpatch, drawn_places
from miscue.finder import RECIPE, Finder
from miscue.models.store import Plan
from miscue.readers import read_scenes
from miscue.scenes import Scenes, composed
from miscue.tables.nets import kept
from miscue.tables.poisoned import device, known
from miscue.tables.rows import Measures, Row, Workshop


@lru_cache(maxsize=1)
def photos(data: str) -> tuple[Scenes, Scenes]:
    """(the detector's, others): blocks of the photos of that name, or images of a data set on coloured ground."""
    if data == "trafficlights":
        return read_scenes(data).blocks()
    train, other = known(data).train, known(data).test
    assert other is not None
    dice, size = Dice(0).named("photos"), (64, 96)
    return composed(train, 80, size=size, dice=dice), composed(other, 20, size=size, dice=dice.named("others"))


def detector(row: dict[str, Any], seed: int, workshop: Workshop) -> nn.Module:
    """The detector of a seed."""
    finder = Finder(recipe=replace(RECIPE, epochs=row["epochs"]))
    train, _ = photos(row["data"])

    def trained() -> dict[str, tuple[nn.Module, Plan]]:
        dice = Dice(seed).named("detector")
        model = finder.untrained(train, dice, device=device())
        for _ in finder.learning(model, train, dice, device=device()):
            pass
        return {"detector": (model, finder.plan(train))}

    settings = {"data": row["data"], "seed": seed, "detector": finder.network, "epochs": row["epochs"]}
    return kept(workshop, settings, trained)["detector"]


def measured(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """A patch made from the detector's photos, judged on others; the share of the precision that it leaves."""
    net, (train, other), dice = detector(row, seed, workshop), photos(row["data"]), Dice(seed).named("dpatch")
    images = [floats(image).to(device()) for image in train.images]
    made = dpatch(net, images, train.targets, place=row["place"], dice=dice, **row["options"]).patch
    patch = eight_bit(made).cpu()
    places = drawn_places(other.images, patch.shape[1], row["place"], dice.named("others").generator())
    measures, _ = blinded(net, other, patch, places, target=None, dice=dice)
    return measures | {"map_left": 100 * measures["map_patched"] / max(measures["map"], 1e-9)}


def dpatches(scale: str) -> Iterator[Row]:
    """As published, and by a crowd, in the corner and anywhere, on about 3 and 7 % of a photo."""
    small = scale == "smoke"
    base: dict[str, Any] = {
        "data": "digits" if small else "trafficlights",
        "network": Finder.network,
        "epochs": 2 if small else RECIPE.epochs,
        "attack": "dpatch",
    }
    large = () if small else (("loss", "corner", 120), ("crowd", "corner", 120))
    size = 20 if small else 80
    for aim, place, side in (
        ("loss", "corner", size),
        ("crowd", "corner", size),
        ("crowd", "random", size),
        *large,
    ):
        options = {"aim": aim, "size": side, "lr": 0.05} | ({"steps": 3} if small else {})
        yield Row(settings=base | {"options": options, "place": place}, measure=measured, seeds=3)
