"""PatchCleanser (Xiang, Mahloujifar, Mittal 2022, arXiv 2108.09135): the class behind a patch, with a certificate.

For patches of p x p pixels in an image of n x n, masks of m = p + s - 1 pixels at the places 0, s, ..., n - m, where
s = ceil((n - p + 1) / k), are so dense that one of them covers any patch. If the model says the same under every mask,
that is the class. Else a mask under which it says something else is on trial: if all second masks agree with it, it
covers the patch and is right. Else the majority is. Where every pair of masks leaves the true class, no patch of that
size can change the outcome: the image is certified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from miscue.covers import BLIND, FILLS
from miscue.errors import InputError, lookup
from miscue.explainers.occlusion import TOGETHER, masked_scores
from miscue.images import rectangles
from miscue.models.modes import Model, frozen


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The masks against patches of `patch` pixels' side, about `per_side` along each side of the image.

    inside: bool (k, h, w), the pixels that each covers. fill: what they become, one of BLIND: the certificate needs
    that nothing of the patch is left.
    """

    inside: Tensor
    fill: str = "grey"

    @staticmethod
    def against(patch: int, size: tuple[int, int], *, per_side: int = 6, fill: str = "grey") -> Masks:
        """The masks for images of `size` (h, w).

        Raises:
            InputError: a patch that does not lie in the image, no masks, or a fill that sees what it covers.
        """
        lookup(dict.fromkeys(BLIND), fill, "fill")
        if not 1 <= patch <= min(size) or per_side < 1:
            raise InputError(f"a patch of {patch} pixels in {size[0]} x {size[1]} needs masks, got {per_side} a side")
        strides = [math.ceil((side - patch + 1) / per_side) for side in size]
        sides = [patch + stride - 1 for stride in strides]
        starts = [
            torch.tensor(sorted({min(start, side - mask) for start in range(0, side - patch + 1, stride)}))
            for side, mask, stride in zip(size, sides, strides, strict=True)
        ]
        return Masks(inside=rectangles(torch.cartesian_prod(*starts), sides, size), fill=fill)

    def __len__(self) -> int:
        return len(self.inside)

    @property
    def alone(self) -> Tensor:
        """int64 (k, 2): each mask with itself."""
        return torch.arange(len(self)).repeat(2, 1).t()

    @property
    def pairs(self) -> Tensor:
        """int64 (pairs, 2): each mask with each later one."""
        return torch.combinations(torch.arange(len(self)))

    def named(self, model: Model, x: Tensor, pairs: Tensor) -> Tensor:
        """The class for images x (n, c, h, w) under each of pairs (k, 2): int64 (n, k)."""
        found = torch.empty(len(x), len(pairs), dtype=torch.int64, device=x.device)

        def masks(chosen: slice) -> Tensor:
            first, second = pairs[chosen].t()
            return (self.inside[first] | self.inside[second]).to(x.device)

        for images, chosen, scores, _ in masked_scores(model, x, FILLS[self.fill], masks, len(pairs)):
            found[images, chosen] = scores.argmax(2)
        return found


@dataclass(frozen=True, kw_only=True)
class Cleansed:
    """named: int64 (n,), what is made of each image; unanimous: bool (n,), whether all single masks agreed."""

    named: Tensor
    unanimous: Tensor


def cleanse(model: Model, x: Tensor, masks: Masks) -> Cleansed:
    """The class of images x (n, c, h, w) in [0, 1], whatever a patch of the masks' size says (Algorithm 1)."""
    every = torch.arange(len(masks))
    with frozen(model), torch.inference_mode():
        once = masks.named(model, x, masks.alone)
        majority, unanimous = once.mode(1).values, (once == once[:, :1]).all(1)
        found, undecided = majority.clone(), ~unanimous
        for mask in range(len(masks)):  # all images that it is a dissenter of at once
            these = (undecided & (once[:, mask] != majority)).nonzero()[:, 0]
            if len(these):
                twice = masks.named(model, x[these], torch.stack([every, torch.full_like(every, mask)], dim=1))
                agreed = these[(twice == once[these, mask, None]).all(1)]
                found[agreed], undecided[agreed] = once[agreed, mask], False
    return Cleansed(named=found.clone(), unanimous=unanimous.clone())


def certified(model: Model, x: Tensor, y: Tensor, masks: Masks) -> Tensor:
    """Whether no patch of the masks' size can make `cleanse` name another class than y: bool (n,).

    So it is where the model names y under every pair of masks. Images that fail are not looked at further; masks that
    hide more images' classes come first, which finds failures early.
    """
    standing = torch.arange(len(x), device=x.device)
    with frozen(model), torch.inference_mode():
        right = masks.named(model, x, masks.alone) == y[:, None]
        standing = standing[right.all(1)]
        missed = (~right).sum(0).cpu()
        order = missed[masks.pairs].sum(1).argsort(descending=True)
        for some in masks.pairs[order].split(max(1, TOGETHER // 8)):
            if not len(standing):
                break
            right = (masks.named(model, x[standing], some) == y[standing, None]).all(1)
            standing = standing[right]
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    found[standing] = True
    return found
