"""Defences against attacks that know them, on real road signs; cleaners against poisons; images of no class.

    MISCUE_DATA=../shared/data:CACHE python benchmarks/defend.py [--only NAME,...] [--seeds 3] [--record]

CACHE is the folder that the data's unpack.py wrote to. Networks are those of test_time.py, kept in runs/nets, one a
seed. An attack on a defended network is made on that network (white-box), and where its gradients may be masked also
through a copy whose gradients leak, and by queries alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from common import Measures, Row, measure_rows
from miscue.cleaners import CLEANERS
from miscue.data import Data, floats
from miscue.defences import Adversarial, Occluded, Scenic, bound, feature_norm, tuning
from miscue.defences.bounded import leaky
from miscue.detectors.patchcleanser import Masks, cleanse
from miscue.dice import Dice
from miscue.evasions import patch, pgd, stickers
from miscue.evasions.attempt import scored
from miscue.evasions.patch import pasted
from miscue.measures.accuracy import accuracy
from miscue.measures.activations import maxima
from miscue.measures.outside import confidence, told_apart
from miscue.models.modes import frozen
from miscue.readers import read
from miscue.train import Recipe
from miscue.victims import VICTIMS as USUAL
from miscue.victims import Victim
from test_time import NETS, SAID, VICTIMS, arena

TWO = (14, 17)  # stop, and no entry
SIDE = 5
TUNING = Recipe(lr=0.01, momentum=0.9, epochs=4, batch_size=128, schedule="cosine", shift=2)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A network, the same with bounds, another seed's, and test images of all its classes."""

    original: nn.Module
    bounded: nn.Module
    other: nn.Module
    train: Data
    test: Data


def only(data: Data, classes: tuple[int, ...]) -> Data:
    """The images of some classes, with labels from 0."""
    index = torch.isin(data.labels, torch.tensor(classes)).nonzero()[:, 0]
    some = data.take(index)
    labels = torch.tensor([classes.index(label) for label in some.labels.tolist()])
    return replace(some, labels=labels, classes=tuple(data.classes[c] for c in classes))


@cache
def pair(ways: int, seed: int) -> Pair:
    """Trained for `TUNING.epochs` fewer epochs than the recipe says, then for these with bounds, or without."""
    here = arena("gtsrb", seed)
    train, test = (here.train, here.test) if ways == 43 else (only(part, TWO) for part in (here.train, here.test))
    victim = VICTIMS["gtsrb"]
    models = []
    for number in (0, 1):
        dice = Dice(seed).named("pair", ways, number)
        begun = replace(victim, recipe=replace(victim.recipe, epochs=victim.recipe.epochs - TUNING.epochs))
        models.append(begun(train, dice))
    bounded = bound(models[0], train.spread(2000))
    for _ in tuning(bounded, train, TUNING, Dice(seed).named("tune", ways)):
        pass
    for number, model in enumerate(models):
        for _ in replace(victim, recipe=TUNING).learning(model, train, Dice(seed).named("on", ways, number)):
            pass
    return Pair(original=models[0], bounded=bounded, other=models[1], train=train, test=test)


ATTACKS: dict[str, Callable[[int], Callable]] = {
    "stickers": lambda seed: partial(stickers, area=0.1, until="sure", dice=Dice(seed)),
    "square": lambda seed: partial(pgd, eps=1.0, alpha=0.05, steps=60, side=SIDE, restarts=3, dice=Dice(seed)),
    "pgd": lambda seed: partial(pgd, eps=8 / 255, alpha=1 / 255, steps=40, dice=Dice(seed)),
    "patch": lambda seed: partial(universal_patch, seed=seed),
}


def universal_patch(model: nn.Module, x: Tensor, y: Tensor, *, seed: int) -> object:
    """The patch that is made from the images themselves, at random places."""
    return patch(model, x, y, area=0.1, steps=600, dice=Dice(seed))


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images a model errs on: bool (n,)."""
    with frozen(model):
        return scored(model, x).argmax(1) != y


def outcome(ways: int, attack: str, made_on: str, against: str, seed: int) -> Measures:
    """Of attacks that are made on one network: none, the one, the other or both networks are fooled, in percent.

    Images that either network misreads when clean are left out.
    """
    all_of_it = pair(ways, seed)
    some = all_of_it.test.spread(430)
    x, y = floats(some.images, channels_last=True), some.labels
    first, second = getattr(all_of_it, made_on), getattr(all_of_it, against)
    maker = leaky(first) if made_on == "bounded" and attack.endswith("leaky") else first
    attacked = ATTACKS[attack.removesuffix(", leaky")](seed)(maker, x, y).x
    read_right = ~(wrong(first, x, y) | wrong(second, x, y))
    one, other = wrong(first, attacked, y)[read_right], wrong(second, attacked, y)[read_right]
    shares = {"none": ~one & ~other, "made_on_only": one & ~other, "against_only": ~one & other, "both": one & other}
    found = {name: 100 * float(share.double().mean()) for name, share in shares.items()}
    return found | {"white_box_success": 100 * float(one.double().mean())}


def kept_accuracy(ways: int, seed: int) -> Measures:
    """Clean accuracy of the pair, from the same budget of epochs."""
    both = pair(ways, seed)
    return {
        "accuracy_original": accuracy(both.original, both.test),
        "accuracy_bounded": accuracy(both.bounded, both.test),
    }


def kept_on_mnist(seed: int) -> Measures:
    """The same on MNIST: two epochs and two more, with bounds or without."""
    splits = read("mnist")
    assert splits.test is not None
    recipe = replace(VICTIMS["mnist"].recipe, epochs=2)
    victim, dice = replace(VICTIMS["mnist"], recipe=recipe), Dice(seed).named("mnist pair")
    original = victim(splits.train, dice)
    bounded = bound(deepcopy(original), splits.train.spread(2000))
    for _ in tuning(bounded, splits.train, replace(recipe, lr=0.01), dice.named("tune")):
        pass
    for _ in replace(victim, recipe=replace(recipe, lr=0.01)).learning(original, splits.train, dice.named("on")):
        pass
    return {
        "accuracy_original": accuracy(original, splits.test),
        "accuracy_bounded": accuracy(bounded, splits.test),
    }


DEFENDED: dict[str, Victim] = {
    "none": VICTIMS["gtsrb"],
    "occluded": replace(VICTIMS["gtsrb"], loss=Occluded(side=7)),
    "holes": replace(VICTIMS["gtsrb"], recipe=replace(VICTIMS["gtsrb"].recipe, holes=2, hole=9, epochs=60)),
    "adversarial": replace(VICTIMS["gtsrb"], loss=Adversarial(eps=4 / 255, steps=5)),
    "scenic": replace(VICTIMS["gtsrb"], loss=Scenic()),
}


@cache
def defended(name: str, seed: int) -> nn.Module:
    """A network under a defence."""
    if name == "none":
        return arena("gtsrb", seed).model
    if name == "bounded":
        return pair(43, seed).bounded
    if name == "feature-norm":
        here = arena("gtsrb", seed)
        return feature_norm(here.model, here.train.spread(2000))
    return arena("gtsrb", seed, victim=DEFENDED[name], name=f"gtsrb-{name}").model


def against_a_square(name: str, seed: int) -> Measures:
    """Accuracy on clean images and on those with the worst square that PGD finds on the defended network itself.

    Of several attacks (also through leaking gradients where bounds are) each image meets the worst.
    """
    test = arena("gtsrb", seed).test
    model, some = defended(name, seed), test.spread(430)
    x, y = floats(some.images, channels_last=True), some.labels
    attack = partial(pgd, eps=1.0, alpha=0.05, steps=60, side=SIDE, restarts=5, dice=Dice(seed))
    broken = wrong(model, x, y)
    for maker in (model, leaky(model)) if name == "bounded" else (model,):
        broken |= wrong(model, attack(maker, x, y).x, y)
    return {"accuracy": accuracy(model, test), "robust_accuracy": 100 * float((~broken).double().mean())}


def behind_masks(seed: int) -> Measures:
    """PatchCleanser on the network trained with holes, against squares made on it and through its masks."""
    test, model = arena("gtsrb", seed).test, defended("holes", seed)
    some = test.spread(430)
    x, y = floats(some.images, channels_last=True), some.labels
    masks = Masks.against(SIDE, (32, 32), per_side=6)

    def covering(z: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(masks), (len(z),), generator=generator)
        return z.masked_fill(masks.inside[chosen][:, None], 0.5)

    broken = cleanse(model, x, masks).named != y
    clean = 100 * float((~broken).double().mean())
    for transform in (None, covering):
        attack = partial(pgd, eps=1.0, alpha=0.05, steps=60, side=SIDE, restarts=2, samples=6, dice=Dice(seed))
        broken |= cleanse(model, attack(model, x, y, transform=transform).x, masks).named != y
    return {"accuracy": clean, "robust_accuracy": 100 * float((~broken).double().mean())}


def under_a_patch(name: str, seed: int) -> Measures:
    """A universal patch of 10 % made on the defended network, at fresh places."""
    here, model = arena("gtsrb", seed), defended(name, seed)
    made_from, labels = here.images(2000, of=here.train)
    x, y = here.images(860)
    made = patch(model, made_from, labels, area=0.1, steps=600, dice=Dice(seed)).shared
    assert made is not None
    generator = Dice(seed).named("places").generator()
    seen = pasted(made, x, form="square", turn=22.5, shrink=1.0, generator=generator)
    right = ~wrong(model, x, y)
    return {"success": 100 * float(wrong(model, seen, y)[right].double().mean())}


def cleaned(poison: str, cleaner: str, seed: int) -> Measures:
    """Test accuracy of a network trained on poisoned MNIST after a cleaner; the poisoned copy lies in runs/."""
    folder = NETS.parent / f"mnist-{poison}"
    poisoned, clean = read(folder).train, read("mnist")
    assert clean.test is not None
    data = poisoned if cleaner == "none" else CLEANERS[cleaner](poisoned)
    name = "cnn-released" if poison.startswith("deepconfuse") else "cnn-padded"
    usual = USUAL[name]
    assert isinstance(usual, Victim)
    victim = replace(usual, recipe=replace(usual.recipe, epochs=2))
    model = victim(data, Dice(seed).named("cleaned"))
    return {"test_accuracy": accuracy(model, clean.test)}


def unknown(other: str, seed: int) -> Measures:
    """A network of CIFAR-10 and images of another set: AUROC, FPR95, the largest activations, other brightness."""
    here = arena("cifar10-jpeg", seed)
    images = here.test.spread(2000).images
    strange = read(other, resize=32).test
    assert strange is not None
    foreign = strange.spread(2000).images.expand(-1, 3, -1, -1).contiguous()
    inside, outside = confidence(here.model, images), confidence(here.model, foreign)
    known, unknown_ = (maxima(here.model, some) for some in (images, foreign))
    last = list(known)[-1]
    found = told_apart(inside, outside) | {
        "confidence_inside": 100 * float(inside.mean()),
        "confidence_outside": 100 * float(outside.mean()),
        "activation_inside": float(known[last].amax(1).mean()),
        "activation_outside": float(unknown_[last].amax(1).mean()),
    }
    for scale in (0.25, 0.5, 2.0, 4.0):
        found[f"confidence_inside scaled {scale:g}"] = 100 * float(confidence(here.model, images, scale=scale).mean())
        found[f"confidence_outside scaled {scale:g}"] = 100 * float(confidence(here.model, foreign, scale=scale).mean())
    return found


def rows() -> Iterator[tuple[str, Row]]:
    """(what --only chooses by, the row)."""
    base: dict[str, object] = {"data": "gtsrb", "network": "conv5"}
    for ways in (2, 43):
        yield "bounded-accuracy", (base | {"ways": ways}, partial(kept_accuracy, ways))
        for attack in ATTACKS:
            for made_on, against in (("original", "bounded"), ("bounded", "original"), ("original", "other")):
                row = base | {"ways": ways, "attack": attack, "made_on": made_on, "against": against}
                yield "outcome", (row, partial(outcome, ways, attack, made_on, against))
        for attack in ("square, leaky", "pgd, leaky"):
            row = base | {"ways": ways, "attack": attack, "made_on": "bounded", "against": "original"}
            yield "outcome", (row, partial(outcome, ways, attack, "bounded", "original"))
    yield "bounded-accuracy", ({"data": "mnist", "network": "cnn-padded", "ways": 10}, kept_on_mnist)
    for name in (*DEFENDED, "bounded", "feature-norm"):
        row = base | {"defence": name, "attack": f"square of {SIDE} pixels"}
        yield "square", (row, partial(against_a_square, name))
        yield "patch", (base | {"defence": name, "attack": "patch of 10 %"}, partial(under_a_patch, name))
    yield "square", (base | {"defence": "patchcleanser", "attack": f"square of {SIDE} pixels"}, behind_masks)
    for poison in ("deepconfuse", "pixel2", "one-pixel-shortcut"):
        for cleaner in ("none", *CLEANERS):
            row = {"data": "mnist", "poison": poison, "cleaner": cleaner}
            yield "cleaners", (row, partial(cleaned, poison, cleaner))
    for other in ("gtsrb", "fashion-mnist"):
        yield "unknown", ({"data": "cifar10-jpeg", "network": "conv5", "shown": other}, partial(unknown, other))


if __name__ == "__main__":
    measure_rows(rows(), "defend", __doc__, data=SAID)
