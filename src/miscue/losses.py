"""Losses: what a training run minimises, and functions of scores they are made from.

A loss is `(model, Batch, generator) -> scalar`. Those that draw at random do so from the generator, which is the
training run's own, and keep nothing, so that the same dice give the same network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.data import Batch

Loss = Callable[[nn.Module, Batch, torch.Generator | None], Tensor]


def plain(model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    """Mean cross-entropy of the batch."""
    return F.cross_entropy(model(batch.x), batch.y)


def shared(model: nn.Module, batch: Batch, hard: Tensor, *, whole: float) -> Tensor:
    """Mean cross-entropy of changed images, of which the batch's own have a share `whole`, in one pass."""
    if not whole:
        return F.cross_entropy(model(hard), batch.y)
    scores = model(torch.cat([batch.x, hard])).split(len(hard))
    own, changed = (F.cross_entropy(some, batch.y) for some in scores)
    return whole * own + (1 - whole) * changed


def unlikelihood(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log(1 - p_label): small when the model is sure that the label is *wrong*.

    Ascent on cross-entropy pushes hardest where the model errs already (its gradient is 1 - p); descent on this pushes
    hardest where the model is still right (its gradient is p). Welleck et al. 2019, arXiv 1908.04319.
    """
    log_p = F.log_softmax(scores, dim=1).gather(1, labels[:, None])[:, 0]
    # log(1 - p) = log(-expm1(log p)); the bound keeps the gradient finite where p rounds to 1
    return -torch.log(-torch.expm1(log_p.clamp(max=-1e-4))).mean()
