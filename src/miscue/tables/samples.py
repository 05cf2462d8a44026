"""The figure of samples beside their noise: what a poison looks like, and how far it moves pixels."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from miscue.balls import changed_pixels, linf
from miscue.images import amplified
from miscue.layouts.pictures import png
from miscue.tables.deepconfuse import BASE, COLOUR, IMAGENET, changed
from miscue.tables.poisoned import crafted, known
from miscue.tables.rows import Drawn, Row, Workshop
from miscue.tables.single_pixel import of

LOOKED_AT = 2000  # images that the mean change is of
SIDE = 80  # pixels of a picture, about; of larger images every so many-th pixel is shown


def beside(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """The first image of each class, its noise and what becomes of it; the largest and the mean change, in percent."""
    perturbation = crafted(row, workshop)
    some = known(row["data"]).train.spread(LOOKED_AT)
    poisoned = perturbation(some)
    step = max(1, min(some.shape[1:]) // SIDE)
    pictures = []
    for label, name in enumerate(some.classes):
        one = (some.labels == label).nonzero()[:1, 0]
        images = [part.images[one][..., ::step, ::step] for part in (some, poisoned)]
        images.insert(1, amplified(images[1], images[0], limit=perturbation.eps))
        shown = dict(zip(("original", "noise", "poisoned"), images, strict=True))
        pictures.append(
            {"name": name}
            | {what: base64.b64encode(png(image[0])).decode() for what, image in shown.items() if len(image)}
        )
    moved = (poisoned.images.float() - some.images.float()).abs().mean() / 255
    return {
        "largest_change": 100 * linf(poisoned.images, some.images),
        "mean_change": 100 * float(moved),
        "changed_pixels": float(changed_pixels(poisoned.images, some.images)),
        "samples": pictures,
    }


def samples(scale: str) -> Iterator[Row]:
    """What each poison looks like."""
    colour: dict[str, tuple[dict[str, Any], ...]] = {"smoke": (), "laptop": (IMAGENET,), "paper": COLOUR}
    noises = [changed(base) for base in (BASE[scale], *colour[scale])]
    pixels = [of(scale, BASE[scale]["data"], method, "") for method in ("one-pixel-shortcut", "single-pixel")]
    for made in noises + pixels:
        settings = {key: value for key, value in made.items() if not key.startswith("victim")}
        yield Row(settings=settings, measure=beside, seeds=1)
