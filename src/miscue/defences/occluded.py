"""Occlusion training (DOA, Wu, Tong, Vorobeychik 2020, arXiv 1909.09552): learn from images with the worst sticker.

The rectangle's place is where grey hurts most: of all places the few with the largest slope inside are tried (the
paper's gradient search), and the one of largest loss is kept. Inside it PGD finds the worst colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.data import Batch
from miscue.errors import InputError
from miscue.evasions.attempt import Goal, slope
from miscue.images import rectangles
from miscue.models.modes import Model, frozen

GREY = 0.5


@dataclass(frozen=True, kw_only=True)
class Occluded:
    """A loss: cross-entropy of images with an adversarial square on them.

    Args:
        side: of the square in pixels.
        stride: between the places that are looked at.
        candidates: places that are tried.
        steps: of PGD inside it.
        alpha: length of such a step.
    """

    side: int = 7
    stride: int = 2
    candidates: int = 4
    steps: int = 5
    alpha: float = 0.2

    def __post_init__(self) -> None:
        if min(self.side, self.stride, self.candidates, self.steps) < 1 or not self.alpha > 0:
            raise InputError("side, stride, candidates, steps and alpha must be positive")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar."""
        with frozen(model):
            x, masks = self.placed(model, batch)
            goal = Goal(y=batch.y)
            for _ in range(self.steps):
                direction, _ = slope(lambda z: goal.nearness(model(z)), x)
                x = (x + self.alpha * masks * direction.sign()).clamp(0, 1)
        return F.cross_entropy(model(x.detach()), batch.y)

    def placed(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images with a grey square at the worst of the places tried, and where it is: float (n, 1, h, w)."""
        goal, size = Goal(y=batch.y), batch.x.shape[2:]
        if self.side > min(size):
            raise InputError(f"a square of {self.side} pixels does not lie in images of {size[0]} x {size[1]}")
        slopes, _ = slope(lambda z: goal.nearness(model(z)), batch.x)
        felt = F.avg_pool2d(slopes.square().sum(1, keepdim=True), self.side, self.stride)[:, 0]
        best = felt.flatten(1).topk(min(self.candidates, felt[0].numel()), dim=1).indices
        columns = felt.shape[2]
        worst = torch.full_like(batch.x[:, 0, 0, 0], -torch.inf)
        x, masks = batch.x, torch.zeros_like(batch.x[:, :1])
        with torch.no_grad():
            for place in best.t():
                corners = self.stride * torch.stack([place // columns, place % columns], dim=1)
                mask = rectangles(corners, (self.side, self.side), size)[:, None]
                tried = batch.x.masked_fill(mask, GREY)
                loss = goal.nearness(model(tried))
                worse = (loss > worst)[:, None, None, None]
                x, masks = torch.where(worse, tried, x), torch.where(worse, mask.to(x), masks)
                worst = torch.maximum(worst, loss)
        return x, masks
