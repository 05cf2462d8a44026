"""The nouns of data. At rest images are 8-bit: what is measured is exactly what can be released."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miscue.dice import Dice
from miscue.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Data:
    """Labelled images.

    images: uint8 (n, c, h, w).
    labels: int64 (n,), each in [0, len(classes)).
    classes: the class names.
    files: one relative file name per image where the data came from files, else empty.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InputError(f"images must be uint8 (n, c, h, w), got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError(
                f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise InputError(
                f"labels range over {int(self.labels.min())}..{int(self.labels.max())}, "
                f"but there are {len(self.classes)} classes"
            )
        if self.files and len(self.files) != len(self.images):
            raise InputError(f"{len(self.files)} file names for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    def take(self, index: Tensor | slice) -> Data:
        """The images at `index`, in that order."""
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        files = tuple(self.files[i] for i in index.tolist()) if self.files else ()
        return replace(self, images=self.images[index], labels=self.labels[index], files=files)

    def spread(self, most: int) -> Data:
        """At most `most` images, evenly spread: of all classes also where the set is sorted by them."""
        return self.take(slice(None, None, -(-len(self) // most)))

    def with_images(self, images: Tensor) -> Data:
        """The same labels and names under other images."""
        return replace(self, images=images)

    def to(self, device: torch.device | str) -> Data:
        """The whole set on `device` (nothing is copied where it is there already)."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A minibatch: x float32 (n, c, h, w) in [0, 1], y int64 (n,), index int64 (n,) into the data."""

    x: Tensor
    y: Tensor
    index: Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a data set lies on disk, so that a copy can be written in the same way.

    kind: a key of `writers.WRITERS`; options: what else that writer needs, plain JSON values.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a reader yields: the training set, the test set where there is one, and the layout they came in."""

    name: str
    train: Data
    test: Data | None
    layout: Layout
    source: Path | None = None


def floats(images: Tensor, *, channels_last: bool = False) -> Tensor:
    """uint8 (n, c, h, w) to float32 in [0, 1]."""
    x = images.float().div_(255)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def batches(
    data: Data,
    *,
    size: int,
    epochs: int,
    dice: Dice,
    channels_last: bool = False,
    weights: Tensor | None = None,
) -> Iterator[Batch]:
    """Shuffled minibatches, `epochs` passes; the incomplete last batch of a pass is dropped if it is not the only one.

    Each pass has its own named stream, so pass k is the same however many passes are asked for. With `weights`, float
    (n,), a pass draws n images with replacement, each as often as its weight says, instead of each image once.
    """
    device = data.images.device
    for epoch in range(epochs):
        generator = dice.named("order", epoch).generator()
        if weights is None:
            order = torch.randperm(len(data), generator=generator).to(device)
        else:
            order = torch.multinomial(weights, len(data), replacement=True, generator=generator).to(device)
        whole = len(order) // size * size or len(order)
        for index in order[:whole].split(size):
            yield Batch(x=floats(data.images[index], channels_last=channels_last), y=data.labels[index], index=index)


def hold_out(data: Data, share: float, dice: Dice) -> tuple[Data, Data]:
    """Split off a random `share` of every class: (rest, held out), both in the original order."""
    if not 0 < share < 1:
        raise InputError(f"the held-out share must lie in (0, 1), got {share:g}")
    held = torch.zeros(len(data), dtype=torch.bool)
    generator = dice.named("hold-out").generator()
    for label in range(len(data.classes)):
        members = (data.labels.cpu() == label).nonzero().squeeze(1)
        count = round(len(members) * share)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return data.take((~held).nonzero().squeeze(1)), data.take(held.nonzero().squeeze(1))


def mix(clean: Data, poisoned: Data, share: float, dice: Dice) -> tuple[Data, Tensor]:
    """Keep a random `share` of the poisoned images and the clean version of the rest.

    Returns:
        the mixture and the sorted int64 index of its poisoned images.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share must lie in [0, 1], got {share:g}")
    chosen = torch.randperm(len(clean), generator=dice.named("share").generator())[: round(share * len(clean))]
    chosen = chosen.sort().values
    images = clean.images.clone()
    images[chosen] = poisoned.images[chosen]
    return clean.with_images(images), chosen
