"""FGSM (Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572): one step along the sign of the gradient.

    x' = clip(x + eps sign(d J(theta, x, y) / d x), 0, 1)

Towards a target the step goes down the loss of that class. The paper's panda has eps = 0.007.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.dice import Dice
from miscue.errors import positive
from miscue.evasions.attempt import Adversarial, Found, Goal, attempted, steepest
from miscue.models.modes import Model


def fgsm(
    model: Model, x: Tensor, y: Tensor, *, target: Tensor | None = None, eps: float = 8 / 255, chunk: int = 0
) -> Adversarial:
    """One signed gradient step of length eps.

    Args:
        model: from images in [0, 1] to scores.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        eps: L-infinity budget, in the units of the images.
        chunk: images at a time; 0 for what memory allows.
    """
    positive(eps=eps)

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        direction, scores = steepest(model, x, goal)
        moved = (x + eps * direction.sign()).clamp_(0, 1)
        return Found(x=moved, queries=torch.ones_like(goal.y), loss=goal.nearness(scores)[None], clean=scores)

    return attempted(attack, model, x, y, target=target, dice=Dice(), chunk=chunk)
