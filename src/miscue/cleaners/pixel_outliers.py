"""Pixels that no neighbour resembles: the marks of single-pixel poisons, and little else."""

from __future__ import annotations

import torch

from miscue.cleaners.median import CHUNK, around
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
    if not 0 < threshold < 1:
        raise InputError(f"threshold must lie in (0, 1), got {threshold:g}")
    height, width = data.shape[1:]
    there = around(torch.ones(1, 1, height, width), 3) * 0 + 1  # (1, 9, 1, h, w)
    rows, columns = torch.arange(height), torch.arange(width)
    for k, (i, j) in enumerate((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
        inside = ((rows + i >= 0) & (rows + i < height))[:, None] & ((columns + j >= 0) & (columns + j < width))[None]
        there[0, k, 0] = inside
    there[:, 4] = 0  # the pixel itself
    there = there.to(data.images.device) > 0
    cleaned = []
    for part in data.images.split(CHUNK):
        near = around(part, 3)
        apart = (near - part.float()[:, None]).abs().amax(2, keepdim=True).masked_fill(~there, torch.inf)
        alone = apart.amin(1) > 255 * threshold
        middle = near.masked_fill(~there, torch.nan).nanmedian(1).values.round().to(torch.uint8)
        cleaned.append(torch.where(alone, middle, part))
    return data.with_images(torch.cat(cleaned))
