"""A model in another state for a block: in train or eval mode, or with nothing to learn. It is as before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from miscue.models import layers

Model = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) in [0, 1] -> scores (n, classes); normalisation is inside."""


@contextmanager
def mode(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Put a model into train or eval mode for a block; every module is as before afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(train)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Eval mode, and no gradient for parameters, which nobody needs who asks for that of an image.

    BatchNorm is a line for each channel then, and is worked out as such: on a CPU the way back through the library's
    kernel takes longer. A compiled model is left as it is, since it would be compiled anew.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with mode(model, train=False):
        for parameter in learning:
            parameter.requires_grad_(False)
        compiled = hasattr(model, "_orig_mod")
        lines = {} if compiled else {module: Line(module) for module in model.modules() if straight(module)}
        for module, line in lines.items():
            module.forward = line
        try:
            yield
        finally:
            for module in lines:
                del module.forward
            for parameter in learning:
                parameter.requires_grad_(True)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, layers.BatchNorm1d, layers.BatchNorm2d)


def straight(module: nn.Module) -> bool:
    """Whether it is a BatchNorm of the library or of ours, with kept statistics and nothing else in its place."""
    return type(module) in NORMS and module.running_mean is not None and "forward" not in vars(module)


class Line:
    """What a BatchNorm in eval mode does: x * scale + shift, by channel."""

    def __init__(self, norm: nn.Module):
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            self.scale = (norm.running_var + norm.eps).rsqrt() * (norm.weight if norm.affine else 1)
            self.shift = (norm.bias if norm.affine else 0) - norm.running_mean * self.scale
        self.usual = type(norm).forward.__get__(norm)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, c, ...) -> the same shape; of another precision than the statistics' it is left to the library."""
        if x.dtype != self.scale.dtype:
            left: Tensor = self.usual(x)
            return left
        wide = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.shift.view(wide), x, self.scale.view(wide))


@contextmanager
def losing(detector: nn.Module) -> Iterator[None]:
    """Training mode, in which a detector gives its losses, with nothing to learn, no statistics kept, no dropout."""
    still = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    with frozen(detector):
        for module in detector.modules():
            module.training = not isinstance(module, still)
        yield
