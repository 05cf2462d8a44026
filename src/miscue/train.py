"""The one training loop: an iterator of steps. Victims, surrogates and bilevel attacks are consumers of it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from miscue.covers import FILLS, covered
from miscue.data import Batch, Data, batches
from miscue.dice import Dice
from miscue.errors import InputError, lookup, not_negative, positive
from miscue.formation import staged
from miscue.images import rectangles
from miscue.losses import Loss, plain
from miscue.models.networks import device_of, placed
from miscue.optimizers import OPTIMIZERS

PRECISIONS = ("float32", "bfloat16", "auto")
SCHEDULES = ("constant", "cosine")

Shown = Callable[[Batch], Batch]
"""What a model is shown of a batch drawn from the data."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Args:
        optimizer: the rule of the steps.
        lr: learning rate.
        momentum: of SGD and RMSProp; of Adam and AdaBound the first beta, 0.9 where this is 0.
        weight_decay: of all parameters.
        epochs: passes over the data.
        batch_size: images a step.
        schedule: what becomes of the rate; by "cosine" it falls to 0 along half a cosine.
        precision: of a step. By "bfloat16" parameters stay float32 (autocast); "auto" is bfloat16 where the device has
            matrix units for it, which about halves the time of a step there.
        shift: each image is moved by up to so many pixels, its edge going on, anew in each pass.
        scenes: a share of the images, drawn anew in each pass, is shown in a random scene: turned, tilted, lit and
            coloured otherwise, out of focus.
        holes: so many squares are covered on each image, anew in each pass, and may overlap; what a network learns
            then, it need not see whole.
        hole: side of such a square in pixels.
        fill: what covered pixels become.
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 10
    batch_size: int = 64
    schedule: str = "constant"
    precision: str = "float32"
    shift: int = 0
    scenes: float = 0.0
    holes: int = 0
    hole: int = 9
    fill: str = "grey"

    def __post_init__(self) -> None:
        lookup(OPTIMIZERS, self.optimizer, "optimizer")
        lookup(dict.fromkeys(SCHEDULES), self.schedule, "schedule")
        lookup(dict.fromkeys(PRECISIONS), self.precision, "precision")
        lookup(FILLS, self.fill, "fill")
        not_negative(shift=self.shift, holes=self.holes)
        positive(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size, hole=self.hole)
        if not 0 <= self.scenes <= 1:
            raise InputError(f"scenes is a share of the images, between 0 and 1, got {self.scenes:g}")

    @property
    def unusual(self) -> dict[str, Any]:
        """The settings that differ from the usual ones: new ones leave the names of old recipes as they are."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}

    @property
    def moves(self) -> bool:
        """Whether images are changed anew in each pass."""
        return bool(self.shift or self.scenes or self.holes)

    def make_optimizer(self, model: nn.Module | list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of this recipe over the model's parameters, or over groups of some."""
        make = OPTIMIZERS[self.optimizer]
        parameters = model.parameters() if isinstance(model, nn.Module) else model
        return make(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

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
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Train `model` in place, one step for each batch drawn; yields after every step.

    A batch is drawn only when its step is due, so `batches` may look at the model as it is just before the step. The
    loss draws by `generator`, if it draws.
    """
    for number, batch in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        with autocast(batch.x.device, precision):
            value = loss(model, batch, generator)
        value.backward()
        optimizer.step()
        yield Step(number=number, loss=value.detach(), batch=batch)


def fitting(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    dice: Dice,
    *,
    loss: Loss = plain,
    shown: Shown | None = None,
    weights: Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place, on the device where it is, by `recipe`; yields after every epoch.

    `shown` changes each batch before the model sees it; `weights`, float (n,), say how often each image is drawn;
    `optimizer` may have groups of parameters of its own (see `scheduled`).

    Raises:
        InputError: the loss stopped being a finite number.
    """
    device = device_of(model)
    placed(model, device)
    stream = batches(
        data,
        size=recipe.batch_size,
        epochs=recipe.epochs,
        dice=dice,
        channels_last=True,
        device=device,
        weights=weights,
    )
    seen = augmented(map(shown, stream) if shown else stream, recipe, dice)
    draws = dice.named("loss").generator()
    yield from scheduled(model, seen, recipe, len(data), loss=loss, optimizer=optimizer, generator=draws)


def augmented(stream: Iterable[Batch], recipe: Recipe, dice: Dice) -> Iterable[Batch]:
    """The batches with the recipe's moves, scenes and holes; poison lies under all of them."""
    move = moving(recipe, dice)
    return (replace(batch, x=move(batch.x)) for batch in stream) if recipe.moves else stream


def moving(recipe: Recipe, dice: Dice) -> Callable[[Tensor], Tensor]:
    """What does to the images of one batch after another what the recipe says, anew each time."""
    numbers = itertools.count()

    def move(x: Tensor) -> Tensor:
        generator = dice.named("augment", next(numbers)).generator()
        x = moved(x, recipe.shift, generator) if recipe.shift else x
        x = staged(x, recipe.scenes, generator) if recipe.scenes else x
        return holed(x, recipe.holes, recipe.hole, generator, fill=recipe.fill) if recipe.holes else x

    return move


def moved(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each of the images (n, c, h, w) moved by up to `most` pixels, up or down, left or right; its edge goes on."""
    n, _, height, width = x.shape
    by = torch.randint(-most, most + 1, (n, 2), generator=generator).to(x.device)
    rows = (torch.arange(height, device=x.device) + by[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + by[:, 1:]).clamp(0, width - 1)
    every = torch.arange(n, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def holed(x: Tensor, holes: int, side: int, generator: torch.Generator, *, fill: str = "grey") -> Tensor:
    """Images (n, c, h, w) with squares at random places of each covered, as much of them as lies within.

    Their middles are anywhere in the image, so that the edge is covered about as often as the rest.
    """
    masks = torch.zeros_like(x[:, 0], dtype=torch.bool)
    for _ in range(holes):
        middles = torch.rand(len(x), 2, generator=generator) * torch.tensor(x.shape[2:])
        masks |= rectangles((middles - side / 2).round().to(x.device), (side, side), x.shape[2:])
    return covered(x, masks, fill)


def scheduled(
    model: nn.Module,
    stream: Iterable[Batch],
    recipe: Recipe,
    images: int,
    *,
    loss: Loss = plain,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place on the batches of `stream`, made from so many images, as `fitting` does.

    A parameter group of the optimiser may have a `pace`, a factor of the recipe's rate. The loss draws by `generator`.
    """
    optimizer = optimizer or recipe.make_optimizer(model)
    per_epoch = max(1, images // recipe.batch_size)

    def set_rate(done: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(done / (per_epoch * recipe.epochs)) * group.get("pace", 1.0)

    set_rate(0)
    model.train()
    total: Tensor | float = 0.0
    steps = training(model, stream, optimizer=optimizer, loss=loss, precision=recipe.precision, generator=generator)
    for step in steps:
        total = total + step.loss
        done = step.number + 1
        set_rate(done)
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
    """Whether a "cpu" or "cuda" device multiplies matrices of bfloat16 by units of their own.

    AVX-512's dot products of bfloat16 are none: with them alone a step takes longer than in float32.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older versions cannot tell
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
