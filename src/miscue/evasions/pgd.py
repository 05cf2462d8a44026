"""PGD (Madry et al. 2018, arXiv 1706.06083): repeated steps, projected back onto the ball around the image.

    x_0     = x + noise from the ball of radius eps
    x_{t+1} = P(x_t + alpha s(d J / d x_t)),   s = sign (L-infinity) or g / |g| (L2),   P: the ball, then [0, 1]

With a random transformation T the gradient is the mean over `samples` draws of that at T(x), as in expectation over
transformation (Athalye et al. 2018, arXiv 1707.07397). Of several restarts each image keeps one that succeeds, or else
the one of largest loss. Without a random start and for one step it is FGSM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from miscue.balls import NORMS, onto, within
from miscue.dice import Dice
from miscue.errors import InputError, lookup, positive
from miscue.evasions.attempt import Adversarial, Found, Goal, attempted, slope
from miscue.images import rectangles
from miscue.models.modes import Model

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""(x, generator) -> x transformed at random, differentiable in x."""


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    eps: float = 8 / 255,
    alpha: float = 2 / 255,
    steps: int = 20,
    norm: str = "linf",
    random_start: bool = True,
    restarts: int = 1,
    side: int = 0,
    tries: int = 1,
    transform: Transform | None = None,
    samples: int = 8,
    dice: Dice | None = None,
    chunk: int = 0,
) -> Adversarial:
    """Projected gradient ascent on the loss of y, or descent on that of the target.

    Args:
        model: from images in [0, 1] to scores.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        eps: radius of the ball, in the units of the images; for L2 of the whole image.
        alpha: length of a step, in the same norm.
        steps: number of steps.
        norm: "linf" or "l2".
        random_start: begin at a random place in the ball instead of at x.
        restarts: how many times to try, each from a start of its own.
        side: only a square of so many pixels' side may change, at a place drawn for each image and restart; 0 for all.
        tries: places drawn for each restart, of which the one goes on where noise in the square is worst.
        transform: a random transformation that the attack is to survive.
        samples: draws of it for each step.
        dice: for starts and transformations.
        chunk: images at a time; 0 for what memory allows.
    """
    lookup(dict.fromkeys(NORMS), norm, "norm")
    positive(eps=eps, alpha=alpha, steps=steps, restarts=restarts, tries=tries, samples=samples)
    if tries > 1 and not (side and random_start):
        raise InputError("tries are of places of a square, with random starts")
    if not 0 <= side <= min(x.shape[2:]):
        raise InputError(f"a square of {side} pixels does not lie in images of {x.shape[2]} x {x.shape[3]}")
    draws = samples if transform else 1

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        best, reached, nearest, curve = x, torch.zeros_like(goal.y, dtype=torch.bool), None, []
        clean: list[Tensor] = []
        every = torch.arange(len(x), device=x.device).repeat_interleave(draws)
        for restart in range(restarts):
            generator = dice.named("restart", restart).generator()

            def rises(z: Tensor, generator: torch.Generator = generator) -> Tensor:
                if transform is None:
                    scores = model(z)
                    if not (random_start or clean):
                        clean.append(scores.detach())
                    return goal.nearness(scores)
                many = transform(z[every], generator)
                return goal.of(every).nearness(model(many)).unflatten(0, (len(x), draws)).mean(1)

            def starts(generator: torch.Generator = generator) -> Iterator[tuple[Tensor, Tensor]]:
                for _ in range(tries):
                    mask = square(x, side, generator) if side else x.new_ones(1, 1, 1, 1)
                    noise = within(x, eps, norm, generator) if random_start else torch.zeros_like(x)
                    yield (x + inside(noise, mask)).clamp_(0, 1), mask

            z, mask = worst(model, goal, starts()) if tries > 1 else next(starts())
            for _ in range(steps):
                direction, nearness = slope(rises, z)
                moved = z + ascent(inside(direction, mask), norm).mul_(alpha)
                z = (x + onto(moved - x, eps, norm)).clamp_(0, 1)
                curve.append(nearness)
            if restarts == 1:
                best = z
                break
            with torch.no_grad():
                scores = model(z)
                now, near = goal.reached(scores), goal.nearness(scores)
            nearest = torch.full_like(near, -torch.inf) if nearest is None else nearest
            better = (now & ~reached) | ((near > nearest) & (now == reached))
            best, nearest = torch.where(better[:, None, None, None], z, best), torch.where(better, near, nearest)
            reached |= now
        shown = restarts * (steps * draws + (restarts > 1) + tries * (tries > 1))
        start = clean[0] if clean else None
        return Found(x=best, queries=torch.full_like(goal.y, shown), loss=torch.stack(curve), clean=start)

    return attempted(attack, model, x, y, target=target, dice=dice or Dice(), chunk=chunk, copies=draws)


def worst(model: Model, goal: Goal, starts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of several starts (images, masks) for each image the one that is nearest the goal."""
    z, mask = next(starts)
    with torch.no_grad():
        nearest = goal.nearness(model(z))
        for tried, place in starts:
            near = goal.nearness(model(tried))
            better = (near > nearest)[:, None, None, None]
            z, mask = torch.where(better, tried, z), torch.where(better, place, mask)
            nearest = torch.maximum(near, nearest)
    return z, mask


def square(x: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """A square of ones at a random place within each image, zeros elsewhere: float (n, 1, h, w)."""
    room = torch.tensor([x.shape[2] - side + 1, x.shape[3] - side + 1])
    corners = (torch.rand(len(x), 2, generator=generator) * room).long().to(x.device)
    return rectangles(corners, (side, side), x.shape[2:])[:, None].to(x)


def inside(change: Tensor, mask: Tensor) -> Tensor:
    """What of a change lies in the mask; one of a single number is all of the image."""
    return change if mask.numel() == 1 else mask * change


def ascent(direction: Tensor, norm: str) -> Tensor:
    """The steepest direction of length 1 in the norm."""
    if norm == "linf":
        return direction.sign()
    return direction / direction.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
