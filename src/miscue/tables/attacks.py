"""The tables of test-time attacks: how often each succeeds, and what is left of it after a distortion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from miscue.dice import Dice
from miscue.distortions import DISTORTIONS
from miscue.evasions import EVASIONS, Adversarial, patch
from miscue.evasions.attempt import scored
from miscue.evasions.patch import pasted
from miscue.evasions.physical import views
from miscue.measures.accuracy import accuracy
from miscue.measures.robustness import robust_to
from miscue.models.modes import frozen
from miscue.tables.nets import PHOTOS, PLAIN, SIGNS, VICTIMS, arena
from miscue.tables.rows import Drawn, Measures, Row, Workshop

EPS = round(8 / 255, 6)


def method(row: dict[str, Any], seed: int) -> Callable[..., Adversarial]:
    """The attack of a row: "attack", "options", and "expecting" where it is to survive turns, light and noise."""
    attack, dice = EVASIONS[row["attack"]], Dice(seed).named("attack")
    more: dict[str, Any] = {"dice": dice} if "dice" in inspect.signature(attack).parameters else {}
    if row.get("expecting"):
        more["transform"] = views
    return lambda model, x, y: attack(model, x, y, **row.get("options", {}), **more)


def clean(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Right on all test images, without any attack."""
    here = arena(row["data"], seed, workshop)
    return {"test_accuracy": accuracy(here.model, here.test)}


def success(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """An attack on each of `row["images"]` test images by itself."""
    here = arena(row["data"], seed, workshop)
    found = method(row, seed)(here.model, *here.images(row["images"]))
    right = ~found.already
    return {
        "robust_accuracy": 100 * float((right & ~found.success).double().mean()),
        "success": 100 * float(found.success[right].double().mean()),
        "queries": float(found.queries.double().mean()),
    }


def fooled(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """The share of test images whose class changes under what is made from training images; signs of noise beside."""
    here = arena(row["data"], seed, workshop)
    x, _ = here.images(row["images"])
    made_from = here.images(row["images"], of=here.train)
    v = method(row, seed)(here.model, *made_from).shared
    assert v is not None
    signs = 2 * torch.randint(2, v.shape, generator=Dice(seed).named("noise").generator()) - 1
    with frozen(here.model):
        before = scored(here.model, x).argmax(1)
        changed = [
            100 * float((scored(here.model, (x + one).clamp(0, 1)).argmax(1) != before).double().mean())
            for one in (v, row["options"]["eps"] * signs.to(v))
        ]
    return {"fooling_rate": changed[0], "fooling_rate_of_noise": changed[1]}


def patched(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Test images with a patch made from training images, and with one of noise, at fresh random places.

    Of the patch also where its middle lies in the middle of the image, half as wide and high, and where around it.
    """
    victim = PLAIN[row["data"]] if row["training"] == "plain" else None
    here, dice, label = arena(row["data"], seed, workshop, victim=victim), Dice(seed).named("patch"), row["target"]
    (made_from, labels), (x, y) = here.images(4 * row["images"], of=here.train), here.images(row["images"])
    if label is not None:
        made_from, labels = made_from[labels != label], labels[labels != label]
        x, y = x[y != label], y[y != label]
    target = None if label is None else torch.full_like(labels, label)
    made = patch(here.model, made_from, labels, target=target, **row["options"], dice=dice).shared
    assert made is not None
    noise = torch.rand(made.shape, generator=dice.named("noise").generator()).to(made)
    found: Measures = {}
    with frozen(here.model):
        right = scored(here.model, x).argmax(1) == y
        for name, one in (("success", made), ("success_of_noise", noise)):
            generator = dice.named("places").generator()
            seen = pasted(one, x, form=row["options"]["form"], turn=22.5, shrink=1.0, generator=generator)
            named = scored(here.model, seen).argmax(1)
            hit = named != y if label is None else named == label
            found[name] = 100 * float(hit[right].double().mean())
            if one is made:
                near = central((seen != x).any(1))
                for place, there in (("middle", near), ("edge", ~near)):
                    found[f"{name}_at_the_{place}"] = 100 * float(hit[right & there].double().mean())
    return found


def central(masks: Tensor) -> Tensor:
    """Whether the middle of each mask (n, h, w) lies in the middle half of the image, both ways: bool (n,)."""
    near = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
    for side, other in ((1, 2), (2, 1)):
        along = masks.sum(other).double()  # (n, side)
        places = (torch.arange(masks.shape[side], device=masks.device) + 0.5) / masks.shape[side]
        near &= ((along @ places.double()) / along.sum(1) - 0.5).abs() < 0.25
    return near


def lasting(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """What is left of an attack's success after each distortion, at each strength; clean accuracy beside."""
    here = arena(row["data"], seed, workshop)
    x, y = here.images(row["images"])
    attacked = method(row, seed)(here.model, x, y)
    found: Measures = {}
    kept: dict[str, list[tuple[float, float]]] = {kind: [] for kind in DISTORTIONS}
    for kind, distortion in DISTORTIONS.items():
        for point in robust_to(distortion, here.model, x, attacked.x, y, draws=3, dice=Dice(seed).named(kind)):
            if point["kept"] == point["kept"]:  # a number
                found[f"kept, {kind} {point['strength']:g}"] = point["kept"]
                kept[kind].append((point["strength"], round(point["kept"], 3)))
            found[f"accuracy, {kind} {point['strength']:g}"] = point["accuracy"]
    return found | {"kept": kept}


def few(scale: str, count: int) -> int:
    """So many images, or a handful."""
    return min(count, 20) if scale == "smoke" else count


def strength(scale: str) -> Iterator[Row]:
    """FGSM, PGD, DeepFool and universal perturbations."""
    sets = {"digits": 0.15} if scale == "smoke" else {"cifar10-jpeg": EPS, "gtsrb": EPS, "mnist": 0.3}
    for data, eps in sets.items():
        base: dict[str, Any] = {"data": data, "network": VICTIMS[data].network}
        yield Row(settings=base | {"attack": None}, measure=clean, seeds=3)
        strong = {"eps": eps, "alpha": round(eps / 8, 6), "steps": 10 if scale == "smoke" else 40, "restarts": 2}
        for attack, options, count in (("fgsm", {"eps": eps}, 1000), ("pgd", strong, 1000), ("deepfool", {}, 500)):
            settings = base | {"attack": attack, "options": options, "images": few(scale, count)}
            yield Row(settings=settings, measure=success, seeds=3)
    for data in dict.fromkeys((PHOTOS[scale], SIGNS[scale])):
        for attack, count in (("universal", 500), ("universal-gradient", 2000)):
            base = {"data": data, "network": VICTIMS[data].network, "attack": attack}
            settings = base | {"options": {"eps": round(10 / 255, 6)}, "images": few(scale, count)}
            yield Row(settings=settings, measure=fooled, seeds=3)


def one_pixel(scale: str) -> Iterator[Row]:
    """One pixel by evolution as published, until another class is named, and exhaustively."""
    quick = {"population": 12, "generations": 3} if scale == "smoke" else {}
    for data in dict.fromkeys((PHOTOS[scale], SIGNS[scale])):
        base: dict[str, Any] = {"data": data, "network": VICTIMS[data].network, "images": few(scale, 100)}
        for attack, options in (
            ("one-pixel", quick),
            ("one-pixel", quick | {"until": "named"}),
            ("one-pixel-exhaustive", {}),
        ):
            yield Row(settings=base | {"attack": attack, "options": options}, measure=success, seeds=3)


def stickers(scale: str) -> Iterator[Row]:
    """Flat rectangles, by area and number, by evolution and along soft edges."""
    data = SIGNS[scale]
    base: dict[str, Any] = {"data": data, "network": VICTIMS[data].network, "images": few(scale, 172)}
    quick = {
        "stickers": {"population": 8, "generations": 2} if scale == "smoke" else {},
        "soft-stickers": {"starts": 2, "steps": 3} if scale == "smoke" else {},
    }
    for area in (0.1,) if scale == "smoke" else (0.02, 0.05, 0.1):
        for white, black in ((1, 0), (0, 1), (1, 1), (2, 2)):
            for attack, options in quick.items():
                given = options | {"area": area, "white": white, "black": black}
                yield Row(settings=base | {"attack": attack, "options": given}, measure=success, seeds=3)


def patches(scale: str) -> Iterator[Row]:
    """One patch for all images, at random places and turns."""
    data = SIGNS[scale]
    base: dict[str, Any] = {
        "data": data,
        "network": VICTIMS[data].network,
        "attack": "patch",
        "images": few(scale, 1000),
    }
    cases = (
        ("usual", "square", 0.1, None),
        ("usual", "circle", 0.1, None),
        ("usual", "square", 0.1, 8),
        ("usual", "square", 0.05, None),
        ("plain", "square", 0.1, None),
    )
    for training, form, area, target in cases[:3] if scale == "smoke" else cases:
        options = {"form": form, "area": area, "steps": 5 if scale == "smoke" else 1000}
        yield Row(
            settings=base | {"training": training, "options": options, "target": target}, measure=patched, seeds=3
        )


def distortions(scale: str) -> Iterator[Row]:
    """Does noise die under real distortion while patches and what expects it survive?"""
    data = SIGNS[scale]
    base: dict[str, Any] = {"data": data, "network": VICTIMS[data].network, "images": few(scale, 430)}
    steps = 3 if scale == "smoke" else 40
    ball, twice = {"eps": EPS, "steps": steps}, {"eps": 2 * EPS, "alpha": round(EPS / 2, 6), "steps": steps}
    small = scale == "smoke"
    for attack, options, expecting in (
        ("fgsm", {"eps": EPS}, False),
        ("pgd", ball, False),
        ("pgd", ball, True),
        ("pgd", twice, False),
        ("pgd", twice, True),
        ("stickers", {"area": 0.1, "until": "sure"} | ({"population": 8, "generations": 2} if small else {}), False),
        ("physical", {"area": 0.1} | ({"steps": 2, "samples": 1} if small else {}), False),
        ("scene", {"starts": 2, "steps": 2} if small else {}, False),
        ("patch", {"area": 0.1, "steps": 5 if small else 600}, False),
    ):
        settings = base | {"attack": attack, "options": options, "expecting": expecting}
        yield Row(settings=settings, measure=lasting, seeds=3)
