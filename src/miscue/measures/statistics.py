"""Statistics by ranks, which no scale of a score and no outlier matters to."""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.errors import InputError


def ranks(values: Tensor) -> Tensor:
    """The rank of each of (n,) values, from 1; equal ones share the mean of theirs: float64 (n,)."""
    _, where, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[where]


def auroc(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve, in percent: how often a positive one has a larger score than another.

    Args:
        scores: (n,), large where something is taken for positive; of equal ones each half counts.
        positive: bool (n,).

    Raises:
        InputError: all are positive, or none.
    """
    count = int(positive.sum())
    if count in (0, len(positive)):
        raise InputError("an ROC curve needs some of both kinds")
    wins = float(ranks(scores)[positive].sum()) - count * (count + 1) / 2
    return 100 * wins / (count * (len(positive) - count))


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of maps (n, h, w), pair by pair: float (n,), 0 where all of a map is equal."""
    both = [torch.stack([ranks(row) for row in some.flatten(1).cpu()]) for some in (a, b)]  # a GPU would wait each time
    centred = [some - some.mean(1, keepdim=True) for some in both]
    scale = (centred[0].norm(dim=1) * centred[1].norm(dim=1)).clamp(min=1e-12)
    return ((centred[0] * centred[1]).sum(1) / scale).float().to(a.device)
