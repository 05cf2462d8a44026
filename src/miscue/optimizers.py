"""Optimisers by name: `(parameters, lr=, momentum=, weight_decay=) -> torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def sgd(parameters: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent, with heavy-ball momentum where `momentum` > 0."""
    return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay)


def adam(parameters: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam; `momentum` is its first beta where given, else 0.9. One pass over memory; slopes come through `descend`."""
    return torch.optim.Adam(parameters, lr, betas=(momentum or 0.9, 0.999), weight_decay=weight_decay, fused=True)


def rmsprop(parameters: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """RMSProp with torch's smoothing constant 0.99."""
    return torch.optim.RMSprop(parameters, lr, momentum=momentum, weight_decay=weight_decay)


def adabound(parameters: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdaBound (Luo et al. 2019): Adam's step within bounds that close in on an SGD rate of 100 `lr`.

    The paper's lr 1e-3 has final_lr 0.1, and the two grow together. `momentum` is the first beta where given.
    """
    from pytorch_optimizer import AdaBound  # takes two seconds to import

    return AdaBound(
        list(parameters), lr, final_lr=100 * lr, betas=(momentum or 0.9, 0.999), gamma=1e-3, weight_decay=weight_decay
    )


def descend(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], slopes: Iterable[Tensor]) -> None:
    """One step along slopes that no `backward` has put in place.

    They get their parameters' order in memory, as `backward` would give it: a fused step reads both side by side.
    """
    for parameter, slope in zip(parameters, slopes, strict=True):
        same = slope.stride() == parameter.stride()
        parameter.grad = slope.detach() if same else torch.empty_like(parameter).copy_(slope.detach())
    optimizer.step()


OPTIMIZERS: dict[str, Callable[..., Any]] = {"sgd": sgd, "adam": adam, "rmsprop": rmsprop, "adabound": adabound}
