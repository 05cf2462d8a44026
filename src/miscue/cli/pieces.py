"""Work on images piece by piece, kept beside OUT until the whole is there: a killed command goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miscue.cli import console
from miscue.files import write_arrays, write_json
from miscue.run import Tick, refuse_other

Make = Callable[[slice], dict[str, Tensor]]
"""The images of a piece -> what is found of each: tensors on the CPU, all of one length."""


@contextmanager
def pieces(
    out: Path, settings: dict[str, Any], make: Make, *, count: int, size: int, title: str, overwrite: bool
) -> Iterator[dict[str, Tensor]]:
    """What `make` finds of `count` images, `size` at a time; pieces are removed when the block ends well.

    Raises:
        InputError: the pieces that are there belong to other settings.
    """
    place = out.with_name(f"{out.name}.pieces")
    if overwrite:
        shutil.rmtree(place, ignore_errors=True)
    about = place / "settings.json"
    if about.exists():
        refuse_other(settings, json.loads(about.read_text(encoding="utf-8")), place)
    write_json(about, settings)
    files = [place / f"{start:06}.npz" for start in range(0, count, size)]

    def ticks() -> Iterator[Tick]:
        for number, file in enumerate(files):
            if not file.exists():
                found = make(slice(number * size, (number + 1) * size))
                write_arrays(file, {key: value.numpy() for key, value in found.items()})
            yield Tick(done=min((number + 1) * size, count), total=count)

    try:
        console.follow(ticks(), title, str)
    finally:
        if not any(file.exists() for file in files):
            shutil.rmtree(place)
    parts = [read(file) for file in files]
    yield {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    shutil.rmtree(place)


def read(file: Path) -> dict[str, Tensor]:
    """A piece."""
    with np.load(file, allow_pickle=False) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}
