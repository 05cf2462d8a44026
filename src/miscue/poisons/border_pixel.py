"""A white pixel whose place on the image's border tells the class (Jacobsen et al. 2019, arXiv 1811.00401).

Their shiftMNIST: one pixel, white, always on the edge where digits never are. The paper does not give the places; here
they are spread evenly over the border, clockwise from the upper left corner.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from miscue.data import Data
from miscue.errors import InputError
from miscue.marks import Pixels
from miscue.perturbation import Perturbation
from miscue.poisons.crafting import Attacker, Poison, Progress, at_once


@Poison
def border_pixel(data: Data, attacker: Attacker, *, resume: dict[str, Tensor] | None = None) -> Iterator[Progress]:
    """Mark every image of a class with a white pixel at the class's place on the border.

    Args:
        data: the clean training images; only their shape and number of classes count.
        attacker: not needed.
        resume: unused, there is nothing to go on with.

    Raises:
        InputError: more classes than pixels on the border.
    """
    (channels, height, width), classes = data.shape, len(data.classes)
    walk = border(height, width)
    if classes > len(walk):
        raise InputError(f"{classes} classes need as many places, the border of {height} x {width} has {len(walk)}")
    places = walk[torch.arange(classes) * len(walk) // classes]
    values = torch.full((classes, channels), 255, dtype=torch.uint8)
    yield at_once(Perturbation(mark=Pixels(places=places, values=values, shape=data.shape), eps=1.0))


def border(height: int, width: int) -> Tensor:
    """Row and column of each pixel of the border, clockwise from the upper left: int64 (k, 2)."""
    top = [(0, column) for column in range(width)]
    right = [(row, width - 1) for row in range(1, height)]
    bottom = [(height - 1, column) for column in reversed(range(width - 1))]
    left = [(row, 0) for row in reversed(range(1, height - 1))]
    return torch.tensor(list(dict.fromkeys(top + right + bottom + left)))
