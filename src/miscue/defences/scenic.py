"""Training in random scenes: turned, tilted, lit and coloured otherwise, by the image formation of the scene attack."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.data import Batch
from miscue.errors import InputError
from miscue.evasions.scene import BOUNDS, render


@dataclass(kw_only=True, eq=False)
class Scenic:
    """A loss: cross-entropy of images in scenes drawn at random.

    Args:
        strength: factor of the scenes' bounds.
        share: of the images that are shown in one.
        seed: of the scenes.
    """

    strength: float = 1.0
    share: float = 0.5
    seed: int = 0
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.strength > 0 or not 0 < self.share <= 1:
            raise InputError("strength must be positive and share lie in (0, 1]")
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar."""
        phi = torch.randn(len(batch.x), len(BOUNDS), generator=self.generator).to(batch.x)
        shown = torch.rand(len(batch.x), generator=self.generator).to(batch.x) < self.share
        with torch.no_grad():
            x = torch.where(shown[:, None, None, None], render(batch.x, phi, self.strength), batch.x)
        return F.cross_entropy(model(x), batch.y)
