"""`miscue attack METHOD MODEL DATA OUT`: attack a trained model, save the images, and show what became of them."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
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
from miscue.data import Data
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions import EVASIONS, FOR_ALL_IMAGES, Adversarial
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
        "seed": seed,
    }
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    settings = begin(out, settings | provenance(command_line(), where))
    net = placed(source.model, where)
    eps = options.get("eps") if options.get("norm", "linf") == "linf" else None
    attack, part = bound(method, given, seed), len(some) if name in FOR_ALL_IMAGES else PART
    console.follow(ticks(net, some, attack, out, targets=targets, eps=eps, part=part), f"attacking: {name}", str)
    attacked, curve = gathered(out)
    row = measures(attacked)
    save(out, attacked, curve, settings, row)
    console.say(f"{out}: {words(row, len(attacked))}")
    console.say(f"{attack_page.write(out)}: the page")
    if json_:
        console.emit({"out": str(out), "method": name, "n": len(attacked), **row})


def begin(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the settings, or take those of the same attack that was begun before."""
    about = out / "run.json"
    if (out / "adversarials.npz").exists():
        raise InputError(f"{out} holds a finished attack; choose another place or add --overwrite")
    if about.exists():
        found: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        same = ("kind", "method", "options", "model_sha256", "data_sha256", "targets", "seed")
        refuse_other({key: settings[key] for key in same}, {key: found.get(key) for key in same}, out)
        return found
    write_json(about, settings)
    return settings


def ticks(
    model: nn.Module, data: Data, attack: Bound, out: Path, *, targets: Any, eps: float | None, part: int
) -> Iterator[Tick]:
    """Attack what is not there yet, one file a part."""
    for start in range(0, len(data), part):
        file = out / "parts" / f"{start:06}.npz"
        some = data.take(slice(start, start + part))
        if not file.exists():
            attacked, curve = assault(model, some, attack, targets=targets, eps=eps, start=start)
            write_arrays(file, arrays(attacked) | {"curve": curve.numpy()})
        yield Tick(done=start + len(some), total=len(data))


def gathered(out: Path) -> tuple[Attacked, Tensor]:
    """All parts, and the mean of their curves, shorter ones prolonged by their last value."""
    parts, curves, sizes = [], [], []
    for file in sorted((out / "parts").glob("*.npz")):
        with np.load(file, allow_pickle=False) as archive:
            found = {name: torch.from_numpy(archive[name]) for name in archive.files}
        curves.append(found.pop("curve"))
        parts.append(Attacked(**found))
        sizes.append(len(parts[-1]))
    longest = max(map(len, curves))
    whole = torch.stack([torch.cat([curve, curve[-1:].expand(longest - len(curve))]) for curve in curves])
    shares = torch.tensor(sizes) / sum(sizes)
    return joined(parts), (whole * shares[:, None]).sum(0)


def save(out: Path, attacked: Attacked, curve: Tensor, settings: dict[str, Any], row: dict[str, float]) -> None:
    """The images as PNG files and as arrays, the records; then the parts are no longer needed."""
    names = settings["classes"]
    for i in range(len(attacked)):
        words = f"{i:05}-{names[int(attacked.labels[i])]}-as-{names[int(attacked.after[i])]}".replace("/", "_")
        with atomic(out / "images" / f"{words}.png") as temporary:
            channels = attacked.images.shape[1]
            temporary.write_bytes(png(attacked.images[i] if channels in (1, 3) else attacked.images[i, :1]))
    write_arrays(out / "adversarials.npz", arrays(attacked) | {"curve": curve.numpy()})
    line = {"data": settings["data"], "method": settings["method"], **settings["options"]}
    line |= {"network": settings["network"], "targets": settings["targets"]}
    written(out / "records.jsonl", line, row, settings, len(attacked))
    shutil.rmtree(out / "parts")


def words(row: dict[str, float], count: int) -> str:
    """The outcome in a sentence."""
    lost = row["success_found"] - row["success"]
    masked = f"; for {row['flat']:.1f} % nothing ever changed: masked gradients?" if row["flat"] else ""
    rounding = f" ({lost:.1f} points fewer than before rounding to 8 bits)" if lost > 0.05 else ""
    return (
        f"{row['accuracy']:.1f} % of {count} images right before, {row['robust_accuracy']:.1f} % after; "
        f"success {row['success']:.1f} %{rounding}{masked}"
    )


for _name, _method in EVASIONS.items():
    app.command(_name)(method_command(common, _method, partial(attack_data, _name, _method), hidden=HIDDEN))
app.command("dpatch")(scenes.dpatch)
