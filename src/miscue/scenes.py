"""Photos with boxes, for object detectors: `Scenes` and minibatches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.data import Batch, Data, floats
from miscue.dice import Dice
from miscue.errors import InputError

Boxes = dict[str, Tensor]
"""What torchvision's detectors are told and tell of an image: "boxes" float32 (k, 4), xmin ymin xmax ymax in pixels,
and "labels" int64 (k,), from 1 on; detections have "scores" float32 (k,) too."""


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Photos with boxes.

    images: uint8 (c, h, w), each of a size of its own.
    targets: the boxes of each.
    classes: the names of the labels 1, 2, ...; label 0 is what torchvision calls background.
    files: a relative file name for each.
    """

    images: tuple[Tensor, ...]
    targets: tuple[Boxes, ...]
    classes: tuple[str, ...]
    files: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.targets) == len(self.files):
            raise InputError(f"{len(self.images)} photos, {len(self.targets)} lists of boxes, {len(self.files)} names")
        for image, target, file in zip(self.images, self.targets, self.files, strict=True):
            boxes, labels = target["boxes"], target["labels"]
            if image.dtype != torch.uint8 or image.ndim != 3:
                raise InputError(f"{file}: a photo must be uint8 (c, h, w), got {image.dtype} {tuple(image.shape)}")
            if boxes.shape != (len(labels), 4):
                raise InputError(f"{file}: {len(labels)} labels for boxes of shape {tuple(boxes.shape)}")
            height, width = image.shape[1:]
            low, high = boxes[:, :2], boxes[:, 2:]
            if not bool((low >= 0).all() and (low < high).all() and (high <= torch.tensor([width, height])).all()):
                raise InputError(f"{file}: a box is empty or reaches outside the photo of {width} x {height} pixels")
            if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= len(self.classes):
                raise InputError(f"{file}: labels must lie in 1..{len(self.classes)}")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: list[int]) -> Scenes:
        """The photos at `index`, in that order."""
        return replace(
            self,
            images=tuple(self.images[i] for i in index),
            targets=tuple(self.targets[i] for i in index),
            files=tuple(self.files[i] for i in index),
        )

    def blocks(self, count: int = 10, every: int = 5) -> tuple[Scenes, Scenes]:
        """(the others, every `every`-th of `count` blocks of consecutive photos): frames of one camera stay together.

        Raises:
            InputError: fewer photos than blocks.
        """
        if len(self) < count:
            raise InputError(f"{len(self)} photos are too few for {count} blocks; at least one each is needed")
        held = [i for i in range(len(self)) if (i * count // len(self)) % every == every - 1]
        rest = sorted(set(range(len(self))) - set(held))
        return self.take(rest), self.take(held)


def composed(data: Data, count: int, *, size: tuple[int, int], most: int = 3, dice: Dice) -> Scenes:
    """Photos made up of labelled images: one to `most` of them side by side before patches of random colours.

    Args:
        data: the images, each smaller than a photo's `most`-th part.
        count: photos.
        size: of a photo (h, w).
        most: images in a photo, none over another.
        dice: for backgrounds, images and places.

    Raises:
        InputError: images too large for it.
    """
    channels, *sides = data.shape
    if most < 1 or sides[0] > size[0] or most * sides[1] > size[1]:
        raise InputError(f"{most} images of {sides[0]} x {sides[1]} do not lie side by side in {size[0]} x {size[1]}")
    generator, strip = dice.generator(), size[1] // most
    coarse = [1 + length // side for length, side in zip(size, sides, strict=True)]
    photos = (
        255 * F.interpolate(torch.rand(count, channels, *coarse, generator=generator), size, mode="bilinear")
    ).byte()
    targets = []
    for photo in photos:
        strips = torch.randperm(most, generator=generator)[: 1 + int(most * torch.rand((), generator=generator))]
        room = torch.tensor([size[0] - sides[0] + 1, strip - sides[1] + 1])
        corners = (room * torch.rand(len(strips), 2, generator=generator)).long()
        corners[:, 1] += strip * strips
        chosen = torch.randint(len(data), (len(strips),), generator=generator)
        for (top, left), image in zip(corners.tolist(), data.images[chosen], strict=True):
            photo[:, top : top + sides[0], left : left + sides[1]] = image
        low = corners.flip(1).float()
        boxes = torch.cat([low, low + torch.tensor([sides[1], sides[0]])], dim=1)
        targets.append({"boxes": boxes, "labels": data.labels[chosen] + 1})
    files = tuple(f"{number:06}.png" for number in range(count))
    return Scenes(images=tuple(photos), targets=tuple(targets), classes=data.classes, files=files)


@dataclass(frozen=True, kw_only=True)
class Frames(Batch):
    """A minibatch of photos on one canvas, black where they end; y is their index again, `targets` are their boxes."""

    targets: tuple[Boxes, ...]


def canvas(images: list[Tensor], *, multiple: int = 1) -> Tensor:
    """Images (c, h, w) of several sizes in the upper left of one (n, c, H, W), black elsewhere."""
    height, width = (-(-max(image.shape[side] for image in images) // multiple) * multiple for side in (1, 2))
    whole = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for i, image in enumerate(images):
        whole[i, :, : image.shape[1], : image.shape[2]] = image
    return whole


def frames(
    scenes: Scenes, *, size: int, epochs: int, dice: Dice, stretch: float = 0.0, crop: int = 0
) -> Iterator[Frames]:
    """Shuffled minibatches.

    Args:
        scenes: the photos.
        size: of a minibatch; the incomplete last one of a pass is dropped if it is not the only one.
        epochs: passes.
        dice: for orders, windows, scales and light.
        stretch: each minibatch is scaled by a factor drawn from [1 / (1 + stretch), 1 + stretch], and lit at random;
            0 for none of it.
        crop: side of a window drawn for each photo, which boxes with their centre within it belong to; 0 for all of it.
    """
    for epoch in range(epochs):
        generator = dice.named("order", epoch).generator()
        order = torch.randperm(len(scenes), generator=generator).tolist()
        for start in range(0, len(order) // size * size or len(order), size):
            index = order[start : start + size]
            pairs = [(scenes.images[i], scenes.targets[i]) for i in index]
            if crop:
                pairs = [window(*pair, crop, generator) for pair in pairs]
            targets = [target for _, target in pairs]
            x = floats(canvas([image for image, _ in pairs]))
            if stretch:
                x, targets = drawn(x, targets, stretch, generator)
            number = torch.tensor(index)
            yield Frames(
                x=x.contiguous(memory_format=torch.channels_last), y=number, index=number, targets=tuple(targets)
            )


def window(image: Tensor, target: Boxes, side: int, generator: torch.Generator) -> tuple[Tensor, Boxes]:
    """A random window of a photo, and its boxes, cut off at the window's edge."""
    height, width = (min(side, length) for length in image.shape[1:])
    room = torch.tensor([image.shape[2] - width + 1, image.shape[1] - height + 1])
    left, top = (room * torch.rand(2, generator=generator)).long().tolist()
    boxes, limit = target["boxes"] - torch.tensor([left, top, left, top]), torch.tensor([width, height])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    within = ((centres > 0) & (centres < limit)).all(1)
    cut = torch.cat([boxes[:, :2].clamp(min=0), boxes[:, 2:].minimum(limit)], dim=1)[within]
    return image[:, top : top + height, left : left + width], {"boxes": cut, "labels": target["labels"][within]}


def drawn(x: Tensor, targets: list[Boxes], stretch: float, generator: torch.Generator) -> tuple[Tensor, list[Boxes]]:
    """A batch at another scale and in another light."""
    scale = (1 + stretch) ** float(2 * torch.rand((), generator=generator) - 1)
    height, width = (round(side * scale) for side in x.shape[2:])
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=scale < 1)
    gain = 0.7 + 0.6 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return (x * gain).clamp(0, 1), [target | {"boxes": target["boxes"] * scale} for target in targets]
