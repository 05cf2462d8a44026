"""Sets larger than memory: copied piece by piece and resumed, unpacked into mapped files, crafted on from there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import striped, within
from miscue import copies
from miscue import data as nouns
from miscue.balls import linf
from miscue.copies import Copy
from miscue.data import Data, batches
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.layouts import npz
from miscue.marks import Generated, Pixels
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.perturbation import Perturbation
from miscue.poisons import Attacker, deepconfuse
from miscue.readers import read, stream
from miscue.room import Mapped, Room, mapping
from miscue.train import Recipe

EPS = 8 / 255
CLASSES, BOTH = ("cat", "dog", "emu"), ("train", "test")


def noisy(channels: int = 3, seed: int = 1) -> Perturbation:
    """An untrained generator, whose noise is there and differs from image to image."""
    plan = Plan(name="encoder-decoder", shape=(channels, 9, 8), options={"eps": EPS, "channels": (4, 8)})
    return Perturbation(mark=Generated(generator=placed(build(plan, Dice(seed)), "cpu"), plan=plan), eps=EPS)


def folder(root: Path, each: int = 5, *, trees: tuple[str, ...] = ("train", "test"), side: int = 8) -> Path:
    """Colour pictures of noise, `each` of a class in each tree."""
    dice = np.random.default_rng(0)
    for tree in trees:
        for name in CLASSES:
            (root / tree / name).mkdir(parents=True)
            for number in range(each):
                pixels = dice.integers(0, 256, (9, side, 3), np.uint8)
                Image.fromarray(pixels).save(root / tree / name / f"{number}.png")
    return root


def shards(root: Path, sizes: tuple[int, ...] = (7, 4, 9), *, test: bool = True, **more: Any) -> Path:
    """The same as npz files."""
    dice = np.random.default_rng(0)
    root.mkdir(parents=True)
    for number, size in enumerate(sizes):
        arrays = {"x_train": dice.integers(0, 256, (size, 9, 8, 3), np.uint8), "y_train": np.arange(size) % 3}
        if test:
            arrays |= {"x_test": dice.integers(0, 256, (3, 9, 8, 3), np.uint8), "y_test": np.arange(3)}
        np.savez(root / f"part-{number}.npz", **arrays, **more)
    return root


def made(source: Path, out: Path, **options: Any) -> Copy:
    """A whole copy."""
    kind = "npz" if source.suffix == ".npz" or any(source.glob("*.npz")) else "folder"
    copy = Copy(perturbation=options.pop("perturbation", noisy()), source=source, kind=kind, **options)
    overwrite = options.pop("overwrite", False)
    for _ in copy.making(out, {"by": "a test"}, overwrite=overwrite):
        pass
    return copy


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def same(a: Data, b: Data) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.classes == b.classes


# --- what a copy holds


@pytest.mark.parametrize("make", [folder, shards])
@pytest.mark.parametrize("parts", [("train",), ("test",), ("train", "test"), ()])
def test_a_copy_is_what_poisoning_in_memory_gives(make: Any, parts: tuple[str, ...], tmp_path: Path) -> None:
    clean = read(make(tmp_path / "in"))
    copy = made(tmp_path / "in", tmp_path / "out", parts=parts)
    found = read(tmp_path / "out")
    for part in ("train", "test"):
        before, after = getattr(clean, part), getattr(found, part)
        assert same(after, noisy()(before) if part in parts or not parts else before)
        assert after.files == before.files
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert 0 < manifest["budget_measured"] <= manifest["eps"] == EPS
    assert sum(manifest["poisoned_images"].values()) == sum(len(getattr(clean, part)) for part in parts or BOTH)
    assert manifest["by"] == "a test"
    assert manifest["classes"] == list(clean.train.classes)
    files = contents(tmp_path / "out")
    del files["manifest.json"]
    assert manifest["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert copy.row({})["budget_measured"] == manifest["budget_measured"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_one_npz_file_is_written_as_it_would_be_whole(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    for name, images, labels in (
        ("grey", dice.integers(0, 256, (20, 9, 8), np.uint8), (np.arange(20) % 3).astype("|u1")[:, None]),
        ("first", dice.integers(0, 256, (20, 1, 9, 8), np.uint8), np.arange(20) % 3),
    ):
        np.savez_compressed(tmp_path / f"{name}.npz", x_train=images, y_train=labels, classes=np.array(CLASSES))
        clean = read(tmp_path / f"{name}.npz")
        made(tmp_path / f"{name}.npz", tmp_path / name, perturbation=noisy(1))
        (tmp_path / "whole").mkdir(exist_ok=True)
        npz.write_npz(replace(clean, train=noisy(1)(clean.train)), tmp_path / "whole")
        assert (tmp_path / name / f"{name}.npz").read_bytes() == (tmp_path / "whole" / f"{name}.npz").read_bytes()


def test_arrays_are_read_and_written_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shards(tmp_path / "in", (40,))
    whole = read(source)
    made(source, tmp_path / "whole")
    monkeypatch.setattr(npz, "BLOCK", 3 * 9 * 8 * 3)
    blocks = list(npz.look(source / "part-0.npz").images("train", 2))
    assert [len(block) for block in blocks] == [3] * 12 + [2]
    assert torch.equal(torch.cat(blocks), whole.train.images[2:])
    made(source, tmp_path / "out")
    assert (read(tmp_path / "out").train.images.int() - read(tmp_path / "whole").train.images.int()).abs().max() <= 1


def test_a_share_is_the_one_that_is_chosen_in_memory(tmp_path: Path) -> None:
    for make in (folder, shards):
        source, out = make(tmp_path / make.__name__), tmp_path / f"{make.__name__} out"
        clean = read(source).train
        copy = made(source, out, share=0.4, seed=3)
        mixed, index = nouns.mix(clean, noisy()(clean), 0.4, Dice(3).named("train"))
        assert same(read(out).train, mixed)
        assert copy.tally.poisoned == {"train": len(index)}


def test_names_sizes_and_kinds_of_pictures(tmp_path: Path) -> None:
    """Names that differ in suffix only stay apart; sizes may differ; grey pictures become colour ones where need be."""
    home = folder(tmp_path / "in", trees=("",)) / "cat"
    Image.new("RGB", (30, 40), (90, 9, 200)).save(home / "3.jpg")
    Image.new("L", (12, 12), 70).save(home / "70.png")
    made(tmp_path / "in", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "cat").iterdir()}
    assert names == {"0.png", "1.png", "2.png", "3.png.png", "3.jpg.png", "4.png", "70.png"}
    for _, _, image in stream(tmp_path / "out"):
        assert len(image) == 3
    old, new = ({n: x for n, _, x in stream(tmp_path / where, channels=3)} for where in ("in", "out"))
    assert 0 < linf(old["cat/70.png"][None], new["cat/70.png"][None]) <= EPS
    with pytest.raises(InputError, match=r"0\.png has 3 channels, this perturbation is for 1"):
        made(tmp_path / "in", tmp_path / "grey", perturbation=noisy(1))
    assert not (tmp_path / ".grey.part").exists()


def test_resized_copies(tmp_path: Path) -> None:
    for make in (folder, shards):
        source, out = make(tmp_path / make.__name__), tmp_path / f"{make.__name__} out"
        made(source, out, resize=6)
        assert same(read(out).train, noisy()(read(source, resize=6).train))


def test_pixels_go_by_the_label_that_the_reader_gives(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    (source / "manifest.json").write_text(json.dumps({"classes": ["emu", "cat", "dog"]}))
    places, values = torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    poison = Perturbation(mark=Pixels(places=places, values=values.byte(), shape=(3, 9, 8)), eps=1.0)
    made(source, tmp_path / "out", perturbation=poison)
    assert same(read(tmp_path / "out").train, poison(read(source).train))
    with pytest.raises(InputError, match="3 classes of images"):
        made(folder(tmp_path / "wide", side=7), tmp_path / "no", perturbation=poison, keep_going=True)
    with pytest.raises(InputError, match="3 classes of images"):
        made(shards(tmp_path / "five", classes=np.array(list("abcde"))), tmp_path / "no", perturbation=poison)


# --- going on


class Cut(KeyboardInterrupt):
    """As if the process was stopped here."""


@pytest.mark.parametrize("make", [folder, shards])
def test_what_was_cut_off_goes_on_and_ends_the_same(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "TOGETHER", 2)
    source = make(tmp_path / "in")
    made(source, tmp_path / "whole")
    calls: list[str] = []
    usual = copies.sha256_of

    def counted(path: Path) -> str:
        calls.append(path.name)
        if len(calls) == stop:
            raise Cut
        return usual(path)

    monkeypatch.setattr(copies, "sha256_of", counted)
    stop = 2 if make is shards else 12
    with pytest.raises(Cut):
        made(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    journal = tmp_path / ".out.part" / "journal.jsonl"
    pieces = journal.read_text().splitlines()[1:]
    assert len(pieces) == (1 if make is shards else 6)
    with journal.open("ab") as file:
        file.write(b'{"piece": ["cut')
    done, calls[:], stop = sum(len(json.loads(line)["files"]) for line in pieces), [], 10**6
    made(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(calls) == len(contents(tmp_path / "out")) - 1 - done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 300)
    noisy().save(tmp_path / "noise.safetensors")
    words = ["poison", "apply", str(tmp_path / "noise.safetensors"), str(source)]
    process = subprocess.Popen([sys.executable, "-m", "miscue", *words, str(tmp_path / "out")], stderr=subprocess.PIPE)
    journal, deadline = tmp_path / ".out.part" / "journal.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = journal.read_text().splitlines()
    assert 2 < len(before) < 31
    assert not (tmp_path / "out").exists()
    old = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out.part" / "copy").rglob("*.png")}
    within(*words, str(tmp_path / "out"))
    within(*words, str(tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    kept = [(tmp_path / "out" / p.relative_to(tmp_path / ".out.part" / "copy")).stat().st_mtime_ns for p in old]
    assert sum(a == b for a, b in zip(kept, old.values(), strict=True)) >= len(old) - 64


def test_a_copy_of_something_else_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "TOGETHER", 2)
    source = folder(tmp_path / "in")

    def begun() -> None:
        copy = Copy(perturbation=noisy(), source=source, kind="folder")
        steps = copy.making(tmp_path / "out", {})
        [next(steps) for _ in range(3)]
        steps.close()

    begun()
    with pytest.raises(InputError, match=r"\.out\.part is of another setting: parts.*--overwrite"):
        made(source, tmp_path / "out", parts=())
    with pytest.raises(InputError, match="another setting: perturbation"):
        made(source, tmp_path / "out", perturbation=noisy(seed=2))
    (source / "train" / "cat" / "0.png").rename(source / "train" / "cat" / "9.png")
    with pytest.raises(InputError, match=r"has changed since.*--overwrite"):
        made(source, tmp_path / "out")
    steps = Copy(perturbation=noisy(), source=source, kind="folder").making(tmp_path / "out", {}, overwrite=True)
    assert len(list(steps)) == 18
    with pytest.raises(InputError, match="exists already"):
        made(source, tmp_path / "out")


def test_no_space_left_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "TOGETHER", 2)
    usual, count = Path.write_bytes, [0]

    def full(self: Path, content: bytes) -> int:
        count[0] += 1
        if count[0] == 7:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return usual(self, content)

    source = folder(tmp_path / "in")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        made(source, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
    made(source, tmp_path / "out")
    assert count[0] == 30 + 2  # one was refused, and one of its piece is written again
    assert same(read(tmp_path / "out").train, noisy()(read(source).train))


@pytest.mark.parametrize("make", [folder, shards])
def test_the_source_is_never_replaced(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "deep" / "in")
    before = contents(source)
    for out in (source, tmp_path / "deep"):
        with pytest.raises(InputError, match="holds the data that is read"):
            for _ in Copy(perturbation=noisy(), source=source, kind="folder").making(out, {}, overwrite=True):
                pass
    assert contents(source) == before


# --- what cannot be read


def test_a_bad_picture_is_named_or_left_out(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    bad = source / "train" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(InputError, match=r"dog.2\.png cannot be read"):
        made(source, tmp_path / "out")
    copy = made(source, tmp_path / "out", keep_going=True)
    assert [name for name, _ in copy.tally.skipped] == ["train/dog/2.png"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "cannot be read" in manifest["skipped"][0][1]
    bad.unlink()
    assert same(read(tmp_path / "out").train, noisy()(read(source).train))
    for file in source.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"nothing of .* could be read"):
        made(source, tmp_path / "none", keep_going=True)


def test_a_bad_shard_is_named_or_left_out(tmp_path: Path) -> None:
    source = shards(tmp_path / "in", (70, 70, 70, 70))
    good = contents(source)
    (source / "part-1.npz").write_bytes(good["part-1.npz"][:500])
    flipped = bytearray(good["part-3.npz"])
    flipped[3000] ^= 255  # among the images: only the checksum of the array can tell
    (source / "part-3.npz").write_bytes(flipped)
    with pytest.raises(InputError, match=r"part-1\.npz cannot be read"):
        made(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"part-1\.npz cannot be read"):
        read(source)
    copy = made(source, tmp_path / "out", keep_going=True)
    assert [name for name, _ in copy.tally.skipped] == ["part-1.npz", "part-3.npz"]
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "part-0.npz", "part-2.npz"]
    for name in ("part-1.npz", "part-3.npz"):
        (source / name).unlink()
    assert same(read(tmp_path / "out").train, noisy()(read(source).train))


def test_skipped_pictures_are_said_on_the_command_line(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", trees=("",))
    (source / "cat" / "1.png").write_bytes(b"no picture")
    noisy().save(tmp_path / "noise.safetensors")
    words = ["poison", "apply", tmp_path / "noise.safetensors", source, tmp_path / "out", "--part", "all", "--json"]
    done = within(*words, check=False)
    assert done.exit_code == 2
    assert "1.png cannot be read" in done.stderr
    done = within(*words, "--keep-going")
    assert "cat/1.png is left out" in done.stderr
    assert json.loads(done.stdout)["poisoned_images"] == {"all": 14}
    refused = within(*words[:3], "digits", tmp_path / "more", "--keep-going", check=False)
    assert "--keep-going are for folders" in refused.stderr


def test_shards_must_be_of_one_set(tmp_path: Path) -> None:
    source = shards(tmp_path / "in")
    one = dict(np.load(source / "part-0.npz"))
    for name, arrays, match in (
        ("sizes", one | {"x_train": one["x_train"][:, 1:]}, "the shape"),
        ("parts", {key: one[key] for key in ("x_train", "y_train")}, "the parts"),
        ("labels", one | {"y_train": one["y_train"].astype("|u1")}, "the kind of arrays"),
        ("classes", one | {"classes": np.array(CLASSES)}, "the kind of arrays"),
    ):
        np.savez(source / "part-3.npz", **arrays)
        with pytest.raises(InputError, match=rf"part-3\.npz and .*part-0\.npz are not shards of one set: {match}"):
            read(source)
        with pytest.raises(InputError, match="not shards of one set"):
            made(source, tmp_path / name)
    (source / "part-3.npz").rename(source / "other-3.npz")
    with pytest.raises(InputError, match="4 npz files; name one of them, or number them"):
        read(source)


def test_shards_are_read_in_the_order_of_their_numbers_and_written_as_they_were(tmp_path: Path) -> None:
    source = shards(tmp_path / "in", (2,) * 11)
    whole = read(source)
    parts = [read(source / f"part-{number}.npz") for number in range(11)]
    assert torch.equal(whole.train.images, torch.cat([part.train.images for part in parts]))
    assert torch.equal(whole.test.labels, torch.cat([part.test.labels for part in parts]))
    (tmp_path / "out").mkdir()
    npz.write_npz(whole, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == sorted(contents(source))
    assert same(read(tmp_path / "out").train, whole.train)
    fewer = replace(whole, train=whole.train.take(slice(0, 5)))
    (tmp_path / "few").mkdir()
    npz.write_npz(fewer, tmp_path / "few")
    assert same(read(tmp_path / "few").train, fewer.train)


# --- mapped images


@pytest.mark.parametrize("make", [folder, shards])
def test_mapped_images_are_those_in_memory(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "in")
    whole, mapped = read(source), read(source, room=Room(folder=tmp_path / "images", memory=100))
    for part in ("train", "test"):
        assert same(getattr(whole, part), getattr(mapped, part))
    assert mapping(mapped.train.images) is not None
    assert mapping(whole.train.images) is None
    (file,) = (tmp_path / "images").glob("train-*.npy")
    assert np.array_equal(np.load(file), whole.train.images.numpy())
    some = read(source, room=Room(folder=tmp_path / "no", memory=10**9))
    assert mapping(some.train.images) is None
    assert not (tmp_path / "no").exists()


def test_what_was_unpacked_is_used_again_until_its_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, room = folder(tmp_path / "in"), Room(folder=tmp_path / "images", memory=0)
    seen: list[Path] = []
    from miscue.layouts import folder as layout

    usual = layout.decode
    monkeypatch.setattr(layout, "decode", lambda file, **options: (seen.append(file), usual(file, **options))[1])
    read(source, room=room)
    assert len(seen) == 30
    again = read(source, room=room)
    assert len(seen) == 30
    Image.new("RGB", (8, 9), (1, 2, 3)).save(source / "train" / "cat" / "0.png")
    changed = read(source, room=room)
    assert changed.train.images[0, 2, 0, 0] == 3
    assert len(list((tmp_path / "images").glob("*.npy"))) == 2
    assert torch.equal(again.train.images[1:], changed.train.images[1:])


@pytest.mark.parametrize("left", [0, 50, 128, 128 + 216, 128 + 5 * 216 + 100])
def test_a_killed_unpacking_goes_on_after_the_last_whole_image(left: int, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (12, 3, 9, 8), dtype=torch.uint8)
    starts: list[int] = []

    def blocks(start: int) -> Any:
        starts.append(start)
        return images[start:].split(5)

    room = Room(folder=tmp_path, memory=0)
    room.filled("train", (12, 3, 9, 8), "a" * 64, blocks)
    (whole,) = tmp_path.glob("*.npy")
    part = whole.with_name(f"{whole.name}.part")
    part.write_bytes(whole.read_bytes()[:left])
    whole.unlink()
    assert torch.equal(room.filled("train", (12, 3, 9, 8), "a" * 64, blocks), images)
    assert starts == [0, max(0, left - 128) // 216]


def test_another_process_is_sent_the_name_of_a_mapped_file(tmp_path: Path) -> None:
    data = read(folder(tmp_path / "in"), room=Room(folder=tmp_path / "images", memory=0)).train
    sent = pickle.dumps(data)
    assert len(sent) < data.images.nbytes
    assert same(pickle.loads(sent), data)
    part = replace(data, images=data.images[3:6], labels=data.labels[3:6], files=())
    assert same(pickle.loads(pickle.dumps(part)), part)
    assert mapping(data.images[:, :1]) is None
    small = replace(striped(9), files=())
    assert same(pickle.loads(pickle.dumps(small)), small)
    assert isinstance(mapping(part.images), Mapped)


def test_batches_of_some_images_are_those_of_a_set_of_them(data: Data) -> None:
    index = torch.arange(0, 240, 3)
    some, alone = batches(data, size=16, epochs=2, dice=Dice(1), among=index), data.take(index)
    for a, b in zip(some, batches(alone, size=16, epochs=2, dice=Dice(1)), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.index, index[b.index])


def test_a_large_set_stays_where_it_is(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[str] = []
    monkeypatch.setattr(Data, "to", lambda self, device: moves.append(device))
    data.near("cuda")
    assert moves == ["cuda"]
    monkeypatch.setattr(nouns, "LARGE", data.images.nbytes - 1)
    assert data.near("cuda") is data


# --- crafting

QUICK = Attacker(surrogate="cnn-small", recipe=Recipe(lr=0.05, batch_size=12), dice=Dice(3))
OPTIONS = {"trials": 1, "steps": 3, "alpha": 0.3, "generator_lr": 1e-3}


def test_crafting_on_a_mapped_folder_gives_the_same(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 20)
    mapped = read(source, room=Room(folder=tmp_path / "images", memory=0)).train
    one, two = (deepconfuse(data, QUICK, **OPTIONS).mark.packed()[0] for data in (read(source).train, mapped))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_poison_command_keeps_large_sets_on_the_disk(tmp_path: Path) -> None:
    for make in (folder, shards):
        source = make(tmp_path / make.__name__, 30) if make is folder else make(tmp_path / "shards", (40, 50))
        words = ["poison", "deepconfuse", source, "--trials", "1", "--steps", "2", "--batch-size", "12"]
        words += ["--surrogate", "cnn-small", "--threads", "1"]
        for name, memory in (("whole", "1024"), ("mapped", "0")):
            within(*words[:3], tmp_path / f"{make.__name__} {name}", *words[3:], "--memory", memory)
        one, two = (contents(tmp_path / f"{make.__name__} {name}") for name in ("whole", "mapped"))
        assert one == two
        assert not (tmp_path / f"{make.__name__} mapped.craft" / "images").exists()


def test_a_command_that_was_killed_after_crafting_goes_on(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 20)
    words = ["poison", "deepconfuse", source, tmp_path / "out", "--trials", "1", "--steps", "2", "--batch-size", "12"]
    words += ["--surrogate", "cnn-small", "--threads", "1"]
    within(*words)
    before = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    done = within(*words)
    assert "trial" not in done.stderr
    assert contents(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out")
    assert "another setting: options.eps" in within(*words, "--eps", "0.1", check=False).stderr


def test_evaluation_of_sets_on_the_disk(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 20)
    made(source, tmp_path / "copy")
    words = ["evaluate", source, tmp_path / "copy", "--victims", "cnn-small", "--repeats", "1", "--epochs", "1"]
    rows = []
    for name, memory in (("one", "1024"), ("two", "0")):
        done = within(*words, "--threads", "1", "--jobs", "1", "--json", "--memory", memory, "--out", tmp_path / name)
        rows.append([(row["measure"], row["mean"]) for row in map(json.loads, done.stdout.splitlines())])
        assert not (tmp_path / name / "images").exists()
    assert rows[0] == rows[1]
    assert ("noise_accuracy_train") in dict(rows[0])


# --- memory


def test_a_copy_holds_a_few_pictures_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "in" / "cat"
    home.mkdir(parents=True)
    for i in range(40):
        Image.new("RGB", (100, 100), (i, i, i)).save(home / f"{i}.png")
    monkeypatch.setattr(copies, "VALUES", 3 * 100 * 100 * 4)
    seen: list[weakref.ref[Tensor]] = []
    most, usual = [0], copies.decode

    def watched(file: Path, **options: Any) -> Tensor:
        image = usual(file, **options)
        seen.append(weakref.ref(image))
        most[0] = max(most[0], sum(one() is not None for one in seen))
        return image

    monkeypatch.setattr(copies, "decode", watched)
    made(tmp_path / "in", tmp_path / "out", parts=())
    assert len(seen) == 40
    assert most[0] <= 9  # a group, the next one, and the first that does not fit into that


GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # what is free is not held on to
JOB = """
import sys, threading
from pathlib import Path
import torch
from miscue.copies import Copy
from miscue.memory import anonymous
from miscue.perturbation import Perturbation
from miscue.poisons import Attacker, deepconfuse
from miscue.readers import read
from miscue.room import Room
from miscue.train import Recipe
torch.set_num_threads(1)
place, over, peak = Path(sys.argv[1]), threading.Event(), [0]
def look():
    while not over.wait(0.003):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=look)
watcher.start()
data = read(place / "in", room=Room(folder=place / "images", memory=0)).train
attacker = Attacker(surrogate="cnn-small", recipe=Recipe(lr=0.05, batch_size=32))
deepconfuse(data, attacker, trials=1, steps=2, held_out=0.5)  # so many that a whole chunk of them is judged at once
noise = Perturbation.load(place / "noise.safetensors")
for _ in Copy(perturbation=noise, source=place / "in", kind="npz").making(place / "out", {}):
    pass
over.set()
watcher.join()
print(peak[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell")
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """Ten times the images take hardly more memory: a part of what they are."""
    peaks, side, count = [], 64, 400
    for times in (1, 10):
        place = tmp_path / str(times)
        (place / "in").mkdir(parents=True)
        noisy().save(place / "noise.safetensors")
        for number in range(times):
            images = np.random.default_rng(number).integers(0, 256, (count, side, side, 3), np.uint8)
            np.savez(place / "in" / f"part-{number}.npz", x_train=images, y_train=np.arange(count) % 3)
        command = [sys.executable, "-c", JOB, str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | GIVEN_BACK)
        peaks.append(int(done.stdout))
    more = 9 * count * side * side * 3
    assert more > 40 * 2**20
    assert peaks[1] - peaks[0] < more / 4
