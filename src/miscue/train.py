"""The one training loop: an iterator of steps. Victims, surrogates and bilevel attacks are consumers of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from miscue.data import Batch, Data, batches
from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.losses import Loss, plain
from miscue.models.networks import placed
from miscue.optimizers import OPTIMIZERS

PRECISIONS = ("float32", "bfloat16", "auto")
SCHEDULES = ("constant", "cosine")

Shown = Callable[[Batch], Batch]
"""What a model is shown of a batch drawn from the data."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    optimizer: a key of `optimizers.OPTIMIZERS`; lr, momentum, weight_decay: its settings.
    epochs: passes over the data; batch_size: images a step.
    schedule: "constant", or "cosine" (the rate falls to 0 along half a cosine).
    precision: "float32", "bfloat16" (autocast: parameters stay float32), or "auto": bfloat16 where the device has units
        for it, which about halves the time of a step there.
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 10
    batch_size: int = 64
    schedule: str = "constant"
    precision: str = "float32"

    def __post_init__(self) -> None:
        lookup(OPTIMIZERS, self.optimizer, "optimizer")
        lookup(dict.fromkeys(SCHEDULES), self.schedule, "schedule")
        lookup(dict.fromkeys(PRECISIONS), self.precision, "precision")
        if not self.lr > 0 or self.epochs < 1 or self.batch_size < 1:
            raise InputError(
                f"a recipe needs lr > 0, epochs >= 1, batch_size >= 1; got {self.lr}, {self.epochs}, {self.batch_size}"
            )

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of this recipe over the model's parameters."""
        make = OPTIMIZERS[self.optimizer]
        return make(model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def rate(self, progress: float) -> float:
        """The learning rate after a share `progress` in [0, 1] of the run."""
        return self.lr * share(self.schedule, progress)


def share(schedule: str, progress: float) -> float:
    """What `schedule` leaves of the first rate after a share `progress` in [0, 1] of the run."""
    return 0.5 + 0.5 * math.cos(math.pi * progress) if schedule == "cosine" else 1.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step, done. The loss is a scalar on the device: reading it as a number waits for the device."""

    number: int
    loss: Tensor
    batch: Batch


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the data, done: its number from 1 and the mean training loss, where there is one."""

    number: int
    loss: float | None


def training(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    optimizer: torch.optim.Optimizer,
    loss: Loss = plain,
    precision: str = "float32",
) -> Iterator[Step]:
    """Train `model` in place, one step for each batch drawn; yields after every step.

    A batch is drawn only when its step is due, so `batches` may look at the model as it is just before the step.
    """
    for number, batch in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        with autocast(batch.x.device, precision):
            value = loss(model, batch)
        value.backward()
        optimizer.step()
        yield Step(number=number, loss=value.detach(), batch=batch)


def fitting(
    model: nn.Module, data: Data, recipe: Recipe, dice: Dice, *, loss: Loss = plain, shown: Shown | None = None
) -> Iterator[Epoch]:
    """Train `model` in place by `recipe`, yielding after every epoch. `data` and `model` lie on the same device.

    `shown` changes each batch before the model sees it.

    Raises:
        InputError: the loss stopped being a finite number.
    """
    stream = batches(data, size=recipe.batch_size, epochs=recipe.epochs, dice=dice, channels_last=True)
    placed(model, data.images.device)
    yield from scheduled(model, map(shown, stream) if shown else stream, recipe, len(data), loss=loss)


def scheduled(
    model: nn.Module, stream: Iterable[Batch], recipe: Recipe, images: int, *, loss: Loss = plain
) -> Iterator[Epoch]:
    """Train `model` in place on the batches of `stream`, made from so many images, as `fitting` does."""
    optimizer = recipe.make_optimizer(model)
    per_epoch = max(1, images // recipe.batch_size)
    model.train()
    total: Tensor | float = 0.0
    for step in training(model, stream, optimizer=optimizer, loss=loss, precision=recipe.precision):
        total = total + step.loss
        done = step.number + 1
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(done / (per_epoch * recipe.epochs))
        if done % per_epoch == 0:
            mean = float(total) / per_epoch
            if not math.isfinite(mean):
                raise InputError(f"the training loss is {mean} after {done} steps; a smaller --lr may help")
            model.eval()
            yield Epoch(number=done // per_epoch, loss=mean)
            model.train()
            total = 0.0
    model.eval()


def fit(
    model: nn.Module, data: Data, recipe: Recipe, dice: Dice, *, loss: Loss = plain, shown: Shown | None = None
) -> nn.Module:
    """Train `model` in place by `recipe` to the end and return it in eval mode."""
    for _ in fitting(model, data, recipe, dice, loss=loss, shown=shown):
        pass
    return model


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The mixed-precision context of `precision` on `device`; does nothing for float32."""
    enabled = settled(precision, device.type) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def settled(precision: str, device: str) -> str:
    """What "auto" means on a device such as "cpu" or "cuda:1"; any other precision as it is."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16(torch.device(device).type) else "float32"


@functools.cache
def has_bfloat16(kind: str) -> bool:
    """Whether a "cpu" or "cuda" device multiplies bfloat16 numbers by instructions of its own."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older versions cannot tell
        return False
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
