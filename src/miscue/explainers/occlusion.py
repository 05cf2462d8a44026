"""Occlusion (Zeiler, Fergus 2014, arXiv 1311.2901): how far a class's score falls when part of the image is covered.

The value of a pixel is the mean fall over all windows that cover it. The windows of many images go through the model
together. `first_order` replaces them by one backward pass: covering changes the score by about the sum over the window
of slope times change, so that the map is a box filter of slope times (x - fill).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.dice import Dice
from miscue.distortions import blur
from miscue.errors import InputError, lookup
from miscue.explainers.slopes import score_slopes
from miscue.images import rectangles
from miscue.models.modes import Model, frozen

TOGETHER = 512  # images in one forward pass; a processor gains nothing from more


def grey(x: Tensor) -> Tensor:
    """Half of white."""
    return torch.full_like(x, 0.5)


def mean(x: Tensor) -> Tensor:
    """The mean colour of each image."""
    return x.mean((2, 3), keepdim=True).expand_as(x)


def blurred(x: Tensor) -> Tensor:
    """The image itself, blurred beyond what a window of a few pixels holds."""
    return blur(x, max(x.shape[2:]) / 10, Dice().generator())


FILLS: dict[str, Callable[[Tensor], Tensor]] = {"grey": grey, "black": torch.zeros_like, "mean": mean, "blur": blurred}
"""What a covered pixel becomes: images (n, c, h, w) -> the same shape."""


def occlusion(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    window: int = 5,
    stride: int = 1,
    fill: str = "grey",
    first_order: bool = False,
) -> Tensor:
    """Maps of how far the score of class `y` falls where the image is covered; negative where it rises.

    Args:
        model: from images in [0, 1] to scores; scored in eval mode and left as it was.
        x: images (n, c, h, w) in [0, 1].
        y: int64 (n,), the class whose score is explained.
        window: side of the square window in pixels.
        stride: pixels from one window to the next; the last window of a row or column is cut off at the edge.
        fill: "grey", "black", "mean" (each image's own colour) or "blur".
        first_order: one backward pass instead of a forward pass for each window; needs a differentiable model.

    Returns:
        float (n, h, w).

    Raises:
        InputError: a window larger than the image, a stride larger than the window.
    """
    covered = lookup(FILLS, fill, "fill")(x)
    rows, columns = (windows(side, window, stride) for side in x.shape[2:])
    if first_order:
        spent = (score_slopes(model, x, y) * (x - covered)).sum(1, keepdim=True)
        down, right = ((count - 1) * stride + window for count in (rows, columns))
        spent = F.pad(spent, (0, right - x.shape[3], 0, down - x.shape[2]))
        falls = F.avg_pool2d(spent, window, stride, divisor_override=1)
    else:
        with frozen(model), torch.inference_mode():
            whole = torch.cat([model(part) for part in x.split(TOGETHER)]).gather(1, y[:, None])
            falls = whole.new_empty(len(x), rows * columns)
            for images, places, scores in covered_scores(model, x, covered, window=window, stride=stride):
                own = y[images, None, None].expand(-1, scores.shape[1], 1)
                falls[images, places] = whole[images] - scores.gather(2, own)[..., 0]
        falls = falls.view(-1, 1, rows, columns)
    return averaged(falls, x.shape[2:], window, stride)


def windows(side: int, window: int, stride: int) -> int:
    """How many windows lie along a side."""
    if not 1 <= window <= side:
        raise InputError(f"a window of {window} pixels does not lie in an image of {side}")
    if not 1 <= stride <= window:
        raise InputError(f"the stride must lie between 1 and the window's {window} pixels, got {stride}")
    return math.ceil((side - window) / stride) + 1


def covered_scores(
    model: Model, x: Tensor, covered: Tensor, *, window: int, stride: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """`masked_scores` for all windows, which are numbered row by row."""
    tops, lefts = (stride * torch.arange(windows(side, window, stride), device=x.device) for side in x.shape[2:])
    places = torch.cartesian_prod(tops, lefts)

    def masks(chosen: slice) -> Tensor:
        return rectangles(places[chosen], (window, window), x.shape[2:])

    yield from masked_scores(model, x, covered, masks, len(places))


def masked_scores(
    model: Model, x: Tensor, covered: Tensor, masks: Callable[[slice], Tensor], count: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The scores of images x (n, c, h, w) that are as in `covered` under each of `count` masks, some of both at a time.

    masks: which of them -> bool (k, h, w).

    Yields:
        (which images, which masks, scores (images, masks, classes)).
    """
    some = math.ceil(count / math.ceil(count / TOGETHER))
    many = max(1, TOGETHER // some)
    own, other = (images.permute(0, 2, 3, 1)[:, None] for images in (x, covered))  # (n, 1, h, w, c)
    for first in range(0, count, some):
        chosen = slice(first, min(first + some, count))
        mask = masks(chosen)[..., None]
        for start in range(0, len(x), many):
            images = slice(start, min(start + many, len(x)))
            shown = torch.where(mask, other[images], own[images]).flatten(0, 1).permute(0, 3, 1, 2)
            yield images, chosen, model(shown).unflatten(0, (images.stop - images.start, -1))


def averaged(falls: Tensor, size: torch.Size, window: int, stride: int) -> Tensor:
    """Each pixel's mean over the windows (n, 1, rows, columns) that cover it: (n, h, w)."""
    ones = falls.new_ones(1, 1, window, window)
    sums, counts = (
        F.conv_transpose2d(some, ones, stride=stride)[:, 0, : size[0], : size[1]]
        for some in (falls, torch.ones_like(falls[:1]))
    )
    return sums / counts
