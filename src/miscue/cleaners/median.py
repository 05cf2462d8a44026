"""The median of each pixel's surroundings: what stands alone is gone, and so is what is thin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.data import Data, portion
from miscue.errors import InputError

CHUNK = 512


def median(data: Data, *, side: int = 3) -> Data:
    """Each channel's median over a square around each pixel; the edge of the image goes on.

    Args:
        data: any images.
        side: of the square in pixels, odd.
    """
    if side < 1 or side % 2 == 0 or side > 2 * min(data.shape[1:]) - 1:
        raise InputError(f"side must be odd and fit the images, got {side}")
    parts = [around(part, side).median(1).values.to(torch.uint8) for part in parted(data.images)]
    return data.with_images(torch.cat(parts))


def parted(images: Tensor) -> tuple[Tensor, ...]:
    """The images in parts of which several copies have room."""
    return images.split(portion(images, CHUNK))


def around(images: Tensor, side: int) -> Tensor:
    """What lies around each pixel: uint8 (n, c, h, w) -> float (n, side^2, c, h, w), the pixel itself in the middle."""
    reach = side // 2
    padded = F.pad(images.float(), (reach, reach, reach, reach), mode="replicate")
    height, width = images.shape[2:]
    return torch.stack([padded[:, :, i : i + height, j : j + width] for i in range(side) for j in range(side)], dim=1)
