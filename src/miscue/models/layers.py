"""Layers that compute what `torch.nn`'s do, faster on a CPU where the library's kernels are slow.

That is convolution of images of one channel, and, under `twice`, all that is differentiated a second time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.models.functions import ASKED, Correlate, Fixed, Normalise, Ordered, affine
from miscue.team import ALONE, Team


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 that is quick on a CPU where images have one channel, and where it is made under `twice`.

    The library's kernels for one channel leave their output in an order in which all that follows is slower, and their
    gradient for the image costs more than the rest of a small net. Its second derivative works out gradients for
    weights that nobody asked for. Differentiable any number of times. Left to the library under mixed precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) -> (n, o, h', w')."""
        usual = self.in_channels > 1 and not ASKED.twice
        if x.is_cuda or usual or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        rows, columns = (int(side) for side in self.padding)
        x = F.pad(x, (columns, columns, rows, rows)) if rows or columns else x
        if self.bias is not None and self.in_channels == 1 and not x.requires_grad:
            return affine(x, self.weight, self.bias)
        scores: Tensor = Correlate.apply(x, self.weight)
        return scores if self.bias is None else scores + self.bias[:, None, None]


class BatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d`, which in a team takes its statistics from the whole batch."""

    team: Team = ALONE

    def forward(self, x: Tensor) -> Tensor:
        """(n, c) -> the same shape."""
        return together(self, x) if self.team.size > 1 and self.training else super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose second derivative is quick on a CPU where it is made under `twice`, else the library's.

    Left to the library on a GPU and in eval mode, too. In a team it takes its statistics from the whole batch.
    """

    team: Team = ALONE

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> the same shape."""
        if self.team.size > 1 and self.training:
            return together(self, x)
        count, share = x.numel() // x.shape[1], self.momentum
        usual = ASKED.twice and self.training and self.track_running_stats and self.affine and count > 1
        if share is None or not usual or x.is_cuda or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        y, mean, r = Normalise.apply(x, self.weight, self.bias, self.eps)
        kept(self, mean, r**-2 - self.eps, count)
        return y


def kept(layer: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move a layer's running statistics towards those of a batch with so many numbers in a channel."""
    share = layer.momentum or 0.0
    for name, value in (("running_mean", mean), ("running_var", variance * (count / (count - 1)))):
        layer.get_buffer(name).mul_(1 - share).add_(value, alpha=share)
    layer.get_buffer("num_batches_tracked").add_(1)


def together(layer: BatchNorm1d | BatchNorm2d, x: Tensor, count: int = 0, *, keep: bool = True) -> Tensor:
    """BatchNorm of a team's batch, of which x is a share, by its mean and variance; differentiable any number of times.

    count: the first so many images of each share are normalised by the statistics of the others. keep: whether the
    running statistics move.
    """
    over = [0, *range(2, x.ndim)]

    def wide(channel: Tensor) -> Tensor:
        return channel.reshape(-1, *[1] * (x.ndim - 2))

    (mean,) = layer.team.averaged([x[count:].mean(over)])
    centred = x - wide(mean)
    (variance,) = layer.team.averaged([centred[count:].square().mean(over)])
    y = centred * wide((variance + layer.eps).rsqrt())
    if keep and layer.track_running_stats and layer.momentum is not None:
        kept(layer, mean.detach(), variance.detach(), layer.team.size * x.numel() // x.shape[1])
    return y * wide(layer.weight) + wide(layer.bias) if layer.affine else y


class ReLU(nn.ReLU):
    """`nn.ReLU`, quick where it is made under `twice`."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as x."""
        if not ASKED.twice:
            return super().forward(x)
        y = F.relu(x.detach())

        def gate(t: Tensor) -> Tensor:
            return torch.ops.aten.threshold_backward(t, y, 0)

        return Fixed.apply(x, y, gate, gate)


class AvgPool2d(nn.AvgPool2d):
    """`nn.AvgPool2d`, quick where it is made under `twice`."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h', w')."""
        if not ASKED.twice:
            return super().forward(x)
        seen = x.detach()
        side, stride, padding = pairs(self.kernel_size, self.stride, self.padding)
        habits = self.ceil_mode, self.count_include_pad, self.divisor_override

        def spread(t: Tensor) -> Tensor:
            return torch.ops.aten.avg_pool2d_backward(last(t), seen, side, stride, padding, *habits)

        return Fixed.apply(x, super().forward(seen), super().forward, spread)


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d`, quick where it is made under `twice`, and by squares of 2 x 2 where there is no way back.

    The library works out where the largest lies even if nobody goes back there.
    """

    @property
    def halves(self) -> bool:
        """Whether it takes the largest of each square of 2 x 2."""
        habits = pairs(self.kernel_size, self.stride, self.padding, self.dilation)
        return habits == [[2, 2], [2, 2], [0, 0], [1, 1]] and not self.ceil_mode and not self.return_indices

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h', w')."""
        if not ASKED.twice:
            back = torch.is_grad_enabled() and x.requires_grad
            return super().forward(x) if back or x.is_cuda or not self.halves else halved(x)
        seen = x.detach()
        habits = *pairs(self.kernel_size, self.stride, self.padding, self.dilation), self.ceil_mode
        y, winners = torch.ops.aten.max_pool2d_with_indices(seen, *habits)

        def chosen(t: Tensor) -> Tensor:
            found = pixels(t).gather(1, pixels(winners))
            return found.unflatten(1, y.shape[2:]).permute(0, 3, 1, 2)

        def spread(t: Tensor) -> Tensor:
            return torch.ops.aten.max_pool2d_with_indices_backward(last(t), seen, *habits, winners)

        return Fixed.apply(x, y, chosen, spread)


def halved(x: Tensor) -> Tensor:
    """The largest of each square of 2 x 2 of (..., h, w); a last odd row or column is left out."""
    height, width = (side // 2 * 2 for side in x.shape[-2:])
    rows = torch.maximum(x[..., 0:height:2, :width], x[..., 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


class Flatten(nn.Flatten):
    """`nn.Flatten` whose slope lies in the order in which what comes before it is quick."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c h w)."""
        return super().forward(x if x.is_cuda else Ordered.apply(x))


def pairs(*sides: int | tuple[int, int]) -> list[list[int]]:
    """A number for rows and one for columns, where there was one for both."""
    return [[side, side] if isinstance(side, int) else list(side) for side in sides]


def last(x: Tensor) -> Tensor:
    """x with its channels last, where the library's pooling goes back several times as fast."""
    return x.contiguous(memory_format=torch.channels_last)


def pixels(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h w, c), a view where channels come last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
