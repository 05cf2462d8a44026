"""Norm balls around 8-bit images: what a budget eps allows once pixels are whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.errors import share_of_one


def levels(eps: float) -> int:
    """The largest whole number of grey levels (0..255) within an L-infinity budget `eps` on the [0, 1] scale."""
    share_of_one(eps=eps)
    return int(eps * 255 + 1e-6)


def released(x: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Round perturbed images to what can be released.

    Args:
        x: perturbed images, float (n, c, h, w) on the [0, 1] scale, may lie outside it.
        clean: the originals, uint8 of the same shape.
        eps: L-infinity budget on the [0, 1] scale.

    Returns:
        uint8 images, none of whose pixels is further than `eps` from `clean` *after* rounding.
    """
    k = levels(eps)
    origin = clean.to(torch.int16)
    rounded = (x * 255).round().clamp(0, 255).to(torch.int16)
    return rounded.clamp(min=origin - k, max=origin + k).to(torch.uint8)


def linf(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two uint8 image tensors, on the [0, 1] scale."""
    if a.numel() == 0:
        return 0.0
    chunks = zip(a.split(4096), b.split(4096), strict=True)
    return max(int((p.to(torch.int16) - q.to(torch.int16)).abs().max()) for p, q in chunks) / 255


def changed_pixels(a: Tensor, b: Tensor) -> int:
    """The largest number of places (all channels of one are one place) in which two images of a pair differ."""
    if a.numel() == 0:
        return 0
    chunks = zip(a.split(4096), b.split(4096), strict=True)
    return max(int((p != q).any(1).flatten(1).sum(1).max()) for p, q in chunks)


NORMS = ("linf", "l2")


def onto(delta: Tensor, eps: float, norm: str) -> Tensor:
    """The nearest point to each `delta` (n, c, h, w) in the ball of radius `eps` around 0, in one of NORMS."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    return delta * (eps / delta.flatten(1).norm(dim=1).clamp(min=eps))[:, None, None, None]


def within(like: Tensor, eps: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """Points drawn evenly from the ball of radius `eps` around 0, one for each image of `like` (n, c, h, w)."""
    if norm == "linf":
        return (torch.rand(like.shape, generator=generator).mul_(2).sub_(1) * eps).to(like)
    direction = torch.randn(like.shape, generator=generator)
    size = torch.rand(len(like), generator=generator) ** (1 / like[0].numel())
    return (direction * (eps * size / direction.flatten(1).norm(dim=1))[:, None, None, None]).to(like)
