"""What is put where part of an image is covered.

A fill takes images (n, c, h, w) and masks, bool (n or 1, k, h, w), and gives what the covered pixels become, in a shape
that goes with (n, k, c, h, w). The field knows flat ones; `inpainted` guesses the pixels from what lies around, so that
a cover is not an object of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from miscue.distortions import gaussian
from miscue.errors import lookup

Fill = Callable[[Tensor, Tensor], Tensor]


def grey(x: Tensor, masks: Tensor) -> Tensor:
    """Half of white."""
    return x.new_full((1, 1, 1, 1, 1), 0.5)


def black(x: Tensor, masks: Tensor) -> Tensor:
    """Nothing."""
    return x.new_zeros(1, 1, 1, 1, 1)


def mean(x: Tensor, masks: Tensor) -> Tensor:
    """The mean colour of each image, covered pixels included."""
    return x.mean((2, 3), keepdim=True)[:, None]


def blurred(x: Tensor, masks: Tensor) -> Tensor:
    """The image itself, covered pixels included, blurred beyond what a window of a few pixels holds."""
    return smooth(x, 10)[:, None]


def inpainted(x: Tensor, masks: Tensor) -> Tensor:
    """The mean of the pixels around, the nearer the more, none of them covered (normalized convolution).

    Knutsson, Westin 1993. Far from anything seen it is the mean of all that is.
    """
    seen = (~masks)[:, :, None].to(x)  # (m, k, 1, h, w)
    shown = x[:, None] * seen
    far = shown.mean((3, 4), keepdim=True) / seen.mean((3, 4), keepdim=True).clamp(min=1e-6)
    near, weight = (smooth(some.flatten(0, 1), 12).unflatten(0, some.shape[:2]) for some in (shown, seen))
    return (near + 1e-4 * far) / (weight + 1e-4)


def smooth(x: Tensor, share: int) -> Tensor:
    """Blurred by a Gaussian of the longer side's `share`-th part."""
    return gaussian(x, max(x.shape[2:]) / share)


FILLS: dict[str, Fill] = {"grey": grey, "black": black, "mean": mean, "blur": blurred, "inpaint": inpainted}
BLIND = ("grey", "black", "inpaint")
"""The fills in which nothing of what is covered is left."""
ALIKE = ("grey", "black", "mean", "blur")
"""The fills that are the same under every mask."""


def covered(x: Tensor, masks: Tensor, fill: str) -> Tensor:
    """Images (n, c, h, w), each with what its own mask, bool (n, h, w), covers replaced."""
    masks = masks[:, None]
    return torch.where(masks, lookup(FILLS, fill, "fill")(x, masks)[:, 0], x)
