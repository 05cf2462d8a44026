"""How an image is formed, as a function of a scene: bounded, differentiable, every parameter means something.

x' = render(x, phi): a homography (turn, size, shift, tilt), light (a ramp, a highlight, exposure, gamma), colour (hue)
and focus (blur). The `scene` attack looks for the parameters in which a model errs; training may draw them at random.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.distortions import unit, warped

BOUNDS: dict[str, float] = {
    "turn": math.radians(15),  # radians
    "size": 0.2,  # log of the factor
    "down": 0.15,  # of half the image
    "right": 0.15,
    "tilt down": 0.15,  # by how much one edge is nearer
    "tilt right": 0.15,
    "ramp down": 0.25,  # light at one edge more than in the middle, of white
    "ramp right": 0.25,
    "exposure": 0.35,  # log of the factor
    "gamma": 0.35,  # log of the exponent
    "highlight": 0.5,  # of white, at its middle
    "highlight down": 0.8,  # of half the image
    "highlight right": 0.8,
    "highlight size": 0.7,  # log of the factor to a quarter of the image
    "hue": 0.5,  # radians around the grey axis
    "blur": 1.0,  # of the way to the mean over 3 x 3 pixels
}


def staged(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w), about a `share` of them each in a random scene of its own; without gradients."""
    phi = torch.randn(len(x), len(BOUNDS), generator=generator).to(x)
    shown = (torch.rand(len(x), generator=generator) < share).to(x.device)
    with torch.no_grad():
        return torch.where(shown[:, None, None, None], render(x, phi), x)


def render(x: Tensor, phi: Tensor, strength: float = 1.0) -> Tensor:
    """The images x (n, c, h, w) in scenes phi (n, parameters), any real numbers; 0 is the image itself."""
    theta = strength * torch.tanh(phi) * torch.tensor(list(BOUNDS.values()), device=x.device, dtype=x.dtype)
    own = dict(zip(BOUNDS, theta.t()[:, :, None, None, None], strict=True))  # each (n, 1, 1, 1)
    flat = dict(zip(BOUNDS, theta.t(), strict=True))
    x = warped(x, homography(x, flat))
    rows, columns = (torch.linspace(-1, 1, side, device=x.device) for side in x.shape[2:])
    rows = rows[:, None]
    light = own["ramp down"] * rows + own["ramp right"] * columns
    away = (rows - own["highlight down"]) ** 2 + (columns - own["highlight right"]) ** 2
    spot = own["highlight"].abs() * torch.exp(-away / (2 * (0.25 * own["highlight size"].exp()) ** 2))
    x = (x * own["exposure"].exp() + light + spot).clamp(1e-4, 1)
    x = turned_hue(x ** own["gamma"].exp(), flat["hue"])
    near = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (x + own["blur"].abs() * (near - x)).clamp(0, 1)


def homography(x: Tensor, theta: dict[str, Tensor]) -> Tensor:
    """(n, 3, 3) for `warped`, differentiable in the parameters (n,)."""
    sine, cosine, size = theta["turn"].sin(), theta["turn"].cos(), theta["size"].exp()
    aspect = x.shape[3] / x.shape[2]
    zero, one = torch.zeros_like(sine), torch.ones_like(sine)
    rows = (
        (size * cosine, size * sine / aspect, theta["right"]),
        (-size * sine * aspect, size * cosine, theta["down"]),
        (theta["tilt right"], theta["tilt down"], one),
    )
    return torch.stack([torch.stack([entry + zero for entry in row], dim=1) for row in rows], dim=1).expand_as(unit(x))


def turned_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Colours (n, 3, h, w) turned around the grey axis by `angle` (n,); images of other channels as they are."""
    if x.shape[1] != 3:
        return x
    third, cosine, sine = 1 / 3, angle.cos(), angle.sin() / math.sqrt(3)
    same, after, before = (1 + 2 * cosine) * third, (1 - cosine) * third - sine, (1 - cosine) * third + sine
    red, green, blue = x.unbind(1)
    a, b, c = (t[:, None, None] for t in (same, after, before))
    return torch.stack(
        [a * red + b * green + c * blue, c * red + a * green + b * blue, b * red + c * green + a * blue], dim=1
    )
