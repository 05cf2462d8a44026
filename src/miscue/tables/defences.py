"""The tables of defences: attacks that know them, cleaners against poisons, images of no class.

An attack on a defended network is made on that network (white-box), and where its gradients may be masked also through
a copy whose gradients leak, and by queries alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from miscue.cleaners import CLEANERS
from miscue.covers import covered
from miscue.data import Data
from miscue.defences import Adversarial, Occluded, bound, feature_norm, tuning
from miscue.defences.bounded import leaky
from miscue.detectors.patchcleanser import Masks, cleanse
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions import Adversarial as Found
from miscue.evasions import deepfool, patch, pgd, stickers
from miscue.evasions.attempt import scored
from miscue.evasions.patch import pasted
from miscue.measures.accuracy import accuracy
from miscue.measures.activations import maxima
from miscue.measures.outside import surprise
from miscue.models.modes import Model, frozen
from miscue.models.store import Plan
from miscue.tables.nets import PHOTOS, SIGNS, VICTIMS, Arena, arena, described, foreign, kept
from miscue.tables.poisoned import crafted, device, known
from miscue.tables.rows import Drawn, Measures, Row, Workshop
from miscue.tables.single_pixel import QUICK
from miscue.tables.understanding import SIDES, holed, masked
from miscue.victims import Victim, network

TWO = {"digits": (3, 8), "gtsrb": (14, 17)}  # of road signs: stop, and no entry
STEPS = {"digits": 10, "gtsrb": 60}  # of PGD
TUNED = {"digits": 2, "gtsrb": 4, "mnist": 1}  # epochs with bounds, out of all
ON_EPOCHS = {"digits": 4, "gtsrb": 30}  # under squares, after the usual network's own
BALL_EPOCHS = {"digits": 4, "gtsrb": 12}  # the same under PGD


SLIDES = {
    2: {"none": 3.0, "against_only": 0.0, "made_on_only": 91.0, "both": 6.0},
    43: {"none": 17.0, "against_only": 0.0, "made_on_only": 80.5, "both": 2.5},
}
"""The slides' outcome tables: made on the original network, against a bounded one."""
READINGS = {
    "stickers": ("bounded", "stickers of which the original is sure; the bounded network went on from the original"),
    "deepfool": ("apart", "just enough to fool the original; the bounded network was trained by itself"),
}
"""The attacks that stand beside the slides' figures, the bounded network meant, and what to know of it."""
PAIRS = (("original", "bounded"), ("bounded", "original"), ("original", "other"), ("original", "apart"))
"""What attacks are made on, and whom they meet then. `apart` has nothing in common with the original but the images."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A network, the same with bounds, another seed's, that one with bounds, and images of their classes."""

    original: nn.Module
    bounded: nn.Module
    other: nn.Module
    apart: nn.Module
    train: Data
    test: Data


def only(data: Data, classes: tuple[int, ...]) -> Data:
    """The images of some classes, with labels from 0."""
    here = data.labels.device
    some = data.take(torch.isin(data.labels, torch.tensor(classes, device=here)).nonzero()[:, 0])
    labels = torch.tensor([classes.index(label) for label in some.labels.tolist()], device=here)
    return replace(some, labels=labels, classes=tuple(data.classes[c] for c in classes))


def with_bounds(model: nn.Module, train: Data, victim: Victim, dice: Dice) -> tuple[nn.Module, Plan]:
    """A copy with bounds, tuned by a victim's recipe, and how to build it."""
    images = train.to(device())
    copy = bound(model, images.spread(2000))
    for _ in tuning(copy, images, victim.recipe, dice):
        pass
    plan = victim.plan(train)
    return copy, replace(plan, options=plan.options | {"bounded": 0.0})


@lru_cache(maxsize=4)
def pair(name: str, ways: int, seed: int, workshop: Workshop) -> Pair:
    """Trained for some epochs fewer than the recipe says, then for these with bounds, and without: the same budget.

    `apart` has its bounds after all these epochs, and some more with them.
    """
    splits = known(name)
    assert splits.test is not None
    train, test = splits.train, splits.test
    if ways == 2:
        train, test = (only(part, TWO[name]) for part in (train, test))
    usual, last = VICTIMS[name], TUNED[name]
    first = replace(usual, recipe=replace(usual.recipe, epochs=max(1, usual.recipe.epochs - last)))
    then = replace(usual, recipe=replace(usual.recipe, epochs=last, lr=usual.recipe.lr / 5))
    plan = usual.plan(train)

    def tuned(model: nn.Module, *words: str) -> tuple[nn.Module, Plan]:
        return with_bounds(model, train, then, Dice(seed).named("tune", ways, *words))

    def trained() -> dict[str, tuple[nn.Module, Plan]]:
        images = train.to(device())
        models = [first(images, Dice(seed).named("pair", ways, number), device=device()) for number in (0, 1)]
        bounded = tuned(models[0])
        for number, model in enumerate(models):
            for _ in then.learning(model, images, Dice(seed).named("on", ways, number)):
                pass
        return {"original": (models[0], plan), "bounded": bounded, "other": (models[1], plan)}

    settings = {"data": name, "seed": seed, "ways": ways, "tuned": described(then)} | described(first)
    nets = kept(workshop, settings, trained)
    nets |= kept(workshop, settings | {"bounds": "apart"}, lambda: {"apart": tuned(nets["other"], "apart")})
    return Pair(**nets, train=train, test=test)


def attacks(data: str, seed: int) -> dict[str, Callable[[Model, Tensor, Tensor], Found]]:
    """The attacks of the outcome table, with their settings."""
    steps, side, dice, small = STEPS[data], SIDES[data], Dice(seed).named("attack"), data == "digits"
    quick: dict[str, Any] = {"population": 8, "generations": 3} if small else {}

    def flat(model: Model, x: Tensor, y: Tensor) -> Found:
        return stickers(model, x, y, area=0.15 if small else 0.1, until="sure", dice=dice, **quick)

    def square(model: Model, x: Tensor, y: Tensor) -> Found:
        return pgd(model, x, y, eps=1.0, alpha=0.05, steps=steps, side=side, restarts=3, dice=dice)

    def ball(model: Model, x: Tensor, y: Tensor) -> Found:
        eps = 0.15 if small else 8 / 255
        return pgd(model, x, y, eps=eps, alpha=eps / 8, steps=steps, dice=dice)

    def everywhere(model: Model, x: Tensor, y: Tensor) -> Found:
        return patch(model, x, y, area=0.2 if small else 0.1, steps=10 * steps, dice=dice)

    return {"stickers": flat, "square": square, "pgd": ball, "patch": everywhere, "deepfool": deepfool}


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images a model errs on: bool (n,)."""
    with frozen(model):
        return scored(model, x).argmax(1) != y


def outcome(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Of attacks made on one network: none, the one, the other or both networks are fooled, in percent.

    Images that either network misreads when clean are left out.
    """
    both = pair(row["data"], row["ways"], seed, workshop)
    first, second = getattr(both, row["made_on"]), getattr(both, row["against"])
    x, y = Arena(model=first, train=both.train, test=both.test).images(row["images"])
    attacked = attacks(row["data"], seed)[row["attack"]](leaky(first) if row["leaky"] else first, x, y).x
    right = ~(wrong(first, x, y) | wrong(second, x, y))
    one, other = wrong(first, attacked, y)[right], wrong(second, attacked, y)[right]
    shares = {"none": ~one & ~other, "made_on_only": one & ~other, "against_only": ~one & other, "both": one & other}
    return {name: 100 * float(share.double().mean()) for name, share in shares.items()} | {
        "success_where_made": 100 * float(one.double().mean())
    }


def verdict(records: list[dict[str, Any]], attack: str, ways: int) -> str:
    """A sentence made from the numbers: does bounding help, or does it only keep attacks from transferring?

    records: lines of the outcome table, as they are summed up.
    """

    def mean(made_on: str, against: str, measure: str, *, leaking: bool = False) -> float:
        for record in records:
            row = record["row"]
            same = (row["attack"], row["ways"], row["made_on"], row["against"]) == (attack, ways, made_on, against)
            if same and row["leaky"] == leaking and record["measure"] == measure:
                return float(record["mean"])
        raise InputError(f"no outcome of {attack}, {ways} ways, made on {made_on}")

    carried = mean("original", "bounded", "both")
    control = mean("original", "other", "both")
    on_original = mean("original", "bounded", "success_where_made")
    on_bounded = mean("bounded", "original", "success_where_made")
    with suppress(InputError):
        on_bounded = max(on_bounded, mean("bounded", "original", "success_where_made", leaking=True))
    helps = on_bounded < on_original - 10
    text = f"{attack}, {ways} classes: of attacks on the original {carried:.0f} % fool the bounded network too, "
    text += f"and {control:.0f} % another one without bounds; made on the bounded network itself "
    text += f"{on_bounded:.0f} % succeed, on the original {on_original:.0f} %. "
    return text + ("Bounding helps." if helps else "Bounding only keeps attacks from transferring, if that.")


def verdicts(records: list[dict[str, Any]]) -> list[str]:
    """The sentence of each attack and number of classes of the outcome table, where all that it needs is there."""
    found = []
    for attack, ways in dict.fromkeys((record["row"]["attack"], record["row"]["ways"]) for record in records):
        with suppress(InputError):
            found.append(verdict(records, attack, ways))
    return found


def kept_accuracy(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """Clean accuracy with bounds and without, from the same budget of epochs."""
    both = pair(row["data"], row["ways"], seed, workshop)
    return {
        "accuracy_original": accuracy(both.original, both.test),
        "accuracy_bounded": accuracy(both.bounded, both.test),
    }


def victims(data: str) -> dict[str, Victim]:
    """Networks trained under a defence; those of ON go on from the usual network."""
    usual, side, small = VICTIMS[data], SIDES[data], data == "digits"
    longer, under = (replace(usual.recipe, epochs=epochs[data]) for epochs in (ON_EPOCHS, BALL_EPOCHS))
    squares = Occluded(side=side, candidates=2, drawn=8, steps=3, alpha=0.3, whole=0.4)
    ball = Adversarial(eps=0.1 if small else 4 / 255, steps=2 if small else 5)
    return {
        "none": usual,
        "occluded": replace(usual, recipe=longer, loss=squares),
        "holes": holed(data),
        "masked": masked(data),
        "adversarial": replace(usual, recipe=under, loss=ball),
        "scenes": replace(usual, recipe=replace(usual.recipe, scenes=1.0)),
    }


ON = ("occluded", "adversarial")
DEFENCES = ("none", "occluded", "holes", "masked", "adversarial", "scenes", "bounded", "feature-norm")


def bounded(data: str, seed: int, workshop: Workshop) -> nn.Module:
    """The usual network with bounds, tuned for some epochs more."""
    usual = VICTIMS[data]
    then = replace(usual, recipe=replace(usual.recipe, epochs=TUNED[data], lr=usual.recipe.lr / 5))

    def trained() -> dict[str, tuple[nn.Module, Plan]]:
        here = arena(data, seed, workshop)
        return {"model": with_bounds(here.model, here.train, then, Dice(seed).named("bounded", data))}

    settings = {"data": data, "seed": seed, "bounds": "on", "tuned": described(then)} | described(usual)
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
    strange = foreign(row["shown"], here.test, row["images"])
    usual, other = (maxima(here.model, some) for some in (images, strange))
    last = list(usual)[-1]
    found, shares = surprise(here.model, images, strange)
    found |= {
        "activation_inside": float(usual[last].amax(1).mean()),
        "activation_outside": float(other[last].amax(1).mean()),
    }
    return found | {"confidences": dict(zip(("of its classes", "of none"), shares, strict=True))}


def base(scale: str, images: int) -> dict[str, Any]:
    """What all rows share."""
    data = SIGNS[scale]
    return {"data": data, "network": VICTIMS[data].network, "images": min(images, 40) if scale == "smoke" else images}


def outcomes(scale: str) -> Iterator[Row]:
    """The slides' table with its controls: two-way and forty-way."""
    every = 10 if scale == "smoke" else 43
    for ways in (2, every):
        for attack in attacks(SIGNS[scale], 0):
            for made_on, against in PAIRS:
                if against == "apart" and attack not in READINGS:
                    continue
                given = {"ways": ways, "attack": attack, "made_on": made_on, "against": against, "leaky": False}
                meant, note = READINGS.get(attack, ("", ""))
                slides = (made_on, against) == ("original", meant)
                yield Row(
                    settings=base(scale, 430) | given,
                    measure=outcome,
                    published=SLIDES.get(ways, {}) if slides else {},
                    seeds=3,
                    note=note if slides else "",
                )
        for attack in ("square", "pgd"):
            given = {"ways": ways, "attack": attack, "made_on": "bounded", "against": "original", "leaky": True}
            yield Row(settings=base(scale, 430) | given, measure=outcome, seeds=3)


def bounds(scale: str) -> Iterator[Row]:
    """What bounds cost on clean images."""
    sets = (("digits", 10),) if scale == "smoke" else (("gtsrb", 43), ("mnist", 10))
    for data, ways in sets:
        settings = {"data": data, "network": VICTIMS[data].network, "ways": ways}
        yield Row(settings=settings, measure=kept_accuracy, seeds=3)


def defences(scale: str) -> Iterator[Row]:
    """Each defence against the square and the patch made on it."""
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
