"""What the quick layers compute, as differentiable functions: a CPU is slow at the library's in two places.

One is the convolution of images of one channel, the other the second derivative, which looking ahead over a step of
training takes of every layer: there the library's BatchNorm is the slowest part of a small network, and others work out
what nobody asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

Map = Callable[[Tensor], Tensor]


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


class Bilinear(Function):
    """A function of two tensors that its derivatives need again."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class Correlate(Bilinear):
    """x (n, i, h, w), weight (o, i, k, l) -> (n, o, h - k + 1, w - l + 1), channels last.

    With its two transposes, `Spread` and `Overlap`, it is closed under differentiation: the three are one trilinear
    form in image, weight and slope.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        if x.shape[1] > 1:
            return F.conv2d(x, weight)
        return affine(x, weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = wanted(ctx, x=x, weight=weight)
        return (
            Spread.apply(slope, weight) if for_x else None,
            Overlap.apply(x, slope) if for_weight else None,
        )


class Spread(Bilinear):
    """The transpose of `Correlate` in x: (n, o, h', w'), weight (o, i, k, l) -> (n, i, h' + k - 1, w' + l - 1)."""

    @staticmethod
    def forward(slope: Tensor, weight: Tensor) -> Tensor:
        (n, o, height, width), (_, channels, tall, wide) = slope.shape, weight.shape
        if channels > 1:
            return conv2d_input((n, channels, height + tall - 1, width + wide - 1), weight, slope)
        pixels = slope.permute(0, 2, 3, 1).reshape(-1, o)
        shares = (weight.flatten(1).t() @ pixels.t()).reshape(tall, wide, n, height, width)
        image = slope.new_zeros(n, height + tall - 1, width + wide - 1)
        for i in range(tall):
            for j in range(wide):
                image[:, i : i + height, j : j + width] += shares[i, j]
        return image[:, None]

    @staticmethod
    def backward(ctx: Any, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        slope, weight = ctx.saved_tensors
        for_slope, for_weight = wanted(ctx, x=slope, weight=weight)
        return (
            Correlate.apply(image, weight) if for_slope else None,
            Overlap.apply(image, slope) if for_weight else None,
        )


class Overlap(Bilinear):
    """The transpose of `Correlate` in weight: x (n, i, h, w), slope (n, o, h', w') -> (o, i, h - h' + 1, ...)."""

    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        (_, channels, height, width), (_, o, low, narrow) = x.shape, slope.shape
        tall, wide = height - low + 1, width - narrow + 1
        if channels > 1:
            return conv2d_weight(x, (o, channels, tall, wide), slope)
        weight = taps(x, tall, wide) @ slope.permute(0, 2, 3, 1).reshape(-1, o)
        return weight.t().reshape(o, 1, tall, wide)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, slope = ctx.saved_tensors
        for_x, for_slope = ctx.needs_input_grad
        return (
            Spread.apply(slope, weight) if for_x and (ASKED.images or not x.is_leaf) else None,
            Correlate.apply(x, weight) if for_slope else None,
        )


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`Correlate` of images of one channel as one matrix product, in which a bias costs nothing."""
    (n, _, height, width), (o, _, tall, wide) = x.shape, weight.shape
    met, weights = taps(x, tall, wide), weight.flatten(1)
    if bias is not None:
        met, weights = torch.cat([met, torch.ones_like(met[:1])]), torch.cat([weights, bias[:, None]], dim=1)
    return (met.t() @ weights.t().contiguous()).reshape(n, height - tall + 1, width - wide + 1, o).permute(0, 3, 1, 2)


def taps(x: Tensor, tall: int, wide: int) -> Tensor:
    """What each weight of a kernel tall x wide meets in images of one channel: (n, 1, h, w) -> (tall wide, n h' w')."""
    height, width = x.shape[2] - tall + 1, x.shape[3] - wide + 1
    shifts = [x[:, 0, i : i + height, j : j + width].flatten() for i in range(tall) for j in range(wide)]
    return torch.stack(shifts)


class Ordered(Function):
    """The same images; their slope gets its channels last, in which order pooling goes back several times as fast."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as vmap has it


def wanted(ctx: Any, *, x: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """Whether the gradients for images x and for a weight can be had, and somebody asked for them."""
    for_x, for_weight = ctx.needs_input_grad
    return for_x and (ASKED.images or not x.is_leaf), for_weight and (ASKED.weights or not weight.is_leaf)


class Bound(Function):
    """y - s |x - y| with y = min(max(x, 0), b), for bounds b that broadcast; its slopes cost little more than a ReLU's.

    The library gives the slope for b by way of masks, which are slow on a CPU; here all stays in the numbers' own type.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, b: Tensor, s: float) -> Tensor:
        y = torch.clamp(x, torch.zeros_like(b), b)
        return torch.sub(y, (x - y).abs_(), alpha=s) if s else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        x, b, ctx.s = inputs
        ctx.save_for_backward(x, b)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, b = ctx.saved_tensors
        risen = torch.ops.aten.threshold_backward(slope, x, 0)
        beyond = torch.ops.aten.threshold_backward(risen, x - b, 0)
        still = slope.lerp(risen, 1 - ctx.s) if ctx.s else risen
        by_b = (1 + ctx.s) * beyond.sum_to_size(b.shape) if ctx.needs_input_grad[1] else None
        return torch.sub(still, beyond, alpha=1 + ctx.s), by_b, None


class Normalise(Function):
    """x -> z weight + bias, z = (x - mean) r, r = (variance + eps)^-1/2 over each channel; that, the mean and r."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, weight, mean, r)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *Denormalise.apply(slope, *ctx.saved_tensors, ctx.eps), None


class Denormalise(Function):
    """The slope g at the result of `Normalise` -> those at its x, weight w and bias.

    With [] for the mean over a channel's N numbers they are w r (g - [g] - z [g z]), N [g z] and N [g]. Where u, p and
    q are the slopes at these, that at g is w r (u - [u] - z [u z]) + p z + q. In x everything goes through z and r,
    which owe x what they do in the first derivative: that at z is t = -w r (u [g z] + g [u z]) + p g, and the one at x

        r (t - [t] - z [t z]) - w r^2 z ([u g] - [u] [g] - [u z] [g z])

    There is no third derivative.
    """

    @staticmethod
    def forward(
        slope: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return library_slopes(slope, x, weight, mean, r, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor | None, ...]:
        slope, x, w, mean, r, gz, g = ctx.saved_tensors
        count, channels = x.numel() // x.shape[1], x.shape[1]
        gz, g = gz / count, g / count
        for_slope, uz, u_mean = library_slopes(u, x, w, mean, r, ctx.eps)
        uz, u_mean = uz / count, u_mean / count
        u_rows, g_rows, x_rows = rows(u), rows(slope), rows(x)
        ug = means(u_rows * g_rows, channels)
        for_slope = rows(for_slope).addcmul_(across(p * r, x_rows), x_rows).add_(across(q - p * r * mean, x_rows))
        kappa = ug - u_mean * g - uz * gz
        of_u, of_g = -w * r * gz, p - w * r * uz
        of_z = -r * (of_u * uz + of_g * gz) - w * r * r * kappa
        rest = -r * (of_u * u_mean + of_g * g) - of_z * r * mean
        for_x = torch.addcmul(across(rest, x_rows), x_rows, across(of_z * r, x_rows))
        for_x.addcmul_(u_rows, across(r * of_u, x_rows)).addcmul_(g_rows, across(r * of_g, x_rows))
        for_weight = count * r * kappa
        return unfolded(for_slope, x.shape), unfolded(for_x, x.shape), for_weight, None, None, None


class Borrow(Function):
    """BatchNorm of x by the mean and variance of x[count:] alone, differentiated through them too, once."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, count: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, r = torch.native_batch_norm(x[count:], weight, bias, None, None, True, 0.0, eps)
        rest, *_ = torch.native_batch_norm(x[:count], weight, bias, mean, r**-2 - eps, False, 0.0, eps)
        return torch.cat([rest, y]), mean, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.count, ctx.eps = inputs
        _, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, weight, mean, r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, r = ctx.saved_tensors
        here, there = slice(0, ctx.count), slice(ctx.count, None)
        lent = library_slopes(slope[there], x[there], w, mean, r, ctx.eps)
        for_x, for_w, for_bias = library_slopes(slope[here], x[here], w, mean, r, ctx.eps, training=False)
        t, share = rows(x[there]), w * r / (x[there].numel() // x.shape[1])
        # the mean and r, too, owe x[count:] what they are
        lent_x = rows(lent[0]).addcmul_(t, across(-share * r * for_w, t))
        lent_x += across(share * (mean * r * for_w - for_bias), t)
        return torch.cat([for_x, unfolded(lent_x, x[there].shape)]), for_w + lent[1], for_bias + lent[2], None, None


def library_slopes(
    slope: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float, *, training: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The library's slopes of BatchNorm at x, weight and bias: by the mean and r of x or, in eval mode, by others."""
    running = (None, None) if training else (mean, r**-2 - eps)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        slope, x, weight, *running, mean, r, training, eps, [True, True, True]
    )
    return found


class Fixed(Function):
    """y = forth(x), a linear map, and `back` its transpose: what a ReLU or a pooling is once its choices are made.

    The library's second derivative adds slopes of zero, as large as an image, for what only made the choices.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor | None, forth: Map, back: Map) -> Tensor:
        return forth(x) if y is None else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.forth, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        return Fixed.apply(slope, None, ctx.back, ctx.forth), None, None, None


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
