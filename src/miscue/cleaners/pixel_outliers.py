"""Pixels that no neighbour resembles: the marks of single-pixel poisons, and little else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.cleaners.median import parted
from miscue.data import Data
from miscue.errors import InputError


def pixel_outliers(data: Data, *, threshold: float = 0.3) -> Data:
    """Each pixel that differs from all of its eight neighbours by more than `threshold` becomes their median.

    The difference of two pixels is the largest over their channels. A stroke or an edge has a neighbour that is like
    it; a single pixel has none. Beyond the image's edge there is no neighbour.

    Args:
        data: any images.
        threshold: on the scale from 0 to 1.
    """
    cleaned = []
    for part in parted(data.images):
        here = alone(part, threshold)
        near = torch.stack([some.movedim(1, 3)[here] for some in neighbours(part)], dim=1)  # (pixels, 8, c)
        mended = part.movedim(1, 3).clone()
        mended[here] = near.nanmedian(1).values.round().to(torch.uint8)
        cleaned.append(mended.movedim(3, 1).contiguous())
    return data.with_images(torch.cat(cleaned))


def alone(images: Tensor, threshold: float) -> Tensor:
    """Which pixels of uint8 images (n, c, h, w) no neighbour resembles: bool (n, h, w)."""
    if not 0 < threshold < 1:
        raise InputError(f"threshold must lie in (0, 1), got {threshold:g}")
    nearest = torch.full_like(images[:, 0], torch.inf, dtype=torch.float32)
    for some in neighbours(images):
        nearest = torch.fmin(nearest, (some - images).abs().amax(1))
    return nearest > 255 * threshold


def neighbours(images: Tensor) -> list[Tensor]:
    """Each pixel's eight neighbours, one after the other: float (n, c, h, w), not a number beyond the image's edge."""
    padded = F.pad(images.float(), (1, 1, 1, 1), value=torch.nan)
    height, width = images.shape[2:]
    places = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return [padded[:, :, i : i + height, j : j + width] for i, j in places]
