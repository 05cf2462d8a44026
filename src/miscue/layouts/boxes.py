"""Photos with boxes: a folder with annotations.json, as COCO writes it or with the boxes in each image's entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from miscue.errors import InputError
from miscue.layouts.pictures import decode
from miscue.scenes import Boxes, Scenes

ANNOTATIONS = "annotations.json"


def fits(path: Path) -> bool:
    """Whether `path` is a folder with annotated photos."""
    return (path / ANNOTATIONS).is_file()


def read_boxes(path: Path) -> Scenes:
    """Read a folder of photos with boxes whole, in the order of annotations.json.

    Either as COCO has it ("images" with id and file_name, "annotations" with image_id, category_id and bbox as x, y,
    width, height, "categories"), or with "file", "boxes" (xmin, ymin, xmax, ymax) and "labels" (names) in each entry of
    "images". Labels are numbered from 1 in the order of the categories, or of the sorted names. Photos lie beside
    annotations.json or in `images`. Boxes are cut off at the photo's edge; those less than a pixel wide or high then
    are dropped.

    Raises:
        InputError: no such file, or it lacks something; a photo that is missing or damaged; the message names it.
    """
    file = path / ANNOTATIONS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        names, entries = coco(found) if "annotations" in found else plain(found)
    except OSError as error:
        raise InputError(f"{path} holds no photos with boxes: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not as expected: {type(error).__name__}: {error}") from None
    if not entries:
        raise InputError(f"{file} names no photos")
    for name, boxes, labels in entries:
        if len(boxes) != len(labels):
            raise InputError(f"{file}: {name} has {len(boxes)} boxes and {len(labels)} labels")
        if not all(len(box) == 4 and all(isinstance(side, int | float) for side in box) for box in boxes):
            raise InputError(f"{file}: {name} has a box that is not four numbers")
    images = [decode(located(path, name), channels=3) for name, _, _ in entries]
    targets = [
        cut(boxes, labels, image.shape[1], image.shape[2])
        for image, (_, boxes, labels) in zip(images, entries, strict=True)
    ]
    return Scenes(
        images=tuple(images), targets=tuple(targets), classes=names, files=tuple(name for name, _, _ in entries)
    )


Entry = tuple[str, list[list[float]], list[int]]
"""A file name, its boxes, their labels."""


def coco(found: dict[str, Any]) -> tuple[tuple[str, ...], list[Entry]]:
    """Class names and entries of COCO's form."""
    label = {category["id"]: number for number, category in enumerate(found["categories"], start=1)}
    entries: dict[Any, Entry] = {image["id"]: (image["file_name"], [], []) for image in found["images"]}
    for one in found["annotations"]:
        x, y, width, height = one["bbox"]
        _, boxes, labels = entries[one["image_id"]]
        boxes.append([x, y, x + width, y + height])
        labels.append(label[one["category_id"]])
    return tuple(category["name"] for category in found["categories"]), list(entries.values())


def plain(found: dict[str, Any]) -> tuple[tuple[str, ...], list[Entry]]:
    """Class names and entries where each image has its boxes."""
    names = tuple(sorted({name for image in found["images"] for name in image["labels"]}))
    return names, [
        (image["file"], image["boxes"], [names.index(name) + 1 for name in image["labels"]])
        for image in found["images"]
    ]


def located(path: Path, name: str) -> Path:
    """Where a photo lies."""
    below = path / "images" / name
    return below if below.is_file() else path / name


def cut(boxes: list[list[float]], labels: list[int], height: int, width: int) -> Boxes:
    """Boxes within a photo of such a size."""
    within = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    within[:, 0::2] = within[:, 0::2].clamp(0, width)
    within[:, 1::2] = within[:, 1::2].clamp(0, height)
    left = (within[:, 2:] - within[:, :2] >= 1).all(1)
    return {"boxes": within[left], "labels": torch.tensor(labels, dtype=torch.int64)[left]}
