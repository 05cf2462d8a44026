"""Adversarial patch (Brown et al. 2017, arXiv 1712.09665): one patch for all images, places, turns and sizes.

    p = argmax E_{x, place, turn, size} log P(target | A(p, x, place, turn, size))

by Adam on random batches, its rate falling to 0 along a line. What comes out depends on the start, so a few go a tenth
of the way each, and the one that does best goes on. Without a target it is -log P(true class | ...) that rises. The
patch is a square or a circle; A turns and scales it and pastes it at a random place where it lies within the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.dice import Dice
from miscue.errors import InputError, lookup, not_negative, positive, share_of_one
from miscue.evasions.attempt import Adversarial, Goal, check, outcome, scored
from miscue.models.modes import Model, frozen

FORMS = ("square", "circle")


def patch(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    area: float = 0.1,
    form: str = "square",
    turn: float = 22.5,
    shrink: float = 1.0,
    steps: int = 500,
    starts: int = 4,
    batch: int = 64,
    lr: float = 0.1,
    dice: Dice | None = None,
) -> Adversarial:
    """One patch that makes the model err wherever it lies.

    Args:
        model: from images in [0, 1] to scores, differentiable.
        x: float (n, c, h, w) in [0, 1], the images it is made from.
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any but y if None.
        area: the share of the image that the patch covers, at most.
        form: "square" or "circle".
        turn: it is turned by up to so many degrees, either way.
        shrink: its side is drawn between this share of the whole and the whole.
        steps: of Adam.
        starts: patches of noise to begin with, of which the best after a tenth of the steps goes on.
        batch: images a step.
        lr: Adam's first rate.
        dice: for images, places, turns and sizes.

    Returns:
        the images, each with the patch at a fresh random place; `shared` is the patch (c, s, s), `loss` what rose, by
        step. Put it on other images with `pasted`.
    """
    lookup(dict.fromkeys(FORMS), form, "form")
    share_of_one(area=area, shrink=shrink)
    not_negative(turn=turn)
    positive(steps=steps, starts=starts, batch=batch, lr=lr)
    named = dice or Dice()
    with frozen(model):
        check(model, x, y, target, gradient=True)
        goal = Goal(y=y, target=target)
        side = side_of(area, form, x)
        queries = torch.zeros_like(y)

        def put(p: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
            return pasted(p, x[index], form=form, turn=turn, shrink=shrink, generator=generator)

        def rising(p: Tensor, dice: Dice) -> Iterator[Tensor]:
            """Change p in place, a step at a time, and say what rose."""
            adam, generator = torch.optim.Adam([p], lr), dice.named("places").generator()
            for step, index in enumerate(drawn_batches(len(x), batch, steps, dice)):
                index = index.to(x.device)
                adam.param_groups[0]["lr"] = lr * (1 - step / steps)
                with torch.enable_grad():
                    rises = goal.of(index).nearness(model(put(p, index, generator))).mean()
                    (p.grad,) = torch.autograd.grad(-rises, p)
                adam.step()
                p.data.clamp_(0, 1)
                queries[index] += 1
                yield rises.detach()

        every, tries = torch.arange(len(x), device=x.device), []
        for start in range(starts):
            own = named.named("start", start)
            p = torch.rand(x.shape[1], side, side, generator=own.generator()).to(x).requires_grad_()
            path = rising(p, own)
            tries.append((p, path, list(islice(path, math.ceil(steps / 10)))))

        def shown(p: Tensor) -> Tensor:
            return put(p.detach(), every, named.named("scored").generator())

        def hits(tried: tuple[Tensor, Iterator[Tensor], list[Tensor]]) -> int:
            """On how many images a try reaches the goal."""
            queries.add_(1)
            return int(goal.reached(scored(model, shown(tried[0]))).sum())

        p, path, curve = max(tries, key=hits) if starts > 1 else tries[0]
        curve += path
        attacked = shown(p)
        success, already = outcome(goal, scored(model, x), scored(model, attacked))
    return Adversarial(
        x=attacked,
        success=success,
        already=already,
        flat=torch.zeros_like(success),
        queries=queries,
        steps=steps,
        loss=torch.stack(curve),
        shared=p.detach(),
    )


def side_of(area: float, form: str, x: Tensor) -> int:
    """The side in pixels of the square that holds a patch of such an area."""
    covered = area * x.shape[2] * x.shape[3] * (1 if form == "square" else 4 / math.pi)
    side = min(math.floor(math.sqrt(covered)), *x.shape[2:])
    if side < 1:
        raise InputError(f"a patch of {area:g} of an image of {x.shape[2]} x {x.shape[3]} is smaller than a pixel")
    return side


def drawn_batches(n: int, batch: int, steps: int, dice: Dice) -> Iterator[Tensor]:
    """Indices of `steps` batches, passes over all images in fresh orders."""
    left, passes = torch.zeros(0, dtype=torch.long), 0
    for _ in range(steps):
        while len(left) < min(batch, n):
            order = torch.randperm(n, generator=dice.named("order", passes).generator())
            left, passes = torch.cat([left, order]), passes + 1
        yield left[: min(batch, n)]
        left = left[min(batch, n) :]


def pasted(p: Tensor, x: Tensor, *, form: str, turn: float, shrink: float, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w) with the patch (c, s, s), each at a place, turn and size of its own; differentiable in p."""
    n, _, height, width = x.shape
    side = p.shape[1]
    angle = ((2 * torch.rand(n, generator=generator) - 1) * math.radians(turn)).to(x)
    size = side * (shrink + (1 - shrink) * torch.rand(n, generator=generator)).to(x)
    reach = size / 2 * ((angle.cos().abs() + angle.sin().abs()) if form == "square" else 1)  # half of what it takes up
    room = torch.stack([height - 2 * reach, width - 2 * reach], dim=1).clamp(min=0)
    centre = reach[:, None] + room * torch.rand(n, 2, generator=generator).to(x)
    rows, columns = (torch.arange(length, device=x.device) + 0.5 for length in (height, width))
    away = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=2) - centre[:, None, None]  # (n, h, w, 2)
    down, right = away.unbind(3)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    own = (
        torch.stack([right * cosine + down * sine, down * cosine - right * sine], dim=3)
        * (2 / size)[:, None, None, None]
    )
    inside = own.abs().amax(3) <= 1 if form == "square" else own.square().sum(3) <= 1
    seen = F.grid_sample(p.expand(n, *p.shape), own, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(inside[:, None], seen, x)
