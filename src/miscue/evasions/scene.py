"""Beyond the image space (Zeng et al. 2019, arXiv 1711.07183): change the scene's parameters, not its pixels.

x' = render(x, theta), the model of image formation in `formation`. Its bounds are scaled by `strength`;
theta = bounds * tanh(phi), and phi climbs by Adam from the best of some random scenes; with steps = 0 it is random
search. At the level of images this is our reading of the paper, which renders in 3D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.dice import Dice
from miscue.errors import not_negative, positive
from miscue.evasions.attempt import Adversarial, Found, Goal, attempted
from miscue.formation import BOUNDS, render
from miscue.models.modes import Model


def scene(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    strength: float = 1.0,
    starts: int = 8,
    steps: int = 20,
    lr: float = 0.3,
    dice: Dice | None = None,
    chunk: int = 0,
) -> Adversarial:
    """Look at each image under the turn, light and focus in which the model errs.

    Args:
        model: from images in [0, 1] to scores; differentiable unless steps is 0.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        strength: what the bounds of all parameters are multiplied by.
        starts: random scenes of each image; the climb begins at the best.
        steps: of Adam.
        lr: its rate; the parameters lie in about [-1, 1].
        dice: for the starts.
        chunk: images at a time; 0 for what memory allows.
    """
    positive(strength=strength, starts=starts, lr=lr)
    not_negative(steps=steps)

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        generator, curve = dice.generator(), []
        best = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        phi, found = torch.zeros(len(x), len(BOUNDS), device=x.device), x.clone()

        def keep(tried: Tensor, images: Tensor, scores: Tensor) -> None:
            nonlocal best, phi, found
            worth = goal.nearness(scores) + 1e3 * goal.reached(scores)
            better = worth > best
            best, phi = torch.where(better, worth, best), torch.where(better[:, None], tried, phi)
            found = torch.where(better[:, None, None, None], images, found)
            curve.append(goal.nearness(scores))

        with torch.no_grad():
            for _ in range(starts):
                tried = torch.atanh(1.9 * torch.rand(phi.shape, generator=generator) - 0.95).to(x)
                images = render(x, tried, strength)
                keep(tried, images, model(images))
        climbing = phi.clone().requires_grad_()
        adam = torch.optim.Adam([climbing], lr)
        for _ in range(steps):
            with torch.enable_grad():
                images = render(x, climbing, strength)
                scores = model(images)
                (climbing.grad,) = torch.autograd.grad(-goal.nearness(scores).sum(), climbing)
            keep(climbing.detach().clone(), images.detach(), scores.detach())
            adam.step()
        if steps:
            with torch.no_grad():
                images = render(x, climbing, strength)
                keep(climbing.detach(), images, model(images))
        queries = torch.full_like(goal.y, starts + (steps + 1 if steps else 0))
        return Found(x=found, queries=queries, loss=torch.stack(curve))

    return attempted(attack, model, x, y, target=target, dice=dice or Dice(), chunk=chunk, gradient=steps > 0)
