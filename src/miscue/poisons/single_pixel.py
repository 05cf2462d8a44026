"""Single-pixel poisons found by CMA-ES: one pixel per class, placed where the network does not look.

A thesis summary ("interpretable single-pixel poisons", cf. arXiv 2003.06646); no code was ever released. A clean model
M_c is trained; its Grad-CAM maps for the true label, averaged over each class, show where it looks; CMA-ES searches the
pixels of all classes, places outside that region of interest and intensities, for the largest

    fitness = accuracy on the poisoned training images - accuracy on clean held-out training images  (+ divergence * D)

of a fresh network trained on poisoned images, both accuracies as means over the classes. What the texts leave open, and
what we chose: rows and columns are integers of a CMA-ES with margin (CMAwM), intensities are continuous; a place inside
the region moves to the nearest one outside. The fitness is a mean over classes, and a class's part of it depends on its
own pixel most of all, and on which class has none. So the search starts from the best of some random candidates, at
places outside that an untrained network sees well, white but for one class, whose images are told by having no pixel,
and of their children, who have each class's best pixels under the best of the unmarked classes; and each class with a
pixel has a CMA-ES of its own, told its part (`joint` has one for all, told the whole). A candidate's network sees all
images once, as shorter trainings say much of their seed and little of the pixels. All candidates of a generation train
the same weights on the same batches, which change with each generation, so that values compare within a generation
only; at the end the centre of the search, its start and the latest generations' best meet under fresh seeds, each in a
longer training, before one is released. D is the distance of clean and poisoned images, of the means of M_c's last
hidden layer in units of its deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from miscue.data import Data, hold_out
from miscue.dice import Dice
from miscue.errors import InputError, lookup, not_negative, positive
from miscue.explainers import gradcam
from miscue.marks import Pixels
from miscue.measures.accuracy import class_accuracies
from miscue.measures.attention import class_maps
from miscue.measures.features import hidden
from miscue.perturbation import Perturbation
from miscue.poisons.crafting import Attacker, Checkpoint, Poison, Preset, Progress
from miscue.poisons.one_pixel_shortcut import shortcut
from miscue.poisons.places import Search, Space, black, crossed, outside, scattered, visibility
from miscue.population import FitMany, Member, population
from miscue.train import Recipe
from miscue.victims import Victim
from miscue.workers import LostWorkerError

STARTS = ("random", "shortcut")
FINALS = 3  # fresh seeds under which the finalists meet
CLEAN = 16_000  # images that the clean model learns from
Judged = tuple[float, Pixels]
"""Fitness and candidate."""


@Poison
def single_pixel(
    data: Data,
    attacker: Attacker,
    *,
    generations: int = 2,
    candidates: int = 0,
    sigma: float = 0.06,
    joint: bool = False,
    start: str = "random",
    first_candidates: int = 24,
    interest: float = 0.5,
    divergence: float = 0.0,
    images: int = 0,
    held_out: int = 0,
    finalists: int = 3,
    longer: int = 4,
    processes: int = 0,
    resume: dict[str, Tensor] | None = None,
) -> Iterator[Progress]:
    """Search one pixel per class, away from where a clean network looks, that ruins what is learned.

    Args:
        data: the clean training images. Test data has no place here.
        attacker: the network and recipe of the clean model and of every candidate's; dice, device.
        generations: of CMA-ES.
        candidates: in a generation; 0 for CMA-ES's own number, 4 + 3 ln(variables of a search).
        sigma: first step size, as a share of the range of each variable.
        joint: one CMA-ES for the pixels of all classes, told the fitness, instead of one for the pixel of each class,
            told the class's part of it. A class that starts without a pixel gets one only in a joint search.
        start: first mean of the search: "random" for the best of some random ones, white but for one class whose pixel
            is black, or "shortcut" for the best of one_pixel_shortcut's, as they are and with each class black in turn.
        first_candidates: how many random ones; the best of them and a quarter as many children, who have each class's
            best pixels, follow.
        interest: share of the pixels, those where the class's mean Grad-CAM map is largest, that are out of bounds; 0
            for none.
        divergence: weight of the distance between clean and poisoned images in the fitness.
        images: training images of a candidate's network; 0 for all but the held-out ones.
        held_out: clean training images that the fitness is measured on; 0 for 2,000, or a fifth of fewer than 10,000.
        finalists: how many meet at the end under three fresh seeds, for the best to be released: the centre of the
            search, its start, and the latest generations' best candidates.
        longer: finalists' networks see all images so many times, in batches as many times as large: the same number of
            steps, and a more careful training, as victims may have.
        processes: networks trained side by side on a CPU; 0 for one a processor.
        resume: the state of a checkpoint of a run with the same data, attacker and options.

    Yields:
        one Progress a generation, each with a checkpoint; the last one has measured the finalists.

    Raises:
        InputError: a number out of range, fewer images than asked for, more classes than free pixels.
    """
    lookup(dict.fromkeys(STARTS), start, "start")
    positive(generations=generations, first_candidates=first_candidates, finalists=finalists)
    positive(longer=longer, sigma=sigma)
    not_negative(candidates=candidates, divergence=divergence, images=images, held_out=held_out, processes=processes)
    if not 0 <= interest < 1:
        raise InputError(f"interest must lie in [0, 1), got {interest:g}")
    train, kept = parts(data, images, held_out, attacker.dice)
    victim = Victim(network=attacker.surrogate, recipe=attacker.recipe)
    some = train.spread(CLEAN)
    clean_model = victim(some, attacker.dice.named("clean"), device=attacker.device)
    maps = class_maps(clean_model, some.to(attacker.device), gradcam)
    space = Space(nearest=outside(maps, interest), channels=data.shape[0])
    distance = Distance(model=clean_model, data=kept, weight=divergence)
    first = beginnings(space, start, first_candidates, victim, train, attacker)
    children = -(-len(first) // 4)
    variables = space.encode(first[0])
    size = candidates or 4 + math.floor(3 * math.log(variables.size if joint else variables.shape[1]))
    total = len(first) + children + generations * size + FINALS * min(finalists, generations + 2)

    with population(train, kept, device=attacker.device, processes=processes) as fit_many:
        judge = Judge(fit_many=fit_many, dice=attacker.dice, distance=distance, history=known_fitness(resume or {}))
        record = (-math.inf, first[0])
        search: Search | None = None
        final: list[Pixels] = []
        marks = first
        for number in range(2 + generations):
            parts_of, new = judge(number, marks, victim)
            latest = best(parts_of, marks)
            record = max(record, latest, key=lambda judged: judged[0])
            if new:
                yield judge.progress(total, record[1], curve(parts_of, record))
            if number == 0:
                marks = [latest[1], *crossed(first, parts_of, children - 1)]
                continue
            if search is None:
                search = Search(space, latest[1], attacker, sigma=sigma, size=size, joint=joint)
            else:
                search.tell(parts_of)
            final.insert(0, latest[1])
            marks = search.ask()
        assert search is not None
        final = [search.centre(), final[-1], *final[:-1]][:finalists]
        rounds, patient = [], prolonged(victim, longer)
        for number in range(2 + generations, 2 + generations + FINALS):
            parts_of, new = judge(number, final, patient)
            rounds.append(parts_of)
            fitness, mark = best(torch.stack(rounds).mean(0), final)
            if new:
                yield judge.progress(total, mark, {"final_fitness": fitness})


def beginnings(space: Space, start: str, count: int, victim: Victim, train: Data, attacker: Attacker) -> list[Pixels]:
    """The first candidates, as far as the space has them: `count` random ones, or those of the shortcut."""
    if start == "shortcut":
        white = shortcut(train, attacker)
        first = [white, *(black(white, label) for label in range(len(train.classes)))]
    else:
        first = scattered(space, visibility(victim, train, attacker), count, attacker.dice.named("first"))
    return [space.decode(space.encode(mark)) for mark in first]


@dataclass(kw_only=True)
class Judge:
    """Who measures the candidates of each generation, or knows what a run before has measured of them.

    history: the classes' parts of the fitness (candidates, classes), generation by generation, NaN where a worker died
    twice. done: networks trained, by this run or the one before.
    """

    fit_many: FitMany
    dice: Dice
    distance: Distance
    history: list[Tensor]
    done: int = 0

    def __call__(self, number: int, marks: list[Pixels], victim: Victim) -> tuple[Tensor, bool]:
        """The parts of the candidates of generation `number`, 0 for those that were lost, and whether they are new."""
        self.done += len(marks)
        new = number == len(self.history)
        if new:
            found = measured(self.fit_many, victim, marks, self.dice.named("generation", number))
            self.history.append(found + torch.tensor([[self.distance(mark)] for mark in marks]))
        return self.history[number].nan_to_num(nan=0.0), new

    def progress(self, total: int, mark: Pixels, measures: dict[str, float]) -> Progress:
        """A generation done, counted in trained networks."""
        reached = checkpoint(mark, measures | lost(self.history[-1]), self.history)
        return Progress(done=self.done, total=total, checkpoint=reached)


def prolonged(victim: Victim, longer: int) -> Victim:
    """The same victim in as many steps, each of `longer` times as many images."""
    recipe = victim.recipe
    return replace(victim, recipe=replace(recipe, epochs=longer * recipe.epochs, batch_size=longer * recipe.batch_size))


def lost(parts_of: Tensor) -> dict[str, float]:
    """How many of the candidates (candidates, classes) were lost with their worker, if any were."""
    count = int(parts_of.isnan().any(1).sum())
    return {"lost": float(count)} if count else {}


def best(parts_of: Tensor, marks: list[Pixels]) -> Judged:
    """The best candidate by its fitness, the mean of the classes' parts (candidates, classes); of equals the first."""
    fitness = parts_of.mean(1)
    return float(fitness.max()), marks[int(fitness.argmax())]


def curve(parts_of: Tensor, record: Judged) -> dict[str, float]:
    """A generation's best and mean fitness, and the best of all so far."""
    fitness = parts_of.mean(1)
    return {"fitness": float(fitness.max()), "mean_fitness": float(fitness.mean()), "best_fitness": record[0]}


def checkpoint(mark: Pixels, measures: dict[str, float], history: list[Tensor]) -> Checkpoint:
    """The state is the fitness of all candidates so far, from which the search is played again."""
    state = {f"generation {number}": fitness for number, fitness in enumerate(history)}
    return Checkpoint(perturbation=Perturbation(mark=mark, eps=1.0), measures=measures, state=state)


def known_fitness(state: dict[str, Tensor]) -> list[Tensor]:
    """The fitness of all candidates so far, generation by generation."""
    return [state[f"generation {number}"] for number in range(len(state))]


def parts(data: Data, images: int, held_out: int, dice: Dice) -> tuple[Data, Data]:
    """`images` training images and `held_out` others, both with the classes in their proportions; 0: as in a search."""
    held_out = held_out or min(2000, len(data) // 5)
    images = images or len(data) - held_out
    if images + held_out > len(data):
        raise InputError(f"images and held_out ask for {images + held_out} of {len(data)} training images")
    if images < len(data.classes):
        raise InputError(f"{images} images cannot show all of {len(data.classes)} classes")
    rest, kept = hold_out(data, held_out / len(data), dice.named("held-out"))
    if images < len(rest):
        _, rest = hold_out(rest, images / len(rest), dice.named("images"))
    return rest, kept


def measured(fit_many: FitMany, victim: Victim, marks: list[Pixels], dice: Dice) -> Tensor:
    """The gaps (candidates, classes) of a fresh network for each; NaN where the worker died twice."""
    members = [Member(victim=victim, dice=dice, mark=mark) for mark in marks]
    found = dict(fit_many(members, then=gaps))
    unknown = torch.full((len(marks[0].places),), math.nan, dtype=torch.float64)
    return torch.stack([unknown if isinstance(found[i], LostWorkerError) else found[i] for i in range(len(marks))])


def gaps(model: nn.Module, member: Member, train: Data, kept: Data) -> Tensor:
    """Each class's accuracy on poisoned training images less that on clean held-out ones, in points."""
    assert member.mark is not None
    some = train.spread(len(kept))
    poisoned = Perturbation(mark=member.mark, eps=1.0).to(some.images.device)(some)
    return class_accuracies(model, poisoned) - class_accuracies(model, kept)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far pixels move the mean of a clean model's last hidden layer, in units of its deviation, times a weight."""

    model: nn.Module
    data: Data
    weight: float

    def __call__(self, mark: Pixels) -> float:
        """The weighted distance for the images of `data`."""
        if not self.weight:
            return 0.0
        poison = Perturbation(mark=mark, eps=1.0)
        clean, poisoned = (hidden(self.model, one.images) for one in (self.data, poison(self.data)))
        spread = clean.var(0).sum().sqrt()
        return self.weight * float((poisoned.mean(0) - clean.mean(0)).norm() / spread.clamp(min=1e-12))


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        summary="a search for grey images such as MNIST, with short fits of a network as large as the victims",
        surrogate="cnn-padded",
        recipe=Recipe(optimizer="adam", lr=3e-3, epochs=1, batch_size=32, schedule="cosine", precision="auto"),
    ),
}
