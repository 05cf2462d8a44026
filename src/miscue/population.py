"""Training many victims at once: the repeats of a row, or the candidates of a search.

Each gets what a fit of its own would give it, to rounding: its own weights, order of batches, and pixels, which are
written into the batch, so that there is one copy of the data however many the candidates. On a CPU they are trained by
single-threaded processes side by side, on a GPU as one batched program over stacked parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.data import Batch, Data, floats, orders
from miscue.dice import Dice
from miscue.losses import plain
from miscue.marks import Pixels
from miscue.models.heads import Nystrom
from miscue.models.stacked import Stacked
from miscue.train import moving, scheduled
from miscue.victims import Victim
from miscue.workers import LostWorkerError, Workers, cores


@dataclass(frozen=True, kw_only=True)
class Member:
    """One victim of a population, its dice, and the pixels in its training images, if any."""

    victim: Victim
    dice: Dice
    mark: Pixels | None = None


Then = Callable[..., Any]
"""(model, member, *sets) -> what is to be known of a trained model; a function of a module, as it may run elsewhere."""

FitMany = Callable[..., Iterator[tuple[int, Any]]]
"""(members, then) -> (position, then(model, member, *sets)) of each, in the order in which they are done."""


@contextmanager
def population(*sets: Data, device: str = "cpu", processes: int = 0) -> Iterator[FitMany]:
    """`fit_many` for a machine: train members on the first of `sets`, tell something of each on all of them.

    Args:
        sets: the training set, and whatever `then` needs.
        device: on a GPU all members are one program; on the CPU they are processes side by side.
        processes: how many; 0 means one for each processor. With one, members are trained one after another here.

    Yields:
        fit_many(members, then=...), to be used any number of times. A member whose process dies twice gives a
        LostWorkerError instead.
    """
    if torch.device(device).type != "cpu":
        yield partial(stacked_fits, tuple(one.to(device) for one in sets))
        return
    with Workers(sets, processes or cores()) as workers:
        yield partial(separate_fits, workers)


def keep(model: nn.Module, member: Member, *sets: Data) -> nn.Module:
    """The trained model itself."""
    return model


def fit_many(data: Data, members: Sequence[Member], *, device: str = "cpu", processes: int = 0) -> list[nn.Module]:
    """The trained models of all members, in eval mode.

    Raises:
        LostWorkerError: a worker process died twice over the same member.
    """
    with population(data, device=device, processes=processes) as fit:
        done = dict(fit(members))
    for model in done.values():
        if isinstance(model, LostWorkerError):
            raise model
    return [done[i] for i in range(len(members))]


def separate_fits(workers: Workers, members: Sequence[Member], *, then: Then = keep) -> Iterator[tuple[int, Any]]:
    """One fit for each member, by whichever worker is free."""
    return workers.map(partial(_fit, then), members)


def _fit(then: Then, sets: tuple[Data, ...], member: Member) -> Any:
    device = sets[0].images.device
    shown = member.mark.to(device).on if member.mark else None
    model = member.victim(sets[0], member.dice, device=str(device), shown=shown)
    return then(model, member, *sets)


def stacked_fits(sets: tuple[Data, ...], members: Sequence[Member], *, then: Then = keep) -> Iterator[tuple[int, Any]]:
    """One batched program for all members of a victim: parameters, images and losses have a first axis for them."""
    data = sets[0]
    numbered = list(enumerate(members))
    for victim, group in groupby(numbered, key=lambda pair: pair[1].victim):
        places, these = zip(*group, strict=True)
        if not stackable(victim, data):
            yield from ((place, _fit(then, sets, member)) for place, member in zip(places, these, strict=True))
            continue
        models = [victim.untrained(data, member.dice, device=str(data.images.device)) for member in these]
        stack = Stacked(models)
        stream = side_by_side(data, these)
        for _ in scheduled(stack, stream, victim.recipe, len(data), loss=summed):
            pass
        for place, member, model in zip(places, these, stack.separate(), strict=True):
            yield place, then(model, member, *sets)


def stackable(victim: Victim, data: Data) -> bool:
    """Whether a stack can be trained by it: no loss of the user's own, and no head that counts its images."""
    return victim.loss is plain and not any(
        isinstance(module, Nystrom) for module in victim.untrained(data, Dice()).modules()
    )


def side_by_side(data: Data, members: Sequence[Member]) -> Iterator[Batch]:
    """The next batch of each member, stacked: x (k, n, c, h, w), y (k, n), index (k, n).

    Each has its own order, pixels and moves; all images are fetched, and all pixels written, in one go.
    """
    recipe, count, mark = members[0].victim.recipe, len(members), one_mark(data, members)
    streams = [
        orders(data, size=recipe.batch_size, epochs=recipe.epochs, dice=member.dice.named("training"))
        for member in members
    ]
    here = data.images.device
    first = torch.arange(count, device=here)[:, None] * len(data.classes)
    moves = [moving(recipe, member.dice.named("training")) for member in members]
    for row in zip(*streams, strict=True):
        index = torch.stack(row)
        x, y = floats(data.images[index.flatten()]), data.labels[index]
        x = (mark(x, (y + first).flatten()) if mark else x).unflatten(0, (count, -1))
        if recipe.moves:
            x = torch.stack([move(own) for move, own in zip(moves, x, strict=True)])
        yield Batch(x=x, y=y, index=index)


def one_mark(data: Data, members: Sequence[Member]) -> Pixels | None:
    """The pixels of all members as those of so many times the classes, if any has some."""
    marks = [member.mark for member in members]
    if not any(marks):
        return None
    classes, channels = len(data.classes), data.shape[0]
    none = torch.tensor([[-1, 0]]).expand(classes, 2), torch.zeros(classes, channels, dtype=torch.uint8)
    places, values = zip(*((mark.places, mark.values) if mark else none for mark in marks), strict=True)
    return Pixels(places=torch.cat(places), values=torch.cat(values), shape=data.shape).to(data.images.device)


def summed(model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    """The sum of the members' mean losses: each member's gradient is that of its own loss."""
    scores = model(batch.x)
    return F.cross_entropy(scores.flatten(0, 1), batch.y.flatten(), reduction="sum") / batch.y.shape[1]
