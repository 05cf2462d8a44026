"""npz files with x_train, y_train, x_test, y_test: one, or a folder of shards, which are one set in their order."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from miscue.data import Data, Layout, Splits
from miscue.errors import InputError
from miscue.layouts.common import class_names, labelled, natural
from miscue.layouts.pictures import resized
from miscue.room import Room, origin_of

PARTS = ("train", "test")
SHARD = re.compile(r"(.+?)[-_]\d+(-of-\d+)?")  # train-0.npz, train-00000-of-00010.npz
BLOCK = 2**22  # bytes of an array that are held at once

Change = Callable[[str, int, Tensor, Tensor], Tensor]
"""(part, number of its first image in the file, uint8 images (n, c, h, w), their labels) -> as many images."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What an npz file holds, but for its images.

    resize: the side that its images get, None to leave them.
    counts: images of each part; labels: theirs, int64; shapes: (c, h, w) of an image, by part.
    options: how it is written, the options of its `Layout`; names: its `classes`, None if it has none.
    """

    file: Path
    resize: int | None
    counts: dict[str, int]
    labels: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any]
    names: tuple[str, ...] | None

    def images(self, part: str, start: int = 0) -> Iterator[Tensor]:
        """The part's images from number `start` on, a few at a time, uint8 (n, c, h, w)."""
        with _opened(self.file) as archive:
            for rows in _rows(archive, f"x_{part}", start):
                images = _channels_first(torch.from_numpy(rows), self.options["arrangement"])
                if self.resize is not None and len(images):
                    images = torch.stack([resized(image, self.resize) for image in images])
                yield images


def fits(path: Path) -> bool:
    """Whether `path` is an npz file or a folder with npz files."""
    return path.suffix == ".npz" if path.is_file() else any(path.glob("*.npz"))


def read_npz(path: Path, *, resize: int | None = None, room: Room | None = None) -> Splits:
    """Read an npz file, the one npz file in a folder, or all there if they are named as shards, train-0.npz and so on.

    x_train and the optional x_test are uint8 (n, h, w), (n, h, w, c) or (n, c, h, w) with c in {1, 3} (where
    both fit: channels last); y_train and y_test are integers (n,) or (n, 1); the optional `classes` are
    strings. Other arrays are not read. Nothing is unpickled. Shards must agree in all but the number of images.

    Args:
        path: the file or the folder.
        resize: make every image (resize, resize), by Lanczos.
        room: where the images go; in memory if None.

    Raises:
        InputError: a damaged file, a missing array, images that are not 8-bit, or sizes that disagree.
    """
    shards = [look(file, resize) for file in files_of(path)]
    first, room = shards[0], room or Room()
    for other in shards[1:]:
        agree(first, other)
    classes = first.names or class_names(path, [y for shard in shards for y in shard.labels.values()])
    origin = origin_of((shard.file for shard in shards), resize)
    parts = {}
    for part in first.counts:
        count = sum(shard.counts[part] for shard in shards)

        def blocks(start: int, part: str = part) -> Iterator[Tensor]:
            for shard in shards:
                if start < shard.counts[part]:
                    yield from shard.images(part, start)
                start = max(0, start - shard.counts[part])

        images = room.filled(part, (count, *first.shapes[part]), origin, blocks)
        labels = torch.cat([shard.labels[part] for shard in shards])
        parts[part] = labelled(images, labels, classes, where=f"{path if len(shards) > 1 else first.file}, {part}")
    options = first.options
    if len(shards) > 1:
        options = options | {"shards": [[shard.file.name, *shard.counts.values()] for shard in shards]}
    layout = Layout(kind="npz", options=options)
    return Splits(name=path.stem, train=parts["train"], test=parts.get("test"), layout=layout, source=path)


def files_of(path: Path) -> list[Path]:
    """The npz files of a set, in order; InputError where they are several and not named as shards."""
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.npz"), key=lambda file: natural(file.name))
    names = {match and match[1] for match in (SHARD.fullmatch(file.stem) for file in files)}
    if len(files) != 1 and (len(names) != 1 or None in names):
        raise InputError(f"{path} holds {len(files)} npz files; name one of them, or number them as shards: name-0.npz")
    return files


def look(file: Path, resize: int | None = None) -> Shard:
    """What an npz file holds, all of it but the images."""
    with _opened(file) as archive:
        there = [name.removesuffix(".npy") for name in archive.namelist()]
        for pair in (("x_train", "y_train"), ("x_test", "y_test")):
            missing = [key for key in pair if key not in there]
            if len(missing) == 1 or (missing and pair[0] == "x_train"):
                raise InputError(f"{file} lacks {' and '.join(missing)}; it holds {', '.join(there) or 'nothing'}")
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        options: dict[str, Any] = {"file": file.name, "compressed": compressed, "classes": "classes" in there}
        counts: dict[str, int] = {}
        labels: dict[str, Tensor] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for part in PARTS:
            if f"x_{part}" not in there:
                continue
            shape, arrangement = _images(file, archive, f"x_{part}")
            if options.setdefault("arrangement", arrangement) != arrangement:
                raise InputError(f"{file}: x_train is {options['arrangement']} but x_{part} is {arrangement}")
            counts[part] = shape[0]
            shapes[part] = shape[1:] if resize is None else (shape[1], resize, resize)
            labels[part], dtype, column = _labels(file, f"y_{part}", _whole(archive, f"y_{part}"))
            options = {"labels": dtype, "column": column} | options  # those of the training part
            if len(labels[part]) != counts[part]:
                raise InputError(f"{file}, {part}: {counts[part]} images but {len(labels[part])} labels")
        names = tuple(map(str, _whole(archive, "classes").ravel().tolist())) if options["classes"] else None
    return Shard(file=file, resize=resize, counts=counts, labels=labels, shapes=shapes, options=options, names=names)


def agree(first: Shard, other: Shard) -> None:
    """Raise an InputError where two npz files cannot be shards of one set."""
    for what, a, b in (
        ("the parts", list(first.counts), list(other.counts)),
        ("the shape (c, h, w) of images", first.shapes, other.shapes),
        ("the kind of arrays", first.options | {"file": ""}, other.options | {"file": ""}),
        ("the classes", first.names, other.names),
    ):
        if a != b:
            raise InputError(f"{other.file} and {first.file} are not shards of one set: {what} differ, {b} and {a}")


def write_npz(splits: Splits, folder: Path) -> None:
    """Write `splits` as npz, arranged as it was read (new sets: one file, channels last, with class names).

    The zip entries carry no time stamp, so equal sets give equal bytes.
    """
    options = splits.layout.options
    parts = {name: data for name, data in zip(PARTS, (splits.train, splits.test), strict=True) if data is not None}
    totals = [len(data) for data in parts.values()]
    shards = options.get("shards", [])
    if [sum(counts) for counts in zip(*(row[1:] for row in shards), strict=True)] != totals:
        shards = [[options.get("file", f"{splits.name}.npz"), *totals]]
    starts = [0] * len(totals)
    for name, *counts in shards:
        pieces = {
            part: data if count == len(data) else data.take(slice(start, start + count))
            for (part, data), start, count in zip(parts.items(), starts, counts, strict=True)
        }
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
        _write(folder / name, pieces, options)


def rewrite(shard: Shard, target: Path, change: Change) -> None:
    """Write `shard` again with other images, a few in memory at a time; all else is as it was, nothing else is kept."""
    compression = _compression(shard.options)
    with zipfile.ZipFile(target, "w", compression) as archive:
        for part, count in shard.counts.items():
            labels, start = shard.labels[part], 0
            shape = (count, *_arranged(torch.empty(1, *shard.shapes[part]), shard.options["arrangement"]).shape[1:])
            with _entry(archive, f"x_{part}", compression) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for images in shard.images(part):
                    changed = change(part, start, images, labels[start : start + len(images)])
                    start += len(images)
                    file.write(np.ascontiguousarray(_arranged(changed, shard.options["arrangement"]).numpy()).data)
            _put(archive, f"y_{part}", _stored(labels, shard.options, 0), compression)
        if shard.names is not None:
            _put(archive, "classes", np.array(shard.names, dtype=np.str_), compression)


def _write(target: Path, parts: dict[str, Data], options: dict[str, Any]) -> None:
    """One npz file of some parts."""
    compression, train = _compression(options), parts["train"]
    arrangement = options.get("arrangement", "nhw" if train.shape[0] == 1 else "nhwc")
    with zipfile.ZipFile(target, "w", compression) as archive:
        for part, data in parts.items():
            _put(archive, f"x_{part}", _arranged(data.images.cpu(), arrangement).numpy(), compression)
            _put(archive, f"y_{part}", _stored(data.labels.cpu(), options, len(data.classes) - 1), compression)
        if options.get("classes", True):
            _put(archive, "classes", np.array(train.classes, dtype=np.str_), compression)


def _compression(options: dict[str, Any]) -> int:
    return zipfile.ZIP_DEFLATED if options.get("compressed", True) else zipfile.ZIP_STORED


def _entry(archive: zipfile.ZipFile, name: str, compression: int) -> IO[bytes]:
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = compression
    return archive.open(entry, "w", force_zip64=True)


def _put(archive: zipfile.ZipFile, name: str, array: NDArray[Any], compression: int) -> None:
    with _entry(archive, name, compression) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _stored(labels: Tensor, options: dict[str, Any], highest: int) -> NDArray[Any]:
    """Labels as they lie in the file, in another type where that cannot hold `highest`."""
    dtype = np.dtype(options.get("labels", "<i8"))
    if highest > np.iinfo(dtype).max:
        dtype = np.dtype("<i8")
    array: NDArray[Any] = labels.numpy().astype(dtype)
    return array[:, None] if options.get("column") else array


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """The opened archive; whatever goes wrong while it is read becomes an InputError that names the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except InputError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"{file} cannot be read as npz: {error}") from None


def _header(file: IO[bytes], key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array `key`, at the start of whose file we are."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{key} holds Python objects, not numbers")
    return shape, fortran, dtype


def _whole(archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    with archive.open(f"{key}.npy") as file:
        _header(file, key)
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _rows(archive: zipfile.ZipFile, key: str, start: int = 0) -> Iterator[NDArray[Any]]:
    """An array's rows from `start` on, a few megabytes at a time (all at once where they lie in Fortran's order)."""
    with archive.open(f"{key}.npy") as file:
        shape, fortran, dtype = _header(file, key)
        if fortran:
            yield _whole(archive, key)[start:]
            return
        row = max(1, math.prod(shape[1:]) * dtype.itemsize)
        file.seek(start * row, 1)
        for first in range(start, shape[0], max(1, BLOCK // row)):
            count = min(max(1, BLOCK // row), shape[0] - first)
            content = bytearray(count * row)
            if _fill(file, content) != len(content):
                raise ValueError(f"{key} ends early")
            yield np.frombuffer(content, dtype).reshape(count, *shape[1:])
        if file.read(1):  # here the checksum is compared, too
            raise ValueError(f"{key} is longer than it says")


def _fill(file: IO[bytes], content: bytearray) -> int:
    """Read as much as there is room for; how much came."""
    done = 0
    while part := file.read(len(content) - done):
        content[done : done + len(part)] = part
        done += len(part)
    return done


def _images(file: Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], str]:
    """The shape (n, c, h, w) of images and how they are arranged in the file."""
    with archive.open(f"{key}.npy") as opened:
        shape, _, dtype = _header(opened, key)
    if dtype.kind == "f":
        bad = sum(int((~np.isfinite(rows)).sum()) for rows in _rows(archive, key))
        if bad:
            raise InputError(f"{file}: {key} holds {bad} NaN or infinite values")
        raise InputError(
            f"{file}: {key} is {dtype}, but images are kept in 8 bits; "
            f"convert them, e.g. (x * 255).round().astype('uint8') if they lie in [0, 1]"
        )
    if dtype != np.uint8:
        raise InputError(f"{file}: {key} is {dtype}; make it uint8 (0..255) with x.astype('uint8')")
    if len(shape) == 3:
        n, height, width = shape
        return (n, 1, height, width), "nhw"
    if len(shape) == 4 and shape[3] in (1, 3):
        n, height, width, channels = shape
        return (n, channels, height, width), "nhwc"
    if len(shape) == 4 and shape[1] in (1, 3):
        return shape, "nchw"
    raise InputError(f"{file}: {key} has shape {shape}; need (n, h, w), (n, h, w, c) or (n, c, h, w), c 1 or 3")


def _channels_first(images: Tensor, arrangement: str) -> Tensor:
    if arrangement == "nhw":
        return images[:, None]
    return images.permute(0, 3, 1, 2).contiguous() if arrangement == "nhwc" else images


def _arranged(images: Tensor, arrangement: str) -> Tensor:
    if arrangement == "nhw":
        if images.shape[1] != 1:
            return images.permute(0, 2, 3, 1)
        return images[:, 0]
    return images.permute(0, 2, 3, 1) if arrangement == "nhwc" else images


def _labels(file: Path, key: str, array: NDArray[Any]) -> tuple[Tensor, str, bool]:
    """int64 labels (n,), their dtype in the file, and whether they stood in a column (n, 1)."""
    if array.dtype.kind not in "iu":
        kind = "text" if array.dtype.kind in "US" else array.dtype
        raise InputError(f"{file}: {key} is {kind}; labels are whole numbers, their names may stand in `classes`")
    column = array.ndim == 2 and array.shape[1] == 1
    if array.ndim != 1 and not column:
        raise InputError(f"{file}: {key} has shape {array.shape}; need (n,), one class number per image")
    return torch.from_numpy(array.ravel().astype(np.int64)), array.dtype.str, column
