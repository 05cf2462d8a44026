"""The tables of explanations and of hard samples: what points at what, with controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.evasions.attempt import scored
from miscue.explainers import EXPLAINERS
from miscue.hardness import HARDNESS, ease, forgotten
from miscue.measures.accuracy import accuracy, predictions
from miscue.measures.attribution import pointed, share_inside
from miscue.measures.statistics import auroc
from miscue.models.modes import frozen
from miscue.models.networks import device_of, placed
from miscue.models.store import Plan, load_model, load_tensors, save_model, save_tensors
from miscue.tables.detection import attacked
from miscue.tables.nets import TRAININGS, VICTIMS, arena, base, described, kept
from miscue.tables.pictures import examples
from miscue.tables.poisoned import device, known
from miscue.tables.rows import Drawn, Measures, Row, Workshop
from miscue.victims import Victim


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
    places, colours = width // (side + 1), 2**channels - 1
    for label in range(len(data.classes)):
        row, place = divmod(label, places)
        dark, colour = divmod(row, colours)
        lit = [255 >> dark if (colour + 1) >> bit & 1 else 64 for bit in range(channels)]
        value = torch.tensor(lit, dtype=torch.uint8)
        left = place * (side + 1)
        images[data.labels == label, :, :side, left : left + side] = value[None, :, None, None]
    return data.with_images(images)


def trained_on_cues(data: str, seed: int, workshop: Workshop) -> nn.Module:
    """A network of the usual recipe but without shifts, trained on images with the cue; road signs still in scenes."""
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
