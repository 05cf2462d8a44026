"""What is inside a network: how large activations and weights are, layer by layer, and who drives a neuron too far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miscue.data import fed
from miscue.errors import InputError
from miscue.models.bounded import BoundedLeakyReLU
from miscue.models.modes import frozen
from miscue.models.networks import device_of

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, BoundedLeakyReLU)
QUANTILES = (0.5, 0.9, 0.99, 0.999)
KEPT = 2_000_000  # values of a layer that its quantiles are taken of, at most


def activation_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs count as activations, by name.

    Raises:
        InputError: there is none.
    """
    found: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, ACTIVATIONS)
    }
    if not found:
        raise InputError("the model has no activation modules; functional ones cannot be looked at")
    return found


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """For a block, layer name -> its outputs, one for each time it runs."""
    outputs: dict[str, list[Tensor]] = {}
    layers = activation_layers(model)

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs.setdefault(name, []).append(output.detach())

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in layers.items()]  # type: ignore[arg-type]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def passed(model: nn.Module, images: Tensor, *, chunk: int = 256) -> Iterator[dict[str, Tensor]]:
    """The activations of uint8 images, part by part: layer -> (part, ...); several runs of a layer side by side."""
    with frozen(model), torch.no_grad(), watched(model) as outputs:
        for _, x in fed(images, device_of(model), chunk=chunk):
            outputs.clear()
            model(x)
            yield {name: in_columns(runs, len(x)) for name, runs in outputs.items()}


def thinned(values: Tensor, count: int) -> Tensor:
    """Some of a part's activations, evenly spaced, so few that those of all `count` images are about `KEPT`: (k,)."""
    return values.flatten()[:: max(1, values[0].numel() * count // KEPT)].cpu()


def in_columns(runs: list[Tensor], count: int) -> Tensor:
    """A layer's outputs for the first `count` images, those of several runs side by side: (count, channels, places)."""
    return torch.cat([run[:count].flatten(2) if run.ndim > 2 else run[:count, :, None] for run in runs], dim=2)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer's activations over a set: quantiles at QUANTILES, the largest, the share that is not 0."""

    name: str
    quantiles: tuple[float, ...]
    largest: float
    active: float


def layers(model: nn.Module, images: Tensor) -> list[Layer]:
    """How large activations are, layer by layer, over uint8 images (n, c, h, w)."""
    kept: dict[str, list[Tensor]] = {}
    facts: dict[str, list[tuple[float, int, int]]] = {}  # of each part the largest, how many are not 0, and how many
    for activations in passed(model, images):
        for name, values in activations.items():
            kept.setdefault(name, []).append(thinned(values, len(images)))
            facts.setdefault(name, []).append((float(values.amax()), int(values.count_nonzero()), values.numel()))
    return [
        Layer(
            name=name,
            quantiles=tuple(torch.cat(values).double().quantile(torch.tensor(QUANTILES).double()).tolist()),
            largest=max(most for most, *_ in facts[name]),
            active=100 * sum(active for _, active, _ in facts[name]) / sum(count for *_, count in facts[name]),
        )
        for name, values in kept.items()
    ]


def maxima(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Layer -> the largest value of each channel for each image: float (n, channels), on the CPU."""
    found: dict[str, list[Tensor]] = {}
    for activations in passed(model, images):
        for name, values in activations.items():
            found.setdefault(name, []).append(values.amax(2).cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def overdriven(clean: dict[str, Tensor], other: dict[str, Tensor], *, quantile: float = 0.999) -> dict[str, Tensor]:
    """Layer -> how far each image drives each channel beyond what it is usually: float (n, channels).

    The value is the maximum over the channel's `quantile` over clean images; above 1 it is over-represented.

    clean, other: as `maxima` gives them.
    """
    return {name: other[name] / values.quantile(quantile, dim=0).clamp(min=1e-6) for name, values in clean.items()}


def weight_norms(model: nn.Module) -> dict[str, float]:
    """Layer -> the Euclidean norm of its weight, for layers that have one of two or more axes."""
    return {
        name: float(module.weight.detach().norm())
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim > 1
    }


def snapshot(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """`layers` over uint8 images (n, c, h, w) and `weight_norms`, as plain data: what training is watched by."""
    return {"layers": [asdict(layer) for layer in layers(model, images)], "weights": weight_norms(model)}
