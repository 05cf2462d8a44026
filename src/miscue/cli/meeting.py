"""A model and the images that a command shows it."""

from __future__ import annotations

import torch

from miscue.data import Data, floats
from miscue.errors import InputError, lookup
from miscue.models.modes import frozen
from miscue.models.sources import Source, sourced
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


def fits(source: Source, data: Data, model: str, name: str) -> None:
    """Raise an InputError where the model is for other images or classes."""
    if source.shape not in (None, data.shape) or source.classes not in (None, len(data.classes)):
        raise InputError(
            f"{model} is for {source.classes} classes of images {source.shape}, "
            f"{name} has {len(data.classes)} of {data.shape}"
        )
    if source.classes is None:
        with torch.no_grad(), frozen(source.model):
            scores = source.model(floats(data.images[:1]))
        if scores.shape != (1, len(data.classes)):
            raise InputError(
                f"{model} gives scores {tuple(scores.shape)} for an image, {name} has {len(data.classes)} classes"
            )
