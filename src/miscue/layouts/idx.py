"""The layout of MNIST: four IDX files (big-endian header, then bytes), plain or gzipped.

http://yann.lecun.com/exdb/mnist: magic 00 00 08 d (8-bit unsigned, d dimensions), d sizes as 32-bit integers,
the data.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from miscue.data import Data, Layout, Splits
from miscue.errors import InputError
from miscue.layouts.common import class_names, labelled

PLACES = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
STEMS = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def fits(path: Path) -> bool:
    """Whether the folder `path` (or a folder below it that torchvision would use) holds IDX files."""
    return any(_names(path / place) for place in PLACES)


def read_idx(path: Path) -> Splits:
    """Read a folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and, optional, `t10k-...`.

    The files may end in `.gz`, may be called `train-images.idx3-ubyte`, and may lie in `raw` or `MNIST/raw`
    below. Images become (n, 1, h, w). Class names are numbers unless a manifest beside the files names them.

    Raises:
        InputError: a file is missing, cut short, of another kind, or sizes disagree; the message names the
            file.
    """
    place = next((place for place in PLACES if _names(path / place)), "")
    names = _names(path / place)
    for part in ("train", "test"):
        have = [kind for kind in ("images", "labels") if f"{part}_{kind}" in names]
        if len(have) == 1 or (part == "train" and not have):
            missing = next(kind for kind in ("images", "labels") if kind not in have)
            raise InputError(f"{path / place} lacks {STEMS[f'{part}_{missing}']}[.gz]")
    arrays = {key: _array(path / place / name, 3 if "images" in key else 1) for key, name in names.items()}
    labels = {part: arrays[f"{part}_labels"].long() for part in ("train", "test") if f"{part}_labels" in arrays}
    classes = class_names(path, list(labels.values()))
    parts = {
        part: labelled(arrays[f"{part}_images"][:, None], y, classes, where=path / place / names[f"{part}_labels"])
        for part, y in labels.items()
    }
    layout = Layout(kind="idx", options={"place": place, "names": names})
    return Splits(name=path.name, train=parts["train"], test=parts.get("test"), layout=layout, source=path)


def write_idx(splits: Splits, folder: Path) -> None:
    """Write `splits` as IDX files under the names they were read from (new sets: gzipped, the usual names).

    Gzipped files carry no time stamp, so equal images give equal bytes.

    Raises:
        InputError: the images are in colour, or there are more than 256 classes.
    """
    if splits.train.shape[0] != 1 or len(splits.train.classes) > 256:
        raise InputError("IDX files hold grey images of at most 256 classes; choose the layout npz or folder")
    names = {key: f"{stem}.gz" for key, stem in STEMS.items()} | splits.layout.options.get("names", {})
    folder = folder / splits.layout.options.get("place", "")
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Data | None] = {"train": splits.train, "test": splits.test}
    for part, data in parts.items():
        if data is not None:
            _store(folder / names[f"{part}_images"], data.images[:, 0])
            _store(folder / names[f"{part}_labels"], data.labels)


def _names(folder: Path) -> dict[str, str]:
    """Which of the four files are there, under which names."""
    found = {}
    for key, stem in STEMS.items():
        for name in (stem, stem.replace("-idx", ".idx")):
            for suffix in ("", ".gz"):
                if key not in found and (folder / (name + suffix)).is_file():
                    found[key] = name + suffix
    return found


def _array(path: Path, dimensions: int) -> Tensor:
    """The uint8 array in one IDX file."""
    raw = _content(path)
    head = 4 + 4 * dimensions
    if raw[:4] != bytes((0, 0, 8, dimensions)):
        kind = "images" if dimensions == 3 else "labels"
        raise InputError(f"{path} is not an IDX file of 8-bit {kind}: it starts with {raw[:4].hex() or 'nothing'}")
    if len(raw) < head:
        raise InputError(f"{path} is cut short within its header")
    shape = struct.unpack(f">{dimensions}I", raw[4:head])
    if len(raw) != head + math.prod(shape):
        raise InputError(
            f"{path} is {'cut short' if len(raw) < head + math.prod(shape) else 'too long'}: "
            f"{len(raw)} bytes, its header {shape} asks for {head + math.prod(shape)}"
        )
    if not math.prod(shape):
        raise InputError(f"{path} is empty: its header says {shape}")
    return torch.frombuffer(raw, dtype=torch.uint8, offset=head).view(shape)


def _content(path: Path) -> bytearray:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return bytearray(file.read())
        return bytearray(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is cut short or damaged: {error}") from None


def _store(path: Path, array: Tensor) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.cpu().to(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
                packed.write(content)
        else:
            file.write(content)
