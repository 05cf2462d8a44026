"""The "python version" of CIFAR-10 and CIFAR-100: a folder of pickled batches, rows of 3 x h x w bytes.

https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miscue.data import Data, Layout, Splits
from miscue.errors import InputError
from miscue.layouts import pickles
from miscue.layouts.common import class_names, labelled

PLACES = ("", "cifar-10-batches-py", "cifar-100-python")
TEN = {"meta": "batches.meta", "test": "test_batch", "labels": "labels", "names": "label_names"}
HUNDRED = {"meta": "meta", "test": "test", "labels": "fine_labels", "names": "fine_label_names"}


def fits(path: Path) -> bool:
    """Whether the folder `path`, or the usual folder below it, holds CIFAR batches."""
    return any(_train_names(path / place) for place in PLACES)


def read_cifar(path: Path) -> Splits:
    """Read CIFAR-10 (`data_batch_1..k`, `test_batch`, `batches.meta`) or CIFAR-100 (`train`, `test`, `meta`).

    Images become (n, 3, h, w); the batches' file names, where given, become `Data.files`; of CIFAR-100 the
    fine labels count. The test batch and the names of the classes are optional. The pickles may hold
    containers, strings, numbers and integer arrays only.

    Raises:
        InputError: a batch is missing, damaged, or would run code; the message names it.
    """
    place = next((place for place in PLACES if _train_names(path / place)), "")
    folder = path / place
    names = _train_names(folder)
    if not names:
        raise InputError(f"{path} holds no CIFAR batches")
    keys = HUNDRED if names == ["train"] else TEN
    test_names = [keys["test"]] if (folder / keys["test"]).is_file() else []
    batches = {name: pickles.load(folder / name) for name in names + test_names}
    parts = {
        name: (_images(folder / name, batch), _labels(folder / name, batch, keys)) for name, batch in batches.items()
    }
    meta = pickles.load(folder / keys["meta"]) if (folder / keys["meta"]).is_file() else {}
    listed = meta.get(keys["names"])
    classes = tuple(map(str, listed)) if isinstance(listed, list) else ()
    classes = classes or class_names(path, [labels for _, labels in parts.values()])

    def joined(chosen: list[str]) -> Data:
        images, labels = (torch.cat(list(column)) for column in zip(*(parts[name] for name in chosen), strict=True))
        given = [batches[name].get("filenames") for name in chosen]
        files = tuple(str(file) for part in given for file in part or ()) if all(given) else ()
        return labelled(images, labels, classes, where=folder / chosen[0], files=files)

    options: dict[str, Any] = {
        "place": place,
        "hundred": keys is HUNDRED,
        "batches": [[name, len(parts[name][0]), batches[name].get("batch_label")] for name in names],
        "test": batches[test_names[0]].get("batch_label") if test_names else None,
    }
    if keys is HUNDRED:
        options |= {"coarse": _coarse(batches), "coarse_names": meta.get("coarse_label_names")}
    test = joined(test_names) if test_names else None
    layout = Layout(kind="cifar", options=options)
    return Splits(name=path.name, train=joined(names), test=test, layout=layout, source=path)


def write_cifar(splits: Splits, folder: Path) -> None:
    """Write `splits` as pickled batches, split as they were read (new sets: five batches).

    Where the number of images changed, they are spread evenly over as many batches.

    Raises:
        InputError: the images are not square and in RGB.
    """
    channels, height, width = splits.train.shape
    if channels != 3 or height != width:
        raise InputError(f"CIFAR batches hold square RGB images, not {channels} x {height} x {width}")
    options = splits.layout.options
    keys = HUNDRED if options.get("hundred") else TEN
    folder = folder / options.get("place", "")
    folder.mkdir(parents=True, exist_ok=True)
    total = len(splits.train)
    batches = options.get("batches") or [[f"data_batch_{i}", 0, f"training batch {i} of 5"] for i in range(1, 6)]
    sizes = [size for _, size, _ in batches]
    if sum(sizes) != total:
        sizes = [(total + i) // len(batches) for i in range(len(batches))]
    ends = np.cumsum([0, *sizes]).tolist()
    for (name, _, label), (start, end) in zip(batches, pairwise(ends), strict=True):
        _store(folder / name, splits.train.take(slice(start, end)), label, keys, options)
    if splits.test is not None:
        _store(folder / keys["test"], splits.test, options.get("test") or "testing batch 1 of 1", keys, options)
    meta: dict[str, Any] = {keys["names"]: list(splits.train.classes)}
    if keys is TEN:
        meta = {"num_cases_per_batch": sizes[0], **meta, "num_vis": 3 * height * width}
    elif options.get("coarse_names"):
        meta["coarse_label_names"] = options["coarse_names"]
    (folder / keys["meta"]).write_bytes(pickles.dumps(meta))


def _train_names(folder: Path) -> list[str]:
    """The training batches in order: data_batch_1, 2, ..., or `train` where `meta` lies beside it."""
    if not folder.is_dir():
        return []
    numbers = sorted(int(file.name[11:]) for file in folder.glob("data_batch_*") if file.name[11:].isdecimal())
    if numbers:
        for number in range(1, numbers[-1] + 1):
            if number not in numbers:
                raise InputError(f"{folder} lacks data_batch_{number}")
        return [f"data_batch_{number}" for number in numbers]
    return ["train"] if all((folder / name).is_file() for name in ("train", "meta")) else []


def _images(path: Path, batch: dict[str, Any]) -> Tensor:
    rows = batch.get("data")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2:
        raise InputError(f"{path} holds no 8-bit rows of pixels under 'data'")
    side = math.isqrt(rows.shape[1] // 3)
    if not side or 3 * side * side != rows.shape[1]:
        raise InputError(f"{path}: {rows.shape[1]} values a row are no square RGB image")
    return torch.from_numpy(np.ascontiguousarray(rows)).view(-1, 3, side, side)


def _labels(path: Path, batch: dict[str, Any], keys: dict[str, str]) -> Tensor:
    labels = batch.get(keys["labels"])
    labels = labels.ravel().tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(labels, list) or not all(type(y) is int and abs(y) < 2**31 for y in labels):
        raise InputError(f"{path} holds no list of whole numbers under {keys['labels']!r}")
    return torch.tensor(labels, dtype=torch.int64)


def _coarse(batches: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Which coarse class each fine class belongs to, read off the batches (keys are str, as in JSON)."""
    return {
        str(fine): int(coarse)
        for batch in batches.values()
        for fine, coarse in zip(batch.get("fine_labels", ()), batch.get("coarse_labels", ()), strict=False)
    }


def _store(path: Path, data: Data, label: str | None, keys: dict[str, str], options: dict[str, Any]) -> None:
    labels = data.labels.tolist()
    batch: dict[str, Any] = {} if label is None else {"batch_label": label}
    batch[keys["labels"]] = labels
    coarse = options.get("coarse")
    if coarse and all(str(fine) in coarse for fine in labels):
        batch["coarse_labels"] = [coarse[str(fine)] for fine in labels]
    batch["data"] = data.images.cpu().numpy().reshape(len(data), math.prod(data.shape))
    if data.files:
        batch["filenames"] = list(data.files)
    path.write_bytes(pickles.dumps(batch))
