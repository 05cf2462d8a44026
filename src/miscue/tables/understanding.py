"""The tables of explanations, hard samples and stickers: what finds what, with controls.

Test images are halved: detectors are calibrated on one half, everything is measured on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.covers import covered
from miscue.data import Data, floats
from miscue.defences import Masked
from miscue.detectors.consistency import SCORES, Detector, Looks
from miscue.detectors.patchcleanser import Masks, certified, cleanse
from miscue.dice import Dice
from miscue.evasions import Adversarial, pgd, stickers
from miscue.evasions.attempt import scored
from miscue.explainers import EXPLAINERS
from miscue.hardness import HARDNESS, auroc, ease, forgotten
from miscue.images import rectangles
from miscue.measures.accuracy import accuracy, predictions
from miscue.measures.attribution import pointed, share_inside
from miscue.models.modes import frozen
from miscue.models.networks import device_of, placed
from miscue.models.store import Plan, load_model, load_tensors, save_model, save_tensors
from miscue.tables.nets import SIGNS, VICTIMS, arena, described, kept
from miscue.tables.pictures import examples, roc
from miscue.tables.poisoned import device, known
from miscue.tables.rows import Drawn, Measures, Row, Workshop
from miscue.victims import Victim

SURE = 0.9  # probability from which a patch counts as confident
SIDES = {"digits": 2, "gtsrb": 5}  # of a patch, in pixels
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


def pointing(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """How often the largest value of a map of the *wrong* class lies on the sticker, and what chance would give."""
    here = arena(row["data"], seed, workshop, victim=TRAININGS[row["training"]](row["data"]))
    found = attacked(row, seed, workshop)
    if not len(found.x):
        return {"images": 0.0}
    with frozen(here.model):
        wrong = scored(here.model, found.x).argmax(1)
    maps = EXPLAINERS[row["explainer"]](here.model, found.x, wrong, **row["options"])
    grown = F.max_pool2d(found.masks.float()[:, None], 5, stride=1, padding=2)
    return {
        "pointing_game": 100 * float(pointed(maps, found.masks).double().mean()),
        "pointing_game_within_2": 100 * float(pointed(maps, found.masks, tolerance=2).double().mean()),
        "by_chance_within_2": 100 * float(grown.mean()),
        "share_inside": float(share_inside(maps, found.masks).nanmean()),
        "images": float(len(found.x)),
        "maps": examples(found.x, [here.test.classes[k] for k in wrong.tolist()], {"map": maps}),
    }


def cued(data: Data) -> Data:
    """A square at the edge of each image that gives the class away by its place and its colour or tone."""
    channels, _, width = data.shape
    side, images = max(1, width // 10), data.images.clone()
    places = width // (side + 1)
    for label in range(len(data.classes)):
        colour, place = divmod(label, places)
        value = torch.tensor([255 if (colour + 1) >> bit & 1 else 64 for bit in range(channels)], dtype=torch.uint8)
        left = place * (side + 1)
        images[data.labels == label, :, :side, left : left + side] = value[None, :, None, None]
    return data.with_images(images)


def trained_on_cues(data: str, seed: int, workshop: Workshop) -> nn.Module:
    """A network of the usual recipe but without moves, trained on images with the cue."""
    recipe = replace(VICTIMS[data].recipe, epochs=min(10, VICTIMS[data].recipe.epochs), shift=0)
    victim = Victim(network=VICTIMS[data].network, recipe=recipe)

    def trained() -> dict[str, tuple[nn.Module, Plan]]:
        train = cued(known(data).train)
        return {"model": (victim(train, Dice(seed).named("cued"), device=device()), victim.plan(train))}

    return kept(workshop, {"data": data, "seed": seed, "cue": "at the edge"} | described(victim), trained)["model"]


def reasons(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """The share of the maps on the object, for a network of clean images and one whose images gave the class away."""
    here = arena(row["data"], seed, workshop)
    cheated = trained_on_cues(row["data"], seed, workshop)
    some = cued(here.test.spread(row["images"])).to(device_of(here.model))
    x, y = floats(some.images, channels_last=True), some.labels
    margin = max(1, x.shape[2] // 8)
    middle = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool, device=x.device)
    middle[:, margin:-margin, margin:-margin] = True
    maps = {
        name: EXPLAINERS[row["explainer"]](model, x, y, **row["options"])
        for name, model in (("clean", here.model), ("cued", cheated))
    }
    found = {f"share_inside_{name}": float(share_inside(each, middle).nanmean()) for name, each in maps.items()}
    found |= {"accuracy_cued": accuracy(cheated, here.test), "accuracy_clean": accuracy(here.model, here.test)}
    return found | {"maps": examples(x, [some.classes[k] for k in y.tolist()], maps)}


def errors(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """How well a ranking for the class that is named finds the test errors."""
    here = arena(row["data"], seed, workshop)
    some = here.test.spread(row["images"])
    named = predictions(here.model, some.images).cpu()
    blind = Data(images=some.images, labels=named, classes=some.classes)
    return {"auc": auroc(-ease(row["by"], here.model, blind), named != some.labels)}


@dataclass(frozen=True, kw_only=True)
class Mislabelled:
    """A network, its training images, which of them have a wrong label, and which were right after each epoch."""

    model: nn.Module
    data: Data
    wrong: Tensor
    right: Tensor


@lru_cache(maxsize=2)
def mislabelled(data: str, seed: int, workshop: Workshop) -> Mislabelled:
    """A network trained on images of which 5 % have a wrong label."""
    train, dice = known(data).train, Dice(seed).named("noisy")
    count = len(train.classes)
    wrong = torch.rand(len(train), generator=dice.named("which").generator()) < 0.05
    by = torch.randint(1, count, train.labels.shape, generator=dice.named("by").generator())
    noisy = replace(train, labels=torch.where(wrong, (train.labels + by) % count, train.labels))
    recipe = replace(VICTIMS[data].recipe, epochs=min(10, VICTIMS[data].recipe.epochs))
    victim = replace(VICTIMS[data], recipe=recipe)

    def make(place: Path) -> None:
        images, right = noisy.to(device()), []
        model = victim.untrained(images, dice, device=device())
        for _ in victim.learning(model, images, dice):
            right.append(predictions(model, images.images).cpu() == noisy.labels)
        save_model(place / "model.safetensors", model, victim.plan(noisy))
        save_tensors(place / "right.safetensors", {"right": torch.stack(right)}, kind="history")

    place = workshop.made("mislabelled", {"data": data, "seed": seed, "share": 0.05} | described(victim), make)
    model = placed(load_model(place / "model.safetensors")[0], device())
    right = load_tensors(place / "right.safetensors", kind="history")[0]["right"]
    return Mislabelled(model=model, data=noisy, wrong=wrong, right=right)


def wrong_labels(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """How well hardness finds wrong labels among the images that the network learned from."""
    here = mislabelled(row["data"], seed, workshop)
    if row["by"] == "forgetting":
        return {"auc": auroc(forgotten(here.right).double(), here.wrong)}
    some = slice(None, None, -(-len(here.data) // row["images"]))
    return {"auc": auroc(-ease(row["by"], here.model, here.data.take(some)), here.wrong[some])}


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


def whole(data: str) -> Victim:
    """The usual network."""
    return VICTIMS[data]


def holed(data: str) -> Victim:
    """The usual network, trained with two in-painted holes on each image."""
    usual, hole = VICTIMS[data], 2 * SIDES[data] - 1
    return replace(
        usual, recipe=replace(usual.recipe, epochs=3 * usual.recipe.epochs // 2, holes=2, hole=hole, fill="inpaint")
    )


def masked(data: str) -> Victim:
    """The usual network, trained for longer, and under the pairs of PatchCleanser's masks that hide most."""
    usual, epochs = VICTIMS[data], 5 * VICTIMS[data].recipe.epochs // 2
    loss = Masked(patch=SIDES[data], tries=4, whole=0.4, fill="inpaint")
    return replace(usual, recipe=replace(usual.recipe, epochs=epochs, weight_decay=2e-3), loss=loss)


TRAININGS = {"whole": whole, "holes": holed, "masked": masked}


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


def base(scale: str, images: int) -> dict[str, Any]:
    """What all rows share."""
    data = SIGNS[scale]
    return {"data": data, "network": VICTIMS[data].network, "images": min(images, 60) if scale == "smoke" else images}


def explanations(scale: str) -> Iterator[Row]:
    """The pointing game on stickers, and right for the right reasons."""
    small = {"window": 3} if scale == "smoke" else {}
    finer = () if scale == "smoke" else (("gradcam", {"layer": "8"}),)  # maps of 8 x 8, where the last have 2 x 2
    around: dict[str, Any] = small | {"fill": "inpaint"}
    weighed = around | {"fall": "log-probability", "weighed": True}
    covers = (("occlusion", small), ("occlusion", around), ("occlusion", weighed))
    for explainer, options in (("gradient", {}), ("gradcam", {}), *finer, *covers):
        given = {"explainer": explainer, "options": options, "training": "whole"}
        for kind in ("patch", "stickers"):
            yield Row(settings=base(scale, 430) | given | {"attack": kind}, measure=pointing, seeds=3)
        images = 215 if explainer == "occlusion" else 430  # maps of two networks, all windows
        yield Row(settings=base(scale, images) | given | {"cue": "at the edge"}, measure=reasons, seeds=3)


def hard_samples(scale: str) -> Iterator[Row]:
    """Which measures of hardness find test errors and wrong labels."""
    for by in HARDNESS:
        settings = base(scale, 2580) | {"by": by, "finds": "test errors"}
        yield Row(settings=settings | ({"images": 359} if scale == "smoke" else {}), measure=errors, seeds=3)
    for by in (*HARDNESS, "forgetting"):
        settings = base(scale, 4300) | {"by": by, "finds": "5 % wrong labels"}
        yield Row(settings=settings | ({"images": 300} if scale == "smoke" else {}), measure=wrong_labels, seeds=3)


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
