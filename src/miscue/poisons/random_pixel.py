"""A pixel for each class at a random place: the baseline of the single-pixel poisons."""

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
def random_pixel(
    data: Data, attacker: Attacker, *, value: float = 1.0, resume: dict[str, Tensor] | None = None
) -> Iterator[Progress]:
    """Mark every image of a class with one pixel, at a place drawn for the class; no two classes share a place.

    Args:
        data: the clean training images; only their shape and number of classes count.
        attacker: its dice draw the places.
        value: the pixel's intensity in all channels, 0 to 1.
        resume: unused, there is nothing to go on with.

    Raises:
        InputError: a value outside [0, 1], or more classes than pixels.
    """
    (_, height, width), classes = data.shape, len(data.classes)
    if not 0 <= value <= 1:
        raise InputError(f"value must lie in [0, 1], got {value:g}")
    if classes > height * width:
        raise InputError(f"{classes} classes need as many places, images of {height} x {width} have too few")
    drawn = torch.randperm(height * width, generator=attacker.dice.named("places").generator())[:classes]
    places = torch.stack([drawn // width, drawn % width], dim=1)
    values = torch.full((classes, data.shape[0]), round(255 * value), dtype=torch.uint8)
    yield at_once(Perturbation(mark=Pixels(places=places, values=values, shape=data.shape), eps=1.0))
