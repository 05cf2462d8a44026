"""Room for the images of a set: in memory, or where they would take too much of it unpacked in a file that is mapped.

The pages of a mapped file come as they are looked at and go when memory is short, so that a set may be larger than it.
What was unpacked once is there for the next process, and one that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miscue.files import locked

LARGE = 2**30  # bytes of images that are kept in memory, or moved to a device, as a whole

Blocks = Callable[[int], Iterable[Tensor]]
"""start -> the images of a set from number `start` on, block by block, uint8 (any number, c, h, w)."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Where the images of a set go.

    folder: what is too large for memory is unpacked there; None keeps all in memory.
    memory: how many bytes are not too large.
    """

    folder: Path | None = None
    memory: int = LARGE

    def filled(self, name: str, shape: tuple[int, ...], origin: str, blocks: Blocks) -> Tensor:
        """All images of a set as one tensor, uint8 `shape` (n, c, h, w), in memory or mapped.

        name: of the part of the set, for the file; origin: a hash of all that the images come from, see `origin_of`.
        """
        if self.folder is None or math.prod(shape) <= self.memory:
            images, count = torch.empty(shape, dtype=torch.uint8), 0
            for block in blocks(0):
                images[count : count + len(block)] = block
                count += len(block)
            return images
        path = self.folder.resolve() / f"{name}-{origin[:16]}.npy"
        if not path.exists():
            with locked(self.folder / f"{name}.lock"):
                for other in self.folder.glob(f"{name}-*.npy*"):
                    if not other.name.startswith(path.name):
                        other.unlink()
                if not path.exists():  # another process may just have unpacked it
                    _unpack(path, shape, blocks)
        return Mapped(path=str(path), offset=path.stat().st_size - math.prod(shape), shape=shape).opened()


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Images in a file: its path, the bytes before them, their shape. It can be sent to another process."""

    path: str
    offset: int
    shape: tuple[int, ...]

    def opened(self) -> Tensor:
        """The images, mapped."""
        end = self.offset + math.prod(self.shape)
        content = torch.from_file(self.path, shared=True, size=end, dtype=torch.uint8)
        return content[self.offset :].view(self.shape)


def mapping(images: Tensor) -> Mapped | None:
    """Where uint8 images lie that `Mapped.opened` gave, or an even slice of them; None for others."""
    path = images.untyped_storage().filename if images.device.type == "cpu" else None
    if path is None or not images.is_contiguous():
        return None
    return Mapped(path=path, offset=int(images.storage_offset()), shape=tuple(images.shape))


def origin_of(files: Iterable[Path], *options: Any) -> str:
    """A hash of the files' names, sizes and times of change, and of whatever else decides what is read of them."""
    digest = hashlib.sha256(repr(options).encode())
    for file in files:
        about = file.stat()
        digest.update(f"{file}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _unpack(path: Path, shape: tuple[int, ...], blocks: Blocks) -> None:
    """Write all images to a npy file, going on after the last whole one that a killed process left."""
    header, image = io.BytesIO(), math.prod(shape[1:])
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    head = header.getvalue()
    part = path.with_name(f"{path.name}.part")
    with part.open("ab") as file:
        count, rest = divmod(file.tell() - len(head), image)
        if count < 0:
            count, rest = 0, file.tell()
        file.truncate(file.tell() - rest)
        if not count:
            file.truncate(0)
        file.seek(0, os.SEEK_END)
        if not count:
            file.write(head)
        for block in blocks(count):
            file.write(block.contiguous().numpy().data)
        assert file.tell() == len(head) + math.prod(shape), f"{path}: fewer images came than there should be"
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
