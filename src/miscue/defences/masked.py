"""Greedy cutout (Saha et al. 2023, arXiv 2306.12610): learn from images under the pair of masks that hides most.

PatchCleanser's certificate asks for the right class under every pair of its masks. The paper's two rounds: the mask of
largest loss, then, under it, the second of largest loss. Here each round tries a few masks drawn for each image, and
the whole images keep a share of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.covers import covered
from miscue.data import Batch
from miscue.detectors.patchcleanser import Masks
from miscue.errors import InputError, positive
from miscue.losses import shared
from miscue.models.modes import Model, frozen


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A loss: cross-entropy of images under a hard pair of masks, and of the whole images.

    Args:
        patch: side of the patches to certify against, in pixels.
        per_side: about so many masks along each side of an image.
        tries: masks tried in each of the two rounds.
        whole: share of the whole images in the loss.
        fill: what covered pixels become: "grey", "black" or "inpaint".
    """

    patch: int = 5
    per_side: int = 6
    tries: int = 4
    whole: float = 0.5
    fill: str = "grey"

    def __post_init__(self) -> None:
        positive(tries=self.tries)
        if not 0 <= self.whole < 1:
            raise InputError(f"whole must lie in [0, 1), got {self.whole:g}")

    def __call__(self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """A scalar."""
        height, width = batch.x.shape[2:]
        masks = Masks.against(self.patch, (height, width), per_side=self.per_side, fill=self.fill)
        hardest = self.hardest(model, batch, masks.inside.to(batch.x.device), generator)
        hard = covered(batch.x, hardest, self.fill)
        return shared(model, batch, hard, whole=self.whole)

    def hardest(self, model: Model, batch: Batch, inside: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the worst pair found covers of each image: bool (n, h, w), two of the masks `inside` (k, h, w)."""
        found = torch.zeros_like(batch.x[:, 0], dtype=torch.bool)
        with frozen(model), torch.no_grad():
            for _ in range(2):
                before, worst = found, torch.full_like(batch.x[:, 0, 0, 0], -torch.inf)
                for _ in range(self.tries):
                    drawn = torch.randint(len(inside), (len(found),), generator=generator).to(found.device)
                    tried = before | inside[drawn]
                    loss = F.cross_entropy(model(covered(batch.x, tried, self.fill)), batch.y, reduction="none")
                    found = torch.where((loss > worst)[:, None, None], tried, found)
                    worst = torch.maximum(worst, loss)
        return found
