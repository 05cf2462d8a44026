"""What the layouts share: class names that some cannot hold, and labels checked where they are read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from miscue.data import Data
from miscue.errors import InputError

MANIFEST = "manifest.json"


def natural(name: str) -> tuple[list[str | int], str, str]:
    """The key that sorts file names as people do: by the stem, its numbers by value; then by the suffix."""
    stem, suffix = os.path.splitext(name)
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", stem))], suffix, name


def noted(path: Path) -> tuple[str, ...]:
    """The class names in manifest.json, in the folder `path` or beside the file `path`; () if none."""
    manifest = (path if path.is_dir() else path.parent) / MANIFEST
    try:
        classes = json.loads(manifest.read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    good = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if good else ()


def class_names(path: Path, labels: Sequence[Tensor]) -> tuple[str, ...]:
    """Names for layouts that hold none: those of the manifest where they suffice, else "0", "1", ..."""
    count = max((int(part.max()) + 1 for part in labels if len(part)), default=0)
    names = noted(path)
    return names if len(names) >= count else tuple(map(str, range(count)))


def labelled(
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    where: Path | str,
    files: tuple[str, ...] = (),
) -> Data:
    """Data from uint8 images (n, c, h, w) and int64 labels (n,); errors name the file `where`."""
    if len(images) != len(labels):
        raise InputError(f"{where}: {len(images)} images but {len(labels)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        low, high = int(labels.min()), int(labels.max())
        raise InputError(f"{where}: labels range over {low}..{high}, but there are {len(classes)} classes")
    return Data(images=images, labels=labels, classes=classes, files=files)
