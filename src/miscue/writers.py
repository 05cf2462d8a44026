"""Writing data sets losslessly in the layout they came in, beside a manifest; all at once or not at all."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miscue.data import Layout, Splits
from miscue.errors import InputError, lookup
from miscue.files import atomic_folder, write_json
from miscue.layouts.cifar import write_cifar
from miscue.layouts.common import MANIFEST
from miscue.layouts.folder import save_png, write_folder
from miscue.layouts.idx import write_idx
from miscue.layouts.npz import write_npz

__all__ = [
    "WRITERS",
    "versions",
    "write",
    "write_cifar",
    "write_folder",
    "write_idx",
    "write_npz",
    "write_stream",
]

WRITERS: dict[str, Callable[[Splits, Path], None]] = {
    "idx": write_idx,
    "cifar": write_cifar,
    "npz": write_npz,
    "folder": write_folder,
}


def write(
    splits: Splits, out: Path, *, manifest: dict[str, Any], overwrite: bool = False, layout: str | None = None
) -> None:
    """Write `splits` to the folder `out`; reading `out` gives equal images, labels, classes and order.

    Nothing is lost: image folders become PNG. Equal sets give equal bytes. Beside the data lies
    manifest.json: what the caller gives, then `classes`, `layout`, `files` (sha256 of each) and `versions`.

    Args:
        splits: what to write; its layout says how.
        out: the folder; it appears complete or not at all.
        manifest: JSON values, e.g. method, options, seed, budget.
        overwrite: replace a folder that exists.
        layout: another kind than the input's, a key of `WRITERS`. An image folder reads back class by class.

    Raises:
        InputError: `out` exists, or holds what is read from; an unknown layout; images that it cannot hold.
        OSError: what the file system raises, e.g. ENOSPC; nothing is left behind.
    """
    if layout is not None and layout != splits.layout.kind:
        splits = replace(splits, layout=Layout(kind=layout))
    store = lookup(WRITERS, splits.layout.kind, "layout")
    _spare_source(splits.source, out)
    with atomic_folder(out, overwrite=overwrite) as folder:
        store(splits, folder)
        described = {"kind": splits.layout.kind, **splits.layout.options}
        _describe(folder, manifest | {"classes": list(splits.train.classes), "layout": described})


def write_stream(
    images: Iterable[tuple[str, Tensor]],
    out: Path,
    *,
    manifest: dict[str, Any],
    overwrite: bool = False,
    source: Path | None = None,
) -> None:
    """Write images as they come, each as the PNG `out/<its name>`, holding one at a time.

    Args:
        images: (file name below `out`, e.g. "train/cat/7.jpg", uint8 image (c, h, w), c 1 or 3). The suffix
            becomes .png; where that name is taken the old one stays before it (`7.jpg.png`).
        out: the folder; it appears complete or not at all, also if `images` raises.
        manifest: JSON values; `files` and `versions` are added, as in `write`.
        overwrite: replace a folder that exists.
        source: the folder that `images` are read from, which is then never replaced.

    Raises:
        InputError: `out` exists or holds `source`, no images came, or a name leads out of `out`.
    """
    _spare_source(source, out)
    with atomic_folder(out, overwrite=overwrite) as folder:
        count = 0
        for name, image in images:
            save_png(image, _free(folder, name))
            count += 1
        if not count:
            raise InputError(f"no images came, so {out} was not written")
        _describe(folder, manifest)


def versions() -> dict[str, str]:
    """What made a file: the versions of miscue, torch, numpy and Python."""
    try:
        miscue = metadata.version("miscue")
    except metadata.PackageNotFoundError:
        miscue = "not installed"
    return {
        "miscue": miscue,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _spare_source(source: Path | None, out: Path) -> None:
    """Refuse to replace the folder that the data came from, or one above it."""
    if source is not None and out.resolve() in (source.resolve(), *source.resolve().parents):
        raise InputError(f"{out} holds the data that is read ({source}); choose another place")


def _describe(folder: Path, manifest: dict[str, Any]) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sums = {file.relative_to(folder).as_posix(): _sha256(file) for file in files}
    write_json(folder / MANIFEST, manifest | {"files": sums, "versions": versions()})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(folder: Path, name: str) -> Path:
    """Where below `folder` the image `name` goes."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise InputError(f"the file name {name!r} leads out of the folder")
    target, again = folder / relative.with_suffix(".png"), 2
    while target.exists():
        stem = relative.name if again == 2 else f"{relative.name}-{again - 1}"
        target, again = folder / relative.with_name(f"{stem}.png"), again + 1
    return target
