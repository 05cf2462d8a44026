"""Differential evolution (Storn, Price 1997) for all images side by side, by queries alone.

    x_i(g + 1) = x_r1(g) + F (x_r2(g) - x_r3(g)),   r1 != r2 != r3,   F = 0.5

without crossover; a child replaces its own parent if it is fitter. Fitness is 1 - p_true, or p_target where there is a
target. An image's evolution ends once it is above 0.95 and 0.9, as published for one pixel, or, until="named", once the
goal is reached, which is all that counts as success and costs far fewer queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from miscue.data import portion
from miscue.errors import InputError, lookup, positive
from miscue.evasions.attempt import MOST, Found, Goal
from miscue.models.modes import Model

UNTIL = ("sure", "named")
F = 0.5
BUSY = 2**24  # numbers in the images that a GPU is given at a time; it gains from more than a processor

Painted = Callable[[Tensor, Tensor], Tensor]
"""(images (b, c, h, w), genes (b, ...), one candidate for each) -> the candidates as images."""


def check_evolution(population: int, generations: int, until: str) -> None:
    """Raise an InputError for options that no evolution has."""
    lookup(dict.fromkeys(UNTIL), until, "until")
    positive(generations=generations)
    if population < 4:
        raise InputError(f"population must be at least 4, got {population}")


@torch.inference_mode()
def evolved(
    model: Model,
    x: Tensor,
    goal: Goal,
    genes: Tensor,
    *,
    painted: Painted,
    inside: Callable[[Tensor], Tensor],
    generations: int,
    until: str,
    generator: torch.Generator,
) -> Found:
    """Evolve genes (n, population, ...) and return the fittest candidate of each image, or one that reaches the goal.

    painted: makes images of genes; inside: moves genes back to where they mean something.
    """
    population = genes.shape[1]
    best, queries = x.clone(), torch.zeros_like(goal.y)
    fitness = torch.zeros(len(x), population, device=x.device)
    champions, curve = torch.zeros(len(x), device=x.device), []
    going = torch.arange(len(x), device=x.device)
    for generation in range(generations + 1):
        tried = inside(children(genes[going], generator)) if generation else genes[going]
        scores = judged(model, x[going], tried, painted)
        now, hit = goal_fitness(scores, goal.of(going)), reached(scores, goal.of(going))
        better = (now > fitness[going]) | (generation == 0)
        genes[going] = torch.where(better.reshape(*better.shape, *[1] * (genes.ndim - 2)), tried, genes[going])
        fitness[going] = torch.where(better, now, fitness[going])
        queries[going] += population
        rows = torch.arange(len(going), device=x.device)
        champion = (now + hit * (until == "named")).argmax(1)  # one that reaches the goal comes first
        sure = now[rows, champion] > (0.95 if goal.target is None else 0.9)
        done = hit[rows, champion] if until == "named" else sure
        leads = done | (now[rows, champion] >= fitness[going].amax(1))
        best[going[leads]] = painted(x[going[leads]], tried[rows[leads], champion[leads]])
        champions[going] = fitness[going].amax(1)
        curve.append(champions.clone())
        going = going[~done]
        if not len(going):
            break
    return Found(x=best, queries=queries, loss=torch.stack(curve))


def children(genes: Tensor, generator: torch.Generator) -> Tensor:
    """x_r1 + F (x_r2 - x_r3) for each parent, its three donors different from each other."""
    n, population = genes.shape[:2]
    # three different of `population`, evenly: each next one skips those before it
    first, second, third = (torch.randint(population - k, (n, population), generator=generator) for k in range(3))
    second = second + (second >= first)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    third = third + (third >= low)
    third = third + (third >= high)
    rows = torch.arange(n, device=genes.device)[:, None]
    a, b, c = (genes[rows, donor] for donor in torch.stack([first, second, third]).to(genes.device))
    return a + F * (b - c)


def judged(model: Model, x: Tensor, genes: Tensor, painted: Painted) -> Tensor:
    """The scores (n, k, classes) of candidates (n, k, ...), a bounded number of images at a time."""
    return torch.cat([model(images) for images in in_batches(x, genes, painted)]).unflatten(0, genes.shape[:2])


def in_batches(x: Tensor, genes: Tensor, painted: Painted) -> Iterator[Tensor]:
    """The candidates as images (b, c, h, w), channels last, in their order."""
    k, flat = genes.shape[1], genes.flatten(0, 1)
    most = portion(x, MOST) if x.device.type == "cpu" else max(MOST, BUSY // x[0].numel())
    for start in range(0, len(flat), most):
        some = flat[start : start + most]
        of = torch.arange(start, start + len(some), device=x.device) // k
        yield painted(x[of], some).contiguous(memory_format=torch.channels_last)


def reached(scores: Tensor, goal: Goal) -> Tensor:
    """Which candidates reach the goal: bool (n, k) for scores (n, k, classes)."""
    every = torch.arange(len(scores), device=scores.device).repeat_interleave(scores.shape[1])
    return goal.of(every).reached(scores.flatten(0, 1)).unflatten(0, scores.shape[:2])


def goal_fitness(scores: Tensor, goal: Goal) -> Tensor:
    """The target's probability, or 1 less that of the true class: (n, k) for scores (n, k, classes)."""
    p = scores.softmax(2)
    label = goal.y if goal.target is None else goal.target
    own = p.gather(2, label[:, None, None].expand(-1, p.shape[1], 1))[:, :, 0]
    return 1 - own if goal.target is None else own
