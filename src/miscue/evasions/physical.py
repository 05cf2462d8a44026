"""RP2, robust physical perturbations (Eykholt, Evtimov et al. 2018, arXiv 1707.08945): stickers that survive the world.

    min_delta  lambda |M delta|_p + NPS(M delta) + E_T J(f(T(x + M delta)), y*)

A first pass over the whole image with p = 1 shows where a change pays; the mask M becomes the rectangles in which it
is largest, and the second pass has p = 2 inside them. NPS, the non-printability score, is each pixel's distance to the
nearest colour that a printer has; the paper's product of the distances to all of them is as good as 0 for 27 colours.
T is drawn anew at each step: turns, tilts, sizes, light, contrast and noise. Without a target J is -log(1 - p_y), so
that the true class's probability falls. The authors' code for road signs takes 1000 steps of rate 0.25 in a pass; ours
takes 100 of 0.1 unless told otherwise.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.dice import Dice
from miscue.distortions import DISTORTIONS
from miscue.errors import not_negative, positive, share_of_one
from miscue.evasions.attempt import Adversarial, Found, Goal, attempted
from miscue.evasions.pgd import Transform
from miscue.images import rectangles as squares
from miscue.models.modes import Model

PRINTED = (0.1, 0.5, 0.9)  # what a printer makes of each channel: neither quite black nor quite white
VIEWS = {"rotation": 10, "perspective": 0.1, "scale": 0.1, "brightness": 0.1, "contrast": 0.2, "noise": 0.02}


def physical(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    rectangles: int = 2,
    area: float = 0.1,
    weight: float = 1e-3,
    printability: float = 1.0,
    steps: int = 100,
    samples: int = 4,
    lr: float = 0.1,
    transform: Transform | None = None,
    dice: Dice | None = None,
    chunk: int = 0,
) -> Adversarial:
    """Printable stickers on each image that hold under turns, light and noise.

    Args:
        model: from images in [0, 1] to scores, differentiable.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        rectangles: of the mask, all of one size.
        area: the share of the image that they may cover together.
        weight: lambda, of the size of the perturbation.
        printability: weight of the non-printability score.
        steps: of Adam, in each of the two passes.
        samples: draws of the transformation for each image and step.
        lr: Adam's rate.
        transform: the transformation; turns, tilts, sizes, light, contrast and noise if None.
        dice: for the transformations.
        chunk: images at a time; 0 for what memory allows.
    """
    share_of_one(area=area)
    positive(rectangles=rectangles, steps=steps, samples=samples, lr=lr)
    not_negative(weight=weight, printability=printability)

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        generator = dice.generator()
        every = torch.arange(len(x), device=x.device).repeat_interleave(samples)
        curve: list[Tensor] = []

        def passed(mask: Tensor, p: int) -> Tensor:
            """The perturbation inside `mask` (n, 1, h, w), by Adam."""
            delta = torch.full_like(x, 1e-3).requires_grad_()
            adam = torch.optim.Adam([delta], lr)
            for _ in range(steps):
                with torch.enable_grad():
                    change = mask * delta
                    seen = (transform or views)((x + change).clamp(0, 1)[every], generator)
                    rises = certainty(model(seen), goal.of(every)).unflatten(0, (len(x), samples)).mean(1)
                    cost = weight * change.flatten(1).norm(p=p, dim=1)
                    cost = cost + printability * (unprintable(x + change) * mask).flatten(1).mean(1)
                    (delta.grad,) = torch.autograd.grad((cost - rises).sum(), delta)
                adam.step()
                delta.data = (x + delta.data).clamp(0, 1) - x
                curve.append(rises.detach())
            return (mask * delta).detach()

        first = passed(torch.ones_like(x[:, :1]), 1)
        mask = chosen(first.abs().sum(1, keepdim=True), rectangles, area)
        found = (x + passed(mask, 2)).clamp(0, 1)
        return Found(x=found, queries=torch.full_like(goal.y, 2 * steps * samples), loss=torch.stack(curve))

    return attempted(
        attack, model, x, y, target=target, dice=dice or Dice(), chunk=chunk, copies=samples, gradient=True
    )


def views(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the usual distortions, up to its strength in VIEWS."""
    for name, most in VIEWS.items():
        x = DISTORTIONS[name](x, most * float(torch.rand((), generator=generator)), generator)
    return x


def certainty(scores: Tensor, goal: Goal) -> Tensor:
    """log p_target, or log(1 - p_true): float (n,)."""
    if goal.target is not None:
        return goal.nearness(scores)
    return torch.log(-torch.expm1((-goal.nearness(scores)).clamp(max=-1e-4)))


def unprintable(x: Tensor) -> Tensor:
    """How far each pixel is from the nearest printable colour: (n, 1, h, w)."""
    found: list[Tensor] = []
    for colour in torch.tensor(list(product(PRINTED, repeat=x.shape[1])), device=x.device, dtype=x.dtype):
        away = x - colour[:, None, None]
        found.append((away.square().sum(1, keepdim=True) + 1e-12).sqrt())
    return torch.stack(found).amin(0)


def chosen(heat: Tensor, rectangles: int, area: float) -> Tensor:
    """A mask (n, 1, h, w) of so many squares, the hottest one after another, none over another."""
    n, _, height, width = heat.shape
    side = max(1, min(math.floor(math.sqrt(area * height * width / rectangles)), height, width))
    mask = torch.zeros_like(heat)
    every = torch.arange(n, device=heat.device)
    for _ in range(rectangles):
        taken = F.max_pool2d(mask, side, 1)
        windows = F.avg_pool2d(heat, side, 1) - 1e6 * taken
        best = windows.flatten(1).argmax(1)
        corners = torch.stack([best // windows.shape[3], best % windows.shape[3]], dim=1)
        room = windows.flatten(1)[every, best] >= 0  # else there is none for another one
        more = squares(corners, (side, side), (height, width)) & room[:, None, None]
        mask = torch.maximum(mask, more[:, None].to(mask))
    return mask
