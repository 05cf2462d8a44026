"""Reading data sets: a name or a path becomes `Splits`, whatever its layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from miscue import datasets
from miscue.data import Data, Splits, hold_out
from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.layouts import boxes, cifar, folder, idx, npz
from miscue.layouts.boxes import read_boxes
from miscue.layouts.cifar import read_cifar
from miscue.layouts.folder import read_folder, stream
from miscue.layouts.idx import read_idx
from miscue.layouts.npz import read_npz
from miscue.layouts.pictures import resized
from miscue.room import Room
from miscue.scenes import Scenes

__all__ = [
    "READERS",
    "check",
    "read",
    "read_alike",
    "read_boxes",
    "read_cifar",
    "read_folder",
    "read_idx",
    "read_npz",
    "read_scenes",
    "recognise",
    "stream",
]

READERS: dict[str, Callable[[Path], Splits]] = {
    "idx": read_idx,
    "cifar": read_cifar,
    "npz": read_npz,
    "folder": read_folder,
}
FITS: dict[str, Callable[[Path], bool]] = {
    "idx": idx.fits,
    "cifar": cifar.fits,
    "npz": npz.fits,
    "folder": folder.fits,
}


def read(
    name_or_path: str | Path,
    *,
    resize: int | None = None,
    test_share: float | None = None,
    seed: int = 0,
    room: Room | None = None,
) -> Splits:
    """Read a data set.

    Args:
        name_or_path: a named set (a key of `datasets.SETS`; write ./mnist for a folder of that name), or the
            path of an IDX folder, CIFAR batches, an npz file, a folder of npz shards or an image folder, told
            apart by what lies there.
        resize: make all images (resize, resize), by Lanczos.
        test_share: hold this share of every class out as the test set where the set has none.
        seed: of that choice.
        room: where the images of folders and npz files go; in memory if None.

    Raises:
        InputError: an unknown name, a missing or damaged file, images or labels that cannot be trained on.
    """
    if resize is not None and resize < 1:
        raise InputError(f"--resize needs a positive number of pixels, got {resize}")
    name = str(name_or_path)
    if name == "digits":
        splits = datasets.digits()
    elif name in datasets.SETS:
        chosen = datasets.SETS[name]
        path = datasets.locate(name)
        splits = datasets.named(name, _read(path, chosen.layout, resize, room))
    else:
        path = _existing(name)
        splits = _read(path, recognise(path), resize, room)
    if resize is not None:
        test = _resized(splits.test, resize) if splits.test is not None else None
        splits = replace(splits, train=_resized(splits.train, resize), test=test)
    if splits.test is None and test_share is not None:
        train, test = hold_out(splits.train, test_share, Dice(seed).named("test set"))
        splits = replace(splits, train=train, test=test)
    check(splits)
    return splits


def read_alike(name_or_path: str | Path, like: Data, most: int) -> Data:
    """At most so many test images of another set, or training images where it has none, as images such as `like`'s.

    They are resized where `like`'s are square, and grey ones get as many channels.

    Raises:
        InputError: as `read`, or their shape cannot be made that of `like`'s.
    """
    splits = read(name_or_path, resize=like.shape[1] if like.shape[1] == like.shape[2] else None)
    some = (splits.test or splits.train).spread(most)
    if some.shape[0] == 1 and like.shape[0] == 3:
        some = some.with_images(some.images.expand(-1, 3, -1, -1).contiguous())
    if some.shape != like.shape:
        raise InputError(f"{name_or_path} has images {some.shape}, the others are {like.shape}")
    return some


def read_scenes(name_or_path: str | Path) -> Scenes:
    """Read photos with boxes: from the path of a folder with annotations.json, or one of that name below a data folder.

    Raises:
        InputError: no such folder, or it is not as expected.
    """
    path = Path(name_or_path).expanduser()
    named = [folder / path for folder in datasets.roots() if not path.is_absolute()]
    found = next((place for place in (path, *named) if boxes.fits(place)), None)
    if found is None:
        raise InputError(f"{path} holds no photos with boxes: need a folder with {boxes.ANNOTATIONS}")
    return read_boxes(found)


def recognise(path: Path) -> str:
    """The layout of the data at `path`: a key of `READERS`."""
    for layout, fits in FITS.items():
        if fits(path):
            return layout
    raise InputError(f"{path} holds no data set: need IDX files, CIFAR batches, an npz file or folders of images")


def check(splits: Splits) -> None:
    """Refuse what nothing can be learned from or measured on.

    Raises:
        InputError: no images, fewer than two classes among the training labels, or a test set whose images or
            classes differ in kind from the training set's.
    """
    train, test = splits.train, splits.test
    where = splits.source or splits.name
    if not len(train):
        raise InputError(f"{where}: the training set is empty")
    present = train.labels.unique().tolist()
    if len(present) < 2:
        raise InputError(f"{where}: all training images are of one class only, {train.classes[present[0]]!r}")
    if test is None:
        return
    if not len(test):
        raise InputError(f"{where}: the test set is empty")
    if test.shape != train.shape:
        raise InputError(f"{where}: training images are {train.shape} but test images {test.shape} (c, h, w)")
    if test.classes != train.classes:
        raise InputError(f"{where}: the classes of the training and the test set differ")


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    if os.sep in name or name.startswith((".", "~")) or path.suffix:
        raise InputError(f"{path} does not exist")
    lookup(datasets.SETS, name, "data set or path")
    raise AssertionError("a known name is read by its name")


def _read(path: Path, layout: str, resize: int | None, room: Room | None) -> Splits:
    roomy = {
        "folder": partial(read_folder, resize=resize, room=room),
        "npz": partial(read_npz, resize=resize, room=room),
    }
    reader: Callable[[Path], Splits] = roomy.get(layout, READERS[layout])
    try:
        return reader(path)
    except PermissionError as error:
        raise InputError(f"{error.filename or path} may not be read") from None


def _resized(data: Data, size: int) -> Data:
    if data.shape[1:] == (size, size):
        return data
    return data.with_images(torch.stack([resized(image, size) for image in data.images]))
