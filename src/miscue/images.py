"""Batch image operations that pictures and pages are made from."""

from __future__ import annotations

import torch
from torch import Tensor


def amplified(a: Tensor, b: Tensor, *, limit: float) -> Tensor:
    """The difference a - b of uint8 images as a picture: mid-grey is none, black and white are -limit and +limit."""
    difference = (a.to(torch.float32) - b.to(torch.float32)) / 255
    return (127.5 + 127.5 * (difference / limit).clamp(-1, 1)).round().to(torch.uint8)
