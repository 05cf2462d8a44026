"""Classifiers of the papers. Each is a function (shape of one image, classes) -> nn.Module; inputs lie in [0, 1].

The DeepConfuse text gives "conv 20, conv 50 (3x3, ReLU, pooling), fc 500" for MNIST and five [conv 3x3, 2x2 pool] for
CIFAR-10 and ImageNet, and is silent on normalisation and borders. The authors' released MNIST net departs from it: 5x5
kernels, average pooling, and BatchNorm everywhere, even on the scores. Both are here; `batch_norm` chooses for the
former. Convolutions are valid ones where the image is large enough for that, as in LeNet, else they keep its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from miscue.errors import InputError
from miscue.models.heads import Nystrom, RandomFourier
from miscue.models.layers import AvgPool2d, BatchNorm1d, BatchNorm2d, Conv2d, Flatten, MaxPool2d, ReLU
from miscue.team import Team

Shape = tuple[int, int, int]


def convolutional(
    shape: Shape,
    classes: int,
    *,
    widths: Sequence[int],
    hidden: int,
    kernel: int,
    padding: int,
    pooling: type[nn.Module],
    batch_norm: bool,
) -> nn.Sequential:
    """Blocks of conv, BatchNorm, ReLU, 2x2 pool (while there is something to pool), then a hidden layer and scores."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    for outputs in widths:
        layers.append(Conv2d(channels, outputs, kernel, padding=padding, bias=not batch_norm))
        if batch_norm:
            layers.append(BatchNorm2d(outputs))
        channels = outputs
        height, width = (side + 2 * padding - kernel + 1 for side in (height, width))
        if min(height, width) >= 2:
            # the largest of what ReLU leaves is what it leaves of the largest, and there is a quarter of those
            layers += [pooling(2), ReLU()] if pooling is MaxPool2d else [ReLU(), pooling(2)]
            height, width = height // 2, width // 2
        else:
            layers.append(ReLU())
    layers += [Flatten(), nn.Linear(channels * height * width, hidden, bias=not batch_norm)]
    if batch_norm:
        layers.append(BatchNorm1d(hidden))
    return nn.Sequential(*layers, ReLU(), nn.Linear(hidden, classes))


def valid(shape: Shape, kernel: int, *, blocks: int) -> int:
    """The padding: none if every block's convolution finds room in the image, else so much that the size is kept."""
    side = min(shape[1:])
    for _ in range(blocks):
        side = (side - kernel + 1) // 2
    return 0 if side >= 2 else kernel // 2


def two_blocks(
    shape: Shape,
    classes: int,
    *,
    width: float,
    kernel: int,
    pooling: type[nn.Module],
    batch_norm: bool,
    bounded: bool,
    padded: bool = False,
) -> nn.Module:
    """conv 20, conv 50, fc 500, all times `width`; `bounded` adds BatchNorm on the scores, `padded` zeros around."""
    first, second, hidden = (max(1, round(n * width)) for n in (20, 50, 500))
    net = convolutional(
        shape,
        classes,
        widths=(first, second),
        hidden=hidden,
        kernel=kernel,
        padding=kernel // 2 if padded else valid(shape, kernel, blocks=2),
        pooling=pooling,
        batch_norm=batch_norm,
    )
    return net.append(BatchNorm1d(classes)) if bounded else net


def cnn(
    shape: Shape,
    classes: int,
    *,
    width: float = 1.0,
    batch_norm: bool = True,
    bounded: bool = False,
    padded: bool = False,
) -> nn.Module:
    """DeepConfuse's MNIST victim as in the text: conv 20, conv 50, fc 500; `width` scales all (small 0.5, large 2).

    `bounded` adds the released net's BatchNorm on the scores, which keeps a surrogate's loss from fading. `padded` lets
    it see the whole image: on 28 x 28 the second pooling of valid convolutions has no use for its input's last row and
    column, and what lies in the image's last two never reaches the scores.
    """
    return two_blocks(
        shape,
        classes,
        width=width,
        kernel=3,
        pooling=MaxPool2d,
        batch_norm=batch_norm,
        bounded=bounded,
        padded=padded,
    )


def cnn_released(shape: Shape, classes: int, *, width: float = 1.0) -> nn.Module:
    """The same net as in the authors' released code: 5x5 kernels, average pooling, BatchNorm on the scores too."""
    return two_blocks(shape, classes, width=width, kernel=5, pooling=AvgPool2d, batch_norm=True, bounded=True)


def conv5(shape: Shape, classes: int, *, width: float = 1.0, batch_norm: bool = True) -> nn.Module:
    """DeepConfuse's CIFAR-10 and ImageNet victim: five [conv 3x3, pool 2x2] of 32, 64, 128, 128, 128 channels.

    `width` scales all of them, and the hidden layer of 128.
    """
    return convolutional(
        shape,
        classes,
        widths=tuple(max(1, round(width * n)) for n in (32, 64, 128, 128, 128)),
        hidden=max(1, round(width * 128)),
        kernel=3,
        padding=1,
        pooling=MaxPool2d,
        batch_norm=batch_norm,
    )


def alexnet(shape: Shape, classes: int, *, width: float = 1.0, batch_norm: bool = True) -> nn.Module:
    """AlexNet (Krizhevsky et al. 2012) for images of about 32 pixels: five 3x3 convolutions, three poolings, BatchNorm.

    Widths 64, 192, 384, 256, 256 and hidden layers of 1024, all times `width`; dropout is left out.
    """
    channels, height, width_ = shape
    layers: list[nn.Module] = []
    for outputs, pooled in ((64, True), (192, True), (384, False), (256, False), (256, True)):
        wide = max(1, round(outputs * width))
        layers.append(Conv2d(channels, wide, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(BatchNorm2d(wide))
        layers.append(ReLU())
        channels = wide
        if pooled and min(height, width_) >= 2:
            layers.append(MaxPool2d(2))
            height, width_ = height // 2, width_ // 2
    inputs, hidden = channels * height * width_, max(1, round(1024 * width))
    layers.append(Flatten())
    for _ in range(2):
        layers.append(nn.Linear(inputs, hidden, bias=not batch_norm))
        if batch_norm:
            layers.append(BatchNorm1d(hidden))
        layers.append(ReLU())
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def averaged(shape: Shape, side: int) -> tuple[list[nn.Module], Shape]:
    """What averages images down to at most `side` pixels, nothing if they are no larger, and their shape then."""
    small = (shape[0], min(shape[1], side), min(shape[2], side))
    return ([] if small == tuple(shape) else [nn.AdaptiveAvgPool2d(small[1:])]), small


def conv5_coarse(shape: Shape, classes: int, *, side: int = 56) -> nn.Module:
    """`conv5` on averages of at most `side` pixels: a surrogate for large images at the price of small ones."""
    down, small = averaged(shape, side)
    return nn.Sequential(*down, *conv5(small, classes).children())


def linear(shape: Shape, classes: int, *, side: int = 32) -> nn.Module:
    """Logistic regression on the pixels, whose channels BatchNorm has normalised, of images of at most `side` pixels.

    Larger ones are averaged down to it: with more inputs the rates that suit other networks are too large.
    """
    down, small = averaged(shape, side)
    return nn.Sequential(BatchNorm2d(shape[0]), *down, Flatten(), nn.Linear(math.prod(small), classes))


def cnn_fourier(shape: Shape, classes: int, *, outputs: int = 1000) -> nn.Module:
    """`cnn-padded` with random Fourier features before its scores."""
    body, features = headless(cnn(shape, classes, batch_norm=False, padded=True))
    return nn.Sequential(*body, RandomFourier(features, outputs), nn.Linear(outputs, classes))


def cnn_nystrom(shape: Shape, classes: int, *, landmarks: int = 100) -> nn.Module:
    """`cnn-padded` with a Nystrom approximation of the RBF kernel before its scores."""
    body, features = headless(cnn(shape, classes, batch_norm=False, padded=True))
    return Nystrom(body, shape, features, classes, landmarks)


def headless(net: nn.Module) -> tuple[nn.Sequential, int]:
    """A sequence of layers without its last linear one, and how many features that was given."""
    *body, last = net.children()
    assert isinstance(last, nn.Linear)
    return nn.Sequential(*body), last.in_features


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "cnn-small": partial(cnn, width=0.5),
    "cnn-large": partial(cnn, width=2.0),
    "cnn-plain": partial(cnn, batch_norm=False),
    "cnn-padded": partial(cnn, batch_norm=False, padded=True),
    "cnn-small-padded": partial(cnn, width=0.5, batch_norm=False, padded=True),
    "cnn-bounded": partial(cnn, bounded=True),
    "cnn-small-bounded": partial(cnn, width=0.5, bounded=True),
    "cnn-released": cnn_released,
    "cnn-fourier": cnn_fourier,
    "cnn-nystrom": cnn_nystrom,
    "linear": linear,
    "conv5": conv5,
    "conv5-plain": partial(conv5, batch_norm=False),
    "conv5-wide": partial(conv5, width=2.0),
    "conv5-coarse": conv5_coarse,
    "alexnet": alexnet,
}


def joined(model: nn.Module, team: Team) -> nn.Module:
    """`model`, whose BatchNorm in training mode takes its statistics from the batches of the whole team from now on.

    Raises:
        InputError: it keeps images of its batches, of which each process of a team would have others.
    """
    for module in model.modules():
        if isinstance(module, Nystrom) and team.size > 1:
            raise InputError("cnn-nystrom keeps training images; several processes cannot share its batches")
        if isinstance(module, BatchNorm1d | BatchNorm2d):
            module.team = team
    return model


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model's scores depend on batch statistics when it is in training mode."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def has_convolution(model: nn.Module) -> bool:
    """Whether there are feature maps to look at."""
    return any(isinstance(m, nn.Conv2d) for m in model.modules())


def placed(model: nn.Module, device: str | torch.device) -> nn.Module:
    """`model`, moved in place to `device` with its convolutions in channels-last order, which is the faster one."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters lie (the CPU if it has none)."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
