"""Writing that never leaves half a file: everything goes to a temporary neighbour first and is renamed at the end."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from miscue.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on any error it is removed.

    Raises:
        InputError: `path` exists and `overwrite` is false, or it is a file.
    """
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise an InputError where writing to the folder `path` would destroy something that nobody offered."""
    if path.is_file():
        raise InputError(f"{path} is a file; a folder is to be written there")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise InputError(f"{path} exists already; choose another place or add --overwrite")


def refuse_file(path: Path, *, overwrite: bool) -> None:
    """Raise an InputError where writing the file `path` would destroy something that nobody offered."""
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another name or add --overwrite")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock of this machine's processes, or wait for who holds it; it is gone with the process that holds it.

    Where the system has no such locks, nothing is held.

    Raises:
        InputError: another holds it and is not waited for.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(f"another run is at work in {path.parent}; wait for it, or choose another place") from None
        try:
            yield
        finally:
            if not wait:  # nobody waits for this very file
                path.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write numpy arrays as a compressed npz file, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
