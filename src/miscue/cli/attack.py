"""`miscue attack METHOD MODEL DATA OUT`: attack a trained model, save the images, and show what became of them."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn

from miscue.assault import Attacked, Bound, arrays, assault, joined, measures
from miscue.cli import console
from miscue.cli.options import (
    DATA,
    DEBUG,
    JSON,
    OVERWRITE,
    RESIZE,
    SEED,
    THREADS,
    command_line,
    device,
    method_options,
)
from miscue.data import Data
from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.evasions import EVASIONS, FOR_ALL_IMAGES, Adversarial
from miscue.files import atomic, write_json
from miscue.labels import label_map
from miscue.layouts.pictures import png
from miscue.models.networks import placed
from miscue.models.store import load_model
from miscue.readers import read
from miscue.report import attack_page
from miscue.run import Tick, fingerprint, provenance, refuse_other, rewrite

app = typer.Typer(no_args_is_help=True, help="Attack a trained model's images.")
HIDDEN = ("target", "dice", "chunk", "transform")
PART = 32  # images between two checkpoints


def common(
    model: Annotated[Path, typer.Argument(help="A model saved by miscue train.", show_default=False)],
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for the attacked images and the page.", show_default=False)],
    images: Annotated[int, typer.Option(help="At most so many images, evenly spread over the set.", min=1)] = 200,
    split: Annotated[str, typer.Option(help="Whose images: test or train.")] = "test",
    target: Annotated[
        str | None, typer.Option(help="What each class is to be taken for: y+1, or one class for each.")
    ] = None,
    resize: RESIZE = None,
    seed: SEED = 0,
    device_: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto: CUDA where present.")] = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """What every attack takes beside its method's own options."""


def command(name: str, method: Callable[..., Adversarial]) -> Callable[..., None]:
    """The command of one method: the shared options and those of its signature."""
    shared = inspect.signature(common, eval_str=True)
    own = method_options(method, hidden=HIDDEN)

    def run(**given: Any) -> None:
        options = {parameter.name: given.pop(parameter.name) for parameter in own}
        with console.guarded(debug=given.pop("debug")):
            attack_data(name, method, {k: v for k, v in options.items() if v is not None}, **given)

    parameters = [*shared.parameters.values(), *own]
    run.__name__, run.__doc__ = method.__name__, (inspect.getdoc(method) or "").split("\n\n")[0]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


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
    model: Path,
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
    net, facts = load_model(model)
    splits = read(data, resize=resize)
    chosen = lookup({"test": splits.test, "train": splits.train}, split, "split")
    if chosen is None:
        raise InputError(f"{data} has no test set; --split train attacks its training images")
    some = chosen.spread(images)
    fits(facts, some, model, data)
    takes = inspect.signature(method).parameters
    targets = None if target is None else label_map(target, len(some.classes))
    if targets is not None and "target" not in takes:
        raise InputError(f"{name} has no targets")
    options = {p.name: p.default for p in takes.values() if p.kind is p.KEYWORD_ONLY and p.name not in HIDDEN} | given
    settings: dict[str, Any] = {
        "kind": "attack",
        "title": f"{name} against {model.name} on {data}",
        "method": name,
        "options": options,
        "model": str(model),
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "plan": facts["plan"],
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
    net = placed(net, where)
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


def fits(facts: dict[str, Any], data: Data, model: Path, name: str) -> None:
    """Raise an InputError where the model is for other images or classes."""
    plan = facts["plan"]
    if tuple(plan["shape"]) != data.shape or plan["options"].get("classes") != len(data.classes):
        raise InputError(
            f"{model} is for {plan['options'].get('classes')} classes of images {tuple(plan['shape'])}, "
            f"{name} has {len(data.classes)} of {data.shape}"
        )


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


def write_arrays(path: Path, found: dict[str, Any]) -> None:
    """An npz file, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **found)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


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
    facts = {"scale": "laptop", "data": settings["data"], "device": settings["device"], "commit": settings["commit"]}
    facts |= {"command": settings["command"], "note": None}
    line = {"data": settings["data"], "method": settings["method"], **settings["options"]}
    line |= {"network": settings["plan"]["name"], "targets": settings["targets"]}
    rows = [
        {"table": "attack", "row": line, "measure": measure, "published": None, "mean": value, "std": None}
        | {"n": len(attacked), "seconds": None, **facts}
        for measure, value in row.items()
    ]
    rewrite(out / "records.jsonl", rows)
    shutil.rmtree(out / "parts")


def words(row: dict[str, float], count: int) -> str:
    """The outcome in a sentence."""
    lost = row["success_found"] - row["success"]
    rounding = f" ({lost:.1f} points fewer than before rounding to 8 bits)" if lost > 0.05 else ""
    return (
        f"{row['accuracy']:.1f} % of {count} images right before, {row['robust_accuracy']:.1f} % after; "
        f"success {row['success']:.1f} %{rounding}"
    )


for _name, _method in EVASIONS.items():
    app.command(_name)(command(_name, _method))
