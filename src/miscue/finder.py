"""How a detector of objects is trained: `(Scenes, dice) -> detector`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from miscue.data import Batch
from miscue.dice import Dice
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.scenes import Boxes, Frames, Scenes, frames
from miscue.train import Epoch, Recipe, scheduled

RECIPE = Recipe(optimizer="adam", lr=2e-3, epochs=30, batch_size=8, schedule="cosine", precision="auto")


@dataclass(frozen=True, kw_only=True)
class Finder:
    """A detector and its recipe.

    It is shown windows of `crop` pixels, or whole photos for 0, at scales in [1 / (1 + stretch), 1 + stretch].
    """

    network: str = "centres"
    recipe: Recipe = RECIPE
    stretch: float = 0.3
    crop: int = 256

    def plan(self, scenes: Scenes) -> Plan:
        """What it is before it has weights."""
        return Plan(
            name=self.network, shape=(scenes.images[0].shape[0], 0, 0), options={"classes": len(scenes.classes)}
        )

    def untrained(self, scenes: Scenes, dice: Dice, *, device: str = "cpu") -> nn.Module:
        """The detector with fresh weights."""
        return placed(build(self.plan(scenes), dice), device)

    def learning(self, model: nn.Module, scenes: Scenes, dice: Dice, *, device: str = "cpu") -> Iterator[Epoch]:
        """Train it in place, yielding after every epoch, in eval mode meanwhile and afterwards."""
        size, epochs = self.recipe.batch_size, self.recipe.epochs
        stream = frames(scenes, size=size, epochs=epochs, dice=dice, stretch=self.stretch, crop=self.crop)
        here = (replace(batch, x=batch.x.to(device), targets=moved(batch.targets, device)) for batch in stream)
        yield from scheduled(model, here, self.recipe, len(scenes), loss=own_losses)


def moved(targets: tuple[Boxes, ...], device: str) -> tuple[Boxes, ...]:
    """Boxes on a device."""
    return tuple({name: value.to(device) for name, value in target.items()} for target in targets)


def own_losses(model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    """The sum of the losses that a detector gives in training mode."""
    assert isinstance(batch, Frames)
    return torch.stack(list(model(list(batch.x), batch.targets).values())).sum()
