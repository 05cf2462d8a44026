"""The slope of a class's score at an image, which several explanations start from."""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.models.modes import Model, differentiable, frozen


def score_slopes(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """d score_y / d x for images x (n, c, h, w) and classes y (n,): float (n, c, h, w).

    Raises:
        InputError: the model has no gradient.
    """
    with frozen(model), torch.enable_grad():
        x = x.detach().requires_grad_()
        scores = differentiable(model(x))
        (slopes,) = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), x)
    return slopes
