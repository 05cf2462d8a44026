"""JPEG: fine noise does not survive compression (Liu et al. 2023, arXiv 2301.13838, take quality 10)."""

from __future__ import annotations

import torch

from miscue.data import Data, eight_bit
from miscue.distortions import through_jpeg
from miscue.errors import InputError


def jpeg(data: Data, *, quality: int = 10) -> Data:
    """Each image, encoded as JPEG and decoded.

    Args:
        data: images of 1 or 3 channels.
        quality: of the encoder, 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise InputError(f"JPEG quality must lie in 1..100, got {quality}")
    if data.shape[0] not in (1, 3):
        raise InputError(f"JPEG knows images of 1 or 3 channels, not of {data.shape[0]}")
    images = torch.stack([eight_bit(through_jpeg(one.cpu() / 255, quality)) for one in data.images])
    return data.with_images(images.to(data.images.device))
