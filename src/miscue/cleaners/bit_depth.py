"""Fewer bits: noise below a step is rounded away (feature squeezing, Xu et al. 2018, arXiv 1704.01155)."""

from __future__ import annotations

import torch

from miscue.cleaners.median import parted
from miscue.data import Data
from miscue.errors import InputError


def bit_depth(data: Data, *, bits: int = 2) -> Data:
    """Each channel rounded to the nearest of 2^bits levels from black to white.

    Args:
        data: any images.
        bits: 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise InputError(f"bits must lie in 1..8, got {bits}")
    step = 255 / (2**bits - 1)
    table = ((torch.arange(256) / step).round() * step).round().to(torch.uint8).to(data.images.device)
    return data.with_images(torch.cat([table[part.long()] for part in parted(data.images)]))
