"""Bounded non-linearities with a trainable bound (the seed's slides; relatives: ReLU6, PACT).

    BL-ReLU(x, b) = s x            x < 0
                    x              0 <= x <= b
                    b - s (x - b)  x > b

That is y - s |x - y| with y = min(max(x, 0), b). With s = 0 it is truly bounded; with s > 0 it falls again beyond b,
and is bounded above only. b > 0 is learned, through a softplus, for a whole layer or for each channel. Its slope is
1 + s where x > b, and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.errors import InputError, not_negative
from miscue.models.functions import Bound

LEAST = 1e-3  # no bound begins below it: where nothing was ever active, nothing may be yet


class BoundedLeakyReLU(nn.Module):
    """BL-ReLU with the bounds `start`: a number for the layer, or one for each channel (the second axis)."""

    raw: nn.Parameter

    def __init__(self, start: Tensor, *, slope: float = 0.0):
        super().__init__()
        if start.ndim > 1 or not bool((start > 0).all()):
            raise InputError(f"bounds must be positive, one for a layer or for each channel, got {tuple(start.shape)}")
        not_negative(slope=slope)
        self.slope = slope
        # softplus^-1(b) = b + log(1 - e^-b), which does not overflow
        self.raw = nn.Parameter(start + torch.log(-torch.expm1(-start)))

    @property
    def bound(self) -> Tensor:
        """b, positive: scalar or (channels,)."""
        return F.softplus(self.raw)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as x."""
        b = self.bound.to(x)
        y: Tensor = Bound.apply(x, b.view(1, -1, *[1] * (x.ndim - 2)) if b.ndim else b.view([1] * x.ndim), self.slope)
        return y

    def extra_repr(self) -> str:
        """What print shows."""
        bounds = f"{self.raw.numel()} bounds" if self.raw.ndim else "one bound"
        return f"{bounds}, slope={self.slope:g}"


def rectifiers(model: nn.Module) -> Iterator[tuple[str, nn.ReLU]]:
    """(name, module) of each ReLU; one that is used in several places comes once."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            yield name, module


def swapped(model: nn.Module, starts: Mapping[str, Tensor], *, slope: float) -> nn.Module:
    """Replace, in place, the ReLUs of these names, wherever each is used."""
    known = dict(rectifiers(model))
    made = {id(known[name]): BoundedLeakyReLU(start, slope=slope) for name, start in starts.items()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in made:
                new = made[id(child)]
                new.training = child.training
                parent._modules[name] = new
    return model


def bounds(model: nn.Module) -> dict[str, BoundedLeakyReLU]:
    """The bounded activations by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BoundedLeakyReLU)}


def squared(model: nn.Module) -> Tensor:
    """The sum of b^2 over all bounds, a scalar: what an L2 term keeps small."""
    found = [module.bound.reshape(-1) for module in bounds(model).values()]
    if not found:
        raise InputError("the model has no bounded activations")
    return torch.cat(found).square().sum()
