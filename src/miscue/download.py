"""Fetching a public file: resumed where it was cut off, checked before it gets its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import ssl
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from miscue.errors import InputError

CHUNK = 1 << 18
CUT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A public file.

    url: its address. path: its place below the data folder. size: bytes. md5: its published checksum.
    unpacked: for a tar archive, the files in it that count and their md5; the archive is then not kept.
    """

    url: str
    path: str
    size: int
    md5: str
    unpacked: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> Mapping[str, str]:
        """The files that are there in the end, below the data folder, and their md5."""
        return self.unpacked or {self.path: self.md5}


def fetch(remote: Remote, folder: Path, *, attempts: int = 4, pause: float = 1.0) -> Iterator[int]:
    """Bring `remote` into `folder`, as the result is drained; yields the number of bytes that are there.

    What arrives lies in `<name>.part` until its checksum is verified; a later call goes on from there.

    Args:
        remote: what to fetch.
        folder: the data folder.
        attempts: how often in all to connect before giving up.
        pause: seconds before the second attempt, doubled each time.

    Raises:
        InputError: the address does not answer or refuses, or the file is not the published one (the part is
            removed).
    """
    if all(md5_of(folder / path) == md5 for path, md5 in remote.files().items()):
        yield remote.size
        return
    target = folder / remote.path
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(attempts):
        try:
            yield from _receive(remote, part)
        except CUT as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == attempts - 1:
                raise InputError(f"{remote.url} cannot be fetched: {error}") from None
        if _size(part) >= remote.size:
            break
        if attempt < attempts - 1:
            time.sleep(pause * 2**attempt)
    else:
        raise InputError(f"{remote.url} broke off at {_size(part)} of {remote.size} bytes; run again to go on")
    if md5_of(part) != remote.md5:
        part.unlink()
        raise InputError(f"{remote.url} is not the published file: its md5 differs from {remote.md5}; removed")
    if remote.unpacked:
        _unpack(part, folder, remote)
    else:
        os.replace(part, target)


def _receive(remote: Remote, part: Path) -> Iterator[int]:
    """Append to `part` what is missing, or write it anew where the server starts from the beginning."""
    done = _size(part)
    if done >= remote.size:
        yield done
        return
    request = urllib.request.Request(remote.url, headers={"User-Agent": "miscue"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    with urllib.request.urlopen(request, timeout=30) as response:
        resumed = response.status == 206 and (response.headers["Content-Range"] or "").startswith(f"bytes {done}-")
        with part.open("ab" if resumed else "wb") as file:
            done = done if resumed else 0
            while done < remote.size and (chunk := response.read(min(CHUNK, remote.size + 1 - done))):
                file.write(chunk)
                done += len(chunk)
                yield done


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def md5_of(path: Path) -> str:
    """The md5 of a file in hexadecimal, "" where there is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(archive: Path, folder: Path, remote: Remote) -> None:
    """Unpack into a neighbour first, so that a folder that is there is whole; then drop the archive."""
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".unpacking."))
    try:
        with tarfile.open(archive) as content:
            content.extractall(temporary, filter="data")
        for top in {Path(path).parts[0] for path in remote.unpacked}:
            shutil.rmtree(folder / top, ignore_errors=True)
            os.replace(temporary / top, folder / top)
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise InputError(f"{remote.url} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    archive.unlink()
