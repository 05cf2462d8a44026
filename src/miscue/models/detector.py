"""A small object detector that finds the centres of objects (Zhou, Wang, Krähenbühl 2019, arXiv 1904.07850).

It has torchvision's protocol: `model(images, targets) -> losses` in training mode, `model(images) -> boxes, labels,
scores` in eval mode. For every fourth pixel it gives, for each class, how sure it is that an object has its centre
there, and where it has, the centre's offset and the box's sides. What is no peak among its neighbours is dropped, so
no two boxes share a centre and no other suppression is needed. Four levels, to every 32nd pixel, are joined from the
coarsest on, so that what a cell says depends on what lies far around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.errors import InputError
from miscue.scenes import Boxes, canvas

STRIDE = 4  # pixels from one cell to the next
COARSEST = 32  # the same on the coarsest level, which sees far around
MOST = 100  # detections in an image, as torchvision's have it


class Centres(nn.Module):
    """The detector for so many classes (labels 1, 2, ...) in images of `channels` channels of any size.

    threshold: the least score of a detection.
    """

    def __init__(self, classes: int, *, channels: int = 3, width: int = 16, threshold: float = 0.01):
        super().__init__()
        self.threshold = threshold
        steps = list(pairwise((2 * width, 4 * width, 8 * width, 8 * width)))
        first = nn.Sequential(block(channels, width, stride=2), block(width, 2 * width, stride=2))
        halved = (nn.Sequential(block(fine, coarse, stride=2), block(coarse, coarse)) for fine, coarse in steps)
        self.down = nn.ModuleList([first, *halved])
        self.up = nn.ModuleList(block(coarse, fine) for fine, coarse in reversed(steps))
        self.joined = block(2 * width, 2 * width)
        self.sure = nn.Sequential(block(2 * width, 2 * width), nn.Conv2d(2 * width, classes, 1))
        self.box = nn.Sequential(block(2 * width, 2 * width), nn.Conv2d(2 * width, 4, 1))
        nn.init.constant_(self.sure[1].bias, -math.log(99))  # type: ignore[arg-type]

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Boxes] | None = None
    ) -> dict[str, Tensor] | list[Boxes]:
        """Losses in training mode, which needs `targets`; else the detections of each image, best first.

        Args:
            images: float (c, h, w) in [0, 1] each.
            targets: what is in each of them.
        """
        if self.training and targets is None:
            raise InputError("a detector in training mode needs targets")
        sure, box = self.maps(canvas(list(images), multiple=COARSEST))
        if self.training:
            assert targets is not None
            return losses(sure, box, targets)
        return [
            detections(*pair, sides=(image.shape[2], image.shape[1]), threshold=self.threshold)
            for *pair, image in zip(sure, box, images, strict=True)
        ]

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes, h / 4, w / 4); offset and log sides in cells (n, 4, h / 4, w / 4)."""
        x, finer = (x - 0.5) / 0.25, []
        for down in self.down:
            x = down(x)
            finer.append(x)
        for up, fine in zip(self.up, reversed(finer[:-1]), strict=True):
            x = fine + F.interpolate(up(x), scale_factor=2, mode="nearest")
        x = self.joined(x)
        return self.sure(x), self.box(x)


def block(before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def losses(sure: Tensor, box: Tensor, targets: Sequence[Boxes]) -> dict[str, Tensor]:
    """Focal loss of the maps of centres, L1 loss of offset and log sides at them, each for one object.

    Around each centre lies a Gaussian, with deviations of a twelfth of the box's sides, by whose height a cell is less
    of a counterexample.
    """
    wanted = torch.zeros_like(sure)
    height, width = sure.shape[2:]
    rows, columns = (torch.arange(side, device=sure.device, dtype=sure.dtype) for side in (height, width))
    where: list[Tensor] = []
    aims: list[Tensor] = []
    for number, target in enumerate(targets):
        boxes, labels = target["boxes"].to(sure) / STRIDE, target["labels"].to(sure.device) - 1
        centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        limit = torch.tensor([width - 1, height - 1], device=sure.device)
        cell = torch.minimum(centre.floor().long(), limit)
        spread = (sides / 12).clamp(min=0.5)
        across = torch.exp(-(((columns - cell[:, :1]) / spread[:, :1]) ** 2) / 2)
        down = torch.exp(-(((rows - cell[:, 1:]) / spread[:, 1:]) ** 2) / 2)
        for label, bump in zip(labels.tolist(), down[:, :, None] * across[:, None, :], strict=True):
            torch.maximum(wanted[number, label], bump, out=wanted[number, label])
        where.append(torch.cat([torch.full_like(cell[:, :1], number), cell.flip(1), labels[:, None]], dim=1))
        aims.append(torch.cat([centre - cell, sides.log()], dim=1))
    at, aim = torch.cat(where), torch.cat(aims)
    n, row, column, label = at.unbind(1)
    wanted[n, label, row, column] = 1
    count = max(len(at), 1)
    p, peak = sure.sigmoid(), wanted == 1
    for_peaks = (1 - p) ** 2 * F.logsigmoid(sure)
    for_others = (1 - wanted) ** 4 * p**2 * F.logsigmoid(-sure)
    found = box[n, :, row, column]
    return {
        "loss_centres": -torch.where(peak, for_peaks, for_others).sum() / count,
        "loss_boxes": F.l1_loss(found, aim, reduction="sum") / count,
    }


def detections(sure: Tensor, box: Tensor, *, sides: tuple[int, int], threshold: float) -> Boxes:
    """The peaks of (classes, h, w), at most `MOST`, with their boxes cut off at the image's width and height."""
    p = sure.sigmoid()
    peaks = p * (F.max_pool2d(p[None], 3, stride=1, padding=1)[0] == p)
    scores, place = peaks.flatten().topk(min(MOST, peaks.numel()))
    keep = scores >= threshold
    scores, place = scores[keep], place[keep]
    _, height, width = sure.shape
    label, row, column = place // (height * width), place // width % height, place % width
    right, down, log_wide, log_high = box[:, row, column]
    centre = torch.stack([column + right, row + down], dim=1) * STRIDE
    half = torch.stack([log_wide, log_high], dim=1).clamp(max=8).exp() * STRIDE / 2
    corners = torch.cat([centre - half, centre + half], dim=1)
    limit = torch.tensor([*sides, *sides], device=corners.device, dtype=corners.dtype)
    return {"boxes": corners.clamp(min=0).minimum(limit), "labels": label + 1, "scores": scores}


def centres(shape: tuple[int, int, int], *, classes: int, **options: Any) -> Centres:
    """`Centres` for images of `shape`, of which only the channels matter."""
    return Centres(classes, channels=shape[0], **options)


DETECTORS: dict[str, Callable[..., nn.Module]] = {"centres": centres}
