"""Classifiers of the papers. Each is a function (shape of one image, classes) -> nn.Module; inputs lie in [0, 1].

The DeepConfuse text gives "conv 20, conv 50 (3x3, ReLU, pooling), fc 500" for MNIST and five [conv 3x3, 2x2 pool]
for CIFAR-10 and ImageNet, and is silent on normalisation and borders; the authors' code has BatchNorm everywhere. `batch_norm` chooses. The
small net's convolutions are valid ones on images of 20 pixels or more, as in LeNet; all others keep the image size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

Shape = tuple[int, int, int]


def block(inputs: int, outputs: int, *, padding: int, batch_norm: bool, pool: bool) -> list[nn.Module]:
    """conv 3x3, pool 2x2, BatchNorm, ReLU.

    Max-pooling commutes with ReLU, so pooling first gives the same function and leaves a quarter of the pixels to the
    layers that are bound by memory.
    """
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=padding, bias=not batch_norm)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return [*layers, nn.ReLU()]


def convolutional(
    shape: Shape,
    classes: int,
    *,
    widths: Sequence[int],
    hidden: int,
    padding: int,
    batch_norm: bool,
    normalised_head: bool,
) -> nn.Module:
    """`widths` convolution blocks (pooled while the image has two pixels to pool), one hidden layer, class scores."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    for outputs in widths:
        height, width = height + 2 * padding - 2, width + 2 * padding - 2
        pool = min(height, width) >= 2
        layers += block(channels, outputs, padding=padding, batch_norm=batch_norm, pool=pool)
        channels = outputs
        if pool:
            height, width = height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * width, hidden, bias=not normalised_head)]
    if normalised_head:
        layers.append(nn.BatchNorm1d(hidden))
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden, classes))


def cnn(shape: Shape, classes: int, *, width: float = 1.0, batch_norm: bool = True) -> nn.Module:
    """DeepConfuse's MNIST victim: conv 20, conv 50, fc 500; `width` scales all three (small 0.5, large 2)."""
    first, second, hidden = (max(1, round(n * width)) for n in (20, 50, 500))
    return convolutional(
        shape,
        classes,
        widths=(first, second),
        hidden=hidden,
        padding=0 if min(shape[1:]) >= 20 else 1,
        batch_norm=batch_norm,
        normalised_head=batch_norm,
    )


def conv5(shape: Shape, classes: int, *, batch_norm: bool = True) -> nn.Module:
    """DeepConfuse's CIFAR-10 and ImageNet victim: five [conv 3x3, pool 2x2] of 32, 64, 128, 128, 128 channels."""
    return convolutional(
        shape,
        classes,
        widths=(32, 64, 128, 128, 128),
        hidden=128,
        padding=1,
        batch_norm=batch_norm,
        normalised_head=False,
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "cnn-small": partial(cnn, width=0.5),
    "cnn-large": partial(cnn, width=2.0),
    "cnn-plain": partial(cnn, batch_norm=False),
    "conv5": conv5,
    "conv5-plain": partial(conv5, batch_norm=False),
}


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model's scores depend on batch statistics when it is in training mode."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters lie (the CPU if it has none)."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
