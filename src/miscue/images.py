"""Batch image operations that pictures and pages are made from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def amplified(a: Tensor, b: Tensor, *, limit: float) -> Tensor:
    """The difference a - b of uint8 images as a picture: mid-grey is none, black and white are -limit and +limit."""
    difference = (a.to(torch.float32) - b.to(torch.float32)) / 255
    return (127.5 + 127.5 * (difference / limit).clamp(-1, 1)).round().to(torch.uint8)


def rectangles(corners: Tensor, sides: Sequence[int], size: Sequence[int]) -> Tensor:
    """The pixels of rectangles in images of `size` (height, width), as far as they lie within: bool (k, h, w).

    corners: (k, 2), row and column of their upper left corners. sides: their height and width.
    """
    along = []
    for axis, (side, length) in enumerate(zip(sides, size, strict=True)):
        pixel, start = torch.arange(length, device=corners.device), corners[:, axis, None]
        along.append((pixel >= start) & (pixel < start + side))
    return along[0][:, :, None] & along[1][:, None, :]
