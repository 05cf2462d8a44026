"""Put a trainable bound on every ReLU of a trained network, and tune it (the seed's slides).

Bounds begin at a high percentile of what the trained network's own activations are: from a fixed small start a bound
hardly moves, and costs accuracy. Weights are kept. Fine-tuning has a parameter group of its own for the bounds, with
an L2 term on b, so that they come down where nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from miscue.data import Batch, Data, floats
from miscue.dice import Dice
from miscue.errors import InputError, lookup, not_negative, positive
from miscue.measures.activations import maxima, passed, thinned
from miscue.models.bounded import LEAST, BoundedLeakyReLU, bounds, rectifiers, squared, swapped
from miscue.models.modes import frozen
from miscue.models.networks import device_of
from miscue.train import Epoch, Recipe, fitting

PER = ("layer", "channel")
FUNCTIONAL = (torch.relu, torch.relu_, F.relu, F.relu_, Tensor.relu, Tensor.relu_)


def bound(
    model: nn.Module, data: Data, *, percentile: float = 99.5, slope: float = 0.0, per: str = "channel"
) -> nn.Module:
    """A copy of a trained network whose ReLUs have bounds, so wide that little changes.

    Args:
        model: any network with ReLU modules.
        data: images like those it is used for, to see how large its activations are.
        percentile: of a layer's or channel's activations, or for a channel's largest value in an image; bounds begin
            there.
        slope: s, beyond the bound and below 0.
        per: "layer", or "channel".

    Returns:
        the copy, in eval mode.

    Raises:
        InputError: no ReLU, one that is a function and no module (its places are named), a number out of range.
    """
    lookup(dict.fromkeys(PER), per, "per")
    if not 0 < percentile <= 100:
        raise InputError(f"percentile must lie in (0, 100], got {percentile:g}")
    names = [name for name, _ in rectifiers(model)]
    hidden = functional_relus(model, data)
    if hidden:
        raise InputError(f"ReLU is called as a function in {', '.join(hidden)}; make it a module there to bound it")
    if not names:
        raise InputError("the model has no ReLU to bound")
    starts: dict[str, Tensor]
    if per == "channel":
        most = maxima(model, data.images)
        starts = {name: most[name].quantile(percentile / 100, dim=0) for name in names if name in most}
    else:
        starts = {name: start for name, start in layer_starts(model, data, percentile).items() if name in names}
    starts = {name: start.clamp(min=LEAST).to(device_of(model)) for name, start in starts.items()}
    unused = [name for name in names if name not in starts]
    if unused:
        raise InputError(f"the ReLUs {', '.join(unused)} take no part in a forward pass")
    return swapped(deepcopy(model), starts, slope=slope).eval()


def layer_starts(model: nn.Module, data: Data, percentile: float) -> dict[str, Tensor]:
    """The percentile of each layer's positive activations, as scalars."""
    kept: dict[str, list[Tensor]] = {}
    for activations in passed(model, data.images):
        for name, values in activations.items():
            kept.setdefault(name, []).append(thinned(values, len(data)))
    found = {}
    for name, parts in kept.items():
        flat = torch.cat(parts)
        positive = flat[flat > 0]
        found[name] = positive.quantile(percentile / 100) if len(positive) else flat.new_tensor(LEAST)
    return found


def functional_relus(model: nn.Module, data: Data) -> list[str]:
    """The modules that call ReLU as a function, in the order of their first call."""
    inside: list[str] = []

    def left(module: nn.Module, inputs: object, output: object) -> None:
        inside.pop()

    @contextmanager
    def named() -> Iterator[None]:
        hooks = []
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(lambda module, inputs, name=name: inside.append(name))
            after = module.register_forward_hook(left, always_call=True)
            hooks += [before, after]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    modules, found = dict(model.named_modules()), []

    class Listening(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in FUNCTIONAL and inside and not isinstance(modules[inside[-1]], nn.ReLU):
                found.append(inside[-1] or type(model).__name__)
            return function(*args, **(kwargs or {}))

    x = floats(data.images[:1].to(device_of(model)))
    with frozen(model), torch.no_grad(), named(), Listening():
        model(x)
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class Bounding:
    """The loss of fine-tuning: mean cross-entropy and `decay` times the sum of b^2."""

    decay: float

    def __call__(self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """A scalar."""
        return F.cross_entropy(model(batch.x), batch.y) + self.decay * squared(model)


def tuning(
    model: nn.Module, data: Data, recipe: Recipe, dice: Dice, *, decay: float = 1e-3, pace: float = 1.0
) -> Iterator[Epoch]:
    """Fine-tune a bounded network in place, its bounds at `pace` times the recipe's rate and without weight decay.

    Yields:
        after every epoch, the model in eval mode.

    Raises:
        InputError: no bounded activations, numbers out of range.
    """
    not_negative(decay=decay)
    positive(pace=pace)
    own = [module.raw for module in bounds(model).values()]
    if not own:
        raise InputError("the model has no bounded activations; bound it first")
    known = {id(parameter) for parameter in own}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": own, "pace": pace, "weight_decay": 0.0}]
    optimizer = recipe.make_optimizer(groups)
    yield from fitting(model, data, recipe, dice, loss=Bounding(decay=decay), optimizer=optimizer)


def leaky(model: nn.Module, slope: float = 0.1) -> nn.Module:
    """A copy with the same outputs whose gradients leak through bounds and below 0: for an adaptive attacker."""
    found = deepcopy(model)
    for module in bounds(found).values():
        module.forward = Leaking(module, slope)  # type: ignore[method-assign]
    return found


@dataclass(frozen=True)
class Leaking:
    """The forward pass of a bounded activation, with the backward pass of one that leaks."""

    module: BoundedLeakyReLU
    slope: float

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape as x."""
        exact = BoundedLeakyReLU.forward(self.module, x)
        soft = exact + self.slope * (x - x.clamp(min=0)) + self.slope * (x - exact).clamp(min=0)
        return soft + (exact - soft).detach()
