"""Noise generators g: images in [0, 1] -> noise in [-eps, eps], through a last eps * tanh.

Both halve the image with 4x4 convolutions of stride 2 and double it again with transposed ones, BatchNorm and ReLU
between. Any image size will do: an odd side is rounded down, a side of one pixel stays, and the way up restores each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.models.layers import BatchNorm2d
from miscue.models.networks import Shape


def met(weight: Tensor, size: torch.Size) -> Tensor:
    """The part of a 4x4 kernel (a, b, 4, 4) that images of at most 3 x 3 meet: (a, h w b), to be a plain matrix.

    Where one pixel is all there is on one side of a convolution, that product is quicker than the library's kernels.
    """
    return weight.permute(0, 2, 3, 1)[:, 1 : 1 + size[0], 1 : 1 + size[1]].flatten(1)


class Down(nn.Module):
    """conv 4x4 of stride 2, BatchNorm, ReLU; (n, i, h, w) -> (n, o, max(1, h // 2), max(1, w // 2))."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.norm = BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < 2:
            x = F.pad(x, (0, int(width < 2), 0, int(height < 2)))
        if max(x.shape[-2:]) > 3:
            return F.relu(self.norm(self.conv(x)))
        pixel = F.linear(
            x.permute(0, 2, 3, 1).flatten(1), met(self.conv.weight, x.shape[-2:])
        )  # all that the kernel meets, once
        return F.relu(self.norm(pixel[..., None, None]))


class Up(nn.Module):
    """Transposed conv 4x4 of stride 2, to a given size; (n, i, h // 2, w // 2) -> (n, o, h, w)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        if x.shape[-2:] == (1, 1):
            pixels = (x.flatten(1) @ met(self.conv.weight, size)).unflatten(1, (*size, -1))
            return (pixels + self.conv.bias).permute(0, 3, 1, 2)
        room = [max(2, side) for side in size]
        return self.conv(x, output_size=room)[..., : size[0], : size[1]]


class Last(nn.Module):
    """The same to few channels: a 2x2 convolution to the four pixels of each cell, which a pixel shuffle puts in place.

    For one or three channels this is far quicker on a CPU than the library's transposed convolution.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 2)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        x = F.pad(x, (0, size[1] % 2, 0, size[0] % 2)) if size[0] % 2 or size[1] % 2 else x
        cells = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1).permute(0, 2, 3, 1)
        apart = cells.unflatten(3, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)  # (n, o, h / 2, 2, w / 2, 2)
        return apart.flatten(4).flatten(2, 3)[..., 1 : 1 + size[0], 1 : 1 + size[1]]


class EncoderDecoder(nn.Module):
    """4 + 4 convolutions, channels 16-32-64-128 and back. All the image must pass through the narrowest layer."""

    def __init__(self, shape: Shape, *, eps: float, channels: Sequence[int] = (16, 32, 64, 128)):
        super().__init__()
        self.eps = eps
        widths = [shape[0], *channels]
        self.down = nn.ModuleList(Down(i, o) for i, o in zip(widths, channels, strict=False))
        self.up = nn.ModuleList(Up(o, i) for i, o in reversed(list(pairwise(channels))))
        self.up.append(Last(channels[0], shape[0]))
        self.norm = nn.ModuleList(BatchNorm2d(o) for o in reversed(channels[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        sizes = []
        for down in self.down:
            sizes.append(x.shape[-2:])
            x = down(x)
        for i, up in enumerate(self.up):
            x = up(x, sizes.pop())
            if i < len(self.norm):
                x = F.relu(self.norm[i](x))
        return self.eps * torch.tanh(x)


class UNet(nn.Module):
    """Encoder and decoder with skip connections: fine detail need not pass through the narrowest layer."""

    def __init__(self, shape: Shape, *, eps: float, channels: Sequence[int] = (32, 64, 128)):
        super().__init__()
        self.eps = eps
        widths = [shape[0], *channels]
        self.down = nn.ModuleList(Down(i, o) for i, o in zip(widths, channels, strict=False))
        given = [*(2 * o for o in channels[:-1]), channels[-1]]  # to the way up: with what the skip brings, but for one
        self.up = nn.ModuleList(Up(o, i) for o, i in reversed(list(zip(given[1:], channels, strict=False))))
        self.up.append(Last(given[0], shape[0]))
        self.norm = nn.ModuleList(BatchNorm2d(o) for o in reversed(channels[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for i, up in enumerate(self.up):
            skip = skips.pop()
            x = up(x, skip.shape[-2:])
            if i < len(self.norm):
                x = torch.cat([F.relu(self.norm[i](x)), skip], dim=1)
        return self.eps * torch.tanh(x)


class Coarse(nn.Module):
    """A U-Net for averages of at most `side` pixels, whose noise is enlarged bilinearly: cheap for large images."""

    def __init__(self, shape: Shape, *, eps: float, side: int = 56):
        super().__init__()
        self.side = side
        self.body = UNet(shape, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        small = (min(size[0], self.side), min(size[1], self.side))
        if small == size:
            return self.body(x)
        noise = self.body(F.adaptive_avg_pool2d(x, small))
        return F.interpolate(noise, size, mode="bilinear", align_corners=False)


GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "encoder-decoder": EncoderDecoder,
    "unet": UNet,
    "unet-wide": partial(UNet, channels=(64, 128, 256)),
    "unet-coarse": Coarse,
}
