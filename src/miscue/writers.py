"""Writing data sets losslessly in the layout they came in, beside a manifest; all at once or not at all."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miscue.data import Layout, Splits
from miscue.errors import InputError, lookup
from miscue.files import atomic, atomic_folder
from miscue.layouts.cifar import write_cifar
from miscue.layouts.common import MANIFEST
from miscue.layouts.folder import write_folder
from miscue.layouts.idx import write_idx
from miscue.layouts.npz import write_npz

__all__ = [
    "WRITERS",
    "describe",
    "sha256_of",
    "spare_source",
    "versions",
    "write",
    "write_cifar",
    "write_folder",
    "write_idx",
    "write_npz",
]

WRITERS: dict[str, Callable[[Splits, Path], None]] = {
    "idx": write_idx,
    "cifar": write_cifar,
    "npz": write_npz,
    "folder": write_folder,
}


def write(
    splits: Splits, out: str | Path, *, manifest: dict[str, Any], overwrite: bool = False, layout: str | None = None
) -> None:
    """Write `splits` to the folder `out`; reading `out` gives equal images, labels, classes and order.

    Nothing is lost: image folders become PNG. Equal sets give equal bytes. Beside the data lies
    manifest.json: what the caller gives, then `classes`, `layout`, `versions` and `files` (sha256 of each).

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
    out = Path(out)
    if layout is not None and layout != splits.layout.kind:
        splits = replace(splits, layout=Layout(kind=layout))
    store = lookup(WRITERS, splits.layout.kind, "layout")
    spare_source(splits.source, out)
    with atomic_folder(out, overwrite=overwrite) as folder:
        store(splits, folder)
        described = {"kind": splits.layout.kind, **splits.layout.options}
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sums = ((file.relative_to(folder).as_posix(), sha256_of(file)) for file in files)
        describe(folder, manifest | {"classes": list(splits.train.classes), "layout": described}, sums)


def describe(folder: Path, manifest: dict[str, Any], sums: Iterable[tuple[str, str]]) -> None:
    """Write manifest.json: what is given, then `versions`, and `files`, the (name, sha256) of each as they come."""
    head = json.dumps(manifest | {"versions": versions()}, indent=2, ensure_ascii=False)
    with atomic(folder / MANIFEST) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f"{head[:-2]},\n" + '  "files": {')
        for number, (name, digest) in enumerate(sums):
            file.write(f"{',' if number else ''}\n    {json.dumps(name, ensure_ascii=False)}: {json.dumps(digest)}")
        file.write("\n  }\n}\n")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spare_source(source: Path | None, out: Path) -> None:
    """Refuse to replace the folder that the data came from, or one above it."""
    if source is not None and out.resolve() in (source.resolve(), *source.resolve().parents):
        raise InputError(f"{out} holds the data that is read ({source}); choose another place")


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
