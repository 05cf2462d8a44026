"""What figures are drawn from, as plain data: pictures, examples under their maps, ROC curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from miscue.data import eight_bit
from miscue.errors import InputError

EXAMPLES = 4  # of a cell
RATES = 101  # places of an ROC curve, from 0 to 100 % false positives
DIGITS = 3  # of a number that is drawn


def rounded(values: Tensor) -> list[Any]:
    """Nested lists of a tensor's numbers, good enough to draw."""
    return torch.round(values.double().cpu(), decimals=DIGITS).tolist()


def tones(maps: Tensor) -> list[Any]:
    """Maps (..., h, w) as whole numbers from -99 to 99, each of them by its own largest size."""
    most = maps.abs().amax((-2, -1), keepdim=True).clamp(min=1e-12)
    return (99 * maps / most).round().int().tolist()


def examples(x: Tensor, named: Sequence[str], maps: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """A few images, evenly spread, each with its maps.

    Args:
        x: float (n, c, h, w) in [0, 1].
        named: what each shows.
        maps: by name, float (n, h, w).

    Returns:
        {"name", "image": 0 to 255 (c, h, w), "maps": by name, -99 to 99 (h, w)}.
    """
    chosen = range(0, len(x), -(-len(x) // EXAMPLES))
    return [
        {
            "name": named[i],
            "image": eight_bit(x[i]).tolist(),
            "maps": {name: tones(some[i]) for name, some in maps.items()},
        }
        for i in chosen
    ]


def roc(scores: Tensor, positive: Tensor) -> list[float]:
    """The largest rate of true positives within 0, 1, ..., 100 % false ones, in percent.

    Args:
        scores: float (n,), large where something was found.
        positive: bool (n,), where there is something.

    Raises:
        InputError: all are positive, or none.
    """
    count = int(positive.sum())
    if not 0 < count < len(positive):
        raise InputError("an ROC curve needs some of both kinds")
    thresholds = scores.unique()[:, None]
    true, false = (100 * (scores[kind] >= thresholds).double().mean(1) for kind in (positive, ~positive))
    within = [true[false <= rate + 1e-9] for rate in range(RATES)]
    return [round(float(some.max()), DIGITS) if len(some) else 0.0 for some in within]
