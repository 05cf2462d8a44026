"""Poisoned copies of image folders and npz files, made piece by piece: memory does not grow with the set.

A piece is some images of a folder, or one npz file. What is done waits in a hidden folder beside the copy, with a line
for each piece in a journal; the copy appears when it is whole. A run that was killed goes on where the journal ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from miscue.balls import changed_pixels, linf
from miscue.data import Layout, chosen
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.files import locked, refuse_existing
from miscue.layouts import npz
from miscue.layouts.common import class_names
from miscue.layouts.folder import Tree, png_names, save_png, tree
from miscue.layouts.pictures import decode
from miscue.perturbation import Perturbation
from miscue.run import Tick, refuse_other
from miscue.writers import describe, sha256_of, spare_source

TOGETHER, VALUES = 64, 2**22  # images in a piece of a folder; numbers in those that are poisoned at once


@dataclass(kw_only=True)
class Tally:
    """What was done, in one piece or in all so far.

    files: name -> sha256 of what was written, kept for a piece only.
    measured: how far a pixel moved, on the [0, 1] scale; pixels: in how many places an image changed at most.
    poisoned: part -> poisoned images; skipped: [name, reason] of what could not be read.
    """

    files: dict[str, str] = field(default_factory=dict)
    measured: float = 0.0
    pixels: int = 0
    poisoned: dict[str, int] = field(default_factory=dict)
    skipped: list[list[str]] = field(default_factory=list)

    def add(self, piece: Tally) -> None:
        """Count a piece."""
        self.measured, self.pixels = max(self.measured, piece.measured), max(self.pixels, piece.pixels)
        for part, count in piece.poisoned.items():
            self.poisoned[part] = self.poisoned.get(part, 0) + count
        self.skipped += piece.skipped


Names = tuple[str, str]
"""The old and the new name of an image, below the folder of its class."""

Numbered = tuple[int, str, Tensor]
"""An image's number in its part, its new name, it."""

Poisoner = Callable[[Tally, str, Tensor, Tensor, Tensor], Tensor]
"""(tally, part, numbers of some images in their part, they, their labels) -> what the copy has in their place."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is copied at once: its first and last name and how many, the images in it, and how it is done."""

    about: list[Any]
    images: int
    make: Callable[[Path, Tally], None]


class Source(Protocol):
    """What is copied: layout, classes, how many images each part has, their shapes where all are known, the pieces."""

    layout: Layout
    classes: tuple[str, ...]
    totals: dict[str, int]
    shapes: set[tuple[int, ...]]

    def pieces(self, poison: Poisoner) -> Iterator[Piece]:
        """All pieces in order; each writes itself below a folder, poisoned, and tallies what it did."""


class Pictures:
    """An image folder.

    channels: what the perturbation is for; grey images become RGB where it is for 3.
    """

    def __init__(self, path: Path, *, channels: int, resize: int | None, keep_going: bool):
        self.tree: Tree = tree(path)
        self.channels, self.resize, self.keep_going = channels, resize, keep_going
        self.layout, self.classes = self.tree.layout, self.tree.classes
        self.shapes: set[tuple[int, ...]] = set()
        self.totals = {part: sum(len(files) for _, files in self.tree.listed(part)) for part in self.tree.places}

    def pieces(self, poison: Poisoner) -> Iterator[Piece]:
        """`TOGETHER` images of one class at a time."""
        for part, place in self.tree.places.items():
            number = 0
            for label, files in self.tree.listed(part):
                pairs = list(zip(files, png_names(files), strict=True))
                for start in range(0, len(files), TOGETHER):
                    some = pairs[start : start + TOGETHER]
                    home = Path(place, label)
                    yield Piece(
                        about=[(home / some[0][0]).as_posix(), (home / some[-1][0]).as_posix(), len(some)],
                        images=len(some),
                        make=partial(self._make, poison, part, number, home, some),
                    )
                    number += len(some)

    def _make(
        self, poison: Poisoner, part: str, first: int, home: Path, some: list[Names], out: Path, tally: Tally
    ) -> None:
        """Poison and write some images of the class folder `home`, the first of which has the number `first`."""
        label = self.classes.index(home.name)
        for group in alike(self._read(first, home, some, tally)):
            numbers = torch.tensor([number for number, _, _ in group])
            images = torch.stack([image for _, _, image in group])
            images = poison(tally, part, numbers, images, torch.full((len(group),), label))
            for (_, name, _), image in zip(group, images, strict=True):
                save_png(image, out / home / name)
                tally.files[(home / name).as_posix()] = sha256_of(out / home / name)

    def _read(self, first: int, home: Path, some: list[Names], tally: Tally) -> Iterator[Numbered]:
        """The images one by one; those that cannot be read are passed over, where that is wanted, and tallied."""
        for number, (old, new) in enumerate(some, start=first):
            file = self.tree.root / home / old
            try:
                image = decode(file, channels=3 if self.channels == 3 else None, resize=self.resize)
                if len(image) != self.channels:
                    raise InputError(f"{file} has {len(image)} channels, this perturbation is for {self.channels}")
            except InputError as error:
                if not self.keep_going:
                    raise
                tally.skipped.append([(home / old).as_posix(), str(error)])
            else:
                yield number, new, image


def alike(images: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """The images in groups of one shape, of at most `VALUES` numbers or of one image."""
    group: list[Numbered] = []
    for one in images:
        image = one[2]
        if group and (group[0][2].shape != image.shape or (len(group) + 1) * image.numel() > VALUES):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


class Shards:
    """npz files; a piece is one of them."""

    def __init__(self, path: Path, *, resize: int | None, keep_going: bool):
        self.resize, self.keep_going = resize, keep_going
        self.files = npz.files_of(path)
        self.totals: dict[str, int] = {}
        first, highest = None, [torch.zeros(0, dtype=torch.int64)]
        for _, _, shard in self._shards():
            if isinstance(shard, InputError):
                continue
            first = first or shard
            npz.agree(first, shard)
            for part, labels in shard.labels.items():
                self.totals[part] = self.totals.get(part, 0) + len(labels)
                highest += [labels.amax(0, keepdim=True)] if len(labels) else []
        if first is None:
            raise InputError(f"none of the npz files of {path} can be read")
        self.layout, self.shapes = Layout(kind="npz", options=first.options), set(first.shapes.values())
        self.classes = first.names or class_names(path, highest)

    def _shards(self) -> Iterator[tuple[Path, dict[str, int], npz.Shard | InputError]]:
        """(file, the number of its first image in each part, what it holds or why it cannot be read)."""
        starts: dict[str, int] = {}
        for file in self.files:
            try:
                shard = npz.look(file, self.resize)
            except InputError as error:
                if not self.keep_going:
                    raise
                yield file, {}, error
                continue
            yield file, starts, shard
            starts = {part: starts.get(part, 0) + count for part, count in shard.counts.items()}

    def pieces(self, poison: Poisoner) -> Iterator[Piece]:
        """One file after another."""
        for file, starts, shard in self._shards():
            images = 0 if isinstance(shard, InputError) else sum(shard.counts.values())
            make = partial(self._make, poison, file, starts, shard)
            yield Piece(about=[file.name, file.name, images], images=images, make=make)

    def _make(
        self,
        poison: Poisoner,
        file: Path,
        starts: dict[str, int],
        shard: npz.Shard | InputError,
        out: Path,
        tally: Tally,
    ) -> None:
        """Poison and write a file."""

        def change(part: str, start: int, images: Tensor, labels: Tensor) -> Tensor:
            first = starts.get(part, 0) + start
            return poison(own, part, torch.arange(first, first + len(images)), images, labels)

        target, own = out / file.name, Tally()
        try:
            if isinstance(shard, InputError):
                raise shard
            npz.rewrite(shard, target, change)
        except InputError as error:
            if not self.keep_going:
                raise
            target.unlink(missing_ok=True)
            tally.skipped.append([file.name, str(error)])
            return
        tally.add(own)
        tally.files[file.name] = sha256_of(target)


KINDS = ("folder", "npz")


@dataclass(kw_only=True)
class Copy:
    """A poisoned copy in the making.

    perturbation: what is put on the images.
    source: an image folder, an npz file or a folder of shards; kind: which, one of `KINDS`.
    parts: "train", "test": what is poisoned, the rest is copied; () for all that there is.
    share: of the images that are poisoned, the others stay clean; seed: of that choice.
    resize: the side that images get; None leaves them.
    keep_going: pass over what cannot be read, and say so, instead of stopping there.
    tally: what was done so far.
    """

    perturbation: Perturbation
    source: Path
    kind: str
    parts: tuple[str, ...] = ("train",)
    share: float = 1.0
    seed: int = 0
    resize: int | None = None
    keep_going: bool = False
    tally: Tally = field(default_factory=Tally)

    def making(self, out: Path, facts: dict[str, Any], *, overwrite: bool = False) -> Iterator[Tick]:
        """Make the copy as the folder `out`, going on with one that was begun there unless that is to be overwritten.

        It has the layout of its source (images of folders become PNG) and manifest.json: `facts`, what was done, and
        the files' checksums. The facts of a Tick are what had to be passed over.

        Raises:
            InputError: `out` exists or holds the source; another copy was begun there; the source has changed since, or
                holds what cannot be read or poisoned, the message names the file.
            OSError: what the file system raises; what was done by then is kept for another try.
        """
        spare_source(self.source, out)
        refuse_existing(out, overwrite=overwrite)
        source = self._opened()
        marked = {part: self._marked(part, count) for part, count in source.totals.items()} if self.share < 1 else {}
        poison = partial(self._poisoned, len(source.classes), marked)
        work = out.with_name(f".{out.name}.part")
        if overwrite:
            shutil.rmtree(work, ignore_errors=True)
        folder, journal = work / "copy", work / "journal.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        done, total = 0, sum(source.totals.values())
        with locked(work / "run.lock", wait=False), journal.open("a+b") as file:
            file.seek(0)
            settings = self._settings() | {"totals": source.totals} if self.share < 1 else self._settings()
            refuse_other(settings, following(file) or added(file, settings), work)
            for piece in source.pieces(poison):
                line = following(file)
                if line is None:
                    tally = Tally()
                    try:
                        piece.make(folder, tally)
                    except InputError:
                        if not done:  # nothing to go on from
                            shutil.rmtree(work, ignore_errors=True)
                        raise
                    line = added(file, {"piece": piece.about, **asdict(tally)})
                elif line["piece"] != piece.about:
                    raise InputError(f"{self.source} has changed since {work} was begun; add --overwrite to start anew")
                tally = Tally(**{key: value for key, value in line.items() if key != "piece"})
                self.tally.add(tally)
                done += piece.images
                for name, reason in tally.skipped:
                    yield Tick(done=done, total=total, fact={"skipped": name, "reason": reason})
                yield Tick(done=done, total=total)
        if not any(True for _ in written(journal)):
            raise InputError(f"nothing of {self.source} could be read")
        layout = {"kind": self.kind, **source.layout.options}
        about = self.row(facts) | {"classes": list(source.classes), "layout": layout}
        describe(folder, about, written(journal))
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
        shutil.rmtree(work)

    def row(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What the manifest says of the copy."""
        skipped = {"skipped": self.tally.skipped} if self.tally.skipped else {}
        return (
            manifest(
                self.perturbation,
                facts,
                measured=self.tally.measured,
                pixels=self.tally.pixels,
                share=self.share,
                counts=self.tally.poisoned,
                name=self.source.resolve().name if self.source.is_dir() else self.source.stem,
            )
            | skipped
        )

    def _opened(self) -> Source:
        mark = self.perturbation.mark
        options: dict[str, Any] = {"resize": self.resize, "keep_going": self.keep_going}
        source: Source
        if self.kind == "folder":
            source = Pictures(self.source, channels=mark.channels, **options)
        else:
            source = Shards(self.source, **options)
        for part in self.parts:
            if part not in source.totals:
                raise InputError(f"{self.source} has no {part} set to poison")
        for channels, height, width in source.shapes:
            mark.check((channels, height, width), len(source.classes))
        return source

    def _settings(self) -> dict[str, Any]:
        """What must agree for going on with a copy."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.perturbation.mark.packed()[0].items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        about = {"source": str(self.source.resolve()), "perturbation": digest.hexdigest()}
        return about | {"parts": list(self.parts), "share": self.share, "seed": self.seed, "resize": self.resize}

    def _marked(self, part: str, count: int) -> Tensor:
        """Which of a part's images are poisoned, bool (count,)."""
        marked = torch.zeros(count, dtype=torch.bool)
        marked[chosen(count, self.share, Dice(self.seed).named(part))] = True
        return marked

    def _poisoned(
        self,
        classes: int,
        marked: dict[str, Tensor],
        tally: Tally,
        part: str,
        numbers: Tensor,
        images: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """A `Poisoner`, once it knows how many classes there are, and of a share which images it is."""
        if self.parts and part not in self.parts:
            return images
        channels, height, width = images.shape[1:]
        self.perturbation.mark.check((channels, height, width), classes)
        changed, count = self.perturbation.images(images, labels), len(images)
        if part in marked:
            clean = ~marked[part][numbers]
            changed[clean] = images[clean]
            count -= int(clean.sum())
        named = part if self.parts else "all"
        own = Tally(measured=linf(changed, images), pixels=changed_pixels(changed, images), poisoned={named: count})
        tally.add(own)
        return changed


def manifest(
    perturbation: Perturbation,
    facts: dict[str, Any],
    *,
    measured: float,
    pixels: int,
    share: float,
    counts: dict[str, int],
    name: str,
) -> dict[str, Any]:
    """What a manifest says of a copy: its making, the budget asked for and measured, how many images are poisoned."""
    return {
        "method": perturbation.settings.get("poison"),
        **facts,
        "eps": perturbation.eps,
        "budget_measured": measured,
        "changed_pixels": pixels,
        "share": share,
        "poisoned_images": counts,
        "order": "as the input",
        "input": name,
    }


def following(file: IO[bytes]) -> dict[str, Any] | None:
    """The next whole line of a journal; None at its end, where half a line is cut off."""
    at, text = file.tell(), file.readline()
    if text.endswith(b"\n"):
        found: dict[str, Any] = json.loads(text)
        return found
    file.seek(at)
    file.truncate()
    return None


def added(file: IO[bytes], line: dict[str, Any]) -> dict[str, Any]:
    """Add a line at the end of a journal, and have it on the disk before going on."""
    text = json.dumps(line)
    file.write(text.encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
    found: dict[str, Any] = json.loads(text)
    return found


def written(journal: Path) -> Iterator[tuple[str, str]]:
    """The (name, sha256) of all files that a journal tells of."""
    with journal.open("rb") as file:
        next(file)
        for line in file:
            yield from json.loads(line)["files"].items()
