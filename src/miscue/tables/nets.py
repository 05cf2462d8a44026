"""Networks that attacks, explanations and defences are measured on: trained once, kept in the workshop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from miscue.data import Data, floats
from miscue.defences import Masked
from miscue.dice import Dice
from miscue.losses import plain
from miscue.models.networks import device_of, placed
from miscue.models.store import Plan, load_model, save_model
from miscue.tables.poisoned import device, known
from miscue.tables.rows import Workshop
from miscue.train import Recipe
from miscue.victims import RECIPES, Victim

RECIPE = Recipe(lr=0.05, momentum=0.9, weight_decay=5e-4, batch_size=128, schedule="cosine", precision="auto")
# The road signs' was chosen by held-out tracks of training images: benchmarks/tune_signs.py.
VICTIMS: dict[str, Victim] = {
    "cifar10-jpeg": Victim(network="conv5", recipe=replace(RECIPE, epochs=12, shift=2)),
    "gtsrb": Victim(network="conv5", recipe=replace(RECIPE, epochs=40, shift=2, scenes=0.5, weight_decay=5e-3)),
    "mnist": Victim(network="cnn-padded", recipe=replace(RECIPES["adam"], precision="auto")),
    "digits": Victim(network="cnn-small", recipe=replace(RECIPE, epochs=6)),
}
PLAIN = {"gtsrb": Victim(network="conv5", recipe=replace(RECIPE, epochs=40, shift=2)), "digits": VICTIMS["digits"]}
"""The road signs' network without scenes, and with a tenth of the weight decay."""
SIGNS = {"smoke": "digits", "laptop": "gtsrb", "paper": "gtsrb"}
SIDES = {"digits": 2, "gtsrb": 5}  # of a patch, in pixels
PHOTOS = {"smoke": "digits", "laptop": "cifar10-jpeg", "paper": "cifar10-jpeg"}


@dataclass(frozen=True, kw_only=True)
class Arena:
    """A network, what it learned from, and test images."""

    model: nn.Module
    train: Data
    test: Data

    def images(self, count: int, *, of: Data | None = None) -> tuple[Tensor, Tensor]:
        """So many test images, or others, evenly spread, and their classes, where the model is."""
        some = (self.test if of is None else of).spread(count).to(device_of(self.model))
        return floats(some.images, channels_last=True), some.labels


def kept(
    workshop: Workshop, settings: dict[str, Any], train: Callable[[], dict[str, tuple[nn.Module, Plan]]]
) -> dict[str, nn.Module]:
    """Networks of such settings by their names: trained by `train` if nobody has, else loaded."""

    def make(place: Path) -> None:
        for name, (model, plan) in train().items():
            save_model(place / f"{name}.safetensors", model, plan)

    files = workshop.made("net", settings, make).glob("*.safetensors")
    return {path.stem: placed(load_model(path)[0], device()) for path in files}


def described(victim: Victim) -> dict[str, Any]:
    """A victim as plain data."""
    loss = "plain" if victim.loss is plain else repr(victim.loss)
    return {"network": victim.network, "recipe": victim.recipe.unusual, "loss": loss}


@lru_cache(maxsize=8)
def arena(data: str, seed: int, workshop: Workshop, *, victim: Victim | None = None, on: bool = False) -> Arena:
    """The network of a seed on a data set, of the usual victim or another, which may go on from the usual one's."""
    splits = known(data)
    assert splits.test is not None
    usual, dice = VICTIMS[data], Dice(seed).named("net", data)
    chosen, train = victim or usual, splits.train

    def trained() -> dict[str, tuple[nn.Module, Plan]]:
        start = arena(data, seed, workshop).model if on else None
        return {"model": (chosen(train, dice, device=device(), start=start), chosen.plan(train))}

    settings = {"data": data, "seed": seed} | described(chosen) | ({"start": described(usual)} if on else {})
    model = kept(workshop, settings, trained)["model"]
    return Arena(model=model, train=train, test=splits.test)


def whole(data: str) -> Victim:
    """The usual network."""
    return VICTIMS[data]


def holed(data: str) -> Victim:
    """The usual network, trained with two in-painted holes on each image."""
    usual, hole = VICTIMS[data], 2 * SIDES[data] - 1
    return replace(
        usual, recipe=replace(usual.recipe, epochs=3 * usual.recipe.epochs // 2, holes=2, hole=hole, fill="inpaint")
    )


def masked(data: str) -> Victim:
    """The usual network, trained for longer, and under the pairs of PatchCleanser's masks that hide most."""
    usual, epochs = VICTIMS[data], 5 * VICTIMS[data].recipe.epochs // 2
    loss = Masked(patch=SIDES[data], tries=4, whole=0.4, fill="inpaint")
    return replace(usual, recipe=replace(usual.recipe, epochs=epochs, weight_decay=2e-3), loss=loss)


TRAININGS = {"whole": whole, "holes": holed, "masked": masked}


def base(scale: str, images: int) -> dict[str, Any]:
    """What all rows on road signs share."""
    data = SIGNS[scale]
    return {"data": data, "network": VICTIMS[data].network, "images": min(images, 40) if scale == "smoke" else images}
