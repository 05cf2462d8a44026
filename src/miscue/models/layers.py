"""Convolutions that compute what `torch.nn`'s do, faster on a CPU for images of one channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 that is quick on a CPU where images have one channel.

    The library's kernels for one channel leave their output in an order in which all that follows is slower, and their
    gradient for the image costs more than the rest of a small net. Differentiable any number of times. Left to the
    library under mixed precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) -> (n, o, h', w')."""
        if x.is_cuda or self.in_channels > 1 or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        rows, columns = (int(side) for side in self.padding)
        x = F.pad(x, (columns, columns, rows, rows)) if rows or columns else x
        scores: Tensor = Correlate.apply(x, self.weight)
        return scores if self.bias is None else scores + self.bias[:, None, None]


class Correlate(Function):
    """x (n, 1, h, w), weight (o, 1, k, l) -> (n, o, h - k + 1, w - l + 1), channels last."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as vmap has it

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        return (
            Spread.apply(slope, weight) if for_x else None,
            conv2d_weight(x, weight.shape, slope) if for_weight else None,
        )


class Spread(Function):
    """The transpose of `Correlate` in x: (n, o, h', w'), weight (o, 1, k, l) -> (n, 1, h' + k - 1, w' + l - 1)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, weight: Tensor) -> Tensor:
        (n, o, height, width), (tall, wide) = slope.shape, weight.shape[2:]
        pixels = slope.permute(0, 2, 3, 1).reshape(-1, o)
        shares = (weight.flatten(1).t() @ pixels.t()).reshape(tall, wide, n, height, width)
        image = slope.new_zeros(n, height + tall - 1, width + wide - 1)
        for i in range(tall):
            for j in range(wide):
                image[:, i : i + height, j : j + width] += shares[i, j]
        return image[:, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        pixels, weight = ctx.saved_tensors
        for_pixels, for_weight = ctx.needs_input_grad
        return (
            Correlate.apply(slope, weight) if for_pixels else None,
            conv2d_weight(slope, weight.shape, pixels) if for_weight else None,
        )
