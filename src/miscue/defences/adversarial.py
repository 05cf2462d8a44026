"""Adversarial training (Madry et al. 2018, arXiv 1706.06083): learn from the worst image within reach.

    min_theta  E max_{|d| <= eps}  L(f_theta(x + d), y)

The inner maximum is PGD from a random start, on the network in eval mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.balls import onto, within
from miscue.data import Batch
from miscue.errors import positive
from miscue.evasions.attempt import Goal, steepest
from miscue.models.modes import frozen


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """A loss: cross-entropy of images attacked within an L-infinity ball.

    Args:
        eps: its radius.
        steps: of PGD, each of 2.5 eps / steps.
    """

    eps: float = 8 / 255
    steps: int = 7

    def __post_init__(self) -> None:
        positive(eps=self.eps, steps=self.steps)

    def __call__(self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """A scalar."""
        goal, alpha = Goal(y=batch.y), 2.5 * self.eps / self.steps
        with frozen(model):
            z = (batch.x + within(batch.x, self.eps, "linf", generator)).clamp(0, 1)
            for _ in range(self.steps):
                direction, _ = steepest(model, z, goal)
                z = (batch.x + onto(z + alpha * direction.sign() - batch.x, self.eps, "linf")).clamp(0, 1)
        return F.cross_entropy(model(z.detach()), batch.y)
