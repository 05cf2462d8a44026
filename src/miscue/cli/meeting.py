"""A model and the images that a command shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from miscue.data import Data, Splits, floats
from miscue.errors import InputError, lookup
from miscue.models.modes import frozen
from miscue.models.sources import Source, sourced
from miscue.models.store import load_model
from miscue.readers import read


def met(model: str, data: str, *, split: str, images: int, resize: int | None) -> tuple[Source, Data]:
    """The model named `model`, and at most so many images of a split of `data`, evenly spread.

    Raises:
        InputError: an unknown name or split, or a model that is for other images or classes.
    """
    source, splits = sourced(model), read(data, resize=resize)
    chosen = lookup({"test": splits.test, "train": splits.train}, split, "split")
    if chosen is None:
        raise InputError(f"{data} has no test set; --split train takes its training images")
    some = chosen.spread(images)
    fits(source, some, model, data)
    return source, some


def changeable(model: Path, data: str, *, resize: int | None) -> tuple[nn.Module, dict[str, Any], Splits]:
    """A model of ours, what is known of it, and `data`, whose images and classes it is for.

    Raises:
        InputError: no such model, or one that is for other images or classes.
    """
    refuse_foreign(model)
    net, facts = load_model(model)
    splits, plan = read(data, resize=resize), facts["plan"]
    refuse_stranger(plan["options"].get("classes"), tuple(plan["shape"]), splits.train, str(model), data)
    return net, facts, splits


def refuse_foreign(model: Path) -> None:
    """Raise an InputError where FILE.py:NAME is given to what saves the model again, which takes a plan of ours."""
    file, colon, _ = str(model).rpartition(":")
    if colon and file.endswith(".py"):
        raise InputError(
            f"{model}: only networks saved by miscue train are changed and saved again here; in Python, `bound` and "
            "`feature_norm` of miscue.defences change any"
        )


def refuse_stranger(classes: int | None, shape: tuple[int, ...] | None, data: Data, model: str, name: str) -> None:
    """Raise an InputError where a model is for other images or classes; None where it does not say."""
    if shape not in (None, data.shape) or classes not in (None, len(data.classes)):
        raise InputError(
            f"{model} is for {classes} classes of images {shape}, {name} has {len(data.classes)} of {data.shape}"
        )


def fits(source: Source, data: Data, model: str, name: str) -> None:
    """Raise an InputError where the model is for other images or classes; one that does not say is tried."""
    refuse_stranger(source.classes, source.shape, data, model, name)
    if source.classes is None:
        try:
            with torch.no_grad(), frozen(source.model):
                scores = source.model(floats(data.images[:1]))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{model} cannot take images {data.shape} of {name}: {error}") from None
        if not bool(scores.isfinite().all()):
            raise InputError(f"{model} gives scores that are no numbers")
        if scores.shape != (1, len(data.classes)):
            raise InputError(
                f"{model} gives scores {tuple(scores.shape)} for an image, {name} has {len(data.classes)} classes"
            )


def clean_images(name: str | None, own: Data | None, resize: int | None) -> Data | None:
    """The test images of the set of that name, its training images where it has none, or the data's own ones."""
    if name is None:
        return own
    splits = read(name, resize=resize)
    return splits.train if splits.test is None else splits.test
