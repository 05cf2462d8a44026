"""Victims: `(Data, dice) -> model`. A network with the recipe it is trained by; fixed on clean data alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from miscue.data import Data
from miscue.dice import Dice
from miscue.models.networks import NETWORKS, placed
from miscue.models.store import Plan, build
from miscue.train import Epoch, Recipe, Shown, fitting


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A network (a key of NETWORKS) and the recipe it is trained by."""

    network: str
    recipe: Recipe = field(default_factory=Recipe)

    def plan(self, data: Data) -> Plan:
        """The network for images and classes such as `data`'s."""
        return Plan(name=self.network, shape=data.shape, options={"classes": len(data.classes)})

    def untrained(self, data: Data, dice: Dice, *, device: str = "cpu") -> nn.Module:
        """Fresh weights on `device`."""
        return placed(build(self.plan(data), dice), device)

    def learning(self, model: nn.Module, data: Data, dice: Dice, *, shown: Shown | None = None) -> Iterator[Epoch]:
        """Train `model` in place; yields after every epoch with the model in eval mode."""
        return fitting(model, data, self.recipe, dice.named("training"), shown=shown)

    def __call__(self, data: Data, dice: Dice, *, device: str = "cpu", shown: Shown | None = None) -> nn.Module:
        """A model trained on `data` from fresh weights, in eval mode."""
        data = data.to(device)
        model = self.untrained(data, dice, device=device)
        for _ in self.learning(model, data, dice, shown=shown):
            pass
        return model


DEFAULT = Recipe(lr=0.05, momentum=0.9, epochs=4, batch_size=128, schedule="cosine")

VICTIMS: dict[str, Victim] = {name: Victim(network=name, recipe=DEFAULT) for name in NETWORKS}
