"""Stickers: flat white and black rectangles of which only places and sizes are free.

    C_d = N(I + sum_i St_i(x_i, y_i, w_i, h_i) + sum_j St_j(x_j, y_j, w_j, h_j))        (the seed's slides)

with the two kinds white and black. `stickers` searches the rectangles by differential evolution, with queries alone.
`soft_stickers` follows the gradient through rectangles with soft edges, sigma((p - edge) / T) in both directions, while
the temperature T falls from 2 pixels to 0.1; what is returned are hard rectangles again. Together they never cover more
than a share `area` of the image.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from miscue.dice import Dice
from miscue.errors import InputError, not_negative, positive, share_of_one
from miscue.evasions.attempt import Adversarial, Found, Goal, attempted
from miscue.evasions.evolution import check_evolution, evolved
from miscue.models.modes import Model


def stickers(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    white: int = 1,
    black: int = 1,
    area: float = 0.05,
    population: int = 60,
    generations: int = 40,
    until: str = "named",
    dice: Dice | None = None,
    chunk: int = 0,
) -> Adversarial:
    """Put rectangles on each image, found by queries alone.

    Args:
        model: from images in [0, 1] to scores; needs no gradient.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        white: how many white rectangles.
        black: how many black ones.
        area: the share of the image that all together may cover.
        population: candidates for each image.
        generations: at most so many.
        until: "named": once the goal is reached, or "sure": p_true < 0.05 or p_target > 0.9.
        dice: for the evolution.
        chunk: images that evolve side by side; 0 for as many as memory allows.
    """
    check_evolution(population, generations, until)
    colours = colours_of(white, black, area, x)

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        generator = dice.generator()
        return evolved(
            model,
            x,
            goal,
            drawn(x, population, len(colours), area, generator),
            painted=partial(hard, colours=colours),
            inside=partial(inside, shape=x.shape, area=area),
            generations=generations,
            until=until,
            generator=generator,
        )

    return attempted(attack, model, x, y, target=target, dice=dice or Dice(), chunk=chunk)


def soft_stickers(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    white: int = 1,
    black: int = 1,
    area: float = 0.05,
    starts: int = 8,
    steps: int = 40,
    lr: float = 1.0,
    dice: Dice | None = None,
    chunk: int = 0,
) -> Adversarial:
    """Put rectangles on each image, found along the gradient of soft ones.

    Args:
        model: from images in [0, 1] to scores, differentiable.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; any if None.
        white: how many white rectangles.
        black: how many black ones.
        area: the share of the image that all together may cover.
        starts: drawn for each image; the best one at the end counts.
        steps: of Adam.
        lr: its rate, in pixels.
        dice: for the starts.
        chunk: images at a time; 0 for what memory allows.
    """
    positive(starts=starts, steps=steps, lr=lr)
    colours = colours_of(white, black, area, x)

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        every = torch.arange(len(x), device=x.device).repeat_interleave(starts)
        images, goals, curve = x[every], goal.of(every), []
        genes = drawn(x, starts, len(colours), area, dice.generator()).flatten(0, 1).requires_grad_()
        adam = torch.optim.Adam([genes], lr)
        for step in range(steps):
            temperature = 2 * 0.05 ** (step / max(1, steps - 1))
            with torch.enable_grad():
                nearness = goals.nearness(model(soft(images, genes, colours, temperature)))
                (genes.grad,) = torch.autograd.grad(-nearness.sum(), genes)
            adam.step()
            genes.data = inside(genes.data, x.shape, area)
            curve.append(nearness.detach().unflatten(0, (len(x), starts)).amax(1))
        with torch.no_grad():
            finished = hard(images, genes.detach(), colours)
            scores = model(finished)
            worth = goals.nearness(scores) + 1e3 * goals.reached(scores)
        best = worth.unflatten(0, (len(x), starts)).argmax(1)
        rows = torch.arange(len(x), device=x.device)
        found = finished.unflatten(0, (len(x), starts))[rows, best]
        return Found(x=found, queries=torch.full_like(goal.y, starts * (steps + 1)), loss=torch.stack(curve))

    return attempted(attack, model, x, y, target=target, dice=dice or Dice(), chunk=chunk, copies=starts, gradient=True)


def colours_of(white: int, black: int, area: float, x: Tensor) -> Tensor:
    """1 for each white rectangle, then 0 for each black one: float (s,)."""
    not_negative(white=white, black=black)
    share_of_one(area=area)
    if not white + black:
        raise InputError("white and black must not both be 0")
    if x.ndim == 4 and white + black > area * x.shape[2] * x.shape[3]:
        raise InputError(f"an area of {area:g} of {x.shape[2]} x {x.shape[3]} has no room for {white + black} stickers")
    return torch.cat([torch.ones(white), torch.zeros(black)]).to(x.device)


def drawn(x: Tensor, population: int, count: int, area: float, generator: torch.Generator) -> Tensor:
    """Genes (n, population, count, 4): top, left, height and width in pixels."""
    n, _, height, width = x.shape
    sides = torch.tensor([height, width])
    shares = torch.rand(n, population, count, 2, generator=generator)
    own = (area / count) ** 0.5 * sides * torch.exp(shares - 0.5)
    places = torch.rand(n, population, count, 2, generator=generator) * (sides - own)
    return inside(torch.cat([places, own], dim=3), x.shape, area).to(x)


def inside(genes: Tensor, shape: torch.Size, area: float) -> Tensor:
    """Rectangles within the image, at least a pixel each, and together within the area."""
    sides = torch.tensor(shape[2:], device=genes.device)
    own = torch.minimum(genes[..., 2:].clamp(min=1), sides.to(genes))
    covered, budget = own.prod(-1), area * shape[2] * shape[3]
    spare = covered - 1  # what each has beyond a pixel, the same share of which is left to all
    share = ((budget - own.shape[-2]) / spare.sum(-1).clamp(min=1e-12)).clamp(0, 1)
    less = 1 + share[..., None] * spare
    short = (own.amin(-1) * (less / covered).sqrt()).clamp(min=1)
    long = (less / short).clamp(min=1)  # where the short side stays a pixel, the long one shrinks the more
    both = torch.stack([short, long], dim=-1)
    own = torch.where(own[..., :1] <= own[..., 1:], both, both.flip(-1))
    places = torch.minimum(genes[..., :2].clamp(min=0), sides - own)
    return torch.cat([places, own], dim=-1)


def hard(x: Tensor, genes: Tensor, colours: Tensor) -> Tensor:
    """Images (b, c, h, w) with the rectangles of genes (b, s, 4), their edges on whole pixels; later ones on top."""
    rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
    start = genes[..., :2].round()
    stop = start + genes[..., 2:].floor()
    inside_rows = (rows >= start[..., :1]) & (rows < stop[..., :1])  # (b, s, h)
    inside_columns = (columns >= start[..., 1:]) & (columns < stop[..., 1:])
    for number, colour in enumerate(colours):
        covered = (inside_rows[:, number, :, None] & inside_columns[:, number, None])[:, None]
        x = torch.where(covered, colour.to(x), x)
    return x


def soft(x: Tensor, genes: Tensor, colours: Tensor, temperature: float) -> Tensor:
    """The same with edges that fade over about `temperature` pixels, differentiable in the genes."""
    start, stop = genes[..., :2], genes[..., :2] + genes[..., 2:]

    def covered(axis: int) -> Tensor:
        places = torch.arange(x.shape[2 + axis], device=x.device) + 0.5
        low, high = start[..., axis : axis + 1], stop[..., axis : axis + 1]
        return torch.sigmoid((places - low) / temperature) * torch.sigmoid((high - places) / temperature)

    masks = covered(0)[:, :, :, None] * covered(1)[:, :, None]  # (b, s, h, w)
    for number, colour in enumerate(colours):
        mask = masks[:, number, None]
        x = x * (1 - mask) + colour.to(x) * mask
    return x
