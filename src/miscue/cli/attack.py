"""`miscue attack METHOD MODEL DATA OUT`: attack a trained model, save the images, and show what became of them."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn

from miscue.assault import Attacked, Bound, arrays, assault, joined, measures
from miscue.cli import console, scenes
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
from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.evasions import BY_QUERIES, EVASIONS, FOR_ALL_IMAGES, Adversarial
from miscue.files import atomic, write_arrays, write_json
from miscue.labels import label_map
from miscue.layouts.pictures import png
from miscue.models.networks import placed
from miscue.report import attack_page
from miscue.run import Tick, fingerprint, provenance, refuse_other, written

app = typer.Typer(no_args_is_help=True, help="Attack a trained model's images.")
HIDDEN = ("target", "dice", "chunk", "transform")
PART = 32  # images between two checkpoints


def common(
    model: MODEL,
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for the attacked images and the page.", show_default=False)],
    images: Annotated[int, typer.Option(help="At most so many images, evenly spread over the set.", min=1)] = 200,
    split: Annotated[str, typer.Option(help="Whose images: test or train.")] = "test",
    target: Annotated[
        str | None, typer.Option(help="What each class is to be taken for: y+1, or one class for each.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Attack also at each of these values of an option, for the curve of success against it.",
            metavar="OPTION=A,B,...",
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
    """What every attack takes beside its method's own options."""


def bound(method: Callable[..., Adversarial], options: dict[str, Any], seed: int) -> Bound:
    """The method with its options, and dice of their own for each part."""
    takes = inspect.signature(method).parameters

    def attack(model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, start: int) -> Adversarial:
        more: dict[str, Any] = {"dice": Dice(seed).named("attack", start)} if "dice" in takes else {}
        if target is not None:
            more["target"] = target
        return method(model, x, y, **options, **more)

    return attack


def attack_data(
    name: str,
    method: Callable[..., Adversarial],
    given: dict[str, Any],
    *,
    model: str,
    data: str,
    out: Path,
    images: int,
    split: str,
    target: str | None,
    sweep: str | None,
    resize: int | None,
    seed: int,
    device_: str,
    threads: int,
    overwrite: bool,
    json_: bool,
) -> None:
    """Attack part by part into OUT, going on where a killed run stopped."""
    where = device(device_, threads)
    source, some = met(model, data, split=split, images=images, resize=resize)
    takes = inspect.signature(method).parameters
    targets = None if target is None else label_map(target, len(some.classes))
    if targets is not None and "target" not in takes:
        raise InputError(f"{name} has no targets")
    if targets is not None:
        others = (torch.tensor(targets)[some.labels] != some.labels).nonzero()[:, 0]
        if len(others) < len(some):
            console.say(f"{len(some) - len(others)} images are of the class asked for and left out")
        some = some.take(others)
    options = {p.name: p.default for p in takes.values() if p.kind is p.KEYWORD_ONLY and p.name not in HIDDEN} | given
    swept = None if sweep is None else sweeping(sweep, options)
    for own in ({}, *({option: value} for option, values in (swept or {}).items() for value in values)):
        checked(method, given | own, some)
    settings: dict[str, Any] = {
        "kind": "attack",
        "title": f"{name} against {Path(model).name} on {data}",
        "method": name,
        "options": options,
        "model": model,
        "model_sha256": source.sha256,
        "network": source.name,
        "data": data,
        "split": split,
        "data_sha256": fingerprint(some),
        "classes": list(some.classes),
        "targets": targets,
        "sweep": swept,
        "seed": seed,
    }
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    settings = begin(out, settings | provenance(command_line(), where))
    net = placed(source.model, where)
    part = len(some) if name in FOR_ALL_IMAGES else PART

    def parts(given: dict[str, Any], folder: Path, title: str) -> tuple[Attacked, Tensor]:
        own = options | given
        eps = own.get("eps") if own.get("norm", "linf") == "linf" else None
        attack = bound(method, given, seed)
        console.follow(ticks(net, some, attack, folder, targets=targets, eps=eps, part=part), title, str)
        return gathered(folder)

    attacked, curve = parts(given, out / "parts", f"attacking: {name}")
    rows = [(options, measures(attacked))]
    for option, values in (swept or {}).items():
        for number, value in enumerate(values):
            own = given | {option: value}
            found, _ = parts(own, out / "parts" / f"sweep {number}", f"attacking: {name}, {option} {value:g}")
            rows.append((options | own, measures(found)))
            console.say(f"{option} {value:g}: {words(rows[-1][1], len(found), name)}")
    save(out, attacked, curve, settings, rows)
    row = rows[0][1]
    console.say(f"{out}: {words(row, len(attacked), name)}")
    console.say(f"{attack_page.write(out)}: the page")
    if json_:
        console.emit({"out": str(out), "method": name, "n": len(attacked), **row})


def sweeping(text: str, options: dict[str, Any]) -> dict[str, list[float]]:
    """OPTION=A,B,... as {option: values}, each of the kind that the option is.

    Raises:
        InputError: no such option, one that is no number, values that it cannot take.
    """
    name, _, listed = text.partition("=")
    option = name.strip().removeprefix("--").replace("-", "_")
    usual = lookup(options, option, "option of this attack")
    if isinstance(usual, bool) or not isinstance(usual, int | float):
        raise InputError(f"--sweep needs an option that is a number; {option} is {usual!r}")
    try:
        exact = sorted({Fraction(word) for word in listed.split(",")})
        values = [type(usual)(value) for value in exact]
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--sweep takes values as in eps=1/255,2/255, got {text!r}") from None
    if isinstance(usual, int) and any(value.denominator > 1 for value in exact):
        raise InputError(f"{option} takes whole numbers, got {listed}")
    return {option: values}


class CalledError(Exception):
    """A model was asked, so its attack has nothing against its options."""


class Silent(nn.Module):
    """A model that says nothing but that it was asked."""

    def forward(self, x: Tensor) -> Tensor:
        """Raise CalledError."""
        raise CalledError


def checked(method: Callable[..., Adversarial], given: dict[str, Any], data: Data) -> None:
    """Refuse options of an attack before anything is attacked.

    Raises:
        InputError: the attack's own.
    """
    some = data.take(slice(0, 1))
    with suppress(CalledError):
        method(Silent(), floats(some.images), some.labels, **given)


def begin(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the settings, or take those of the same attack that was begun before."""
    about = out / "run.json"
    if (out / "adversarials.npz").exists():
        raise InputError(f"{out} holds a finished attack; choose another place or add --overwrite")
    if about.exists():
        found: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        same = ("kind", "method", "options", "model_sha256", "data_sha256", "targets", "sweep", "seed")
        refuse_other({key: settings[key] for key in same}, {key: found.get(key) for key in same}, out)
        return found
    write_json(about, settings)
    return settings


def ticks(
    model: nn.Module, data: Data, attack: Bound, folder: Path, *, targets: Any, eps: float | None, part: int
) -> Iterator[Tick]:
    """Attack what is not in `folder` yet, one file a part."""
    for start in range(0, len(data), part):
        file = folder / f"{start:06}.npz"
        some = data.take(slice(start, start + part))
        if not file.exists():
            attacked, curve = assault(model, some, attack, targets=targets, eps=eps, start=start)
            write_arrays(file, arrays(attacked) | {"curve": curve.numpy()})
        yield Tick(done=start + len(some), total=len(data))


def gathered(folder: Path) -> tuple[Attacked, Tensor]:
    """All parts in `folder`, and the mean of their curves, shorter ones prolonged by their last value."""
    parts, curves, sizes = [], [], []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as archive:
            found = {name: torch.from_numpy(archive[name]) for name in archive.files}
        curves.append(found.pop("curve"))
        parts.append(Attacked(**found))
        sizes.append(len(parts[-1]))
    longest = max(map(len, curves))
    whole = torch.stack([torch.cat([curve, curve[-1:].expand(longest - len(curve))]) for curve in curves])
    shares = torch.tensor(sizes) / sum(sizes)
    return joined(parts), (whole * shares[:, None]).sum(0)


def save(
    out: Path,
    attacked: Attacked,
    curve: Tensor,
    settings: dict[str, Any],
    rows: list[tuple[dict[str, Any], dict[str, float]]],
) -> None:
    """The images as PNG files and as arrays, the records of each (options, measures); then the parts are not needed."""
    names = settings["classes"]
    for i in range(len(attacked)):
        words = f"{i:05}-{names[int(attacked.labels[i])]}-as-{names[int(attacked.after[i])]}".replace("/", "_")
        with atomic(out / "images" / f"{words}.png") as temporary:
            channels = attacked.images.shape[1]
            temporary.write_bytes(png(attacked.images[i] if channels in (1, 3) else attacked.images[i, :1]))
    about = {"data": settings["data"], "method": settings["method"]}
    then = {"network": settings["network"], "targets": settings["targets"]}
    written(out / "records.jsonl", [(about | own | then, row) for own, row in rows], settings, len(attacked))
    write_arrays(out / "adversarials.npz", arrays(attacked) | {"curve": curve.numpy()})
    shutil.rmtree(out / "parts")


def words(row: dict[str, float], count: int, method: str) -> str:
    """The outcome in a sentence."""
    why = "all that was tried looks alike to the model" if method in BY_QUERIES else "masked gradients?"
    lost = row["success_found"] - row["success"]
    masked = f"; for {row['flat']:.1f} % nothing ever changed: {why}" if row["flat"] else ""
    rounding = f" ({lost:.1f} points fewer than before rounding to 8 bits)" if lost > 0.05 else ""
    return (
        f"{row['accuracy']:.1f} % of {count} images right before, {row['robust_accuracy']:.1f} % after; "
        f"success {row['success']:.1f} %{rounding}{masked}"
    )


for _name, _method in EVASIONS.items():
    app.command(_name)(method_command(common, _method, partial(attack_data, _name, _method), hidden=HIDDEN))
app.command("dpatch")(scenes.dpatch)
