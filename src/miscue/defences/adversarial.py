"""Adversarial training (Madry et al. 2018, arXiv 1706.06083): learn from the worst image within reach.

    min_theta  E max_{|d| <= eps}  L(f_theta(x + d), y)

The inner maximum is PGD from a random start, on the network in eval mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.balls import onto, within
from miscue.data import Batch
from miscue.errors import positive
from miscue.evasions.attempt import Goal, slope
from miscue.models.modes import frozen


@dataclass(kw_only=True, eq=False)
class Adversarial:
    """A loss: cross-entropy of images attacked within an L-infinity ball.

    Args:
        eps: its radius.
        steps: of PGD, each of 2.5 eps / steps.
        seed: of the random starts.
    """

    eps: float = 8 / 255
    steps: int = 7
    seed: int = 0
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        positive(eps=self.eps, steps=self.steps)
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar."""
        goal, alpha = Goal(y=batch.y), 2.5 * self.eps / self.steps
        with frozen(model):
            z = (batch.x + within(batch.x, self.eps, "linf", self.generator)).clamp(0, 1)
            for _ in range(self.steps):
                direction, _ = slope(lambda z: goal.nearness(model(z)), z)
                z = (batch.x + onto(z + alpha * direction.sign() - batch.x, self.eps, "linf")).clamp(0, 1)
        return F.cross_entropy(model(z.detach()), batch.y)
