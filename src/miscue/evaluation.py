"""Fresh victims on clean and on poisoned data: what a poison does to whoever trains on it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miscue.data import Data
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.explainers import gradcam
from miscue.marks import Pixels
from miscue.measures.accuracy import (
    accuracy,
    batch_statistics_predictions,
    confusion,
    drawn_parts,
    hit_rate,
    percent,
    predictions,
)
from miscue.measures.attention import class_maps, share_near
from miscue.models.networks import has_batch_norm, has_convolution
from miscue.perturbation import Perturbation
from miscue.victims import AnyVictim

MEASURES = (
    "test_accuracy",
    "train_accuracy",
    "gap",
    "hit_rate",
    "noise_accuracy_train",
    "noise_accuracy_test",
    "test_accuracy_batch_statistics",
    "hit_rate_batch_statistics",
    "noise_accuracy_test_batch_statistics",
    "near_pixel",
)
LOOKED_AT = 2000  # test images, evenly spread, that the explanations are of
GLANCED_AT = 10_000  # training images, evenly spread, that the curve is of before its end


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What was added to images, made where it is looked at: `noise[part]` is float (n, c, h, w)."""

    clean: Data
    poisoned: Data

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, part: Tensor | slice) -> Tensor:
        return (self.poisoned.images[part].float() - self.clean.images[part].float()) / 255


@dataclass(frozen=True, kw_only=True)
class Arena:
    """What the victims of one condition meet.

    train: what they are trained on; test: clean images they are scored on.
    noise_train, noise_test: the noise alone, where there is noise and it can be made.
    pixels, pixel_test: for a poison of pixels, where they are, and the test images with them.
    """

    condition: str
    train: Data
    test: Data
    noise_train: Noise | None = None
    noise_test: Noise | None = None
    pixels: Pixels | None = None
    pixel_test: Data | None = None


def arenas(clean: Data, poisoned: Data, test: Data, perturbation: Perturbation | None) -> tuple[Arena, Arena]:
    """The clean condition and the poisoned one.

    Raises:
        InputError: clean and poisoned sets do not belong together (size, shape or labels differ).
    """
    if clean.images.shape != poisoned.images.shape or not torch.equal(clean.labels, poisoned.labels):
        raise InputError(
            f"the clean {tuple(clean.images.shape)} and the poisoned set {tuple(poisoned.images.shape)} "
            "do not hold the same images in the same order: sizes or labels differ"
        )
    marked = perturbation(test) if perturbation else None
    pixels = perturbation.mark if perturbation and isinstance(perturbation.mark, Pixels) else None
    pixel_test = marked.spread(LOOKED_AT) if marked and pixels else None
    return (
        Arena(condition="clean", train=clean, test=test, pixels=pixels, pixel_test=pixel_test),
        Arena(
            condition="poisoned",
            train=poisoned,
            test=test,
            noise_train=Noise(clean=clean, poisoned=poisoned),
            noise_test=Noise(clean=test, poisoned=marked) if marked else None,
            pixels=pixels,
            pixel_test=pixel_test,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One epoch of one victim done, or the whole cell where `cell` is given."""

    done: int
    total: int
    cell: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One cell: a victim by its name and a seed in an arena."""

    arena: Arena
    name: str
    victim: AnyVictim
    seed: int
    label_map: Sequence[int] | None
    device: str

    @property
    def epochs(self) -> int:
        """Its length."""
        return self.victim.epochs


def cell(contest: Contest) -> Iterator[Progress]:
    """Train one victim in one condition and measure it; the last Progress carries the cell as plain data.

    Before the last epoch the curve's training accuracy is that of some of the images.
    """
    started = time.monotonic()
    arena, victim, epochs = contest.arena, contest.victim, contest.epochs
    dice = Dice(contest.seed).named("victim", contest.name)
    train = arena.train.near(contest.device)
    model = victim.untrained(train, dice, device=contest.device)
    labels = arena.test.labels.cpu()
    some = train.spread(GLANCED_AT)
    curve: list[dict[str, Any]] = []
    for epoch in victim.learning(model, train, dice):
        predicted = predictions(model, arena.test.images)
        seen = train if epoch.number == epochs else some
        now = {"train_accuracy": accuracy(model, seen), "test_accuracy": percent(predicted == labels)}
        curve.append({"epoch": epoch.number, "loss": epoch.loss, **now})
        yield Progress(done=epoch.number, total=epochs)
    facts: dict[str, Any] = {"condition": arena.condition, "victim": contest.name, "seed": contest.seed}
    facts |= now | {"gap": now["train_accuracy"] - now["test_accuracy"]}
    facts |= measure(model, arena, predicted, label_map=contest.label_map)
    facts |= {"curve": curve, "seconds": time.monotonic() - started}
    yield Progress(done=epochs, total=epochs, cell=facts)


def whole_cell(contests: Sequence[Contest], number: int) -> dict[str, Any]:
    """One of the contests from beginning to end."""
    *_, last = cell(contests[number])
    assert last.cell is not None
    return last.cell


def measure(model: nn.Module, arena: Arena, predicted: Tensor, *, label_map: Sequence[int] | None) -> dict[str, Any]:
    """All other numbers of a trained victim, in percent; None where a measure does not apply.

    predicted: int64 (n,), what it makes of the clean test images.
    """
    labels, train_labels = arena.test.labels.cpu(), arena.train.labels.cpu()
    normalised = batch_statistics_predictions(model, arena.test.images) if has_batch_norm(model) else None

    def hits(named: Tensor | None) -> float | None:
        """Of the label map, where there is one."""
        return None if named is None or label_map is None else hit_rate(named, labels, label_map)

    def counts(named: Tensor) -> list[list[int]]:
        """Which class is named for which."""
        return confusion(named, labels, len(arena.test.classes))

    return {
        "hit_rate": hits(predicted),
        "noise_accuracy_train": noise_accuracy(model, arena.noise_train, train_labels),
        "noise_accuracy_test": noise_accuracy(model, arena.noise_test, labels),
        "test_accuracy_batch_statistics": None if normalised is None else percent(normalised == labels),
        "hit_rate_batch_statistics": hits(normalised),
        "noise_accuracy_test_batch_statistics": (
            None
            if normalised is None
            else noise_accuracy(model, arena.noise_test, labels, batch_statistics_predictions)
        ),
        "confusion": counts(predicted),
        "confusion_batch_statistics": None if normalised is None else counts(normalised),
    } | attention(model, arena)


def attention(model: nn.Module, arena: Arena) -> dict[str, Any]:
    """Where a model looks at images that have a pixel in them: the share of its Grad-CAM mass within 3 pixels of it.

    "maps" are the mean maps of the classes, whole numbers from 0 to 99 that a picture can be made of.
    """
    if arena.pixels is None or arena.pixel_test is None or not has_convolution(model):
        return {"near_pixel": None}
    maps = class_maps(model, arena.pixel_test, gradcam)
    tones = (99 * maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)).round().int()
    near = share_near(maps, arena.pixels.places.cpu())
    return {"near_pixel": near if math.isfinite(near) else None, "maps": tones.tolist()}


def noise_accuracy(
    model: nn.Module,
    noise: Noise | None,
    labels: Tensor,
    look: Callable[[nn.Module, Tensor], Tensor] = predictions,
    *,
    chunk: int = 500,
) -> float | None:
    """Share of images whose label the model reads from the noise alone, 0 to 100; `look` gives its predictions."""
    if noise is None:
        return None
    parts = drawn_parts(noise.clean.images, chunk)
    return percent(torch.cat([look(model, noise[part]) == labels[part] for part in parts]))


def summary(cells: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Mean, standard deviation (n - 1) and n of each measure over the seeds of each condition and victim.

    A seed without a number does not count: where a network looks, say, if it has learned nothing.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in cells:
        groups.setdefault((one["victim"], one["condition"]), []).append(one)
    for (victim, condition), members in groups.items():
        for name in MEASURES:
            values = [one[name] for one in members if one.get(name) is not None and math.isfinite(one[name])]
            if values:
                yield {
                    "row": {"victim": victim, "condition": condition},
                    "measure": name,
                    "mean": statistics.fmean(values),
                    "std": statistics.stdev(values) if len(values) > 1 else None,
                    "n": len(values),
                    "seconds": sum(one["seconds"] for one in members),
                }
