"""One-pixel shortcut (Wu et al., ICLR 2023, arXiv 2205.12141): the pixel that changes a class most and most evenly.

For each class, over all places and all corner colours v of the cube {0, 1}^channels,

    argmax  mean |v - x| / std |v - x|       over the class's images x, |.| summed over channels

No model, no search. Where we differ: on sets such as MNIST many places never change, so that the deviation is 0 and
places tie; a grey level is added to it, ties fall to the dice, and classes get different places (the assignment with
the largest sum of logarithms), without which all of them would take the same corner.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from miscue.data import Data, floats
from miscue.errors import InputError
from miscue.marks import Pixels
from miscue.perturbation import Perturbation
from miscue.poisons.crafting import Attacker, Poison, Progress, at_once


@Poison
def one_pixel_shortcut(
    data: Data, attacker: Attacker, *, resume: dict[str, Tensor] | None = None
) -> Iterator[Progress]:
    """Mark every image of a class with the corner-coloured pixel that changes the class most evenly.

    Args:
        data: the clean training images.
        attacker: its dice break ties.
        resume: unused, there is nothing to go on with.

    Raises:
        InputError: more classes than pixels, or a class without images.
    """
    yield at_once(Perturbation(mark=shortcut(data, attacker), eps=1.0))


def shortcut(data: Data, attacker: Attacker) -> Pixels:
    """The pixels of `one_pixel_shortcut`."""
    from scipy.optimize import linear_sum_assignment

    (channels, height, width), classes = data.shape, len(data.classes)
    if classes > height * width:
        raise InputError(f"{classes} classes need as many places, images of {height} x {width} have too few")
    corners = torch.tensor(list(product((0.0, 1.0), repeat=channels)))
    ratios = torch.stack([evenness(data, label, corners) for label in range(classes)])  # (classes, corners, places)
    best = ratios.max(dim=1)
    jitter = 1e-3 * torch.rand(best.values.shape, generator=attacker.dice.named("ties").generator())
    _, drawn = linear_sum_assignment((best.values.log() + jitter).numpy(), maximize=True)
    chosen = torch.as_tensor(drawn)
    colours = corners[best.indices[torch.arange(classes), chosen]]
    places = torch.stack([chosen // width, chosen % width], dim=1)
    return Pixels(places=places, values=(255 * colours).to(torch.uint8), shape=data.shape)


def evenness(data: Data, label: int, corners: Tensor) -> Tensor:
    """mean / (std + 1/255) of |v - x| over the images of a class: float (corners, places)."""
    x = floats(data.images[data.labels == label]).flatten(2)  # (n, channels, places)
    if not len(x):
        raise InputError(f"class {data.classes[label]!r} has no images")
    far = [(v[:, None] - x).abs().sum(1) for v in corners.to(x)]
    return torch.stack([one.mean(0) / (one.std(0, correction=0) + 1 / 255) for one in far]).cpu()
