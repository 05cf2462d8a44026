"""What a camera, a printer and a codec do to images: distortions of a stated strength, drawn for each image.

Each is `(x (n, c, h, w) in [0, 1], strength, generator) -> x'`, of the same shape and in [0, 1]; strength 0 is none.
All but `jpeg` are differentiable in x, so that an attack can expect them. Where a distortion has two directions (left
and right, brighter and darker) each image draws one; strengths are what is drawn, not a bound.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from miscue.errors import InputError

Apply = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """A distortion, the unit of its strength, the strengths that a curve is drawn over, and whether it draws."""

    apply: Apply
    unit: str
    strengths: tuple[float, ...]
    drawn: bool = True

    def __call__(self, x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """x distorted by `strength`; x itself at 0."""
        if not math.isfinite(strength) or strength < 0:
            raise InputError(f"a distortion's strength must not be negative, got {strength:g}")
        return x if strength == 0 else self.apply(x, strength, generator).clamp(0, 1)


def signs(x: Tensor, generator: torch.Generator, *more: int) -> Tensor:
    """+1 or -1 for each image, float (n, *more)."""
    return (2 * torch.randint(2, (len(x), *more), generator=generator) - 1).to(x)


def warped(x: Tensor, matrices: Tensor, bend: Tensor | None = None) -> Tensor:
    """Images seen through homographies and lenses, bilinearly; beyond their edge they go on as they end.

    matrices: (n, 3, 3), from places in the result to places in x, both in [-1, 1] from edge to edge (column, row).
    bend: (n,), k of the radial distortion r -> r (1 + k r^2), applied first.
    """
    n, _, height, width = x.shape
    rows, columns = (torch.linspace(1 / side - 1, 1 - 1 / side, side, device=x.device) for side in (height, width))
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).expand(n, height, width, 2)
    if bend is not None:
        grid = grid * (1 + bend[:, None, None, None] * grid.square().sum(3, keepdim=True))
    whole = F.pad(grid, (0, 1), value=1.0) @ matrices.transpose(1, 2)[:, None]
    places = whole[..., :2] / whole[..., 2:].clamp(min=1e-6)
    return F.grid_sample(x, places.to(x), mode="bilinear", padding_mode="border", align_corners=False)


def unit(x: Tensor) -> Tensor:
    """The homographies (n, 3, 3) that change nothing."""
    return torch.eye(3, device=x.device, dtype=x.dtype).repeat(len(x), 1, 1)


def rotation(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turned by `strength` degrees, either way."""
    angles = signs(x, generator) * math.radians(strength)
    aspect = x.shape[3] / x.shape[2]
    matrices = unit(x)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angles.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = angles.sin() / aspect, -angles.sin() * aspect
    return warped(x, matrices)


def scale(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Larger by the factor 1 + strength, or as much smaller."""
    matrices = unit(x)
    matrices[:, 0, 0] = matrices[:, 1, 1] = (1 + strength) ** signs(x, generator)
    return warped(x, matrices)


def perspective(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Tilted to one side and up or down: one edge comes nearer by about `strength`, the opposite one goes away."""
    matrices = unit(x)
    matrices[:, 2, :2] = signs(x, generator, 2) * strength / 2
    return warped(x, matrices)


def lens(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Barrel or pincushion: a place at the middle of an edge moves by `strength` of half the side."""
    return warped(x, unit(x), signs(x, generator) * strength)


def brightness(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """`strength` added to every pixel, or taken away."""
    return x + signs(x, generator, 1, 1, 1) * strength


def contrast(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Distances to the image's mean times 1 + strength, or divided by it."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1 + strength) ** signs(x, generator, 1, 1, 1)


def blur(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Out of focus: a Gaussian blur of standard deviation `strength` pixels."""
    return gaussian(x, strength)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of standard deviation `sigma` pixels, the image mirrored at its edges."""
    rows, columns = (blurring(side, sigma, x) for side in x.shape[2:])
    return rows @ x @ columns.t()


def blurring(side: int, strength: float, like: Tensor) -> Tensor:
    """What each of `side` pixels in a line takes from each: (side, side).

    On a CPU a product with it is quicker than a convolution, the wider the blur the more: benchmarks/blur.py.
    """
    reach = min(math.ceil(3 * strength), side - 1)
    places = torch.arange(-reach, reach + 1, device=like.device)
    kernel = torch.softmax(-(places.to(like.dtype) ** 2) / (2 * strength**2), dim=0)
    around = torch.arange(side, device=like.device)[:, None] + places
    mirrored = (side - 1) - ((side - 1) - around.abs()).abs()
    return like.new_zeros(side, side).scatter_add_(1, mirrored, kernel.expand(side, -1))


def noise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Independent Gaussian noise of standard deviation `strength`."""
    return x + strength * torch.randn(x.shape, generator=generator).to(x)


@torch.no_grad()
def jpeg(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Stored as JPEG of quality 100 - strength, and read again. Not differentiable."""
    if x.shape[1] not in (1, 3):
        raise InputError(f"JPEG knows images of 1 or 3 channels, not of {x.shape[1]}")
    return torch.stack([through_jpeg(one, max(1, round(100 - strength))) for one in x.cpu()]).to(x)


def through_jpeg(image: Tensor, quality: int) -> Tensor:
    """One image (c, h, w) in [0, 1], encoded and decoded."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(stream, "JPEG", quality=quality)
    found = np.asarray(Image.open(stream))
    return torch.from_numpy(found.reshape(pixels.shape).copy()).permute(2, 0, 1) / 255


DISTORTIONS: dict[str, Distortion] = {
    "rotation": Distortion(apply=rotation, unit="degrees", strengths=(0, 5, 10, 15, 20, 30)),
    "scale": Distortion(apply=scale, unit="of the size", strengths=(0, 0.1, 0.2, 0.3, 0.5)),
    "perspective": Distortion(apply=perspective, unit="of the side", strengths=(0, 0.1, 0.2, 0.3, 0.4)),
    "lens": Distortion(apply=lens, unit="of half the side", strengths=(0, 0.05, 0.1, 0.2, 0.3)),
    "brightness": Distortion(apply=brightness, unit="of white", strengths=(0, 0.1, 0.2, 0.3, 0.4)),
    "contrast": Distortion(apply=contrast, unit="of the contrast", strengths=(0, 0.25, 0.5, 1.0)),
    "blur": Distortion(apply=blur, unit="pixels", strengths=(0, 0.5, 1.0, 1.5, 2.0), drawn=False),
    "noise": Distortion(apply=noise, unit="of white", strengths=(0, 0.02, 0.05, 0.1, 0.15)),
    "jpeg": Distortion(apply=jpeg, unit="below quality 100", strengths=(0, 10, 25, 50, 75, 90), drawn=False),
}
