"""A model in another state for a block: in train or eval mode, or with nothing to learn. It is as before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from miscue.errors import InputError
from miscue.models import layers

Model = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) in [0, 1] -> scores (n, classes); normalisation is inside."""


def differentiable(scores: Tensor) -> Tensor:
    """What a model says of images that ask for a gradient, as it is.

    Raises:
        InputError: there is no way back from it.
    """
    if not scores.requires_grad:
        raise InputError("the model has no gradient; occlusion, one-pixel and stickers ask it by queries alone")
    return scores


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

    BatchNorm is a line for each channel then. In an `nn.Sequential` it is folded into the layer before it, elsewhere
    worked out as a line: on a CPU the way back through the library's kernel takes longer. A compiled model is left as
    it is, since it would be compiled anew.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    quick: dict[nn.Module, Line | Folded] = {}
    with mode(model, train=False):
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            compiled = hasattr(model, "_orig_mod")
            for module in () if compiled else model.modules():
                if straight(module):
                    quick[module] = Line(module)
                elif sequential(module):
                    quick[module] = Folded(module)
            for module, forward in quick.items():
                module.forward = forward
            yield
        finally:
            for module in quick:
                vars(module).pop("forward", None)
            for parameter in learning:
                parameter.requires_grad_(True)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, layers.BatchNorm1d, layers.BatchNorm2d)


def straight(module: nn.Module) -> bool:
    """Whether it is a BatchNorm of the library or of ours, with kept statistics and nothing else in its place."""
    return type(module) in NORMS and module.running_mean is not None and "forward" not in vars(module)


def sequential(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it calls one layer after the other, and nothing else is in its place."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and "forward" not in vars(module)
    )


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
        """(n, c, ...) -> the same shape; left to the library without a way back, or in another precision."""
        if x.dtype != self.scale.dtype or not (torch.is_grad_enabled() and x.requires_grad):
            left: Tensor = self.usual(x)
            return left
        wide = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.shift.view(wide), x, self.scale.view(wide))


FOLDED: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Conv2d: (nn.BatchNorm2d, layers.BatchNorm2d),
    layers.Conv2d: (nn.BatchNorm2d, layers.BatchNorm2d),
    nn.Linear: (nn.BatchNorm1d, layers.BatchNorm1d),
}
"""Layers, and the BatchNorms that fold into them."""


class Folded:
    """What an `nn.Sequential` in eval mode does, each BatchNorm folded into the layer before it.

    A layer called by itself does what it always does, and one with hooks in here, too: they see what they always see.
    """

    def __init__(self, sequential: nn.Sequential):
        self.steps: list[tuple[nn.Module, ...]] = []
        """A layer, or a layer, the BatchNorm after it and both in one."""
        left = list(sequential)
        while left:
            layer, norm = left.pop(0), left[0] if left else None
            if norm is not None and folds(layer, norm):
                fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
                self.steps.append((layer, left.pop(0), fuse(layer, norm)))
            else:
                self.steps.append((layer,))

    def __call__(self, x: Any) -> Any:
        """What the sequential is given -> what it gives."""
        for layer, *more in self.steps:
            if not more:
                x = layer(x)
                continue
            norm, both = more
            alone = hooked(layer) or hooked(norm) or torch.is_autocast_enabled(x.device.type)
            flat = x.ndim == (2 if isinstance(layer, nn.Linear) else 4)  # else a BatchNorm's channels are others
            x = norm(layer(x)) if alone or not flat else both(x)
        return x


def folds(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether a layer, and what follows it, are of those that make one."""
    fits = type(norm) in FOLDED.get(type(layer), ()) and straight(norm) and bool(norm.affine)
    return fits and "forward" not in vars(layer)


def hooked(module: nn.Module) -> bool:
    """Whether something is called before or after it."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


@contextmanager
def losing(detector: nn.Module) -> Iterator[None]:
    """Training mode, in which a detector gives its losses, with nothing to learn, no statistics kept, no dropout."""
    still = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    with frozen(detector):
        for module in detector.modules():
            module.training = not isinstance(module, still)
        yield
