"""Where the pixels of a single-pixel poison may lie, which places a network sees, and CMA-ES over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.marks import Pixels
from miscue.measures.features import hidden
from miscue.poisons.crafting import Attacker
from miscue.victims import Victim

if TYPE_CHECKING:
    from cmaes import CMAwM

LOOKED_AT = 32  # images that the visibility of a place is measured on
AT_ONCE = 6  # places whose images a network is given together
LITTER = 3  # children with the same unmarked class, or more where there are few classes


@dataclass(frozen=True, kw_only=True)
class Space:
    """What CMA-ES searches: a row, a column and one intensity a channel for each class, all scaled to [0, 1].

    Intensities are black up to 0.1 and white from 0.9, so that a search comes to rest there too.

    nearest: int64 (classes, h, w, 2), the nearest place outside the class's region of interest.
    """

    nearest: Tensor
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the images."""
        _, height, width, _ = self.nearest.shape
        return self.channels, height, width

    def bounds(self, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Bounds (dimensions, 2) and steps (dimensions,) for a CMAwM over so many classes; step 0: continuous."""
        _, height, width = self.shape
        steps = [1 / (height - 1), 1 / (width - 1), *[0.0] * self.channels]
        return np.tile([0.0, 1.0], (classes * len(steps), 1)), np.tile(steps, classes)

    def decode(self, table: np.ndarray) -> Pixels:
        """The pixels that a point of the space (classes, variables) stands for."""
        _, height, width = self.shape
        point = torch.as_tensor(table, dtype=torch.float64)
        rows, columns = (point[:, i].mul(side - 1).round().long() for i, side in ((0, height), (1, width)))
        places = self.nearest[torch.arange(len(point)), rows, columns]
        values = ((point[:, 2:] - 0.1) / 0.8 * 255).round().clamp(0, 255).to(torch.uint8)
        return Pixels(places=places, values=values, shape=self.shape)

    def encode(self, pixels: Pixels) -> np.ndarray:
        """A point that stands for `pixels`, as far as they lie outside the regions of interest."""
        _, height, width = self.shape
        scale = torch.tensor([height - 1, width - 1])
        table = torch.cat([pixels.places / scale, pixels.values / 255 * 0.8 + 0.1], dim=1)
        return table.double().numpy()


def outside(maps: Tensor, interest: float) -> Tensor:
    """The nearest place outside each class's region of interest, for every place: int64 (classes, h, w, 2).

    Raises:
        InputError: fewer free places than classes.
    """
    from scipy.ndimage import distance_transform_edt

    classes, height, width = maps.shape
    count = math.floor(interest * height * width)
    if height * width - count < classes:
        raise InputError(f"{classes} classes need as many free pixels, {height * width - count} are left")
    nearest = []
    for one in maps:
        inside = torch.zeros(height * width, dtype=torch.bool)
        inside[one.flatten().argsort(descending=True, stable=True)[:count]] = True
        places = distance_transform_edt(
            inside.reshape(height, width).numpy(), return_distances=False, return_indices=True
        )
        nearest.append(torch.as_tensor(places).long().permute(1, 2, 0))
    return torch.stack(nearest)


@torch.no_grad()
def visibility(victim: Victim, data: Data, attacker: Attacker, *, networks: int = 3, most: int = 1024) -> Tensor:
    """How far a white pixel at each place moves what untrained networks give their last layer: float (h, w).

    Measured at no more than `most` places, drawn from all; at others it is 0.
    """
    _, height, width = data.shape
    dice = attacker.dice.named("visibility")
    drawn = torch.randperm(height * width, generator=dice.generator())[:most]
    images = floats(data.spread(LOOKED_AT).images.to(attacker.device), channels_last=True)
    moved = torch.zeros(height * width)
    for number in range(networks):
        model = victim.untrained(data, dice.named("network", number), device=attacker.device)
        clean = hidden(model, images)
        for places in drawn.split(AT_ONCE):
            white = images.repeat(len(places), 1, 1, 1, 1)
            for copy, place in zip(white, places.tolist(), strict=True):
                copy[:, :, place // width, place % width] = 1
            shift = hidden(model, white.flatten(0, 1)).unflatten(0, white.shape[:2]) - clean
            moved[places] += shift.mean(1).norm(dim=1).cpu() / networks
    return moved.reshape(height, width)


def scattered(space: Space, visible: Tensor, count: int, dice: Dice) -> list[Pixels]:
    """Places drawn for each class, apart from each other; white pixels but for one class, in turn, whose is black.

    They are drawn from the quarter that is seen best, by `visibility`, of the places outside the class's region.
    """
    channels, height, width = space.shape
    classes, generator = len(space.nearest), dice.generator()
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=2)
    free = (space.nearest == grid).all(3).flatten(1)
    seen = visible.flatten() - (~free) * visible.max() * 2
    ranked = seen.argsort(dim=1, descending=True, stable=True).tolist()
    quarters = [max(classes, int(own.sum()) // 4) for own in free]
    turns = torch.randperm(classes, generator=generator).tolist()
    found = []
    for number in range(count):
        taken: set[int] = set()
        drawn = torch.zeros(classes, dtype=torch.long)
        for label in torch.randperm(classes, generator=generator).tolist():
            left = [place for place in ranked[label][: quarters[label]] if place not in taken]
            drawn[label] = left[int(torch.randint(len(left), (), generator=generator))]
            taken.add(int(drawn[label]))
        places = torch.stack([drawn // width, drawn % width], dim=1)
        white = Pixels(places=places, values=torch.full((classes, channels), 255).byte(), shape=space.shape)
        found.append(black(white, turns[number % classes]))
    return found


def crossed(marks: list[Pixels], parts_of: Tensor, count: int) -> list[Pixels]:
    """Children of candidates whose classes' parts of the fitness (candidates, classes) are known.

    The first children have the best unmarked class, the next ones the second best, and so on, each with `LITTER` sets
    of pixels: the first has each class's best pixel, the next its second best. A pixel is as good as its class's part
    under it, less what is usual with the same unmarked class; that mean and those of the unmarked classes are drawn
    to the mean over all candidates, as if that had been met once more.
    """
    bare = torch.stack([(mark.values == 0).all(1) for mark in marks])  # (candidates, classes)
    kinds = {tuple(row): (bare == torch.tensor(row)).all(1) for row in bare.tolist()}
    usual = {kind: (parts_of[of].sum(0) + parts_of.mean(0)) / (int(of.sum()) + 1) for kind, of in kinds.items()}
    worth = parts_of - torch.stack([usual[tuple(row)] for row in bare.tolist()])
    order = worth.masked_fill(bare, -math.inf).argsort(dim=0, descending=True, stable=True)
    children = []
    for kind in sorted(kinds, key=lambda kind: -float(usual[kind].mean())):
        parent = marks[int((parts_of.mean(1) - 1e9 * ~kinds[kind]).argmax())]
        for litter in range(max(LITTER, -(-count // len(kinds)))):
            places, values = parent.places.clone(), parent.values.clone()
            taken = [places[label].tolist() for label in range(len(kind)) if kind[label]]
            for label in (label for label in range(len(kind)) if not kind[label]):
                ranked = [marks[i] for i in order[:, label].tolist() if not bare[i, label]]
                free = [mark for mark in ranked if mark.places[label].tolist() not in taken] or ranked
                chosen = free[min(litter, len(free) - 1)]
                places[label], values[label] = chosen.places[label], chosen.values[label]
                taken.append(places[label].tolist())
            children.append(replace(parent, places=places, values=values))
    return children[:count]


def black(mark: Pixels, label: int) -> Pixels:
    """The same pixels, but that of one class black: on a black ground it is told by having none."""
    values = mark.values.clone()
    values[label] = 0
    return replace(mark, values=values)


class Search:
    """CMA-ES around `first`: one for each class with a pixel, or one for all classes."""

    def __init__(self, space: Space, first: Pixels, attacker: Attacker, *, sigma: float, size: int, joint: bool):
        from cmaes import CMAwM  # brings scipy

        self.space, self.size = space, size
        self.table = space.encode(first)
        alone = [[label] for label in range(len(self.table)) if first.values[label].any()]
        self.groups = [list(range(len(self.table)))] if joint else alone
        self.strategies: list[CMAwM] = []
        for number, group in enumerate(self.groups):
            bounds, steps = space.bounds(len(group))
            with np.errstate(divide="ignore"):  # of up to 3 candidates one alone counts, which gives 1 / 0 on the way
                strategy = CMAwM(
                    mean=self.table[group].flatten().clip(1e-3, 1 - 1e-3),
                    sigma=sigma,
                    bounds=bounds,
                    steps=steps,
                    seed=attacker.dice.named("search", number).integer() % 2**32,
                    population_size=size,
                )
            self.strategies.append(strategy)
        self.asked: list[list[np.ndarray]] = []

    def ask(self) -> list[Pixels]:
        """The candidates of a generation."""
        pairs = [[strategy.ask() for strategy in self.strategies] for _ in range(self.size)]
        self.asked = [[raw for _, raw in row] for row in pairs]
        return [self.mark([point for point, _ in row]) for row in pairs]

    def tell(self, parts_of: Tensor) -> None:
        """Their fitness, the classes' parts (candidates, classes)."""
        for number, (group, strategy) in enumerate(zip(self.groups, self.strategies, strict=True)):
            values = parts_of[:, group].mean(1).tolist()
            strategy.tell([(row[number], -value) for row, value in zip(self.asked, values, strict=True)])

    def centre(self) -> Pixels:
        """Where the search is."""
        return self.mark([np.clip(strategy.mean, 0, 1) for strategy in self.strategies])

    def mark(self, points: Sequence[np.ndarray]) -> Pixels:
        """The pixels of a point for each group; those of no group stay where they are."""
        table = self.table.copy()
        for group, point in zip(self.groups, points, strict=True):
            table[group] = point.reshape(len(group), -1)
        return self.space.decode(table)
