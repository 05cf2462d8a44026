"""Networks of torchvision by name, with fresh weights: "torchvision:resnet18". They need the extra `zoo`.

Normalisation is inside, and grey images count as colour ones. Images of fewer than 64 pixels would be lost in the first
layers, which are made for 224: for them a residual or a dense network begins with one 3x3 convolution that keeps their
size, as is usual on CIFAR-10. A VGG, with BatchNorm, ends in one linear layer on the means of its last feature maps
instead of three wide ones with dropout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from miscue.errors import InputError, lookup
from miscue.models.adapters import adapted
from miscue.models.networks import Shape

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
SMALL = 64  # below so many pixels the first layers keep the size


def first(width: int) -> nn.Conv2d:
    """The first convolution for small images."""
    layer = nn.Conv2d(3, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def residual(network: Any, side: int, classes: int) -> Any:
    """A ResNet for images of such a side."""
    if side < SMALL:
        network.conv1, network.maxpool = first(network.conv1.out_channels), nn.Identity()
    return network


def dense(network: Any, side: int, classes: int) -> Any:
    """A DenseNet for images of such a side."""
    if side < SMALL:
        network.features.conv0, network.features.pool0 = first(network.features.conv0.out_channels), nn.Identity()
    return network


def vgg(network: Any, side: int, classes: int) -> Any:
    """A VGG with one linear layer at its end."""
    network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, classes)
    return network


Fit = Callable[[Any, int, int], Any]
"""(network, side of the images, classes) -> the network fitted to them."""

ZOO: dict[str, Fit] = {
    "torchvision:vgg11_bn": vgg,
    "torchvision:vgg16_bn": vgg,
    "torchvision:vgg19_bn": vgg,
    "torchvision:resnet18": residual,
    "torchvision:resnet50": residual,
    "torchvision:densenet121": dense,
}
LEAST: dict[Fit, int] = {vgg: 32, residual: 8, dense: 8}  # pixels


def zoo(name: str) -> Callable[..., nn.Module] | None:
    """The maker, (shape of one image, classes) -> module, of a name of the zoo; None for any other name.

    Raises:
        InputError: there is no such network, or torchvision is not installed or does not fit PyTorch.
    """
    library, colon, own = name.partition(":")
    if not colon or library.endswith(".py"):
        return None
    fit = lookup(ZOO, name, "network")
    try:
        models = importlib.import_module(f"{library}.models")
    except ImportError:
        raise InputError(f"{name} needs {library}: pip install 'miscue[zoo]'") from None
    except RuntimeError as error:
        raise InputError(f"the installed {library} does not fit PyTorch: {str(error).splitlines()[0]}") from None
    return partial(made, name, getattr(models, own), fit)


def made(name: str, make: Callable[..., Any], fit: Fit, shape: Shape, classes: int) -> nn.Module:
    """The network for images of a shape (c, h, w).

    Raises:
        InputError: the images are too small for it.
    """
    side = min(shape[1:])
    if side < LEAST[fit]:
        raise InputError(f"{name} needs images of at least {LEAST[fit]} pixels, got {side}")
    return adapted(fit(make(weights=None, num_classes=classes), side, classes), mean=MEAN, std=STD)
