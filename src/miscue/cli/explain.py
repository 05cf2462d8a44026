"""`miscue explain METHOD MODEL DATA OUT`: where a model looks, and how good the maps are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from miscue.cli import console
from miscue.cli.meeting import met
from miscue.cli.options import (
    DATA,
    DEBUG,
    DEVICE,
    JSON,
    MODEL,
    OVERWRITE,
    RESIZE,
    SEED,
    THREADS,
    command_line,
    device,
    method_command,
)
from miscue.cli.pieces import pieces
from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.explainers import EXPLAINERS
from miscue.files import atomic_folder, refuse_existing, write_arrays, write_json
from miscue.layouts.pictures import decode
from miscue.measures.attribution import deletion, insertion, share_inside
from miscue.models.modes import frozen
from miscue.models.networks import device_of, placed
from miscue.report import explain_page
from miscue.run import fingerprint, provenance, written

app = typer.Typer(no_args_is_help=True, help="Show where a model looks.")
PART = 16  # images between two checkpoints


def common(
    model: MODEL,
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for the maps and the page.", show_default=False)],
    images: Annotated[int, typer.Option(help="At most so many images, evenly spread over the set.", min=1)] = 64,
    split: Annotated[str, typer.Option(help="Whose images: test or train.")] = "test",
    of: Annotated[str, typer.Option(help="The class that is explained: true, or named by the model.")] = "named",
    box: Annotated[
        str | None,
        typer.Option(
            help="Where the object is, TOP,LEFT,BOTTOM,RIGHT in pixels: how much of the maps lies inside?",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Where the object is, image by image: a folder of PNG files named as those of DATA, white on it.",
            show_default=False,
        ),
    ] = None,
    resize: RESIZE = None,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """What every explainer takes beside its own options."""


def explain_data(
    name: str,
    explainer: Callable[..., Tensor],
    given: dict[str, Any],
    *,
    model: str,
    data: str,
    out: Path,
    images: int,
    split: str,
    of: str,
    box: str | None,
    masks: Path | None,
    resize: int | None,
    seed: int,
    device_: str,
    threads: int,
    overwrite: bool,
    json_: bool,
) -> None:
    """Explain images into OUT."""
    where = device(device_, threads)
    if of not in ("true", "named"):
        raise InputError(f"--of must be true or named, got {of!r}")
    source, some = met(model, data, split=split, images=images, resize=resize)
    if box and masks:
        raise InputError("give --box or --masks, not both")
    inside = boxed(box, some) if box else masked(masks, some, data) if masks else None
    refuse_existing(out, overwrite=overwrite)
    net = placed(source.model, where)
    explained = partial(explainer, **given)
    takes = inspect.signature(explainer).parameters.values()
    options = {p.name: p.default for p in takes if p.kind is p.KEYWORD_ONLY} | given
    asked: dict[str, Any] = {
        "method": name,
        "options": options,
        "model_sha256": source.sha256,
        "of": of,
        "box": box,
        "masks": masks and str(masks),
        "data_sha256": fingerprint(some),
        "seed": seed,
    }

    def judge(part: slice) -> dict[str, Tensor]:
        there = None if inside is None else inside[part]
        return judged(net, explained, some.take(part), of, there, Dice(seed), part.start)

    every = pieces(out, asked, judge, count=len(some), size=PART, title=f"explaining: {name}", overwrite=overwrite)
    with every as found:
        row = {
            key: float(value[~value.isnan()].double().mean())
            for key, value in found.items()
            if key.startswith(("deletion", "insertion", "inside")) and not bool(value.isnan().all())
        }
        settings = {
            "kind": "explain",
            "title": f"{name} of {Path(model).name} on {data}",
            "model": model,
            "network": source.name,
            "data": data,
            "split": split,
            "classes": list(some.classes),
            **asked,
        } | provenance(command_line(), where)
        kept = {key: value.numpy() for key, value in found.items()} | {"images": some.images.numpy()}
        line = {"data": data, "method": name, **options, "network": source.name, "of": of}
        with atomic_folder(out, overwrite=overwrite) as folder:
            write_arrays(folder / "maps.npz", kept)
            written(folder / "records.jsonl", [(line, row)], settings, len(some))
            write_json(folder / "run.json", settings)
            explain_page.write(folder)
    console.say(f"{out}: {words(row)}")
    console.say(f"{out / 'report.html'}: the page")
    if json_:
        console.emit({"out": str(out), "method": name, "n": len(some), **row})


def boxed(text: str, some: Data) -> Tensor:
    """bool (n, h, w), the pixels of TOP,LEFT,BOTTOM,RIGHT in each image."""
    size = some.shape[1:]
    try:
        top, left, bottom, right = (int(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"--box needs TOP,LEFT,BOTTOM,RIGHT in whole pixels, got {text!r}") from None
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise InputError(f"the box {text} is empty or reaches outside the images of {size[0]} x {size[1]} pixels")
    mask = torch.zeros(*size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask.expand(len(some), *size)


def masked(folder: Path, some: Data, name: str) -> Tensor:
    """bool (n, h, w), where the masks in `folder` are white, each named as its image's file, but .png.

    Raises:
        InputError: the images come from no files, a mask is missing, unreadable or of another size.
    """
    if not some.files:
        raise InputError(f"--masks go by the names of the images' files, and {name} has none")
    found = []
    for file in some.files:
        mask = (folder / file).with_suffix(".png")
        if not mask.is_file():
            raise InputError(f"no such mask: {mask}")
        white = decode(mask, channels=1)[0] >= 128
        if white.shape != some.shape[1:]:
            raise InputError(f"{mask} is of {white.shape[0]} x {white.shape[1]} pixels, its image is not")
        found.append(white)
    return torch.stack(found)


def judged(
    net: nn.Module,
    explained: Callable[..., Tensor],
    some: Data,
    of: str,
    inside: Tensor | None,
    dice: Dice,
    start: int,
) -> dict[str, Tensor]:
    """The maps of some images and what they are worth, image by image; random maps beside them."""
    where = device_of(net)
    x, labels = floats(some.images.to(where), channels_last=True), some.labels.to(where)
    with frozen(net), torch.no_grad():
        sure, named = net(x).softmax(1).max(1)
    y = labels if of == "true" else named
    maps = explained(net, x, y)
    noise = torch.rand(maps.shape, generator=dice.named("random maps", start).generator()).to(maps)
    base = x.mean((2, 3), keepdim=True).expand_as(x)
    found = {"maps": maps, "labels": labels, "named": named, "sure": sure}
    for kind, one in (("", maps), ("_random", noise)):
        found[f"deletion{kind}"] = 100 * deletion(net, x, y, one, base=base)
        found[f"insertion{kind}"] = 100 * insertion(net, x, y, one, base=base)
    if inside is not None:
        found["inside"] = share_inside(maps, inside.to(where))
        found["inside_by_chance"] = 100 * inside.double().mean((1, 2))
    return {key: value.cpu() for key, value in found.items()}


def words(row: dict[str, float]) -> str:
    """The outcome in a sentence."""
    text = (
        f"the class's probability is {row['deletion']:.1f} % on the mean while the map's pixels are deleted "
        f"({row['deletion_random']:.1f} for random ones), {row['insertion']:.1f} % while they appear "
        f"({row['insertion_random']:.1f})"
    )
    if "inside" in row:
        text += (
            f"; {row['inside']:.1f} % of the maps lies on the object ({row['inside_by_chance']:.1f} % of the pixels)"
        )
    return text


for _name, _explainer in EXPLAINERS.items():
    app.command(_name)(method_command(common, _explainer, partial(explain_data, _name, _explainer), hidden=()))
