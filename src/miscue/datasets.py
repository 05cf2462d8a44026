"""The data sets that have a name: where they lie, what their classes are called, where they come from.

Looked up under the folders in $MISCUE_DATA (several, separated as in PATH), else in the platform's cache
folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from miscue.data import Data, Layout, Splits, hold_out
from miscue.dice import Dice
from miscue.download import Remote, fetch, md5_of
from miscue.errors import InputError, lookup

DIGITS = tuple("0123456789")
CLOTHES = (
    *("T-shirt or top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIGNS = (
    *("speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70"),
    *("speed limit 80", "end of speed limit 80", "speed limit 100", "speed limit 120", "no passing"),
    *("no passing for lorries", "right of way at next crossing", "priority road", "yield", "stop"),
    *("no vehicles", "no lorries", "no entry", "danger", "bend to the left", "bend to the right"),
    *("double bend", "bumpy road", "slippery road", "road narrows on the right", "road works"),
    *("traffic lights", "pedestrians", "children", "cyclists", "ice or snow", "wild animals"),
    *("end of all limits", "turn right ahead", "turn left ahead", "ahead only", "straight or right"),
    *("straight or left", "keep right", "keep left", "roundabout"),
    *("end of no passing", "end of no passing for lorries"),
)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A named set.

    summary: one line. layout: a key of `readers.READERS`.
    places: where it may lie below a data folder. classes: its class names, () to keep those that are read.
    remotes: what to download; `Remote.path` is below the data folder.
    """

    summary: str
    layout: str
    places: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    remotes: tuple[Remote, ...] = ()


def _idx_remotes(address: str, place: str, sums: Mapping[str, tuple[int, str]]) -> tuple[Remote, ...]:
    return tuple(
        Remote(url=address + name, path=f"{place}/{name}", size=size, md5=md5) for name, (size, md5) in sums.items()
    )


SETS: dict[str, Named] = {
    "digits": Named(summary="8x8 grey digits that come with scikit-learn, 1438 / 359", layout="npz", classes=DIGITS),
    "mnist": Named(
        summary="28x28 grey digits, 60000 / 10000",
        layout="idx",
        places=("MNIST/raw", "mnist/raw", "mnist"),
        classes=DIGITS,
        remotes=_idx_remotes(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "MNIST/raw",
            {
                "train-images-idx3-ubyte.gz": (9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                "train-labels-idx1-ubyte.gz": (28881, "d53e105ee54ea40749a09fcbcd1e9432"),
                "t10k-images-idx3-ubyte.gz": (1648877, "9fb629c4189551a2d022fa330f9573f3"),
                "t10k-labels-idx1-ubyte.gz": (4542, "ec29112dd5afa0611ce80d1b7f02629c"),
            },
        ),
    ),
    "fashion-mnist": Named(
        summary="28x28 grey clothes, 60000 / 10000",
        layout="idx",
        places=("FashionMNIST/raw", "fashion-mnist/raw", "fashion-mnist"),
        classes=CLOTHES,
        remotes=_idx_remotes(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "FashionMNIST/raw",
            {
                "train-images-idx3-ubyte.gz": (26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                "train-labels-idx1-ubyte.gz": (29515, "25c81989df183df01b3e8a0aad5dffbe"),
                "t10k-images-idx3-ubyte.gz": (4422102, "bef4ecab320f06d8554ea6380940ec79"),
                "t10k-labels-idx1-ubyte.gz": (5148, "bb300cfdad3c16e7a12a480ee83cd310"),
            },
        ),
    ),
    "cifar10": Named(
        summary="32x32 colour photos of ten things, 50000 / 10000",
        layout="cifar",
        places=("cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
        classes=THINGS,
        remotes=(
            Remote(
                url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                path="cifar-10-python.tar.gz",
                size=170498071,
                md5="c58f30108f718f92721af3b95e74349a",
                unpacked={
                    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
                    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
                    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
                    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
                },
            ),
        ),
    ),
    "cifar10-jpeg": Named(
        summary="CIFAR-10 after JPEG at quality 75, 50000 / 10000",
        layout="npz",
        places=("cifar10_jpeg.npz",),
        classes=THINGS,
    ),
    "cifar10-lossless": Named(
        summary="the first images of CIFAR-10, 4000 / 1000",
        layout="npz",
        places=("cifar10_lossless.npz",),
        classes=THINGS,
    ),
    "gtsrb": Named(
        summary="32x32 colour photos of 43 German traffic signs, 8600 / 2580",
        layout="npz",
        places=("gtsrb.npz",),
        classes=SIGNS,
    ),
    "imagenette2class": Named(
        summary="224x224 photos, English springer (n02102040) against parachute (n03888257), 1915 / 785",
        layout="folder",
        places=("imagenette2class",),
    ),
}


def roots() -> list[Path]:
    """The folders in which named sets are looked for; downloads go to the first."""
    listed = [Path(entry).expanduser() for entry in os.environ.get("MISCUE_DATA", "").split(os.pathsep) if entry]
    if listed:
        return listed
    import platformdirs

    return [Path(platformdirs.user_cache_dir("miscue"))]


def locate(name: str) -> Path:
    """Where the named set `name` lies: below a folder of `roots()` or its subfolder `cache`.

    Raises:
        InputError: an unknown name, or the set is not there; the message says where it was looked for.
    """
    chosen = lookup(SETS, name, "data set")
    for root in roots():
        for place in chosen.places:
            for path in (root / place, root / "cache" / place):
                if path.exists():
                    return path
    where = f"{name} is not under {' or '.join(map(str, roots()))} (as {' or '.join(chosen.places)})"
    if chosen.remotes:
        raise InputError(f"{where}; get it with: miscue data download {name}")
    raise InputError(f"{where}; it cannot be downloaded: put it there, or name its folder in $MISCUE_DATA")


def named(name: str, splits: Splits) -> Splits:
    """`splits` under the name and the class names of the set `name`."""
    classes = SETS[name].classes
    if len(classes) != len(splits.train.classes):
        return replace(splits, name=name)
    test = replace(splits.test, classes=classes) if splits.test is not None else None
    return replace(splits, name=name, train=replace(splits.train, classes=classes), test=test)


def digits() -> Splits:
    """scikit-learn's digits, levels 0..16 stretched to 0..255; a fixed fifth of each class is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).add(0.5).floor().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    whole = Data(images=images, labels=labels, classes=DIGITS)
    train, test = hold_out(whole, 0.2, Dice().named("digits"))
    return Splits(name="digits", train=train, test=test, layout=Layout(kind="npz"))


def download(name: str, folder: Path | None = None) -> Iterator[tuple[int, int]]:
    """Fetch the named set `name` into `folder` (default: the first of `roots()`); resumes what was cut off.

    Files that are there and right are kept. Every file is checked before it gets its name. The work is done
    as the result is drained: ``for done, total in download("mnist"): ...``.

    Yields:
        (bytes done, bytes in all).

    Raises:
        InputError: an unknown name, a set without an address, an address that does not answer, a wrong
            checksum.
    """
    chosen = lookup(SETS, name, "data set")
    if name == "digits":
        raise InputError("digits come with scikit-learn; there is nothing to download")
    if not chosen.remotes:
        raise InputError(f"{name} has no public address; put {chosen.places[0]} into a folder of $MISCUE_DATA")
    return _downloading(chosen.remotes, folder if folder is not None else roots()[0])


def verify(name: str) -> None:
    """Compare the files of the named set `name` with the published checksums.

    Raises:
        InputError: a file is missing or differs, or no checksums are known for the set.
    """
    chosen = lookup(SETS, name, "data set")
    if not chosen.remotes:
        raise InputError(f"no checksums are known for {name}")
    folder = locate(name)
    for remote in chosen.remotes:
        for path, md5 in remote.files().items():
            file = folder / Path(path).name
            if not file.is_file():
                raise InputError(f"{file} is missing; get it with: miscue data download {name}")
            if md5_of(file) != md5:
                raise InputError(f"{file} is not the published file: its md5 differs from {md5}")


def _downloading(remotes: tuple[Remote, ...], folder: Path) -> Iterator[tuple[int, int]]:
    total = sum(remote.size for remote in remotes)
    before = 0
    for remote in remotes:
        for done in fetch(remote, folder):
            yield before + done, total
        before += remote.size
