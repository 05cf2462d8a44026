"""Where explanations lie: means for each class, and how much of them is near a place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from miscue.data import Data, fed
from miscue.models.networks import device_of


def class_maps(model: nn.Module, data: Data, explainer: Callable[..., Tensor], *, chunk: int = 500) -> Tensor:
    """The mean map of each class for its own label, each image's map summing to 1 first: float (classes, h, w).

    An image whose map is 0 everywhere counts for nothing; a class of only such images has a map of zeros.
    """
    device = device_of(model)
    sums = torch.zeros(len(data.classes), *data.shape[1:])
    counts = torch.zeros(len(data.classes))
    for part, x in fed(data.images, device, chunk=chunk):
        labels = data.labels[part].to(device)
        maps = explainer(model, x, labels)
        mass = maps.sum((1, 2))
        seen = mass > 0
        sums.index_add_(0, labels[seen].cpu(), (maps[seen] / mass[seen, None, None]).cpu())
        counts.index_add_(0, labels[seen].cpu(), torch.ones(int(seen.sum())))
    return sums / counts.clamp(min=1)[:, None, None]


def share_near(maps: Tensor, places: Tensor, *, radius: float = 3) -> float:
    """Mean share of each map's mass within `radius` pixels of its place, 0 to 100.

    maps: (k, h, w), not negative; one of zeros is left out.
    places: int64 (k, 2), row and column; row -1 leaves its map out.
    """
    height, width = maps.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = ((rows - places[:, 0, None, None]) ** 2 + (columns - places[:, 1, None, None]) ** 2).sqrt()
    mass = maps.sum((1, 2))
    counted = (places[:, 0] >= 0) & (mass > 0)
    near = (maps * (distance <= radius)).sum((1, 2))
    return float(100 * (near[counted] / mass[counted]).mean()) if bool(counted.any()) else float("nan")
