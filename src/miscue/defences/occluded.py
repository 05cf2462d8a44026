"""Occlusion training (DOA, Wu, Tong, Vorobeychik 2020, arXiv 1909.09552): learn from images with the worst sticker.

The rectangle's place is where grey hurts most: of all places the few with the largest slope inside are tried (the
paper's gradient search), and some that are drawn, and the one of largest loss is kept. Inside it PGD finds the worst
colours. The whole images may keep a share of the loss, which costs them less accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.data import Batch
from miscue.errors import InputError, not_negative, positive
from miscue.evasions.attempt import Goal, steepest
from miscue.evasions.pgd import square, worst
from miscue.images import rectangles
from miscue.losses import shared
from miscue.models.modes import Model, frozen

GREY = 0.5


@dataclass(frozen=True, kw_only=True)
class Occluded:
    """A loss: cross-entropy of images with an adversarial square on them, and of the whole images.

    Args:
        side: of the square in pixels.
        stride: between the places whose slopes are looked at.
        candidates: places that are tried for their slopes.
        drawn: places that are tried besides, drawn anew for each image.
        steps: of PGD inside it.
        alpha: length of such a step.
        whole: share of the whole images in the loss.
    """

    side: int = 7
    stride: int = 2
    candidates: int = 4
    drawn: int = 0
    steps: int = 5
    alpha: float = 0.2
    whole: float = 0.0

    def __post_init__(self) -> None:
        positive(side=self.side, stride=self.stride, steps=self.steps, alpha=self.alpha)
        not_negative(candidates=self.candidates, drawn=self.drawn)
        if not self.candidates + self.drawn:
            raise InputError("candidates and drawn must not both be 0")
        if not 0 <= self.whole < 1:
            raise InputError("whole must lie in [0, 1)")

    def __call__(self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """A scalar."""
        with frozen(model):
            x, masks = self.placed(model, batch, generator)
            goal = Goal(y=batch.y)
            for _ in range(self.steps):
                direction, _ = steepest(model, x, goal)
                x = (x + self.alpha * masks * direction.sign()).clamp(0, 1)
        return shared(model, batch, x.detach(), whole=self.whole)

    def placed(self, model: Model, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The images with a grey square at the worst of the places tried, and where it is: float (n, 1, h, w)."""
        size = batch.x.shape[2:]
        if self.side > min(size):
            raise InputError(f"a square of {self.side} pixels does not lie in images of {size[0]} x {size[1]}")
        return worst(model, Goal(y=batch.y), self.places(model, batch, generator))

    def places(self, model: Model, batch: Batch, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images with a grey square at one place after another, and where it is."""
        if self.candidates:
            slopes, _ = steepest(model, batch.x, Goal(y=batch.y))
            felt = F.avg_pool2d(slopes.square().sum(1, keepdim=True), self.side, self.stride)[:, 0]
            best = felt.flatten(1).topk(min(self.candidates, felt[0].numel()), dim=1).indices
            columns, size = felt.shape[2], batch.x.shape[2:]
            for place in best.t():
                corners = self.stride * torch.stack([place // columns, place % columns], dim=1)
                mask = rectangles(corners, (self.side, self.side), size)[:, None]
                yield batch.x.masked_fill(mask, GREY), mask.to(batch.x)
        for _ in range(self.drawn):
            mask = square(batch.x, self.side, generator)
            yield batch.x.masked_fill(mask.bool(), GREY), mask
