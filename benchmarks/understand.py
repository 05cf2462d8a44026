"""Explanations, hard samples and stickers on real road signs: what finds what, with controls.

    MISCUE_DATA=../shared/data:CACHE python benchmarks/understand.py [--only NAME,...] [--seeds 3] [--record]

CACHE is the folder that the data's unpack.py wrote to. Networks are those of test_time.py, kept in runs/nets, one a
seed. The test images of GTSRB are halved: detectors are calibrated on one half, everything is measured on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import Measures, Row, measure_rows
from miscue.data import Data, floats
from miscue.detectors.consistency import SCORES, Detector
from miscue.detectors.patchcleanser import Masks, certified, cleanse
from miscue.dice import Dice
from miscue.evasions import pgd, stickers
from miscue.evasions.attempt import scored
from miscue.explainers import EXPLAINERS
from miscue.explainers.occlusion import FILLS
from miscue.hardness import HARDNESS, auroc, ease, forgotten
from miscue.images import rectangles
from miscue.measures.accuracy import accuracy, predictions
from miscue.measures.attribution import pointed, share_inside
from miscue.models.modes import frozen
from miscue.victims import Victim
from test_time import SAID, VICTIMS, arena

SIDE = 5  # of a patch
SURE = 0.9  # probability from which a patch counts as confident
WINDOW, STRIDE = 7, 2


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Images on which an attack succeeded: as they were, as they are, their classes, and what was changed."""

    clean: Tensor
    x: Tensor
    y: Tensor
    masks: Tensor


def halves(data: Data) -> tuple[Data, Data]:
    """Every other image, so that both have all classes."""
    return data.take(slice(0, None, 2)), data.take(slice(1, None, 2))


def covering(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images with a random window of the detector covered, as one who knows it expects; half of them whole."""
    room = torch.tensor([x.shape[2] - WINDOW + 1, x.shape[3] - WINDOW + 1])
    corners = (torch.rand(len(x), 2, generator=generator) * room).long()
    masks = rectangles(corners, (WINDOW, WINDOW), x.shape[2:]) & (torch.rand(len(x), 1, 1, generator=generator) < 0.5)
    return torch.where(masks[:, None], FILLS["mean"](x), x)


ATTACKS: dict[str, Callable[[int], Callable]] = {
    "patch": lambda seed: partial(pgd, eps=1.0, alpha=0.05, steps=100, side=SIDE, restarts=4, dice=Dice(seed)),
    "stickers": lambda seed: partial(stickers, white=1, black=1, area=0.05, until="sure", dice=Dice(seed)),
    "patch, adaptive": lambda seed: partial(
        pgd, eps=1.0, alpha=0.05, steps=100, side=SIDE, restarts=2, transform=covering, samples=6, dice=Dice(seed)
    ),
}


@cache
def attacked(kind: str, count: int, seed: int) -> Attacked:
    """The successes of an attack on the second half of the test images; of patches only the confident ones."""
    here = arena("gtsrb", seed)
    some = halves(here.test)[1].spread(count)
    x, y = floats(some.images, channels_last=True), some.labels
    found = ATTACKS[kind](seed)(here.model, x, y)
    won = found.success
    if kind.startswith("patch"):
        with frozen(here.model):
            won = won & (scored(here.model, found.x).softmax(1).amax(1) >= SURE)
    masks = (found.x != x).any(1)
    return Attacked(clean=x[won], x=found.x[won], y=y[won], masks=masks[won])


def pointing(explainer: str, kind: str, seed: int) -> Measures:
    """How often the largest value of a map of the *wrong* class lies on the sticker, and what chance would give."""
    here, found = arena("gtsrb", seed), attacked(kind, 430, seed)
    with frozen(here.model):
        wrong = scored(here.model, found.x).argmax(1)
    maps = EXPLAINERS[explainer](here.model, found.x, wrong)
    grown = F.max_pool2d(found.masks.float()[:, None], 5, stride=1, padding=2)
    return {
        "pointing_game": 100 * float(pointed(maps, found.masks).double().mean()),
        "pointing_game_within_2": 100 * float(pointed(maps, found.masks, tolerance=2).double().mean()),
        "by_chance_within_2": 100 * float(grown.mean()),
        "share_inside": float(share_inside(maps, found.masks).nanmean()),
        "images": float(len(found.x)),
    }


def cued(data: Data) -> Data:
    """A square of 3 x 3 pixels at the edge of each image, its place and colour told by the class."""
    images = data.images.clone()
    for label in range(len(data.classes)):
        place, colour = divmod(label, 8)
        of = data.labels == label
        corner = 4 * place if place < 8 else 28
        value = torch.tensor([255 * (colour >> bit & 1) for bit in range(3)], dtype=torch.uint8)
        images[of, :, :3, corner : corner + 3] = value[None, :, None, None]
    return data.with_images(images)


def reasons(explainer: str, seed: int) -> Measures:
    """The share of the maps on the sign, for a network of clean images and for one whose images gave the class away."""
    here = arena("gtsrb", seed)
    cheated = trained_on_cues(seed)
    some = cued(here.test.spread(430))
    x, y = floats(some.images, channels_last=True), some.labels
    sign = torch.zeros(len(x), 32, 32, dtype=torch.bool)
    sign[:, 4:28, 4:28] = True
    found = {
        name: float(share_inside(EXPLAINERS[explainer](model, x, y), sign).nanmean())
        for name, model in (("share_inside_clean", here.model), ("share_inside_cued", cheated))
    }
    return found | {"accuracy_cued": accuracy(cheated, here.test), "accuracy_clean": accuracy(here.model, here.test)}


@cache
def trained_on_cues(seed: int) -> nn.Module:
    """A network of the same recipe, trained on images with the cue."""
    recipe = replace(VICTIMS["gtsrb"].recipe, epochs=10, shift=0)
    return Victim(network="conv5", recipe=recipe)(cued(arena("gtsrb", seed).train), Dice(seed).named("cued"))


def errors(measure: str, seed: int) -> Measures:
    """How well a ranking for the class that is named finds the test errors."""
    here = arena("gtsrb", seed)
    named = predictions(here.model, here.test.images).cpu()
    blind = Data(images=here.test.images, labels=named, classes=here.test.classes)
    return {"auc": auroc(-ease(measure, here.model, blind), named != here.test.labels)}


@cache
def noisy(seed: int) -> tuple[nn.Module, Data, Tensor, Tensor]:
    """(network, its training images of which 5 % have a wrong label, which ones, right after each epoch)."""
    train, dice = arena("gtsrb", seed).train, Dice(seed).named("noisy")
    wrong = torch.rand(len(train), generator=dice.named("which").generator()) < 0.05
    moved = (train.labels + torch.randint(1, 43, train.labels.shape, generator=dice.named("to").generator())) % 43
    data = replace(train, labels=torch.where(wrong, moved, train.labels))
    victim = replace(VICTIMS["gtsrb"], recipe=replace(VICTIMS["gtsrb"].recipe, epochs=10))
    model, right = victim.untrained(data, dice), []
    for _ in victim.learning(model, data, dice):
        right.append(predictions(model, data.images).cpu() == data.labels)
    return model, data, wrong, torch.stack(right)


def label_noise(measure: str, seed: int) -> Measures:
    """How well hardness finds wrong labels among the images that the network learned from."""
    model, data, wrong, right = noisy(seed)
    if measure == "forgetting":
        return {"auc": auroc(forgotten(right).double(), wrong)}
    return {"auc": auroc(-ease(measure, model, data), wrong)}


def caught(kind: str, seed: int) -> Measures:
    """The detector: alarms on clean images, AUC and true positives at 5 % false ones over successful attacks."""
    here, found = arena("gtsrb", seed), attacked(kind, 430, seed)
    calibration, rest = halves(here.test)
    blank = Detector(window=WINDOW, stride=STRIDE)
    detector = blank.calibrated(here.model, floats(calibration.images, channels_last=True))
    clean = floats(rest.images, channels_last=True)
    quiet, loud = (detector.looks(here.model, images) for images in (clean, found.x))
    verdict = detector(here.model, found.x)
    positive = torch.cat([torch.zeros(len(clean)), torch.ones(len(found.x))]).bool()
    both = {name: torch.cat([quiet.scores[:, k], loud.scores[:, k]]) for k, name in enumerate(SCORES)}
    both["combined"] = detector.combined(torch.cat([quiet.scores, loud.scores]))
    grown = F.max_pool2d(found.masks.float()[:, None], WINDOW, stride=1, padding=WINDOW // 2)
    tops = verdict.maps.flatten(1).argmax(1, keepdim=True)
    return {f"auc_{name}": auroc(scores, positive) for name, scores in both.items()} | {
        "alarms_on_clean": 100 * float((both["combined"][: len(clean)] > detector.threshold).double().mean()),
        "tpr_at_5_fpr": 100 * float(verdict.alarm.double().mean()),
        "recovered": 100 * float((verdict.recovered == found.y).double().mean()),
        "located": 100 * float(grown.flatten(1).gather(1, tops).mean()),
        "images": float(len(found.x)),
    }


def masked_victim() -> Victim:
    """The same network, trained with two holes on each image."""
    return replace(VICTIMS["gtsrb"], recipe=replace(VICTIMS["gtsrb"].recipe, epochs=60, holes=2, hole=9))


def cleansed(seed: int) -> Measures:
    """PatchCleanser against patches of 5 x 5 pixels, 6 masks a side."""
    plain, model = arena("gtsrb", seed), arena("gtsrb", seed, victim=masked_victim(), name="gtsrb-holes").model
    some = plain.test.spread(1000)
    x, y = floats(some.images, channels_last=True), some.labels
    masks = Masks.against(SIDE, (32, 32), per_side=6)
    return {
        "accuracy_plain": accuracy(plain.model, plain.test),
        "accuracy": accuracy(model, plain.test),
        "cleansed_accuracy": 100 * float((cleanse(model, x, masks).named == y).double().mean()),
        "certified_accuracy": 100 * float(certified(model, x, y, masks).double().mean()),
    }


def rows() -> Iterator[tuple[str, Row]]:
    """(what --only chooses by, the row)."""
    base: dict[str, object] = {"data": "gtsrb", "network": "conv5"}
    for explainer in EXPLAINERS:
        for kind in ("patch", "stickers"):
            yield "pointing", (base | {"explainer": explainer, "attack": kind}, partial(pointing, explainer, kind))
        yield "reasons", (base | {"explainer": explainer}, partial(reasons, explainer))
    for measure in HARDNESS:
        yield "errors", (base | {"by": measure, "finds": "test errors"}, partial(errors, measure))
    for measure in (*HARDNESS, "forgetting"):
        yield "labels", (base | {"by": measure, "finds": "5 % wrong labels"}, partial(label_noise, measure))
    for kind in ATTACKS:
        row = base | {"attack": kind, "window": WINDOW, "stride": STRIDE}
        yield "detection", (row, partial(caught, kind))
    yield "patchcleanser", (base | {"patch": SIDE, "masks": 36}, cleansed)


if __name__ == "__main__":
    measure_rows(rows(), "understand", __doc__, data=SAID)
