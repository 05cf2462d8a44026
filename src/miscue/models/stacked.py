"""Networks of one architecture as a single module, so that one program trains all of them.

Where every layer is known here, k layers are one layer of k groups: a convolution in groups, BatchNorm of k times as
many channels, a product of k pairs of matrices. Each network gets what its own layer would give it, and a step takes
about as many calls of the library as that of a single network. Other networks go through `torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from miscue.models.layers import BatchNorm1d, BatchNorm2d, together

Own = Mapping[str, Tensor]
"""A layer's parameters and buffers, those of all k networks along a first axis."""

Step = Callable[[nn.Module, Own, Tensor, int], Tensor]
"""(the layer of one of the networks, own, x, k) -> what all k layers make of x.

Maps are (n, k c, h, w), each network's channels side by side; features are (k, n, f).
"""


class Stacked(nn.Module):
    """Models of one architecture as a single module: (k, n, c, h, w) -> scores (k, n, classes)."""

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        self.models = list(models)
        parameters, buffers = stack_module_state(self.models)
        self.names = {name: name.replace(".", "-") for name in (*parameters, *buffers)}
        for name, tensor in parameters.items():
            self.register_parameter(self.names[name], nn.Parameter(tensor.detach()))
        for name, tensor in buffers.items():
            self.register_buffer(self.names[name], tensor)
        self.one = [deepcopy(self.models[0]).to("meta")]  # in a list: its own parameters are none of ours
        self.steps = in_groups(self.one[0])
        if self.steps is None:
            for module in self.one[0].modules():
                if isinstance(module, BatchNorm1d | BatchNorm2d):  # on a GPU vmap does not take the library's
                    module.forward = partial(normalised, module)  # type: ignore[method-assign]

    def train(self, mode: bool = True) -> Stacked:
        """Training mode for all members."""
        self.one[0].train(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Every member on its own images."""
        state = {name: getattr(self, own) for name, own in self.names.items()}
        if self.steps is None:
            return torch.vmap(self.member, randomness="different")(state, x)
        count, x = len(x), x.transpose(0, 1).flatten(1, 2)
        for name, layer, step in self.steps:
            own = {leaf: state[f"{name}.{leaf}"] for leaf in layer.state_dict()}
            x = step(layer, own, x, count)
        return x

    def member(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        """One of them, with its own state."""
        scores: Tensor = functional_call(self.one[0], state, (x,))
        return scores

    def separate(self) -> Iterator[nn.Module]:
        """The members as models of their own, in eval mode."""
        for i, model in enumerate(self.models):
            model.load_state_dict({name: getattr(self, own)[i] for name, own in self.names.items()})
            yield model.eval()


def in_groups(model: nn.Module) -> list[tuple[str, nn.Module, Step]] | None:
    """The layers of a network by their names, each with its step; None if there is none for one of them."""
    if not isinstance(model, nn.Sequential):
        return None
    found = [(name, layer, step_of(layer)) for name, layer in model.named_children()]
    known = [(name, layer, step) for name, layer, step in found if step is not None]
    return known if len(known) == len(found) else None


def step_of(layer: nn.Module) -> Step | None:
    """What k layers such as this one do."""
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
        return None
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and (layer.running_mean is None or layer.momentum is None):
        return None
    return next((step for kind, step in STEPS.items() if isinstance(layer, kind)), None)


def convolution(layer: nn.Module, own: Own, x: Tensor, count: int) -> Tensor:
    """(n, k i, h, w) -> (n, k o, h', w')."""
    assert isinstance(layer, nn.Conv2d)
    bias = own["bias"].flatten() if "bias" in own else None
    return F.conv2d(x, own["weight"].flatten(0, 1), bias, layer.stride, layer.padding, layer.dilation, groups=count)


def normalised_maps(layer: nn.Module, own: Own, x: Tensor, count: int) -> Tensor:
    """(n, k c, h, w) -> the same shape; the running statistics move."""
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    assert layer.momentum is not None
    flat = {name: tensor.flatten() for name, tensor in own.items()}
    if layer.training:
        own["num_batches_tracked"].add_(1)
    return F.batch_norm(
        x,
        flat["running_mean"],
        flat["running_var"],
        flat.get("weight"),
        flat.get("bias"),
        layer.training,
        layer.momentum,
        layer.eps,
    )


def normalised_features(layer: nn.Module, own: Own, x: Tensor, count: int) -> Tensor:
    """(k, n, f) -> the same shape; the running statistics move."""
    return normalised_maps(layer, own, x.transpose(0, 1).flatten(1), count).unflatten(1, (count, -1)).transpose(0, 1)


def product(layer: nn.Module, own: Own, x: Tensor, count: int) -> Tensor:
    """(k, n, f) -> (k, n, o)."""
    across = own["weight"].mT
    return torch.baddbmm(own["bias"][:, None], x, across) if "bias" in own else x @ across


def features(layer: nn.Module, own: Own, x: Tensor, count: int) -> Tensor:
    """(n, k c, h, w) -> (k, n, c h w)."""
    return x.unflatten(1, (count, -1)).flatten(2).transpose(0, 1)


def alone(layer: nn.Module, own: Own, x: Tensor, count: int) -> Tensor:
    """What a layer does that knows no channels."""
    y: Tensor = layer(x)
    return y


STEPS: dict[type[nn.Module], Step] = {
    nn.Conv2d: convolution,
    nn.BatchNorm2d: normalised_maps,
    nn.BatchNorm1d: normalised_features,
    nn.Linear: product,
    nn.Flatten: features,
    nn.ReLU: alone,
    nn.MaxPool2d: alone,
    nn.AvgPool2d: alone,
    nn.AdaptiveAvgPool2d: alone,
}


def normalised(layer: BatchNorm1d | BatchNorm2d, x: Tensor) -> Tensor:
    """What BatchNorm makes of x (n, c) or (n, c, h, w), by its formula, in float32 also of bfloat16."""
    x = x.float() if x.dtype == torch.bfloat16 else x
    if layer.training:
        return together(layer, x)
    mean, scale = layer.get_buffer("running_mean"), (layer.get_buffer("running_var") + layer.eps).rsqrt()

    def wide(channel: Tensor) -> Tensor:
        return channel.view(-1, *[1] * (x.ndim - 2))

    y = (x - wide(mean)) * wide(scale)
    return y * wide(layer.weight) + wide(layer.bias) if layer.affine else y
