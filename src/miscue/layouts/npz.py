"""One npz file with x_train, y_train, x_test, y_test."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from miscue.data import Data, Layout, Splits
from miscue.errors import InputError
from miscue.layouts.common import class_names, labelled

KEYS = ("x_train", "y_train", "x_test", "y_test")


def fits(path: Path) -> bool:
    """Whether `path` is an npz file or a folder with npz files."""
    return path.suffix == ".npz" if path.is_file() else any(path.glob("*.npz"))


def read_npz(path: Path) -> Splits:
    """Read an npz file, or the one npz file in a folder.

    x_train and the optional x_test are uint8 (n, h, w), (n, h, w, c) or (n, c, h, w) with c in {1, 3} (where
    both fit: channels last); y_train and y_test are integers (n,) or (n, 1); the optional `classes` are
    strings. Other arrays are not read. Nothing is unpickled.

    Raises:
        InputError: a damaged file, a missing array, images that are not 8-bit, or sizes that disagree.
    """
    file = _file(path)
    arrays, compressed = _load(file)
    options: dict[str, Any] = {"file": file.name, "compressed": compressed, "classes": "classes" in arrays}
    images, options["arrangement"] = _images(file, "x_train", arrays["x_train"])
    labels, options["labels"], options["column"] = _labels(file, "y_train", arrays["y_train"])
    given = [labels]
    if "x_test" in arrays:
        test_images, arrangement = _images(file, "x_test", arrays["x_test"])
        if arrangement != options["arrangement"]:
            raise InputError(f"{file}: x_train is {options['arrangement']} but x_test is {arrangement}")
        given.append(_labels(file, "y_test", arrays["y_test"])[0])
    if "classes" in arrays:
        classes = tuple(map(str, arrays["classes"].ravel().tolist()))
    else:
        classes = class_names(path, given)
    train = labelled(images, labels, classes, where=f"{file}, train")
    test = labelled(test_images, given[1], classes, where=f"{file}, test") if len(given) > 1 else None
    layout = Layout(kind="npz", options=options)
    return Splits(name=path.stem, train=train, test=test, layout=layout, source=path)


def write_npz(splits: Splits, folder: Path) -> None:
    """Write `splits` as one npz file, arranged as it was read (new sets: channels last, with class names).

    The zip entries carry no time stamp, so equal sets give equal bytes.
    """
    options = splits.layout.options
    arrangement = options.get("arrangement", "nhw" if splits.train.shape[0] == 1 else "nhwc")
    arrays: dict[str, NDArray[Any]] = {}
    parts: dict[str, Data | None] = {"train": splits.train, "test": splits.test}
    for part, data in parts.items():
        if data is not None:
            arrays[f"x_{part}"] = _arranged(data.images.cpu(), arrangement).numpy()
            dtype = np.dtype(options.get("labels", "<i8"))
            if len(data.classes) - 1 > np.iinfo(dtype).max:
                dtype = np.dtype("<i8")
            labels = data.labels.cpu().numpy().astype(dtype)
            arrays[f"y_{part}"] = labels[:, None] if options.get("column") else labels
    if options.get("classes", True):
        arrays["classes"] = np.array(splits.train.classes, dtype=np.str_)
    compression = zipfile.ZIP_DEFLATED if options.get("compressed", True) else zipfile.ZIP_STORED
    with zipfile.ZipFile(folder / options.get("file", f"{splits.name}.npz"), "w", compression) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = compression
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob("*.npz"))
    if len(files) != 1:
        raise InputError(f"{path} holds {len(files)} npz files; name one of them")
    return files[0]


def _load(file: Path) -> tuple[dict[str, NDArray[Any]], bool]:
    """The arrays that matter, and whether they were compressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        with np.load(file, allow_pickle=False) as content:
            arrays = {key: content[key] for key in (*KEYS, "classes") if key in content.files}
            there = ", ".join(content.files) or "nothing"
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"{file} cannot be read as npz: {error}") from None
    for pair in (("x_train", "y_train"), ("x_test", "y_test")):
        missing = [key for key in pair if key not in arrays]
        if len(missing) == 1 or (missing and pair[0] == "x_train"):
            raise InputError(f"{file} lacks {' and '.join(missing)}; it holds {there}")
    return arrays, compressed


def _images(file: Path, key: str, array: NDArray[Any]) -> tuple[Tensor, str]:
    """uint8 (n, c, h, w) and the arrangement in the file."""
    if array.dtype.kind == "f":
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise InputError(f"{file}: {key} holds {bad} NaN or infinite values")
        raise InputError(
            f"{file}: {key} is {array.dtype}, but images are kept in 8 bits; "
            f"convert them, e.g. (x * 255).round().astype('uint8') if they lie in [0, 1]"
        )
    if array.dtype != np.uint8:
        raise InputError(f"{file}: {key} is {array.dtype}; make it uint8 (0..255) with x.astype('uint8')")
    if array.ndim == 3:
        arrangement = "nhw"
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        arrangement = "nhwc"
    elif array.ndim == 4 and array.shape[1] in (1, 3):
        arrangement = "nchw"
    else:
        raise InputError(
            f"{file}: {key} has shape {array.shape}; need (n, h, w), (n, h, w, c) or (n, c, h, w), c 1 or 3"
        )
    images = torch.from_numpy(np.ascontiguousarray(array))
    if arrangement == "nhw":
        return images[:, None], arrangement
    return (images.permute(0, 3, 1, 2).contiguous() if arrangement == "nhwc" else images), arrangement


def _arranged(images: Tensor, arrangement: str) -> Tensor:
    if arrangement == "nhw":
        if images.shape[1] != 1:
            return images.permute(0, 2, 3, 1)
        return images[:, 0]
    return images.permute(0, 2, 3, 1) if arrangement == "nhwc" else images


def _labels(file: Path, key: str, array: NDArray[Any]) -> tuple[Tensor, str, bool]:
    """int64 labels (n,), their dtype in the file, and whether they stood in a column (n, 1)."""
    if array.dtype.kind not in "iu":
        raise InputError(f"{file}: {key} is {array.dtype}; labels are whole numbers")
    column = array.ndim == 2 and array.shape[1] == 1
    if array.ndim != 1 and not column:
        raise InputError(f"{file}: {key} has shape {array.shape}; need (n,), one class number per image")
    return torch.from_numpy(array.ravel().astype(np.int64)), array.dtype.str, column
