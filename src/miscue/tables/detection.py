"""The tables of detectors: stickers found by covering, and PatchCleanser, on networks trained for it and not.

Test images are halved: detectors are calibrated on one half, everything is measured on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.covers import covered
from miscue.data import Data
from miscue.detectors.consistency import SCORES, Detector, Looks
from miscue.detectors.patchcleanser import Masks, certified, cleanse
from miscue.dice import Dice
from miscue.evasions import Adversarial, pgd, stickers
from miscue.evasions.attempt import scored
from miscue.images import rectangles
from miscue.measures.accuracy import accuracy
from miscue.measures.statistics import auroc
from miscue.models.modes import frozen
from miscue.models.store import load_tensors, save_tensors
from miscue.tables.nets import SIDES, SIGNS, TRAININGS, arena, base, described
from miscue.tables.pictures import roc
from miscue.tables.poisoned import device
from miscue.tables.rows import Drawn, Measures, Row, Workshop

SURE = 0.9  # probability from which a patch counts as confident
WINDOWS = {"digits": (3, 1), "gtsrb": (6, 2)}  # side and stride of the detector's: the sticker's and stride - 1


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Images on which an attack succeeded, their classes, and what was changed."""

    x: Tensor
    y: Tensor
    masks: Tensor


def halves(data: Data) -> tuple[Data, Data]:
    """Every other image, so that both have all classes."""
    return data.take(slice(0, None, 2)), data.take(slice(1, None, 2))


def attacked(row: dict[str, Any], seed: int, workshop: Workshop) -> Attacked:
    """The successes of a row's attack on the second half of the test images; of patches only the confident ones."""
    victim = TRAININGS[row["training"]](row["data"])
    here = arena(row["data"], seed, workshop, victim=victim)
    settings = {key: row[key] for key in ("data", "attack", "images")} | {"seed": seed} | described(victim)
    if "adaptive" in row["attack"]:
        settings["window"] = WINDOWS[row["data"]][0]

    def make(place: Path) -> None:
        x, y = here.images(row["images"], of=halves(here.test)[1])
        found = ATTACKS[row["attack"]](here.model, x, y, row["data"], Dice(seed))
        won = found.success
        if "patch" in row["attack"]:
            with frozen(here.model):
                won = won & (scored(here.model, found.x).softmax(1).amax(1) >= SURE)
        kept = {"x": found.x[won], "y": y[won], "masks": (found.x != x).any(1)[won]}
        save_tensors(place / "attacked.safetensors", kept, kind="attacked")

    kept, _ = load_tensors(workshop.made("attacked", settings, make) / "attacked.safetensors", kind="attacked")
    return Attacked(**{name: tensor.to(device()) for name, tensor in kept.items()})


def flat(model: nn.Module, x: Tensor, y: Tensor, data: str, dice: Dice) -> Adversarial:
    """A white and a black rectangle."""
    return stickers(model, x, y, area=0.15 if data == "digits" else 0.05, until="sure", dice=dice)


def square(
    model: nn.Module, x: Tensor, y: Tensor, data: str, dice: Dice, *, eps: float = 1.0, knowing: bool = False
) -> Adversarial:
    """A square at a random place by PGD; `knowing` the detector, it is to last under the detector's covers."""
    window = WINDOWS[data][0]

    def covering(z: Tensor, generator: torch.Generator) -> Tensor:
        """Half of the images with a random window covered."""
        room = torch.tensor([z.shape[2] - window + 1, z.shape[3] - window + 1])
        corners = (torch.rand(len(z), 2, generator=generator) * room).long().to(z.device)
        some = (torch.rand(len(z), 1, 1, generator=generator) < 0.5).to(z.device)
        return covered(z, rectangles(corners, (window, window), z.shape[2:]) & some, "inpaint")

    more: dict[str, Any] = {"transform": covering, "samples": 4, "restarts": 2} if knowing else {"restarts": 4}
    steps = 20 if data == "digits" else 100
    return pgd(model, x, y, eps=eps, alpha=0.05 * eps, steps=steps, side=SIDES[data], dice=dice, **more)


ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor, str, Dice], Adversarial]] = {
    "patch": square,
    "stickers": flat,
    "adaptive patch": partial(square, knowing=True),
    "quiet adaptive patch": partial(square, knowing=True, eps=0.3),
}
"""The attacks that detectors meet; the last two know what they do: cover, and look how much the pixels change."""


@lru_cache(maxsize=3)
def guard(data: str, training: str, seed: int, workshop: Workshop) -> tuple[Detector, Looks]:
    """A detector calibrated on one half of the test images, and how the other half looks to it."""
    here = arena(data, seed, workshop, victim=TRAININGS[training](data))
    window, stride = WINDOWS[data]
    usual, clean = (here.images(len(half), of=half)[0] for half in halves(here.test))
    detector = Detector(window=window, stride=stride).calibrated(here.model, usual)
    return detector, detector.looks(here.model, clean)


def caught(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """The detector: alarms on clean images, AUC and true positives at 5 % false ones over successful attacks.

    AUC also of how much the pixels change alone, which knows no model.
    """
    here = arena(row["data"], seed, workshop, victim=TRAININGS[row["training"]](row["data"]))
    found = attacked(row, seed, workshop)
    if not len(found.x):
        return {"images": 0.0}
    detector, quiet = guard(row["data"], row["training"], seed, workshop)
    loud = detector.looks(here.model, found.x)
    verdict = detector.judged(loud, found.x.shape[2:])
    positive = torch.cat([torch.zeros(len(quiet.whole)), torch.ones(len(found.x))]).bool()
    scores = torch.cat([quiet.scores, loud.scores])
    every = {name: scores[:, k] for k, name in enumerate(SCORES)}
    every |= {"pixels": torch.cat([quiet.changes.amax(1), loud.changes.amax(1)])}
    reach = row["window"] // 2
    grown = F.max_pool2d(found.masks.float()[:, None], 2 * reach + 1, stride=1, padding=reach)
    tops = verdict.maps.flatten(1).argmax(1, keepdim=True)
    return {f"auc_{name}": auroc(values.cpu(), positive) for name, values in every.items()} | {
        "alarms_on_clean": 100 * float((quiet.scores[:, -1] > detector.beyond).double().mean()),
        "tpr_at_5_fpr": 100 * float(verdict.alarm.double().mean()),
        "recovered": 100 * float((verdict.recovered == found.y).double().mean()),
        "located": 100 * float(grown.flatten(1).gather(1, tops).mean()),
        "accuracy": accuracy(here.model, here.test),
        "images": float(len(found.x)),
        "roc": {name: roc(values.cpu(), positive) for name, values in every.items()},
    }


def behind_masks(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """PatchCleanser on a network trained to see through masks, beside the usual one."""
    usual = arena(row["data"], seed, workshop)
    here = arena(row["data"], seed, workshop, victim=TRAININGS[row["training"]](row["data"]))
    x, y = here.images(row["images"])
    height, width = here.test.shape[1:]
    masks = Masks.against(row["patch"], (height, width), per_side=row["per_side"], fill="inpaint")
    return {
        "accuracy_plain": accuracy(usual.model, usual.test),
        "accuracy": accuracy(here.model, here.test),
        "cleansed_accuracy": 100 * float((cleanse(here.model, x, masks).named == y).double().mean()),
        "certified_accuracy": 100 * float(certified(here.model, x, y, masks).double().mean()),
    }


def detection(scale: str) -> Iterator[Row]:
    """Stickers found by covering, on two networks; two attackers know the detector."""
    window, stride = WINDOWS[SIGNS[scale]]
    for training in ("whole", "holes"):
        for kind in ATTACKS:
            given = {"training": training, "attack": kind, "window": window, "stride": stride}
            settings = base(scale, 172 if "adaptive" in kind else 430) | given
            yield Row(settings=settings, measure=caught, seeds=3)


def certificates(scale: str) -> Iterator[Row]:
    """PatchCleanser, on two networks."""
    settings = base(scale, 1000) | {"patch": SIDES[SIGNS[scale]], "per_side": 3 if scale == "smoke" else 6}
    for training in ("holes", "masked"):
        yield Row(settings=settings | {"training": training}, measure=behind_masks, seeds=3)
