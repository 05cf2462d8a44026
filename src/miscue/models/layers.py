"""Layers that compute what `torch.nn`'s do, faster on a CPU where the library's kernels are slow.

That is convolution of images of one channel, and BatchNorm differentiated twice, as looking ahead over a step of
training does: there the library's is the slowest part of a small network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


class Asked(threading.local):
    """What is asked of the layers in this thread: a CPU's backward pass stays in it.

    images, weights: which of its two gradients a `Correlate` gives; twice: whether there will be a second derivative.
    """

    images = True
    weights = True
    twice = False


ASKED = Asked()


@contextmanager
def only(which: str) -> Iterator[None]:
    """For a block, leave out gradients that nobody asked for: give only those of "images", or of "weights".

    The library tells a function of ours which of its inputs can have a gradient, not which are wanted. What lies
    between weights, no leaf of the graph, has its gradient either way.
    """
    ASKED.images, ASKED.weights = which == "images", which == "weights"
    try:
        yield
    finally:
        ASKED.images = ASKED.weights = True


@contextmanager
def twice() -> Iterator[None]:
    """For a block, have layers lay out what they compute for a second derivative: slower once, quicker twice."""
    ASKED.twice = True
    try:
        yield
    finally:
        ASKED.twice = False


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
            Spread.apply(slope, weight) if for_x and (ASKED.images or not x.is_leaf) else None,
            conv2d_weight(x, weight.shape, slope) if for_weight and ASKED.weights else None,
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


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose second derivative is quick on a CPU where it is made under `twice`, else the library's.

    Left to the library on a GPU and in eval mode, too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> the same shape, channels last."""
        count, share = x.numel() // x.shape[1], self.momentum
        usual = ASKED.twice and self.training and self.track_running_stats and count > 1
        if share is None or not usual or x.is_cuda or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        z, mean, variance, _ = Normalise.apply(x, self.eps)
        latest = {"running_mean": mean, "running_var": variance * (count / (count - 1))}
        for name, value in latest.items():
            self.get_buffer(name).mul_(1 - share).add_(value, alpha=share)
        self.get_buffer("num_batches_tracked").add_(1)
        return unfolded(affine(rows(z), self.weight, self.bias), z.shape)


class Normalise(Function):
    """x -> z = (x - mean) r with r = (variance + eps)^-1/2 over each channel; z, mean, variance and r."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t, channels = rows(x), x.shape[1]
        mean = means(t, channels)
        z = t - across(mean, t)
        variance = means(z * z, channels)
        r = torch.rsqrt(variance + eps)
        return unfolded(z * across(r, t), x.shape), mean, variance, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, ...]) -> None:
        z, mean, variance, r = output
        ctx.mark_non_differentiable(mean, variance, r)
        ctx.save_for_backward(inputs[0], z, r)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        x, z, r = ctx.saved_tensors
        return Centre.apply(slope, x, z.detach(), r), None


class Centre(Function):
    """The slope g at z -> the slope at x of `Normalise`: r (g - [g] - z [g z]), where [] is the mean over a channel.

    It is linear and symmetric in g. Where u is the slope at its result, with q = -(u [g z] + g [u z]), that at x is
    r^2 (q - [q] - z [q z]) - r^2 z ([u g] - [u] [g] - [u z] [g z]), with what z and r owe to x. There is no third
    derivative.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, x: Tensor, z: Tensor, r: Tensor) -> Tensor:
        g, z_rows, channels = rows(slope), rows(z), z.shape[1]
        mean, share = means(g, channels), means(g * z_rows, channels)
        centred = torch.addcmul(across(-r * mean, g), g, across(r, g))
        return unfolded(torch.addcmul(centred, z_rows, across(-r * share, g)), z.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        slope, _, z, r = inputs
        ctx.save_for_backward(slope, z, r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        slope, z, r = ctx.saved_tensors
        u, g, t, channels = rows(outer), rows(slope), rows(z), z.shape[1]
        product = torch.mul(u, t)
        u_mean, g_mean, uz = means(u, channels), means(g, channels), means(product, channels)
        gz = means(torch.mul(g, t, out=product), channels)
        ug = means(torch.mul(u, g, out=product), channels)
        for_slope = torch.addcmul(across(-r * u_mean, u), u, across(r, u)).addcmul_(t, across(-r * uz, u))
        square = r * r
        for_x = torch.addcmul(across(square * (u_mean * gz + g_mean * uz), u), u, across(-square * gz, u))
        for_x.addcmul_(g, across(-square * uz, u))
        for_x.addcmul_(t, across(square * (3 * uz * gz + u_mean * g_mean - ug), u))
        return unfolded(for_slope, z.shape), unfolded(for_x, z.shape), None, None


def rows(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n h, w c), a view where channels come last; (n, c) as it is.

    A row is long enough for vector instructions, which the c numbers of one pixel are not.
    """
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).reshape(x.shape[0] * x.shape[2], -1)


def unfolded(t: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `rows`."""
    if len(shape) == 2:
        return t
    n, c, height, width = shape
    return t.reshape(n, height, width, c).permute(0, 3, 1, 2)


def across(channel: Tensor, t: Tensor) -> Tensor:
    """A number for each channel -> one for each column of `rows`."""
    return channel.repeat(t.shape[1] // len(channel))


def means(t: Tensor, channels: int) -> Tensor:
    """The mean of each channel of `rows`."""
    return t.sum(0).reshape(-1, channels).sum(0) / (t.numel() // channels)


def affine(t: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """t * weight + bias for each channel of `rows`."""
    return t if weight is None or bias is None else t * across(weight, t) + across(bias, t)
