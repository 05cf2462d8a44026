"""Image folders: root/train/<class>/*, root/test|val/<class>/*, or root/<class>/* without a test set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from miscue.data import Data, Layout, Splits
from miscue.errors import InputError
from miscue.layouts.common import labelled, natural, noted
from miscue.layouts.pictures import FORMATS, decode, header, png
from miscue.room import Room, origin_of

KNOWN = "PNG, JPEG, WebP or BMP"


def fits(path: Path) -> bool:
    """Whether `path` is a folder with folders below it."""
    return path.is_dir() and bool(_subfolders(path))


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The folders of an image folder.

    places: part ("train", "test") -> the folder below `root` with the folders of its classes; "" is the root itself.
    classes: their names, in order.
    """

    root: Path
    places: dict[str, str]
    classes: tuple[str, ...]

    @property
    def layout(self) -> Layout:
        """How a copy is written."""
        return Layout(kind="folder", options={"train": self.places["train"], "test": self.places.get("test")})

    def listed(self, part: str) -> Iterator[tuple[str, list[str]]]:
        """(class name, the images below its folder in natural order), class by class."""
        home = self.root / self.places[part]
        folders = {entry.name: entry for entry in _subfolders(home)}
        for name, entry in folders.items():
            if name not in self.classes:
                raise InputError(f"{entry} is no class of the training set; its classes: {', '.join(self.classes)}")
        yield from ((name, _files(folders[name])) for name in self.classes if name in folders)


def tree(path: Path) -> Tree:
    """Find the places and the classes of an image folder; InputError where there are none."""
    train, test = _tree(path)
    folders = [folder.name for folder in _subfolders(path / train)]
    if not folders:
        raise InputError(f"{path} holds no folders of images, one per class")
    order = noted(path)
    classes = order if set(folders) <= set(order) else tuple(folders)
    return Tree(root=path, places={"train": train} | ({} if test is None else {"test": test}), classes=classes)


def read_folder(path: Path, *, resize: int | None = None, room: Room | None = None) -> Splits:
    """Read an image folder whole.

    `root/train/<class>/*` with `root/test` or else `root/val` as the test set, or `root/<class>/*` (test is
    None). Classes are the sorted names of the training folders (the order in a manifest.json beside them
    wins); files are in natural order (2 before 10). All images grey gives c = 1, otherwise all become RGB;
    palettes are resolved, alpha is composited over white, camera orientation is not applied. Files with other
    suffixes are passed over. `Data.files` are names such as "cat/7.png", below the train or test folder.

    Args:
        path: the root.
        resize: make every image (resize, resize), by Lanczos; without it all must have one size.
        room: where the images go; in memory if None.

    Raises:
        InputError: no images, a class without images, an unknown class in the test folder, sizes that differ,
            an image that is damaged or has 16 bits a channel; the message names the file.
    """
    found, room = tree(path), room or Room()
    names: dict[str, list[str]] = {}
    labels: dict[str, list[int]] = {}
    for part in found.places:
        names[part], labels[part] = [], []
        for name, files in found.listed(part):
            names[part] += [f"{name}/{file}" for file in files]
            labels[part] += [found.classes.index(name)] * len(files)

    def every() -> Iterator[Path]:
        return (path / found.places[part] / name for part, listed in names.items() for name in listed)

    channels, size = _common(every(), resize)
    origin = origin_of(every(), channels, size) if room.folder else ""
    parts = {}
    for part, place in found.places.items():

        def blocks(start: int, part: str = part, place: str = place) -> Iterator[Tensor]:
            return (decode(path / place / name, channels=channels, resize=resize)[None] for name in names[part][start:])

        images = room.filled(part, (len(names[part]), channels, *size), origin, blocks)
        own = torch.tensor(labels[part], dtype=torch.int64)
        parts[part] = labelled(images, own, found.classes, where=path / place, files=tuple(names[part]))
    name = path.resolve().name
    return Splits(name=name, train=parts["train"], test=parts.get("test"), layout=found.layout, source=path)


def stream(path: Path, *, channels: int | None = None, resize: int | None = None) -> Iterator[tuple[str, str, Tensor]]:
    """The images of a folder one at a time, in the order of `read_folder`, the training images first.

    Only one image is held at any time; sizes may differ. Images come as the files have them, grey (1, h, w)
    or RGB (3, h, w), unless `channels` asks for 1 or 3.

    Yields:
        (file name below `path`, e.g. "train/cat/7.png", class name, uint8 image (c, h, w)).

    Raises:
        InputError: as `read_folder`, when the culprit is reached.
    """
    found = tree(path)
    for part, place in found.places.items():
        for name, files in found.listed(part):
            for file in (path / place / name / file for file in files):
                yield file.relative_to(path).as_posix(), name, decode(file, channels=channels, resize=resize)


def write_folder(splits: Splits, folder: Path) -> None:
    """Write `splits` as PNG files in the tree they came in, `<class>/<old name>.png`, or else numbered.

    The folder is the label: an image whose label changed moves. Two names that differ only in suffix or case
    keep the old suffix too (`7.jpg` and `7.png` become `7.jpg.png` and `7.png.png`).

    Raises:
        InputError: a class name that cannot be a folder's name, or images of other than 1 or 3 channels.
    """
    train, test = splits.layout.options.get("train", "train"), splits.layout.options.get("test")
    if splits.test is not None and test is None:
        train, test = "train", "test"
    for name in splits.train.classes:
        if not name or name.startswith(".") or any(c in name for c in ("/", os.sep, "\0")):
            raise InputError(f"the class name {name!r} cannot be a folder's name; choose another layout")
    parts = {train: splits.train} | ({test: splits.test} if splits.test is not None else {})
    for place, data in parts.items():
        for name, image in zip(_targets(data), data.images, strict=True):
            save_png(image, folder / place / name)


def save_png(image: Tensor, file: Path) -> None:
    """Write a uint8 image (c, h, w), c 1 or 3, as PNG; the folders above are made."""
    content = png(image)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _tree(root: Path) -> tuple[str, str | None]:
    """The folders below `root` with the training and the test classes ("" is the root itself)."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder")
    tests = [name for name in ("test", "val") if _subfolders(root / name)]
    if _subfolders(root / "train"):
        return "train", tests[0] if tests else None
    if tests:
        raise InputError(f"{root} holds {tests[0]} but no train folder with one folder per class")
    return "", None


def _files(folder: Path) -> list[str]:
    """The image files below a class folder, as names relative to it, in natural order."""
    found = [
        Path(where, name).relative_to(folder).as_posix()
        for where, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in FORMATS and not name.startswith(".")
    ]
    if not found:
        raise InputError(f"{folder} holds no {KNOWN} images")
    return sorted(found, key=natural)


def _common(files: Iterable[Path], resize: int | None) -> tuple[int, tuple[int, int]]:
    """The number of channels and the (height, width) that all images can have."""
    grey = True
    examples: dict[tuple[int, int], Path] = {}
    counts: Counter[tuple[int, int]] = Counter()
    wrong: list[str] = []
    for file in files:
        try:
            own_grey, size = header(file)
        except InputError as error:
            wrong.append(str(error))
            continue
        grey &= own_grey
        counts[size] += 1
        examples.setdefault(size, file)
    if wrong:
        raise InputError("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    channels = 1 if grey else 3
    if resize is not None:
        return channels, (resize, resize)
    usual = counts.most_common(1)[0][0]
    for size, file in examples.items():
        if size != usual:
            raise InputError(
                f"{file} is {size[1]}x{size[0]} where others are {usual[1]}x{usual[0]} (width x height), one of "
                f"{counts.total() - counts[usual]} of other sizes; make all the same, or add --resize N"
            )
    return channels, usual


def _targets(data: Data) -> list[str]:
    """A PNG name below its class folder for every image, no two the same on any file system."""
    digits = len(str(len(data)))
    olds = data.files or tuple(f"{i:0{digits}d}.png" for i in range(len(data)))
    wanted = []
    for old, label in zip(olds, data.labels.tolist(), strict=True):
        head, _, rest = old.partition("/")
        wanted.append(f"{data.classes[label]}/{rest if head in data.classes and rest else old}")
    return png_names(wanted)


def png_names(wanted: Sequence[str]) -> list[str]:
    """The names with the suffix .png, no two the same on any file system.

    Those that differ only in suffix or case keep the old suffix too: `7.jpg` and `7.png` become `7.jpg.png` and
    `7.png.png`.
    """
    stems = Counter(os.path.splitext(name)[0].casefold() for name in wanted)
    names: list[str] = []
    taken: set[str] = set()
    for name in wanted:
        stem = os.path.splitext(name)[0]
        if stems[stem.casefold()] > 1:
            stem = name
        new, again = f"{stem}.png", 2
        while new.casefold() in taken:
            new, again = f"{stem}-{again}.png", again + 1
        taken.add(new.casefold())
        names.append(new)
    return names
