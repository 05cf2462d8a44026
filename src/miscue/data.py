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
from miscue.room import LARGE, Mapped, mapping
from miscue.team import ALONE, Team

VALUES = 2**23
"""Numbers in the images of one chunk, at most: a network's first layers hold tens of times as many."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Labelled images.

    images: uint8 (n, c, h, w), in memory or mapped (see `room`).
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

    def near(self, device: torch.device | str) -> Data:
        """The set on `device`, or where it is if it is large: then `batches` brings what it draws."""
        return self if self.images.nbytes > LARGE else self.to(device)

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: of mapped images only where they lie."""
        return self.__dict__ | {"images": mapping(self.images) or self.images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Mapped images are mapped there, too."""
        images = state["images"]
        self.__dict__.update(state, images=images.opened() if isinstance(images, Mapped) else images)


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


def portion(images: Tensor, chunk: int) -> int:
    """How many images (n, c, h, w) to look at in one go: `chunk`, or fewer large ones."""
    return max(1, min(chunk, VALUES // max(1, images[:1].numel())))


def floats(images: Tensor, *, channels_last: bool = False) -> Tensor:
    """uint8 (n, c, h, w) to float32 in [0, 1]."""
    x = images.float().div_(255)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def eight_bit(x: Tensor) -> Tensor:
    """Images in [0, 1], of any shape, to uint8: what of them can be released."""
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


def fed(images: Tensor, device: torch.device | str, *, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """uint8 images (n, c, h, w) as a network is given them, at most `chunk` at a time, or fewer large ones.

    Yields:
        (which images, float (part, c, h, w) in [0, 1] on `device`, channels last in memory).
    """
    step = portion(images, chunk)
    for start in range(0, len(images), step):
        part = slice(start, min(start + step, len(images)))
        yield part, floats(images[part].to(device), channels_last=True)


def batches(
    data: Data,
    *,
    size: int,
    epochs: int,
    dice: Dice,
    channels_last: bool = False,
    among: Tensor | None = None,
    device: torch.device | str | None = None,
    team: Team = ALONE,
    weights: Tensor | None = None,
) -> Iterator[Batch]:
    """Shuffled minibatches, `epochs` passes; the incomplete last batch of a pass is dropped if it is not the only one.

    Each pass has its own named stream, so pass k is the same however many passes are asked for.

    Args:
        data: what they are drawn from.
        size: images in a batch.
        epochs: passes.
        dice: of their order.
        channels_last: the images' order in memory.
        among: draw from the images of this index only.
        device: where batches are brought; None leaves them where the data is.
        team: whose share of each batch is wanted.
        weights: float (len(data),); a pass draws as many images as there are, with replacement, each as often as its
            weight says, instead of each image once. Not together with `among`.
    """
    for index in orders(data, size=size, epochs=epochs, dice=dice, among=among, weights=weights):
        index = team.share(index)
        images, y = (part[index].to(device or part.device) for part in (data.images, data.labels))
        yield Batch(x=floats(images, channels_last=channels_last), y=y, index=index)


def orders(
    data: Data, *, size: int, epochs: int, dice: Dice, among: Tensor | None = None, weights: Tensor | None = None
) -> Iterator[Tensor]:
    """The index of each batch that `batches` makes of so many epochs, int64 (size,), where the data is."""
    for epoch in range(epochs):
        generator = dice.named("order", epoch).generator()
        if weights is not None:
            order = torch.multinomial(weights, len(data), replacement=True, generator=generator)
        else:
            order = torch.randperm(len(data) if among is None else len(among), generator=generator)
        order = (order if among is None else among[order]).to(data.images.device)
        whole = len(order) // size * size or len(order)
        yield from order[:whole].split(size)


def hold_out(data: Data, share: float, dice: Dice) -> tuple[Data, Data]:
    """Split off a random `share` of every class: (rest, held out), both in the original order."""
    rest, held = parted(data, share, dice)
    return data.take(rest), data.take(held)


def parted(data: Data, share: float, dice: Dice) -> tuple[Tensor, Tensor]:
    """What `hold_out` splits, as two int64 indices into the data on the CPU; nothing is copied."""
    if not 0 < share < 1:
        raise InputError(f"the held-out share must lie in (0, 1), got {share:g}")
    held = torch.zeros(len(data), dtype=torch.bool)
    generator = dice.named("hold-out").generator()
    for label in range(len(data.classes)):
        members = (data.labels.cpu() == label).nonzero().squeeze(1)
        count = round(len(members) * share)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def chosen(count: int, share: float, dice: Dice) -> Tensor:
    """A random `share` of the numbers below `count`: sorted, int64."""
    if not 0 <= share <= 1:
        raise InputError(f"share must lie in [0, 1], got {share:g}")
    return torch.randperm(count, generator=dice.named("share").generator())[: round(share * count)].sort().values


def mix(clean: Data, poisoned: Data, share: float, dice: Dice) -> tuple[Data, Tensor]:
    """Keep a random `share` of the poisoned images and the clean version of the rest.

    Returns:
        the mixture and the sorted int64 index of its poisoned images.
    """
    these = chosen(len(clean), share, dice)
    images = clean.images.clone()
    images[these] = poisoned.images[these]
    return clean.with_images(images), these
