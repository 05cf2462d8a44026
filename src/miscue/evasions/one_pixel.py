"""One pixel (Su, Vargas, Sakurai 2019, arXiv 1710.08864): differential evolution over a place and a colour.

A candidate is d pixels (row, column, colour); places start evenly, colours as N(128, 127) of 255; 100 generations of
400. Children that leave the image or the range of colours are moved back to its edge.

`one_pixel_exhaustive` tries each place with each corner of the colour cube instead: more queries, but no luck.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
from torch import Tensor

from miscue.dice import Dice
from miscue.errors import positive
from miscue.evasions.attempt import MOST, Adversarial, Found, Goal, attempted
from miscue.evasions.evolution import check_evolution, evolved, goal_fitness, judged
from miscue.models.modes import Model


def one_pixel(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    pixels: int = 1,
    population: int = 400,
    generations: int = 100,
    until: str = "sure",
    dice: Dice | None = None,
    chunk: int = 0,
) -> Adversarial:
    """Change few pixels of each image, found by queries alone.

    Args:
        model: from images in [0, 1] to scores; needs no gradient.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        pixels: how many may change.
        population: candidates for each image.
        generations: at most so many.
        until: "sure" as published (p_true < 0.05 or p_target > 0.9), or "named": once the goal is reached.
        dice: for the evolution.
        chunk: images that evolve side by side; 0 for as many as memory allows.
    """
    check_evolution(population, generations, until)
    positive(pixels=pixels)

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        generator = dice.generator()
        return evolved(
            model,
            x,
            goal,
            first_genes(x, population, pixels, generator),
            painted=painted,
            inside=partial(inside, shape=x.shape),
            generations=generations,
            until=until,
            generator=generator,
        )

    return attempted(attack, model, x, y, target=target, dice=dice or Dice(), chunk=chunk)


def one_pixel_exhaustive(
    model: Model, x: Tensor, y: Tensor, *, target: Tensor | None = None, chunk: int = 0
) -> Adversarial:
    """The best of all places and corner colours for one pixel of each image: h w 2^c queries.

    Args:
        model: from images in [0, 1] to scores; needs no gradient.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        chunk: images at a time; 0 for what memory allows.
    """

    @torch.inference_mode()
    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        genes = every_corner(x)
        best, curve = x.clone(), []
        top = torch.full((len(x),), -torch.inf, device=x.device)
        for some in genes.split(max(1, MOST // len(x))):
            tried = some.expand(len(x), *some.shape)
            value, which = goal_fitness(judged(model, x, tried, painted), goal).max(1)
            risen = value > top
            best[risen] = painted(x[risen], some[which[risen]])
            top = torch.maximum(top, value)
            curve.append(top)
        return Found(x=best, queries=torch.full_like(goal.y, len(genes)), loss=torch.stack(curve))

    return attempted(attack, model, x, y, target=target, dice=Dice(), chunk=chunk)


def first_genes(x: Tensor, population: int, pixels: int, generator: torch.Generator) -> Tensor:
    """(n, population, pixels, 2 + c): rows, columns, colours."""
    n, channels, height, width = x.shape
    shape = (n, population, pixels)
    places = torch.rand(*shape, 2, generator=generator) * torch.tensor([height, width])
    colours = (128 + 127 * torch.randn(*shape, channels, generator=generator)) / 255
    return inside(torch.cat([places, colours], dim=3), x.shape).to(x)


def every_corner(x: Tensor) -> Tensor:
    """(h w 2^c, 1, 2 + c): each place with each corner of the colour cube."""
    _, channels, height, width = x.shape
    corners = torch.tensor(list(product((0.0, 1.0), repeat=channels))).to(x)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(x)
    return torch.cat([places.repeat_interleave(len(corners), 0), corners.repeat(len(places), 1)], dim=1)[:, None]


def inside(genes: Tensor, shape: torch.Size) -> Tensor:
    """Genes within the image and the range of colours."""
    _, _, height, width = shape
    rows, columns = genes[..., :1].clamp(0, height - 1e-3), genes[..., 1:2].clamp(0, width - 1e-3)
    return torch.cat([rows, columns, genes[..., 2:].clamp(0, 1)], dim=-1)


def painted(x: Tensor, genes: Tensor) -> Tensor:
    """Images (b, c, h, w) with the pixels of genes (b, pixels, 2 + c) in them."""
    images, every = x.clone(), torch.arange(len(x), device=x.device)
    for pixel in range(genes.shape[1]):
        rows, columns = genes[:, pixel, :2].long().t()
        images[every, :, rows, columns] = genes[:, pixel, 2:]
    return images
