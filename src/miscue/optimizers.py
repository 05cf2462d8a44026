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
    """Adam; `momentum` is its first beta where given, else 0.9."""
    return torch.optim.Adam(parameters, lr, betas=(momentum or 0.9, 0.999), weight_decay=weight_decay)


def rmsprop(parameters: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """RMSProp with torch's smoothing constant 0.99."""
    return torch.optim.RMSprop(parameters, lr, momentum=momentum, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., Any]] = {"sgd": sgd, "adam": adam, "rmsprop": rmsprop}
