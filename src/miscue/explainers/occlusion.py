"""Occlusion (Zeiler, Fergus 2014, arXiv 1311.2901): how far a class's score falls when part of the image is covered.

The value of a pixel is the mean fall over all windows that cover it. The windows of many images go through the model
together. `first_order` replaces them by one backward pass: covering changes the score by about the sum over the window
of slope times change, so that the map is a box filter of slope times (x - fill).

Stickers are found best by the fall of the log-probability, `weighed` by the squared change of the covered pixels, with
what is around for a fill: what could be guessed from there is no sticker. Ours; `detectors.consistency` looks so, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.covers import ALIKE, FILLS, Fill
from miscue.data import portion
from miscue.errors import InputError, lookup
from miscue.explainers.slopes import score_slopes
from miscue.images import rectangles
from miscue.models.modes import Model, frozen

FALLS = ("score", "log-probability")
TOGETHER = 512  # images in one forward pass; a processor gains nothing from more


def occlusion(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    window: int = 5,
    stride: int = 1,
    fill: str = "grey",
    fall: str = "score",
    weighed: bool = False,
    first_order: bool = False,
) -> Tensor:
    """Maps of how far the score of class `y` falls where the image is covered; negative where it rises.

    Args:
        model: from images in [0, 1] to scores; scored in eval mode and left as it was.
        x: images (n, c, h, w) in [0, 1].
        y: int64 (n,), the class whose score is explained.
        window: side of the square window in pixels.
        stride: pixels from one window to the next; the last window of a row or column is cut off at the edge.
        fill: a key of FILLS: "grey", "black", "mean" (each image's own colour), "blur", or "inpaint" (from around).
        fall: of what, the "score" of the class or its "log-probability".
        weighed: each fall is multiplied by the mean squared change of the image.
        first_order: one backward pass instead of a forward pass for each window; needs a differentiable model.

    Returns:
        float (n, h, w).

    Raises:
        InputError: a window larger than the image, a stride larger than the window, `first_order` with "inpaint", of
            the log-probability or weighed.
    """
    filler = lookup(FILLS, fill, "fill")
    lookup(dict.fromkeys(FALLS), fall, "fall")
    rows, columns = (windows(side, window, stride) for side in x.shape[2:])
    if first_order:
        if fill not in ALIKE:
            raise InputError(f"{fill} differs from window to window; first_order takes {', '.join(ALIKE)}")
        if fall != "score" or weighed:
            raise InputError("first_order is of the score alone, not weighed")
        covered = filler(x, torch.ones_like(x[:1, :1], dtype=torch.bool))[:, 0]
        spent = (score_slopes(model, x, y) * (x - covered)).sum(1, keepdim=True)
        down, right = ((count - 1) * stride + window for count in (rows, columns))
        spent = F.pad(spent, (0, right - x.shape[3], 0, down - x.shape[2]))
        falls = F.avg_pool2d(spent, window, stride, divisor_override=1)
    else:
        with frozen(model), torch.inference_mode():
            whole = said(torch.cat([model(part) for part in x.split(portion(x, TOGETHER))])[:, None], y, fall)
            falls = whole.new_empty(len(x), rows * columns)
            masks = window_masks(x, window, stride)
            for images, places, scores, shown in masked_scores(model, x, filler, masks, rows * columns):
                fell = whole[images] - said(scores, y[images], fall)
                if weighed:
                    fell = fell * (shown - x[images, None].movedim(2, -1)).square().mean((2, 3, 4))
                falls[images, places] = fell
        falls = falls.view(-1, 1, rows, columns)
    return averaged(falls, x.shape[2:], window, stride)


def said(scores: Tensor, y: Tensor, fall: str) -> Tensor:
    """What scores (n, k, classes) say of each image's class y (n,): its score, or its log-probability, (n, k)."""
    scores = scores if fall == "score" else scores.log_softmax(2)
    return scores.gather(2, y[:, None, None].expand(-1, scores.shape[1], 1))[..., 0]


def windows(side: int, window: int, stride: int) -> int:
    """How many windows lie along a side."""
    if not 1 <= window <= side:
        raise InputError(f"a window of {window} pixels does not lie in an image of {side}")
    if not 1 <= stride <= window:
        raise InputError(f"the stride must lie between 1 and the window's {window} pixels, got {stride}")
    return math.ceil((side - window) / stride) + 1


def window_masks(x: Tensor, window: int, stride: int) -> Callable[[slice], Tensor]:
    """Which pixels some of the windows cover, numbered row by row: a slice of them -> bool (k, h, w)."""
    tops, lefts = (stride * torch.arange(windows(side, window, stride), device=x.device) for side in x.shape[2:])
    places = torch.cartesian_prod(tops, lefts)
    return lambda chosen: rectangles(places[chosen], (window, window), x.shape[2:])


def masked_scores(
    model: Model, x: Tensor, fill: Fill, masks: Callable[[slice], Tensor], count: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """The scores of images x (n, c, h, w) with each of `count` masks filled, some images and some masks at a time.

    masks: which of them -> bool (k, h, w).

    Yields:
        (which images, which masks, scores (images, masks, classes), the images shown (images, masks, h, w, c)).
    """
    together = portion(x, TOGETHER)
    some = math.ceil(count / math.ceil(count / together))
    many = max(1, together // some)
    for first in range(0, count, some):
        chosen = slice(first, min(first + some, count))
        mask = masks(chosen)[None]
        for start in range(0, len(x), many):
            images = slice(start, min(start + many, len(x)))
            own, other = x[images, None], fill(x[images], mask)
            shown = torch.where(mask[..., None], other.movedim(2, -1), own.movedim(2, -1))
            scores = model(shown.flatten(0, 1).permute(0, 3, 1, 2))
            yield images, chosen, scores.unflatten(0, shown.shape[:2]), shown


def averaged(falls: Tensor, size: torch.Size, window: int, stride: int) -> Tensor:
    """Each pixel's mean over the windows (n, 1, rows, columns) that cover it: (n, h, w)."""
    ones = falls.new_ones(1, 1, window, window)
    sums, counts = (
        F.conv_transpose2d(some, ones, stride=stride)[:, 0, : size[0], : size[1]]
        for some in (falls, torch.ones_like(falls[:1]))
    )
    return sums / counts
