"""Every layout, read, written and read again; and everything that can be wrong with what is read."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from miscue import readers, writers
from miscue.data import Data, Layout, Splits
from miscue.errors import InputError
from miscue.layouts import folder as folders
from miscue.layouts import idx, pickles
from miscue.readers import read, stream
from miscue.writers import write

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pictures(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def labels_of(count: int, classes: int = 3) -> Tensor:
    return torch.arange(count) * 7 % classes


def splits_of(shape: tuple[int, int, int], layout: Layout, *, test: bool = True, classes: int = 3) -> Splits:
    names = tuple("abcdefghij"[:classes])
    train = Data(images=pictures(17, shape), labels=labels_of(17, classes), classes=names)
    held = Data(images=pictures(7, shape, 1), labels=labels_of(7, classes), classes=names) if test else None
    return Splits(name="made", train=train, test=held, layout=layout)


# --- makers: each lays out a small set below `root` as other programs would, and returns what to read


def idx_folder(root: Path, *, suffix: str = ".gz", place: str = "", dot: bool = False, test: bool = True) -> Path:
    home = root / place
    home.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 17), ("t10k", 7)):
        if part == "t10k" and not test:
            continue
        images, labels = pictures(count, (1, 6, 5), count), labels_of(count)
        for stem, head, body in (
            (f"{part}-images-idx3-ubyte", struct.pack(">4I", 0x803, count, 6, 5), images.numpy().tobytes()),
            (
                f"{part}-labels-idx1-ubyte",
                struct.pack(">2I", 0x801, count),
                labels.to(torch.uint8).numpy().tobytes(),
            ),
        ):
            name = stem.replace("-idx", ".idx") if dot else stem
            (home / (name + suffix)).write_bytes(gzip.compress(head + body) if suffix else head + body)
    return root


def cifar_folder(root: Path, *, protocol: int = 2, place: str = "", files: bool = True, meta: bool = True) -> Path:
    home = root / place
    home.mkdir(parents=True, exist_ok=True)
    for i, (name, count) in enumerate((("data_batch_1", 6), ("data_batch_2", 5), ("test_batch", 4))):
        rows = pictures(count, (3, 4, 4), i).reshape(count, -1).numpy()
        batch = {b"batch_label": name.encode(), b"labels": labels_of(count).tolist(), b"data": rows}
        if files:
            batch[b"filenames"] = [f"{name}_{k}.png".encode() for k in range(count)]
        (home / name).write_bytes(pickle.dumps(batch, protocol))
    if meta:
        content = {"num_cases_per_batch": 6, "label_names": ["cat", "dog", "emu"], "num_vis": 48}
        (home / "batches.meta").write_bytes(pickle.dumps(content, protocol))
    return root


def cifar100_folder(root: Path) -> Path:
    root.mkdir()
    for name, count in (("train", 8), ("test", 5)):
        fine = labels_of(count).tolist()
        batch = {
            "filenames": [f"{k}.png" for k in range(count)],
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": fine,
            "coarse_labels": [y // 2 for y in fine],
            "data": pictures(count, (3, 4, 4)).reshape(count, -1).numpy(),
        }
        (root / name).write_bytes(pickle.dumps(batch, 2))
    names = {"fine_label_names": ["cat", "dog", "oak"], "coarse_label_names": ["animal", "plant"]}
    (root / "meta").write_bytes(pickle.dumps(names, 2))
    return root


def npz_file(
    root: Path, *, arrangement: str = "nhwc", channels: int = 3, dtype: str = "<i8", column: bool = False,
    compressed: bool = False, classes: bool = False, test: bool = True, inside: bool = False,
) -> Path:  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, count in (("train", 17), ("test", 7)) if test else (("train", 17),):
        images = pictures(count, (channels, 6, 5), count)
        order = {"nhw": images[:, 0], "nhwc": images.permute(0, 2, 3, 1), "nchw": images}[arrangement]
        labels = labels_of(count).numpy().astype(dtype)
        arrays |= {f"x_{part}": order.numpy(), f"y_{part}": labels[:, None] if column else labels}
    if classes:
        arrays["classes"] = np.array(["cat", "dog", "emu"])
    (np.savez_compressed if compressed else np.savez)(root / "set.npz", **arrays)
    return root if inside else root / "set.npz"


def image_folder(
    root: Path,
    *,
    suffixes: tuple[str, ...] = (".png",),
    grey: bool = False,
    trees: tuple[str, ...] = ("train", "test"),
) -> Path:
    for t, tree in enumerate(trees):
        for c, name in enumerate(("cat", "dog", "emu")[: 3 if t == 0 else 2]):
            home = root / tree / name
            home.mkdir(parents=True)
            for i, image in enumerate(pictures(4, (1 if grey else 3, 9, 8), 10 * t + c)):
                array = image.permute(1, 2, 0).numpy()
                picture = Image.fromarray(array[:, :, 0] if grey else array)
                picture.save(home / f"{9 + i}{suffixes[i % len(suffixes)]}")
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "idx gz": idx_folder,
    "idx plain": lambda root: idx_folder(root, suffix=""),
    "idx dotted": lambda root: idx_folder(root, dot=True),
    "idx in MNIST/raw": lambda root: idx_folder(root, place="MNIST/raw"),
    "idx in raw": lambda root: idx_folder(root, place="raw"),
    "idx train only": lambda root: idx_folder(root, test=False),
    "cifar": cifar_folder,
    "cifar protocol 4": lambda root: cifar_folder(root, protocol=4),
    "cifar protocol 5": lambda root: cifar_folder(root, protocol=5),
    "cifar below": lambda root: cifar_folder(root, place="cifar-10-batches-py"),
    "cifar bare": lambda root: cifar_folder(root, files=False, meta=False),
    "cifar100": cifar100_folder,
    "npz nhwc": npz_file,
    "npz nchw": lambda root: npz_file(root, arrangement="nchw", dtype="|u1"),
    "npz nhw": lambda root: npz_file(root, arrangement="nhw", channels=1, dtype=">i4", compressed=True),
    "npz grey nhwc": lambda root: npz_file(root, channels=1, column=True),
    "npz with classes": lambda root: npz_file(root, classes=True),
    "npz train only": lambda root: npz_file(root, test=False),
    "npz in a folder": lambda root: npz_file(root, inside=True),
    "folder png": image_folder,
    "folder grey": lambda root: image_folder(root, grey=True),
    "folder jpeg": lambda root: image_folder(root, suffixes=(".JPEG", ".jpg")),
    "folder mixed": lambda root: image_folder(root, suffixes=(".png", ".BMP", ".webp", ".jpg")),
    "folder val": lambda root: image_folder(root, trees=("train", "val")),
    "folder flat": lambda root: image_folder(root, trees=("",)),
}
every_layout = pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)


def same(a: Data | None, b: Data | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.classes == b.classes


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def refused(match: str, make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- round trips


@every_layout
def test_round_trip(make: Callable[[Path], Path], tmp_path: Path) -> None:
    first = read(make(tmp_path / "in"))
    write(first, tmp_path / "out", manifest={"method": "none", "seed": 3})
    second = read(tmp_path / "out")
    assert same(first.train, second.train)
    assert same(first.test, second.test)
    assert second.layout.kind == first.layout.kind
    assert [os.path.splitext(f)[0] for f in second.train.files] == [os.path.splitext(f)[0] for f in first.train.files]
    write(second, tmp_path / "again", manifest={"method": "none", "seed": 3})
    a, b = tree(tmp_path / "out"), tree(tmp_path / "again")
    assert a.keys() == b.keys()
    assert all(a[name] == b[name] for name in a if name != "manifest.json"), "equal sets must give equal bytes"


@every_layout
def test_names_on_disk_are_kept(make: Callable[[Path], Path], tmp_path: Path) -> None:
    made = make(tmp_path / "in")
    source = made if made.is_dir() else made.parent
    write(read(made), tmp_path / "out", manifest={})
    stem = lambda name: os.path.splitext(name)[0] if name.lower().endswith(tuple(folders.FORMATS)) else name  # noqa: E731
    have = {stem(name) for name in tree(tmp_path / "out")} - {"manifest.json"}
    assert have - {"batches.meta"} == {stem(name) for name in tree(source)} - {"batches.meta"}


@every_layout
def test_manifest(make: Callable[[Path], Path], tmp_path: Path) -> None:
    splits = read(make(tmp_path / "in"))
    write(splits, tmp_path / "out", manifest={"method": "noise", "eps": 0.1})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["method"] == "noise"
    assert manifest["classes"] == list(splits.train.classes)
    assert set(manifest["files"]) == set(tree(tmp_path / "out")) - {"manifest.json"}
    assert all(len(digest) == 64 for digest in manifest["files"].values())
    assert set(manifest["versions"]) == {"miscue", "torch", "numpy", "python"}


@pytest.mark.parametrize("layout", writers.WRITERS)
def test_a_set_that_was_never_on_disk_in_any_layout(layout: str, tmp_path: Path) -> None:
    shape = (1, 5, 5) if layout == "idx" else (3, 5, 5)
    splits = splits_of(shape, Layout(kind="npz"))
    write(splits, tmp_path / "out", manifest={}, layout=layout)
    back = read(tmp_path / "out")
    assert back.layout.kind == layout
    assert back.train.classes == splits.train.classes
    order = splits.train.labels.argsort(stable=True) if layout == "folder" else slice(None)
    assert same(back.train, replace(splits.train.take(order), files=back.train.files))


@settings(max_examples=25, deadline=None, database=None)
@given(
    kind=st.sampled_from(["npz", "idx", "cifar"]),
    n=st.integers(2, 9),
    side=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_any_images_survive(tmp_path_factory: pytest.TempPathFactory, kind: str, n: int, side: int, seed: int) -> None:
    channels = 1 if kind == "idx" else 3
    labels = torch.cat([torch.tensor([0, 1]), labels_of(n - 2)])
    train = Data(images=pictures(n, (channels, side, side), seed), labels=labels, classes=("x", "y/z", "ü"))
    out = tmp_path_factory.mktemp("any") / "out"
    write(Splits(name="s", train=train, test=None, layout=Layout(kind=kind)), out, manifest={})
    assert same(read(out).train, train)


def test_a_changed_number_of_images_is_spread_over_the_batches(tmp_path: Path) -> None:
    splits = read(cifar_folder(tmp_path / "in"))
    fewer = replace(splits, train=splits.train.take(slice(0, 7)))
    write(fewer, tmp_path / "out", manifest={})
    assert same(read(tmp_path / "out").train, fewer.train)
    assert {p.name for p in (tmp_path / "out").glob("data_batch_*")} == {"data_batch_1", "data_batch_2"}


def test_cifar_batches_load_as_python_2_wrote_them(tmp_path: Path) -> None:
    write(read(cifar_folder(tmp_path / "in")), tmp_path / "out", manifest={})
    raw = (tmp_path / "out" / "data_batch_1").read_bytes()
    text, plain = pickle.loads(raw, encoding="latin1"), pickle.loads(raw, encoding="bytes")
    assert text["labels"] == plain[b"labels"] == labels_of(6).tolist()
    assert np.array_equal(text["data"], plain[b"data"])
    assert text["data"].dtype == np.uint8
    assert text["data"].shape == (6, 48)
    assert plain[b"filenames"][0] == b"data_batch_1_0.png"


def test_cifar100_keeps_its_coarse_labels(tmp_path: Path) -> None:
    write(read(cifar100_folder(tmp_path / "in")), tmp_path / "out", manifest={})
    before, after = (pickles.load(tmp_path / where / "train") for where in ("in", "out"))
    assert before["coarse_labels"] == after["coarse_labels"]
    assert pickles.load(tmp_path / "out" / "meta")["coarse_label_names"] == ["animal", "plant"]


def test_npz_comes_back_array_for_array(tmp_path: Path) -> None:
    made = npz_file(tmp_path / "in", arrangement="nchw", dtype="|i1", column=True, classes=True)
    write(read(made), tmp_path / "out", manifest={})
    with np.load(made) as a, np.load(tmp_path / "out" / "set.npz") as b:
        assert set(a.files) == set(b.files)
        assert all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a.files)


def test_names_that_differ_in_suffix_or_case_stay_apart(tmp_path: Path) -> None:
    data = Data(
        images=pictures(6, (3, 4, 4)),
        labels=torch.tensor([0, 0, 0, 0, 1, 1]),
        classes=("cat", "dog"),
        files=("cat/1.jpg", "cat/1.png", "cat/A.png", "cat/a.png", "dog/1.jpg", "cat/1.jpg"),
    )
    splits = Splits(name="s", train=data, test=None, layout=Layout(kind="folder", options={"train": "", "test": None}))
    write(splits, tmp_path / "out", manifest={})
    names = set(tree(tmp_path / "out")) - {"manifest.json"}
    assert {"cat/1.jpg.png", "cat/1.png.png"} <= names
    assert len({name.casefold() for name in names}) == 6
    back = read(tmp_path / "out")
    assert back.train.labels.tolist() == data.labels.tolist()
    assert sorted(x.sum().item() for x in back.train.images) == sorted(x.sum().item() for x in data.images)


def test_a_held_out_test_set_is_written_too(tmp_path: Path) -> None:
    splits = read(image_folder(tmp_path / "in", trees=("",)), test_share=0.25)
    assert splits.test is not None
    assert len(splits.test) == 3
    write(splits, tmp_path / "out", manifest={})
    back = read(tmp_path / "out")
    assert same(back.train, splits.train)
    assert same(back.test, splits.test)
    other = read(tmp_path / "in", test_share=0.25, seed=1)
    assert not same(other.train, splits.train)


# --- reading: what comes out


def test_natural_order_and_file_names(tmp_path: Path) -> None:
    splits = read(image_folder(tmp_path))
    assert splits.train.files[:4] == ("cat/9.png", "cat/10.png", "cat/11.png", "cat/12.png")
    assert splits.train.classes == ("cat", "dog", "emu")
    assert splits.test is not None
    assert splits.test.classes == splits.train.classes


def test_grey_stays_grey_and_one_colour_image_makes_all_rgb(tmp_path: Path) -> None:
    image_folder(tmp_path / "in", grey=True)
    grey = read(tmp_path / "in")
    assert grey.train.shape == (1, 9, 8)
    Image.new("RGB", (8, 9), (1, 2, 3)).save(tmp_path / "in" / "train" / "cat" / "99.png")
    mixed = read(tmp_path / "in")
    assert mixed.train.shape == (3, 9, 8)
    assert mixed.test is not None
    assert mixed.test.shape == (3, 9, 8)
    assert torch.equal(mixed.train.images[0, 0], grey.train.images[0, 0])


def test_modes(tmp_path: Path) -> None:
    image_folder(tmp_path / "in")
    home = tmp_path / "in" / "train" / "cat"
    shutil.rmtree(home)
    home.mkdir()
    Image.new("RGBA", (8, 9), (200, 0, 0, 0)).save(home / "1.png")
    Image.new("RGBA", (8, 9), (200, 7, 9, 255)).save(home / "2.png")
    Image.new("P", (8, 9), 0).save(home / "3.png")
    Image.new("LA", (8, 9), (77, 255)).save(home / "4.png")
    Image.new("1", (8, 9), 1).save(home / "5.png")
    Image.new("CMYK", (8, 9), (0, 0, 0, 0)).save(home / "6.jpg")
    images = read(tmp_path / "in").train.images
    first = images[:6, :, 0, 0].tolist()
    assert first[0] == [255, 255, 255], "transparent is white"
    assert first[1] == [200, 7, 9]
    assert first[3:] == [[77] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["I;16", "RGB16", "LA16"])
def test_sixteen_bits_are_refused(mode: str, tmp_path: Path) -> None:
    image_folder(tmp_path)
    file = tmp_path / "train" / "cat" / "9.png"
    if mode == "I;16":
        Image.fromarray(np.full((9, 8), 300, np.uint16)).save(file)
    else:  # Pillow reads these as 8 bits without a word, and cannot write them
        kind, samples = (2, 3) if mode == "RGB16" else (4, 2)
        header = struct.pack(">2I5B", 8, 9, 16, kind, 0, 0, 0)
        pixels = zlib.compress((b"\0" + bytes(8 * samples * 2)) * 9)
        chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
        pack = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pack))
        Image.open(file).load()
    refused(r"9\.png.*16 bits", lambda: read(tmp_path))


def test_mixed_sizes(tmp_path: Path) -> None:
    image_folder(tmp_path)
    Image.new("RGB", (30, 40)).save(tmp_path / "test" / "dog" / "odd.png")
    refused(r"odd\.png is 30x40 where others are 8x9.*--resize", lambda: read(tmp_path))
    splits = read(tmp_path, resize=6)
    assert splits.train.shape == (3, 6, 6)
    assert splits.test is not None
    assert splits.test.shape == (3, 6, 6)


@pytest.mark.parametrize("make", [idx_folder, cifar_folder, npz_file, image_folder])
def test_resize_anything(make: Callable[[Path], Path], tmp_path: Path) -> None:
    splits = read(make(tmp_path / "in"), resize=4)
    assert splits.train.shape[1:] == (4, 4)
    write(splits, tmp_path / "out", manifest={})
    assert same(read(tmp_path / "out").train, splits.train)
    refused("--resize", lambda: read(tmp_path / "in", resize=0))


@pytest.mark.skipif(not (SHARED / "MNIST" / "raw").is_dir(), reason="the real files are not here")
def test_real_mnist(tmp_path: Path) -> None:
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        shutil.copy(SHARED / "MNIST" / "raw" / name, tmp_path / name.replace("t10k", "train"))
    splits = read(tmp_path)
    assert splits.train.shape == (1, 28, 28)
    assert splits.train.labels[:5].tolist() == [7, 2, 1, 0, 4]
    small = replace(splits, train=splits.train.take(slice(0, 500)))
    write(small, tmp_path / "out", manifest={})
    assert same(read(tmp_path / "out").train, small.train)


@pytest.mark.skipif(not (SHARED / "imagenette2class").is_dir(), reason="the real files are not here")
def test_real_photos(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for kind in ("n02102040", "n03888257"):
            home = tmp_path / "in" / part / kind
            home.mkdir(parents=True)
            for file in sorted((SHARED / "imagenette2class" / part / kind).iterdir())[:4]:
                shutil.copy(file, home)
    splits = read(tmp_path / "in")
    assert splits.train.shape == (3, 224, 224)
    write(splits, tmp_path / "out", manifest={})
    back = read(tmp_path / "out")
    assert same(splits.train, back.train)
    assert same(splits.test, back.test)
    assert (tmp_path / "out" / "val").is_dir()


# --- reading: what is refused, by name


@pytest.mark.parametrize("keep", [3, 9, 200, -1])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_truncated_idx(keep: int, suffix: str, tmp_path: Path) -> None:
    idx_folder(tmp_path, suffix=suffix)
    file = tmp_path / f"train-images-idx3-ubyte{suffix}"
    file.write_bytes(file.read_bytes()[:keep])
    refused(f"{file.name} is", lambda: read(tmp_path))


def test_idx_that_is_too_long_or_of_another_kind_or_missing(tmp_path: Path) -> None:
    idx_folder(tmp_path, suffix="")
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    images.write_bytes(good + b"x")
    refused("too long", lambda: read(tmp_path))
    images.write_bytes(labels.read_bytes())
    refused("not an IDX file of 8-bit images", lambda: read(tmp_path))
    images.write_bytes(struct.pack(">4I", 0x803, 16, 6, 5) + good[16:-30])
    refused("16 images but 17 labels", lambda: read(tmp_path))
    images.write_bytes(struct.pack(">4I", 0x803, 0, 6, 5))
    refused("empty", lambda: read(tmp_path))
    images.unlink()
    refused("lacks train-images-idx3-ubyte", lambda: read(tmp_path))


class Bomb:
    """Unpickled by the standard reader, it would make a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"mkdir {self.trace}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_command_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    cifar_folder(tmp_path / "in")
    trace = tmp_path / "trace"
    (tmp_path / "in" / "data_batch_2").write_bytes(pickle.dumps({"data": Bomb(trace)}, protocol))
    refused(r"data_batch_2 is refused: it asks for \w+\.system", lambda: read(tmp_path / "in"))
    assert not trace.exists()


HOSTILE = {
    "getattr": b"c__builtin__\neval\n(S'1'\ntR.",
    "numpy load": b"cnumpy\nload\n(S'x'\ntR.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.",
    "stand-in as class": b"cnumpy\nndarray\n}b.",
    "object array": pickle.dumps({"data": np.array([{}], dtype=object), "labels": [0]}, 2),
    "float array": pickle.dumps({"data": np.zeros((1, 48)), "labels": [0]}, 2),
    "a list": pickle.dumps([1, 2]),
    "cut": pickle.dumps({"data": np.zeros((9, 48), np.uint8)}, 2)[:-40],
    "empty": b"",
    "noise": bytes(range(256)),
    "no labels": pickle.dumps({"data": np.zeros((1, 48), np.uint8)}, 2),
    "odd rows": pickle.dumps({"data": np.zeros((1, 47), np.uint8), "labels": [0]}, 2),
    "float labels": pickle.dumps({"data": np.zeros((1, 48), np.uint8), "labels": [0.5]}, 2),
    "huge labels": pickle.dumps({"data": np.zeros((1, 48), np.uint8), "labels": [2**80]}, 2),
    "too few labels": pickle.dumps({"data": np.zeros((2, 48), np.uint8), "labels": [0]}, 2),
    "labels out of range": pickle.dumps({"data": np.zeros((1, 48), np.uint8), "labels": [3]}, 2),
    "negative labels": pickle.dumps({"data": np.zeros((1, 48), np.uint8), "labels": [-1]}, 2),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_bad_pickles(raw: bytes, tmp_path: Path) -> None:
    cifar_folder(tmp_path)
    (tmp_path / "test_batch").write_bytes(raw)
    refused("test_batch", lambda: read(tmp_path))


def test_a_missing_batch(tmp_path: Path) -> None:
    cifar_folder(tmp_path)
    (tmp_path / "data_batch_1").unlink()
    refused("lacks data_batch_1", lambda: read(tmp_path))


X, Y = np.zeros((4, 5, 5, 3), np.uint8), np.array([0, 1, 0, 1])
BAD_NPZ: dict[str, tuple[dict[str, object], str]] = {
    "float": ({"x_train": X.astype(np.float32), "y_train": Y}, r"x_train is float32.*\* 255"),
    "nan": ({"x_train": np.full((4, 5, 5), np.nan), "y_train": Y}, "x_train holds 100 NaN"),
    "int": ({"x_train": X.astype(np.int64), "y_train": Y}, "x_train is int64"),
    "flat": ({"x_train": X.reshape(4, -1), "y_train": Y}, "shape"),
    "five channels": ({"x_train": np.zeros((4, 5, 5, 5), np.uint8), "y_train": Y}, "shape"),
    "no labels": ({"x_train": X}, "lacks y_train; it holds x_train"),
    "half a test": ({"x_train": X, "y_train": Y, "x_test": X}, "lacks y_test"),
    "one-hot": ({"x_train": X, "y_train": np.eye(4, dtype=np.int64)}, "one class number"),
    "float labels": ({"x_train": X, "y_train": Y / 2}, "whole numbers"),
    "objects": ({"x_train": X, "y_train": np.array([0, 1, None, 1], dtype=object)}, "y_train holds Python objects"),
    "names": ({"x_train": X, "y_train": np.array(["a", "b", "a", "b"])}, "y_train is text; labels are whole numbers"),
    "too few labels": ({"x_train": X, "y_train": Y[:3]}, "4 images but 3 labels"),
    "negative": ({"x_train": X, "y_train": Y - 1}, "-1..0"),
    "out of range": (
        {"x_train": X, "y_train": Y, "classes": np.array(["a"])},
        r"0\.\.1, but there are 1 classes",
    ),
    "one class": ({"x_train": X, "y_train": Y * 0}, "one class only"),
    "no images": ({"x_train": X[:0], "y_train": Y[:0]}, "training set is empty"),
    "no test images": ({"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]}, "test set is empty"),
    "two sizes": ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "test images"),
    "two arrangements": ({"x_train": X, "y_train": Y, "x_test": X[..., 0], "y_test": Y}, "but x_test is nhw"),
}


@pytest.mark.parametrize(("arrays", "match"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_npz(arrays: dict[str, np.ndarray], match: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    refused(match, lambda: read(tmp_path / "bad.npz"))


def test_damaged_npz(tmp_path: Path) -> None:
    file = npz_file(tmp_path, compressed=True)
    good = file.read_bytes()
    future = good.replace(b"PK\x01\x02\x14\x03\x2d", b"PK\x01\x02\x14\x03\x67")  # needs version 10.3 of zip
    future = future.replace(b"PK\x01\x02\x2d\x03\x2d", b"PK\x01\x02\x2d\x03\x67")
    assert future != good
    for raw in (good[:-50], good[:100], b"", b"PK nothing", good[:300] + b"\0" * 50 + good[350:], future):
        file.write_bytes(raw)
        refused(r"set\.npz", lambda: read(file))
    (tmp_path / "two.npz").write_bytes(good)
    refused("2 npz files", lambda: read(tmp_path))


@pytest.mark.parametrize("raw", [b"", b"\x89PNG\r\n\x1a\nrubbish", b"plain text", None])
def test_corrupt_image(raw: bytes | None, tmp_path: Path) -> None:
    image_folder(tmp_path)
    file = tmp_path / "train" / "dog" / "11.png"
    file.write_bytes(file.read_bytes()[:120] if raw is None else raw)
    refused(r"dog.11\.png cannot be read", lambda: read(tmp_path))
    refused(r"dog.11\.png cannot be read", lambda: list(stream(tmp_path)))


def test_all_corrupt_images_are_counted(tmp_path: Path) -> None:
    image_folder(tmp_path)
    for number in range(4):
        (tmp_path / "train" / "cat" / f"{number}.png").write_bytes(b"no picture")
    refused(r"cat.0\.png cannot be read.*; .*cat.1\.png cannot.*; .*; and 1 more", lambda: read(tmp_path))


def test_folders_without_images(tmp_path: Path) -> None:
    refused("holds no data set", lambda: read(tmp_path))
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("none")
    refused("cat holds no PNG", lambda: read(tmp_path))
    refused("cat holds no PNG", lambda: list(stream(tmp_path)))
    refused("is not a folder", lambda: list(stream(tmp_path / "nowhere")))


def test_folder_of_one_class_and_unknown_test_class(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "yak")
    refused("yak is no class", lambda: read(tmp_path))
    for where in ("test/yak", "test/dog", "train/cat", "train/emu"):
        shutil.rmtree(tmp_path / where)
    refused("one class only, 'dog'", lambda: read(tmp_path))
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    refused("no train folder", lambda: read(tmp_path))


def test_unknown_names_offer_near_ones() -> None:
    refused("did you mean mnist", lambda: read("mnits"))
    refused("known: digits", lambda: read("qqqq"))
    refused("does not exist", lambda: read("./nowhere/at/all"))


# --- writing: all or nothing


def test_what_exists_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    splits = read(idx_folder(tmp_path / "in"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    refused("exists already", lambda: write(splits, out, manifest={}))
    assert (out / "precious.txt").read_text() == "mine"
    write(splits, out, manifest={}, overwrite=True)
    assert not (out / "precious.txt").exists()


@pytest.mark.parametrize("make", [idx_folder, npz_file, image_folder])
def test_the_source_is_never_replaced(make: Callable[[Path], Path], tmp_path: Path) -> None:
    splits = read(make(tmp_path / "deep" / "in"))
    for out in (tmp_path / "deep" / "in", tmp_path / "deep"):
        refused("holds the data that is read", lambda out=out: write(splits, out, manifest={}, overwrite=True))
    assert same(read(splits.source).train, splits.train)


@pytest.mark.parametrize("kind", writers.WRITERS)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_breaks_off_leaves_nothing(
    kind: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = splits_of((1, 4, 4) if kind == "idx" else (3, 4, 4), Layout(kind=kind))
    out = tmp_path / "out"
    write(splits, out, manifest={"first": True})
    before = tree(tmp_path)
    usual = writers.WRITERS[kind]

    def broken(splits: Splits, folder: Path) -> None:
        usual(splits, folder)
        raise error

    monkeypatch.setitem(writers.WRITERS, kind, broken)
    with pytest.raises(type(error)):
        write(splits, out, manifest={}, overwrite=True)
    with pytest.raises(type(error)):
        write(splits, tmp_path / "new", manifest={})
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_writers_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    colour = splits_of((3, 4, 5), Layout(kind="npz"))
    refused("grey images", lambda: write(colour, tmp_path / "a", manifest={}, layout="idx"))
    refused("square RGB", lambda: write(colour, tmp_path / "b", manifest={}, layout="cifar"))
    refused(
        "unknown layout 'foldr'; did you mean folder",
        lambda: write(colour, tmp_path / "c", manifest={}, layout="foldr"),
    )
    slashed = replace(colour, train=replace(colour.train, classes=("a/b", "c", "d")), test=None)
    refused("cannot be a folder's name", lambda: write(slashed, tmp_path / "d", manifest={}, layout="folder"))
    assert not list(tmp_path.iterdir())


# --- streams


def test_a_stream_gives_what_the_reader_gives(tmp_path: Path) -> None:
    splits = read(image_folder(tmp_path / "in", suffixes=(".png", ".jpg")))
    assert splits.test is not None
    streamed = list(stream(tmp_path / "in"))
    assert [name for name, _, _ in streamed[:12]] == [f"train/{name}" for name in splits.train.files]
    assert torch.equal(torch.stack([x for _, _, x in streamed[:12]]), splits.train.images)
    assert torch.equal(torch.stack([x for _, _, x in streamed[12:]]), splits.test.images)
    assert [c for _, c, _ in streamed[12:]] == [splits.test.classes[y] for y in splits.test.labels]


def test_stream_of_many_sizes_and_kinds(tmp_path: Path) -> None:
    image_folder(tmp_path, trees=("",))
    Image.new("L", (30, 40)).save(tmp_path / "cat" / "99.png")
    shapes = {name: tuple(x.shape) for name, _, x in stream(tmp_path)}
    assert shapes["cat/99.png"] == (1, 40, 30)
    assert shapes["dog/9.png"] == (3, 9, 8)
    assert {tuple(x.shape) for _, _, x in stream(tmp_path, channels=3, resize=5)} == {(3, 5, 5)}


def test_tables_agree() -> None:
    assert readers.READERS.keys() == writers.WRITERS.keys() == readers.FITS.keys()
    assert set(idx.STEMS) == {"train_images", "train_labels", "test_images", "test_labels"}
