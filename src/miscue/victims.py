"""Victims: `(Data, dice) -> model`. A network with the recipe it is trained by, or a scikit-learn classifier.

All are fixed by clean data alone, and the same ones serve every row of a table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor, nn

from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.losses import Loss, plain
from miscue.models.estimators import ESTIMATORS, Estimator, estimator
from miscue.models.networks import NETWORKS, placed
from miscue.models.store import Plan, build
from miscue.models.zoo import zoo
from miscue.train import Epoch, Recipe, Shown, fitting


class AnyVictim(Protocol):
    """What every victim can do."""

    @property
    def epochs(self) -> int:
        """How many passes its training takes."""

    def untrained(self, data: Data, dice: Dice, *, device: str = "cpu") -> nn.Module:
        """A fresh model for images and classes such as `data`'s."""

    def learning(self, model: nn.Module, data: Data, dice: Dice) -> Iterator[Epoch]:
        """Train `model` in place; yields after every epoch with the model in eval mode."""


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A network (a key of NETWORKS, or a name of the zoo), the recipe it is trained by, and the loss that falls."""

    network: str
    recipe: Recipe = field(default_factory=Recipe)
    loss: Loss = plain

    @property
    def epochs(self) -> int:
        """Passes over the data."""
        return self.recipe.epochs

    def plan(self, data: Data) -> Plan:
        """The network for images and classes such as `data`'s."""
        return Plan(name=self.network, shape=data.shape, options={"classes": len(data.classes)})

    def untrained(self, data: Data, dice: Dice, *, device: str = "cpu") -> nn.Module:
        """Fresh weights on `device`."""
        return placed(build(self.plan(data), dice), device)

    def learning(
        self, model: nn.Module, data: Data, dice: Dice, *, shown: Shown | None = None, weights: Tensor | None = None
    ) -> Iterator[Epoch]:
        """Train `model` in place; yields after every epoch with the model in eval mode."""
        dice = dice.named("training")
        return fitting(model, data, self.recipe, dice, loss=self.loss, shown=shown, weights=weights)

    def __call__(
        self, data: Data, dice: Dice, *, device: str = "cpu", shown: Shown | None = None, start: nn.Module | None = None
    ) -> nn.Module:
        """A model trained on `data` from fresh weights, or from those of `start`, in eval mode."""
        data = data.near(device)
        if start is None:
            model = self.untrained(data, dice, device=device)
        else:
            model = placed(copy.deepcopy(start), device)
        for _ in self.learning(model, data, dice, shown=shown):
            pass
        return model


@dataclass(frozen=True, kw_only=True)
class Classical:
    """A scikit-learn classifier by its name; it learns the flattened images in one go."""

    name: str
    epochs: int = 1

    def untrained(self, data: Data, dice: Dice, *, device: str = "cpu") -> nn.Module:
        """The classifier before its fit; it runs on the CPU wherever the images lie."""
        return Estimator(estimator(self.name)(dice.named("fit").integer() % 2**32), len(data.classes)).eval()

    def learning(self, model: nn.Module, data: Data, dice: Dice) -> Iterator[Epoch]:
        """Fit; the one epoch has no loss to show."""
        assert isinstance(model, Estimator)
        model.fit(floats(data.images), data.labels)
        yield Epoch(number=1, loss=None)


DEFAULT = Recipe(lr=0.05, momentum=0.9, epochs=4, batch_size=128, schedule="cosine")
OTHERWISE = replace(DEFAULT, momentum=0.0)
DEEP = replace(  # of the zoo
    DEFAULT, lr=0.1, weight_decay=5e-4, epochs=15, batch_size=256, shift=4, precision="auto"
)

# Rates of least held-out error on clean MNIST, Fashion-MNIST and CIFAR-10, their mean: benchmarks/tune_victims.py. With
# momentum 0.1 is a little better where it learns, but now and then it does not.
RECIPES: dict[str, Recipe] = {
    "default": DEFAULT,
    "sgd": replace(OTHERWISE, optimizer="sgd", lr=0.3),
    "momentum": replace(OTHERWISE, optimizer="sgd", lr=0.03, momentum=0.9),
    "adam": replace(OTHERWISE, optimizer="adam", lr=3e-3),
    "rmsprop": replace(OTHERWISE, optimizer="rmsprop", lr=3e-3),
    "adabound": replace(OTHERWISE, optimizer="adabound", lr=3e-3),
}

VICTIMS: dict[str, Victim | Classical] = {
    **{name: Victim(network=name, recipe=DEFAULT) for name in NETWORKS},
    **{name: Classical(name=name) for name in ESTIMATORS},
}


def victim(name: str, epochs: int | None = None, precision: str | None = None) -> Victim | Classical:
    """A victim by its name; networks may train for other `epochs` and in another `precision` than their own.

    The name is a key of VICTIMS, a network and a key of RECIPES as in "cnn+adam", a network of torchvision as in
    "torchvision:resnet18", or the class name of any classifier of scikit-learn.

    Raises:
        InputError: there is no such victim, or what it needs is not installed.
    """
    base, plus, recipe = name.partition("+")
    if name not in VICTIMS and name[:1].isupper():
        estimator(name)
        return Classical(name=name)
    found = Victim(network=base, recipe=DEEP) if zoo(base) else lookup(VICTIMS, base, "victim")
    if isinstance(found, Classical):
        if plus:
            raise InputError(f"{base} is no network and has no recipe {recipe!r}")
        return found
    chosen = lookup(RECIPES, recipe, "recipe") if plus else found.recipe
    return replace(
        found, recipe=replace(chosen, epochs=epochs or chosen.epochs, precision=precision or chosen.precision)
    )


def network(name: str, epochs: int | None = None, precision: str | None = None) -> Victim:
    """A victim that is a network."""
    found = victim(name, epochs, precision)
    if isinstance(found, Classical):
        raise InputError(f"{name} is not a network")
    return found
