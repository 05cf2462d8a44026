"""Noise generators g: images in [0, 1] -> noise in [-eps, eps], through a last eps * tanh.

Both halve the image with 4x4 convolutions of stride 2 and double it again by sub-pixel convolution: a 3x3 convolution
to four times the channels, rearranged to twice the size. A transposed 4x4 convolution of stride 2 is the special case
in which each sub-pixel sees 2x2 of the 3x3 taps; on CPUs it is several times slower. Any image size will do: odd sizes
are rounded up on the way down and cropped on the way up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.models.networks import Shape


class Down(nn.Module):
    """conv 4x4, BatchNorm, ReLU; (n, i, h, w) -> (n, o, ceil(h / stride), ceil(w / stride))."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 2):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            padding = (1, 2, 1, 2)
        else:
            padding = (1, 1 + x.shape[3] % 2, 1, 1 + x.shape[2] % 2)
        return F.relu(self.norm(self.conv(F.pad(x, padding))))


class Up(nn.Module):
    """Sub-pixel convolution to twice the size; (n, i, h, w) -> (n, o, 2h, 2w)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv(x))


class EncoderDecoder(nn.Module):
    """4 + 4 convolutions, channels 16-32-64-128 and back. All the image must pass through the narrowest layer."""

    def __init__(self, shape: Shape, *, eps: float, channels: Sequence[int] = (16, 32, 64, 128)):
        super().__init__()
        self.eps = eps
        widths = [shape[0], *channels]
        self.down = nn.ModuleList(Down(i, o) for i, o in zip(widths, channels, strict=False))
        self.up = nn.ModuleList(Up(o, i) for i, o in reversed(list(zip(widths, channels, strict=False))))
        self.norm = nn.ModuleList(nn.BatchNorm2d(o) for o in reversed(channels[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        sizes = []
        for down in self.down:
            sizes.append(x.shape[-2:])
            x = down(x)
        for i, up in enumerate(self.up):
            height, width = sizes.pop()
            x = up(x)[..., :height, :width]
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
        self.up = nn.ModuleList(
            Up(o if o == channels[-1] and i == widths[-2] else 2 * o, i)
            for i, o in reversed(list(zip(widths, channels, strict=False)))
        )
        self.norm = nn.ModuleList(nn.BatchNorm2d(o) for o in reversed(channels[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for i, up in enumerate(self.up):
            skip = skips.pop()
            x = up(x)[..., : skip.shape[2], : skip.shape[3]]
            if i < len(self.norm):
                x = torch.cat([F.relu(self.norm[i](x)), skip], dim=1)
        return self.eps * torch.tanh(x)


GENERATORS: dict[str, Callable[..., nn.Module]] = {"encoder-decoder": EncoderDecoder, "unet": UNet}
