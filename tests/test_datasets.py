"""Named sets: found, fetched from a server of our own, resumed, verified."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from miscue import datasets
from miscue.datasets import SETS, Named, download, locate, verify
from miscue.download import Remote, fetch
from miscue.errors import InputError
from miscue.readers import READERS, read
from miscue.writers import write

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CONTENT = bytes(np.random.default_rng(0).integers(0, 256, 600_000, dtype=np.uint8))


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `cut` connections break off in the middle; `ranges` says whether Range is honoured."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cut = 0
        self.ranges = True
        self.status = 200
        self.asked: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut:
            server.cut -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server: Server, **changes: object) -> Remote:
    md5 = hashlib.md5(server.content).hexdigest()
    return Remote(**{"url": server.address, "path": "sub/file.bin", "size": len(server.content), "md5": md5} | changes)


def test_fetch(server: Server, tmp_path: Path) -> None:
    progress = list(fetch(remote(server), tmp_path))
    assert (tmp_path / "sub" / "file.bin").read_bytes() == CONTENT
    assert progress == sorted(progress)
    assert progress[-1] == len(CONTENT)
    assert list(fetch(remote(server), tmp_path)) == [len(CONTENT)]
    assert len(server.asked) == 1, "what is there and right is not fetched again"


def test_fetch_goes_on_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.cut = 2
    list(fetch(remote(server), tmp_path, pause=0.01))
    assert (tmp_path / "sub" / "file.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=450000-"]
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["file.bin"]


def test_a_later_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.cut = 1
    with pytest.raises(InputError, match="broke off at 300000 of 600000"):
        list(fetch(remote(server), tmp_path, attempts=1))
    assert (tmp_path / "sub" / "file.bin.part").stat().st_size == 300_000
    list(fetch(remote(server), tmp_path, attempts=1))
    assert server.asked[1] == "bytes=300000-"
    assert (tmp_path / "sub" / "file.bin").read_bytes() == CONTENT


def test_a_server_that_ignores_range(server: Server, tmp_path: Path) -> None:
    server.cut, server.ranges = 1, False
    list(fetch(remote(server), tmp_path, pause=0.01))
    assert server.asked[1] == "bytes=300000-"
    assert (tmp_path / "sub" / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("changes", [{"md5": "0" * 32}, {"size": len(CONTENT) - 5}], ids=["checksum", "longer"])
def test_wrong_content_is_removed(changes: dict[str, object], server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the published file"):
        list(fetch(remote(server, **changes), tmp_path, pause=0.01))
    assert not list((tmp_path / "sub").iterdir())


def test_refusal_and_silence(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(InputError, match="404"):
        list(fetch(remote(server), tmp_path, pause=0.01))
    assert len(server.asked) == 1, "a refusal is final"
    server.status = 503
    with pytest.raises(InputError, match="503"):
        list(fetch(remote(server), tmp_path, attempts=3, pause=0.01))
    assert len(server.asked) == 4
    with pytest.raises(InputError, match="cannot be fetched"):
        list(fetch(remote(server, url="http://127.0.0.1:1/x"), tmp_path, attempts=2, pause=0.01))


def archive(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 5
            tar.addfile(entry, io.BytesIO(b"hello"))
    return buffer.getvalue()


def test_an_archive_is_unpacked_and_dropped(server: Server, tmp_path: Path) -> None:
    server.content = archive(["set/a", "set/b"])
    hello = hashlib.md5(b"hello").hexdigest()
    wanted = remote(server, path="set.tar.gz", unpacked={"set/a": hello, "set/b": hello})
    list(fetch(wanted, tmp_path))
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "set",
        "set/a",
        "set/b",
    ]
    list(fetch(wanted, tmp_path))
    assert len(server.asked) == 1


def test_an_archive_cannot_write_elsewhere(server: Server, tmp_path: Path) -> None:
    server.content = archive(["set/a", "../../outside"])
    wanted = remote(server, path="set.tar.gz", unpacked={"set/a": hashlib.md5(b"hello").hexdigest()})
    with pytest.raises(InputError, match="cannot be unpacked"):
        list(fetch(wanted, tmp_path / "deep" / "home"))
    assert not list(tmp_path.rglob("outside"))
    assert not (tmp_path / "deep" / "home" / "set").exists()


def test_download_and_verify_a_named_set(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Named(summary="made", layout="idx", places=("made/raw",), remotes=(remote(server, path="made/raw/f"),))
    monkeypatch.setitem(SETS, "made", chosen)
    monkeypatch.setenv("MISCUE_DATA", f"{tmp_path / 'one'}{os.pathsep}{tmp_path / 'two'}")
    with pytest.raises(InputError, match=r"made is not under .*one or .*two.*miscue data download made"):
        read("made")
    progress = list(download("made"))
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert locate("made") == tmp_path / "one" / "made" / "raw"
    verify("made")
    (tmp_path / "one" / "made" / "raw" / "f").write_bytes(CONTENT[1:])
    with pytest.raises(InputError, match="not the published file"):
        verify("made")


def test_what_cannot_be_downloaded() -> None:
    for name, match in (
        ("digits", "nothing to download"),
        ("gtsrb", "no public address"),
        ("mnits", "mean mnist"),
    ):
        with pytest.raises(InputError, match=match):
            download(name)
    with pytest.raises(InputError, match="no checksums"):
        verify("gtsrb")


def test_lookup_goes_through_all_folders_and_their_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (two / "cache").mkdir(parents=True)
    images = np.zeros((86, 3, 3, 3), np.uint8)
    np.savez(two / "cache" / "gtsrb.npz", x_train=images, y_train=np.arange(86) % 43)
    monkeypatch.setenv("MISCUE_DATA", f"{one}{os.pathsep}{os.pathsep}{two}")
    assert datasets.roots() == [one, two]
    splits = read("gtsrb")
    assert splits.name == "gtsrb"
    assert splits.train.classes[14] == "stop"
    write(splits, tmp_path / "out", manifest={})
    assert read(tmp_path / "out").train.classes == splits.train.classes
    monkeypatch.setenv("MISCUE_DATA", str(one))
    with pytest.raises(InputError, match=r"gtsrb is not under .*one \(as gtsrb.npz\); it cannot be downloaded"):
        read("gtsrb")


def test_digits(tmp_path: Path) -> None:
    splits = read("digits")
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert splits.train.shape == (1, 8, 8)
    both = torch.cat([splits.train.images, splits.test.images])
    assert both.unique().tolist() == [int(v * 255 / 16 + 0.5) for v in range(17)]
    shares = splits.test.labels.bincount() / (splits.test.labels.bincount() + splits.train.labels.bincount())
    assert float((shares - 0.2).abs().max()) < 0.005
    assert torch.equal(read("digits").train.images, splits.train.images)
    write(splits, tmp_path / "out", manifest={})
    assert torch.equal(read(tmp_path / "out").train.images, splits.train.images)
    assert (tmp_path / "out" / "digits.npz").is_file()


def test_the_table() -> None:
    sizes = {"digits": 10, "mnist": 10, "fashion-mnist": 10, "cifar10": 10, "gtsrb": 43}
    for name, chosen in SETS.items():
        assert chosen.layout in READERS
        assert chosen.places or name == "digits"
        assert len(set(chosen.classes)) == len(chosen.classes) == sizes.get(name, len(chosen.classes))
        assert all(len(r.md5) == 32 and r.size > 0 and r.url.startswith("http") for r in chosen.remotes)
        assert not any("/" in label for label in chosen.classes), "each can be a folder's name"


def test_importing_is_light() -> None:
    heavy = "{'sklearn', 'platformdirs'}"
    code = f"import sys, miscue.readers, miscue.writers; sys.exit(bool({heavy} & {{*sys.modules}}))"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.skipif(not (SHARED / "MNIST" / "raw").is_dir(), reason="the real files are not here")
def test_the_real_files_have_the_published_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISCUE_DATA", str(SHARED))
    for name in ("mnist", "fashion-mnist"):
        verify(name)
