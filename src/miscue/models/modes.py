"""A model in another state for a block: in train or eval mode, or with nothing to learn. It is as before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

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
    """Eval mode, and no gradient for parameters, which nobody needs who asks for that of an image."""
    if not isinstance(model, nn.Module):
        yield
        return
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with mode(model, train=False):
        for parameter in learning:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)


@contextmanager
def losing(detector: nn.Module) -> Iterator[None]:
    """Training mode, in which a detector gives its losses, with nothing to learn, no statistics kept, no dropout."""
    still = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    with frozen(detector):
        for module in detector.modules():
            module.training = not isinstance(module, still)
        yield
