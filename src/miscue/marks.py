"""What a perturbation puts on images: a generator's noise, or pixels that depend on the label.

Each mark is plain tensors and facts on disk and a function of images and labels in use:
`(x in [0, 1] (n, c, h, w), labels (n,)) -> x'`. A new one enters by entering MARKS.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from miscue.data import Batch
from miscue.errors import InputError
from miscue.models.modes import mode
from miscue.models.networks import Shape, placed
from miscue.models.store import Plan, restore


class Mark(Protocol):
    """What every mark can do."""

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        """Marked images, float (n, c, h, w), perhaps outside [0, 1]; `x` is left alone."""

    @property
    def channels(self) -> int:
        """How many channels an image must have."""

    def check(self, shape: Shape, classes: int) -> None:
        """Raise an InputError where images of `shape` with labels below `classes` cannot be marked."""

    def to(self, device: str | torch.device) -> Mark:
        """The same mark on `device`."""

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain facts) for the disk."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """x + g(x). generator: x (n, c, h, w) -> noise of the same shape; plan: how to rebuild it."""

    generator: nn.Module
    plan: Plan

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        """The images with the generator's noise; labels are not looked at."""
        with mode(self.generator, train=False):
            noisy: Tensor = x + self.generator(x)
        return noisy

    @property
    def channels(self) -> int:
        """How many channels an image must have."""
        return self.plan.shape[0]

    def check(self, shape: Shape, classes: int) -> None:
        """A generator takes any size, but only as many channels as it was made for."""
        if shape[0] != self.channels:
            raise InputError(f"this perturbation is for {self.channels} channels, the images have {shape[0]}")

    def to(self, device: str | torch.device) -> Generated:
        """The same generator on `device`."""
        return replace(self, generator=placed(deepcopy(self.generator), device))

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and plan."""
        return self.generator.state_dict(), {"plan": asdict(self.plan)}

    @staticmethod
    def unpacked(tensors: dict[str, Tensor], facts: dict[str, Any], path: Path) -> Generated:
        """The inverse of `packed`."""
        plan = Plan(**facts["plan"])
        return Generated(generator=placed(restore(plan, tensors, path), "cpu"), plan=plan)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """One pixel for each class, the same in all its images.

    places: int64 (classes, 2), row and column; row -1 leaves a class unmarked.
    values: uint8 (classes, channels).
    shape: (c, h, w) of the images.
    """

    places: Tensor
    values: Tensor
    shape: Shape

    def __post_init__(self) -> None:
        channels, height, width = self.shape
        rows, columns = self.places.t()
        if self.values.shape != (len(self.places), channels):
            raise InputError(f"pixels need {channels} values a class, got a table {tuple(self.values.shape)}")
        if bool(((rows >= height) | (columns >= width) | (rows < -1) | (columns < 0)).any()):
            raise InputError(f"a pixel lies outside images of {height} x {width}: {self.places.tolist()}")

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        """The images with each class's pixel written into them."""
        rows, columns = self.places[labels].t()
        x, every, there = x.clone(), torch.arange(len(x), device=x.device), rows.clamp(min=0)
        values = self.values[labels].to(x) / 255
        x[every, :, there, columns] = torch.where((rows >= 0)[:, None], values, x[every, :, there, columns])
        return x

    def on(self, batch: Batch) -> Batch:
        """The batch with its pixels."""
        return replace(batch, x=self(batch.x, batch.y))

    @property
    def channels(self) -> int:
        """How many channels an image must have."""
        return self.shape[0]

    def check(self, shape: Shape, classes: int) -> None:
        """Pixels belong to images of one shape and to certain classes."""
        if tuple(shape) != tuple(self.shape) or classes > len(self.places):
            raise InputError(
                f"this perturbation is for {len(self.places)} classes of images {tuple(self.shape)}, "
                f"not for {classes} of {tuple(shape)}"
            )

    def to(self, device: str | torch.device) -> Pixels:
        """The same pixels on `device`."""
        return replace(self, places=self.places.to(device), values=self.values.to(device))

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Places and values, and the shape."""
        return {"places": self.places, "values": self.values}, {"shape": list(self.shape)}

    @staticmethod
    def unpacked(tensors: dict[str, Tensor], facts: dict[str, Any], path: Path) -> Pixels:
        """The inverse of `packed`."""
        return Pixels(places=tensors["places"], values=tensors["values"], shape=tuple(facts["shape"]))


MARKS: dict[str, type[Generated] | type[Pixels]] = {"generator": Generated, "pixels": Pixels}
