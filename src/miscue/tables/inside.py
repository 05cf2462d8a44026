"""What a poison or an attack does inside a classifier: deep features, a linear one's weights, activations by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from miscue.data import Data, eight_bit, floats
from miscue.dice import Dice
from miscue.evasions import pgd
from miscue.measures.accuracy import accuracy
from miscue.measures.activations import layers, weight_norms
from miscue.measures.features import hidden
from miscue.models.estimators import Estimator
from miscue.models.networks import device_of
from miscue.readers import read_alike
from miscue.tables.deepconfuse import clean, poisoned
from miscue.tables.nets import PHOTOS
from miscue.tables.nets import VICTIMS as USUAL
from miscue.tables.pictures import rounded, tones
from miscue.tables.poisoned import crafted, device, known
from miscue.tables.rows import Drawn, Row, Workshop
from miscue.victims import Victim, network, victim

FITTED, SHOWN = 2000, 300  # images that the plane is fitted to, and that are drawn of each set


def met(row: dict[str, Any], workshop: Workshop) -> tuple[Data, Data, Data]:
    """What a row's victim is trained on, the clean images of it, and clean test images."""
    splits = known(row["data"])
    assert splits.test is not None
    train = crafted(row, workshop)(splits.train) if row["poison"] else splits.train
    return train, splits.train, splits.test


def plane(features: Tensor) -> tuple[Tensor, Tensor, float]:
    """PCA of features (n, d): their mean, the first two axes (d, 2), and the share of the variance along them."""
    middle = features.mean(0)
    _, sizes, axes = torch.linalg.svd(features - middle, full_matrices=False)
    turned = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()
    power = sizes.square()
    return middle, turned.T, 100 * float(power[:2].sum() / power.sum().clamp(min=1e-12))


def features(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """The last hidden layer in the plane fitted to the images trained on, with clean images of both sets projected.

    "nearest_mean": the share of images that lie nearest to the mean, in that plane, of the training images of their
    class.
    """
    train, untouched, test = met(row, workshop)
    model = network(row["victim"], row.get("victim_epochs"))(train, Dice(seed).named("features"), device=device())
    sets = {"images trained on": train}
    sets |= {"the same, clean": untouched} if row["poison"] else {}
    sets |= {"clean test images": test}
    seen = {name: hidden(model, data.spread(FITTED).images).double().cpu() for name, data in sets.items()}
    labels = {name: data.spread(FITTED).labels for name, data in sets.items()}
    middle, axes, explained = plane(seen["images trained on"])
    points = {name: (some - middle) @ axes for name, some in seen.items()}
    own, classes = labels["images trained on"], len(train.classes)
    means = torch.stack([points["images trained on"][own == k].mean(0) for k in range(classes)])
    drawn = {}
    for name, some in points.items():
        step = -(-len(some) // SHOWN)
        drawn[name] = [[*xy, k] for xy, k in zip(rounded(some[::step]), labels[name][::step].tolist(), strict=True)]
    return {
        "variance_explained": explained,
        "test_accuracy": accuracy(model, test),
        **{
            f"nearest_mean, {name}": 100 * float((torch.cdist(some, means).argmin(1) == labels[name]).double().mean())
            for name, some in points.items()
        },
        "features": drawn,
    }


def weights(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """A linear classifier: what it reads right, and its weights as one picture a class."""
    train, untouched, test = met(row, workshop)
    learner = victim(row["victim"])
    model = learner.untrained(train, Dice(seed).named("weights"))
    for _ in learner.learning(model, train, Dice(seed).named("weights")):
        pass
    assert isinstance(model, Estimator)
    flat = torch.as_tensor(model.estimator.coef_).view(-1, *train.shape).mean(1)
    pictures = flat if len(flat) > 1 else torch.cat([-flat, flat])
    return {
        "test_accuracy": accuracy(model, test),
        "train_accuracy": accuracy(model, train),
        "train_accuracy_clean": accuracy(model, untouched),
        "weights": {"classes": list(train.classes), "pictures": tones(pictures)},
    }


def history(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """Activations after each epoch: of clean test images, of some with the worst square found, of another set."""
    splits = known(row["data"])
    assert splits.test is not None
    dice, train = Dice(seed).named("history"), splits.train.spread(row["trained_on"]).to(device())
    learner = Victim(network=row["network"], recipe=replace(USUAL[row["data"]].recipe, epochs=row["epochs"]))
    model = learner.untrained(train, dice, device=device())
    some = splits.test.spread(row["images"])
    few = splits.test.spread(row["attacked"]).to(device_of(model))
    sets = {"clean": some.images, "of another set": read_alike(row["shown"], splits.test, row["images"]).images}
    sizes: dict[str, list[Any]] = {name: [] for name in ("clean", "with a square", "of another set")}
    norms: list[dict[str, float]] = []
    for _ in learner.learning(model, train, dice):
        x = floats(few.images, channels_last=True)
        square: dict[str, Any] = {"eps": 1.0, "alpha": 0.1, "steps": row["steps"], "side": row["side"]}
        sets["with a square"] = eight_bit(pgd(model, x, few.labels, **square, dice=dice).x)
        for name, images in sets.items():
            sizes[name].append([[*layer.quantiles, layer.largest] for layer in layers(model, images)])
        norms.append(weight_norms(model))
    names = [layer.name for layer in layers(model, some.images[:2])]
    largest = {f"largest_activation, {name}": max(layer[-1] for layer in epochs[-1]) for name, epochs in sizes.items()}
    drawn = {name: rounded(torch.tensor(epochs).transpose(0, 1)) for name, epochs in sizes.items()}
    growth = {name: [round(norm[name], 3) for norm in norms] for name in norms[0]}
    return {
        "test_accuracy": accuracy(model, splits.test),
        **largest,
        "history": {"layers": names, "sizes": drawn, "norms": growth},
    }


def deep_features(scale: str) -> Iterator[Row]:
    """The figure of deep features."""
    for settings in (clean(scale), poisoned(scale)):
        yield Row(settings=settings, measure=features, seeds=3)


def linear_weights(scale: str) -> Iterator[Row]:
    """The figure of a linear SVM's weights."""
    for settings in (clean(scale), poisoned(scale)):
        yield Row(settings=settings | {"victim": "linear-svm"}, measure=weights, seeds=1)


def activations(scale: str) -> Iterator[Row]:
    """The slides' figures of activations during training: AlexNet with BatchNorm."""
    data, small = PHOTOS[scale], scale == "smoke"
    yield Row(
        settings={
            "data": data,
            "network": "cnn-small" if small else "alexnet",
            "trained_on": {"smoke": 1000, "laptop": 10_000, "paper": 50_000}[scale],
            "epochs": 3 if small else 10,
            "shown": "digits" if small else "gtsrb",
            "images": 60 if small else 500,
            "attacked": 20 if small else 100,
            "steps": 3 if small else 20,
            "side": 2 if small else 5,
        },
        measure=history,
        seeds=1,
    )
