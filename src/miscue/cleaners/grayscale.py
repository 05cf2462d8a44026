"""Grey images: noise that lives in colour is gone (Liu et al. 2023, "Image shortcut squeezing", arXiv 2301.13838)."""

from __future__ import annotations

import torch

from miscue.data import Data

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def grayscale(data: Data) -> Data:
    """Each pixel's luma in all three channels; images of another number of channels stay as they are."""
    if data.shape[0] != 3:
        return data
    weights = torch.tensor(LUMA, device=data.images.device)[None, :, None, None]
    grey = torch.cat([(part * weights).sum(1, keepdim=True) for part in data.images.split(1024)])
    return data.with_images(grey.round().clamp(0, 255).to(torch.uint8).expand_as(data.images).contiguous())
