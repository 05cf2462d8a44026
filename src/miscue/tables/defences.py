"""The tables of defences: attacks that know them, cleaners against poisons, images of no class.

An attack on a defended network is made on that network (white-box), and where its gradients may be masked also through
a copy whose gradients leak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from miscue.cleaners import CLEANERS
from miscue.covers import covered
from miscue.defences import Adversarial, Occluded, feature_norm
from miscue.defences.bounded import leaky
from miscue.detectors.patchcleanser import Masks, cleanse
from miscue.dice import Dice
from miscue.evasions import Adversarial as Found
from miscue.evasions import patch, pgd
from miscue.evasions.patch import pasted
from miscue.measures.accuracy import accuracy
from miscue.measures.activations import maxima
from miscue.measures.outside import surprise
from miscue.models.modes import Model, frozen
from miscue.models.store import Plan
from miscue.readers import read_alike
from miscue.tables.nets import PHOTOS, SIDES, SIGNS, TRAININGS, VICTIMS, arena, base, described, kept
from miscue.tables.outcomes import STEPS, bounding, with_bounds, wrong
from miscue.tables.poisoned import crafted, device, known
from miscue.tables.rows import Drawn, Measures, Row, Workshop
from miscue.tables.single_pixel import QUICK
from miscue.victims import Victim, network

DEFENCES = ("none", "occluded", "holes", "masked", "adversarial", "scenes", "bounded", "feature-norm")
ON = ("occluded", "adversarial")  # that go on from the usual network
SQUARE_EPOCHS = {"digits": 4, "gtsrb": 30}  # under squares
BALLS = {"digits": 0.1, "gtsrb": 4 / 255}  # radius of the noise
BALL_EPOCHS = {"digits": 4, "gtsrb": 12}  # under noise


def victims(data: str) -> dict[str, Victim]:
    """Networks trained under a defence; those of ON go on from the usual network."""
    usual, side, small = VICTIMS[data], SIDES[data], data == "digits"
    longer, under = (replace(usual.recipe, epochs=epochs[data]) for epochs in (SQUARE_EPOCHS, BALL_EPOCHS))
    squares = Occluded(side=side, candidates=2, drawn=8, steps=3, alpha=0.3, whole=0.4)
    ball = Adversarial(eps=BALLS[data], steps=2 if small else 5)
    return {
        "none": usual,
        "occluded": replace(usual, recipe=longer, loss=squares),
        "holes": TRAININGS["holes"](data),
        "masked": TRAININGS["masked"](data),
        "adversarial": replace(usual, recipe=under, loss=ball),
        "scenes": replace(usual, recipe=replace(usual.recipe, scenes=1.0)),
    }


def bounded(data: str, seed: int, workshop: Workshop) -> nn.Module:
    """The usual network with bounds, tuned for some epochs more."""
    then = bounding(data)

    def trained() -> dict[str, tuple[nn.Module, Plan]]:
        here = arena(data, seed, workshop)
        return {"model": with_bounds(here.model, here.train, then, Dice(seed).named("bounded", data))}

    settings = {"data": data, "seed": seed, "bounds": "on", "tuned": described(then)} | described(VICTIMS[data])
    return kept(workshop, settings, trained)["model"]


@lru_cache(maxsize=8)
def defended(data: str, name: str, seed: int, workshop: Workshop) -> nn.Module:
    """A network under a defence."""
    here = arena(data, seed, workshop)
    if name == "bounded":
        return bounded(data, seed, workshop)
    if name == "feature-norm":
        return feature_norm(here.model, here.train.spread(2000))
    if name == "none":
        return here.model
    return arena(data, seed, workshop, victim=victims(data)[name], on=name in ON).model


def hunted(model: Model, x: Tensor, y: Tensor, row: dict[str, Any], seed: int, **options: Any) -> Found:
    """A square by PGD: each of three times where it does most of the places tried, or once at a place that is drawn."""
    places: dict[str, Any] = {"side": row["side"], "tries": row["tries"], "restarts": 3 if row["tries"] > 1 else 1}
    steps, dice = STEPS[row["data"]], Dice(seed).named("attack")
    return pgd(model, x, y, eps=1.0, alpha=0.05, steps=steps, dice=dice, **places, **options)


def against_a_square(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Accuracy on clean images and on those with the worst square that PGD finds on the defended network itself.

    Of several attacks (also through leaking gradients where bounds are) each image meets the worst.
    """
    here = arena(row["data"], seed, workshop)
    model = defended(row["data"], row["defence"], seed, workshop)
    x, y = here.images(row["images"])
    broken = wrong(model, x, y)
    for maker in (model, leaky(model)) if row["defence"] == "bounded" else (model,):
        broken |= wrong(model, hunted(maker, x, y, row, seed).x, y)
    return {"accuracy": accuracy(model, here.test), "robust_accuracy": 100 * float((~broken).double().mean())}


def behind_masks(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """PatchCleanser on a network trained to see through masks, against squares made on it, and through its masks."""
    here = arena(row["data"], seed, workshop)
    model = defended(row["data"], row["training"], seed, workshop)
    x, y = here.images(row["images"])
    height, width = here.test.shape[1:]
    masks = Masks.against(row["side"], (height, width), per_side=row["per_side"], fill="inpaint")

    def covering(z: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(masks), (len(z),), generator=generator)
        return covered(z, masks.inside[chosen].to(z.device), masks.fill)

    broken = cleanse(model, x, masks).named != y
    clean = 100 * float((~broken).double().mean())
    for transform in (None, covering):
        attacked = hunted(model, x, y, row, seed, samples=6, transform=transform)
        broken |= cleanse(model, attacked.x, masks).named != y
    return {"accuracy": clean, "robust_accuracy": 100 * float((~broken).double().mean())}


def told_where(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """A network that is told where the square lies, covers just that, and is right wherever it may lie."""
    here = arena(row["data"], seed, workshop)
    model = defended(row["data"], row["training"], seed, workshop)
    x, y = here.images(row["images"])
    height, width = here.test.shape[1:]
    masks = Masks.against(row["side"], (height, width), per_side=max(height, width), fill="inpaint")
    with frozen(model), torch.inference_mode():
        right = masks.named(model, x, masks.alone) == y[:, None]
    return {"accuracy": accuracy(model, here.test), "robust_accuracy": 100 * float(right.all(1).double().mean())}


def within_a_ball(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Accuracy on clean images and on those with the worst noise within eps that PGD finds on the defended network."""
    here = arena(row["data"], seed, workshop)
    model = defended(row["data"], row["defence"], seed, workshop)
    x, y = here.images(row["images"])
    eps, steps, dice = row["eps"], STEPS[row["data"]], Dice(seed).named("attack")
    attacked = pgd(model, x, y, eps=eps, alpha=eps / 8, steps=steps, restarts=3, dice=dice).x
    right = ~(wrong(model, x, y) | wrong(model, attacked, y))
    return {"accuracy": accuracy(model, here.test), "robust_accuracy": 100 * float(right.double().mean())}


def under_a_patch(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """A universal patch made on the defended network from training images, at fresh places on test images."""
    here, dice = arena(row["data"], seed, workshop), Dice(seed).named("patch")
    model = defended(row["data"], row["defence"], seed, workshop)
    made_from, labels = here.images(2 * row["images"], of=here.train)
    x, y = here.images(row["images"])
    made = patch(model, made_from, labels, area=0.1, steps=10 * STEPS[row["data"]], dice=dice).shared
    assert made is not None
    generator = dice.named("places").generator()
    seen = pasted(made, x, form="square", turn=22.5, shrink=1.0, generator=generator)
    right = ~wrong(model, x, y)
    return {"success": 100 * float(wrong(model, seen, y)[right].double().mean())}


def cleaned(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Test accuracy of a network trained on poisoned data after a cleaner, or on clean data after it."""
    splits = known(row["data"])
    assert splits.test is not None
    data = crafted(row, workshop)(splits.train) if row["poison"] else splits.train
    data = CLEANERS[row["cleaner"]](data) if row["cleaner"] else data
    model = network(row["victim"], row["victim_epochs"])(data, Dice(seed).named("cleaned"), device=device())
    return {"test_accuracy": accuracy(model, splits.test)}


def unknown(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """A network and images of another set: AUROC, FPR95, the largest activations, other brightness."""
    here = arena(row["data"], seed, workshop)
    images = here.test.spread(row["images"]).images
    strange = read_alike(row["shown"], here.test, row["images"]).images
    usual, other = (maxima(here.model, some) for some in (images, strange))
    last = list(usual)[-1]
    found, shares = surprise(here.model, images, strange)
    found |= {
        "activation_inside": float(usual[last].amax(1).mean()),
        "activation_outside": float(other[last].amax(1).mean()),
    }
    return found | {"confidences": dict(zip(("of its classes", "of none"), shares, strict=True))}


def defences(scale: str) -> Iterator[Row]:
    """Each defence against the square and the patch made on it; adversarial training also against its own noise."""
    square = {"side": SIDES[SIGNS[scale]], "tries": 4 if scale == "smoke" else 40}
    places = ((square["tries"], "where it does most"), (1, "at a place that is drawn"))
    laptop = scale == "laptop"  # where a network behind two masks takes hours
    for name in DEFENCES:
        short = laptop and name == "masked"
        for tries, note in places[:1] if short else places:
            given = {"defence": name, "attack": "square"} | square | {"tries": tries}
            yield Row(settings=base(scale, 430) | given, measure=against_a_square, seeds=3, note=note)
        if not short:
            given = {"defence": name, "attack": "patch"}
            yield Row(settings=base(scale, 860) | given, measure=under_a_patch, seeds=3)
    for name in ("none", "adversarial"):
        given = {"defence": name, "attack": "pgd"}
        settings = base(scale, 430) | given | {"eps": BALLS[SIGNS[scale]]}
        yield Row(settings=settings, measure=within_a_ball, seeds=3, note="what adversarial training is for")
    for training in ("holes",) if laptop else ("holes", "masked"):
        given = {"defence": "patchcleanser", "training": training, "attack": "square"} | square
        given["per_side"] = 3 if scale == "smoke" else 6
        yield Row(settings=base(scale, 430) | given, measure=behind_masks, seeds=3)
    given = {"defence": "told where it lies", "training": "holes", "attack": "square", "side": square["side"]}
    note = "what covering can reach at most with this network; no defence, since none is told"
    yield Row(settings=base(scale, 430) | given, measure=told_where, seeds=3, note=note)


def cleaners(scale: str) -> Iterator[Row]:
    """What each cleaner recovers from each poison, and what it costs clean data."""
    small = scale == "smoke"
    data = "digits" if small else "mnist"
    crafts: dict[str | None, dict[str, Any]] = {
        None: {},
        "deepconfuse": {"preset": "digits", "options": {"trials": 2, "steps": 20}} if small else {"preset": "fast"},
        "single-pixel": {"options": QUICK, "surrogate": "cnn-small"} if small else {},
        "one-pixel-shortcut": {},
    }
    for poison, craft in crafts.items():
        for cleaner in (None, *CLEANERS):
            body = "cnn-small" if small else "cnn-released" if poison == "deepconfuse" else "cnn-padded"
            settings = {"data": data, "poison": poison, "cleaner": cleaner, "victim": body, "victim_epochs": 2}
            yield Row(settings=settings | craft, measure=cleaned, seeds=3)


def outsiders(scale: str) -> Iterator[Row]:
    """Images of no class."""
    data = PHOTOS[scale]
    for other in ("digits",) if scale == "smoke" else ("gtsrb", "fashion-mnist"):
        settings = {"data": data, "network": VICTIMS[data].network, "shown": other}
        yield Row(settings=settings | {"images": 100 if scale == "smoke" else 2000}, measure=unknown, seeds=3)
