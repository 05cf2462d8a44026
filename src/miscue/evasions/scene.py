"""Beyond the image space (Zeng et al. 2019, arXiv 1711.07183): change the scene's parameters, not its pixels.

x' = render(x, theta): a bounded, differentiable model of how an image is formed, of which every parameter means
something: a homography (turn, size, shift, tilt), light (a ramp, a highlight, exposure, gamma), colour (hue) and focus
(blur). All bounds are scaled by `strength`. theta = bounds * tanh(phi), and phi climbs by Adam from the best of some
random scenes; with steps = 0 it is random search. At the level of images this is our reading of the paper, which
renders in 3D.

`render` with random parameters is a source of hard samples for training, too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.dice import Dice
from miscue.distortions import unit, warped
from miscue.errors import InputError
from miscue.evasions.attempt import Adversarial, Found, Goal, attempted
from miscue.models.modes import Model

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


def scene(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    strength: float = 1.0,
    starts: int = 8,
    steps: int = 20,
    lr: float = 0.3,
    dice: Dice | None = None,
    chunk: int = 0,
) -> Adversarial:
    """Look at each image under the turn, light and focus in which the model errs.

    Args:
        model: from images in [0, 1] to scores; differentiable unless steps is 0.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        strength: what the bounds of all parameters are multiplied by.
        starts: random scenes of each image; the climb begins at the best.
        steps: of Adam.
        lr: its rate; the parameters lie in about [-1, 1].
        dice: for the starts.
        chunk: images at a time; 0 for what memory allows.
    """
    if starts < 1 or steps < 0 or not (strength > 0 and lr > 0):
        raise InputError("starts, strength and lr must be positive, steps not negative")

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        generator, curve = dice.generator(), []
        best = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        phi, found = torch.zeros(len(x), len(BOUNDS), device=x.device), x.clone()

        def keep(tried: Tensor, images: Tensor, scores: Tensor) -> None:
            nonlocal best, phi, found
            worth = goal.nearness(scores) + 1e3 * goal.reached(scores)
            better = worth > best
            best, phi = torch.where(better, worth, best), torch.where(better[:, None], tried, phi)
            found = torch.where(better[:, None, None, None], images, found)
            curve.append(goal.nearness(scores))

        with torch.no_grad():
            for _ in range(starts):
                tried = torch.atanh(1.9 * torch.rand(phi.shape, generator=generator) - 0.95).to(x)
                images = render(x, tried, strength)
                keep(tried, images, model(images))
        climbing = phi.clone().requires_grad_()
        adam = torch.optim.Adam([climbing], lr)
        for _ in range(steps):
            with torch.enable_grad():
                images = render(x, climbing, strength)
                scores = model(images)
                (climbing.grad,) = torch.autograd.grad(-goal.nearness(scores).sum(), climbing)
            keep(climbing.detach().clone(), images.detach(), scores.detach())
            adam.step()
        return Found(x=found, queries=torch.full_like(goal.y, starts + steps), loss=torch.stack(curve))

    return attempted(attack, model, x, y, target=target, dice=dice or Dice(), chunk=chunk)


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
    zero, one = torch.zeros_like(sine), torch.ones_like(sine)
    rows = (
        (size * cosine, size * sine, theta["right"]),
        (-size * sine, size * cosine, theta["down"]),
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
