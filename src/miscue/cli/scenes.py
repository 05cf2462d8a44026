"""`miscue train-detector DATA MODEL` and `miscue attack dpatch MODEL DATA OUT`: photos with boxes."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from miscue.cli import console
from miscue.cli.options import DEBUG, DEVICE, JSON, OVERWRITE, SEED, THREADS, command_line, device, method_command
from miscue.data import eight_bit, floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions.dpatch import Patched, blinded, dpatch_steps, drawn_places, precise, stuck
from miscue.files import atomic, atomic_folder, refuse_existing, refuse_file, write_arrays, write_json
from miscue.finder import RECIPE, Finder
from miscue.layouts.pictures import png
from miscue.measures.detection import measurable
from miscue.models.detector import DETECTORS
from miscue.models.networks import placed
from miscue.models.store import load_model, save_model
from miscue.readers import read_scenes
from miscue.report import scenes_page
from miscue.run import Tick, provenance, written
from miscue.scenes import Boxes, Scenes

SCENES = Annotated[
    str,
    typer.Argument(
        help="A folder of photos with boxes: annotations.json, in COCO's form or a plain one.", show_default=False
    ),
]
HIDDEN = ("dice", "target")


def train_detector(
    data: SCENES,
    out: Annotated[Path, typer.Argument(help="File to write the detector to (.safetensors).", show_default=False)],
    epochs: Annotated[int, typer.Option(help="Passes over the photos.", min=1)] = RECIPE.epochs,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = RECIPE.lr,
    batch_size: Annotated[int, typer.Option(help="Photos a step.", min=1)] = RECIPE.batch_size,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Train a small object detector on photos with boxes, all but two of ten blocks, and measure it on those two."""
    with console.guarded(debug=debug):
        refuse_file(out, overwrite=overwrite)
        where = device(device_, threads)
        train, test = read_scenes(data).blocks()
        measurable(test.targets)
        finder = Finder(recipe=replace(RECIPE, epochs=epochs, lr=lr, batch_size=batch_size))
        dice = Dice(seed).named("detector")
        model = finder.untrained(train, dice, device=where)
        facts: dict[str, Any] = {}

        def ticks() -> Iterator[Tick]:
            for epoch in finder.learning(model, train, dice, device=where):
                facts.update(epoch=epoch.number, loss=epoch.loss)
                yield Tick(done=epoch.number, total=epochs, fact=dict(facts))

        console.follow(ticks(), "training the detector", lambda fact: f"epoch {fact['epoch']}: loss {fact['loss']:.3f}")
        facts |= precise(model, test)[1]
        about = {"classes": list(train.classes), "recipe": asdict(finder.recipe), "scores": facts, "data": data}
        save_model(out, model, finder.plan(train), **about, seed=seed, **provenance(command_line(), where))
        console.say(
            f"{out}: the detector; on {len(test)} other photos its average precision is {facts['map_50']:.1f} % at an "
            f"overlap of 0.5, {facts['map']:.1f} % over all"
        )
        if json_:
            console.emit({"out": str(out), **facts})


def common(
    model: Annotated[Path, typer.Argument(help="A detector saved by miscue train-detector.", show_default=False)],
    data: SCENES,
    out: Annotated[Path, typer.Argument(help="Folder for the patch, the photos and the page.", show_default=False)],
    target: Annotated[
        str | None, typer.Option(help="Name of the class that all attention is to go to; default: any confusion.")
    ] = None,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """What the attack takes beside its own options."""


def attack_scenes(
    given: dict[str, Any],
    *,
    model: Path,
    data: str,
    out: Path,
    target: str | None,
    seed: int,
    device_: str,
    threads: int,
    overwrite: bool,
    json_: bool,
) -> None:
    """Make the patch from the photos that the detector may have learned from; judge it on the others, as saved."""
    where = device(device_, threads)
    net, facts = load_model(model)
    if facts["plan"]["name"] not in DETECTORS:
        raise InputError(f"{model} is a {facts['plan']['name']}, no detector; miscue train-detector makes one")
    train, test = read_scenes(data).blocks()
    if list(train.classes) != facts["classes"]:
        raise InputError(f"{model} and {data} have other classes")
    if target is not None and target not in train.classes:
        raise InputError(f"no class {target!r}; there are {', '.join(train.classes)}")
    refuse_existing(out, overwrite=overwrite)
    measurable(test.targets)
    label = None if target is None else train.classes.index(target) + 1
    net, dice = placed(net, where), Dice(seed).named("dpatch")
    made: list[Patched] = []
    seen = [floats(image.to(where)) for image in train.images]

    def ticks() -> Iterator[Tick]:
        steps = dpatch_steps(net, seen, train.targets, target=label, dice=dice, **given)
        total = int({**defaults(), **given}["steps"])
        for done in range(1, total + 1):
            next(steps)
            yield Tick(done=done, total=total)
        try:
            next(steps)
        except StopIteration as end:
            made.append(end.value)

    console.follow(ticks(), "making the patch", str)
    options = defaults() | given
    settings: dict[str, Any] = {
        "kind": "scenes",
        "title": f"dpatch against {model.name} on {data}",
        "method": "dpatch",
        "options": options,
        "model": str(model),
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "plan": facts["plan"],
        "data": data,
        "classes": list(test.classes),
        "target": target,
        "seed": seed,
    } | provenance(command_line(), where)
    line = {"data": data, "method": "dpatch", **options, "target": target, "network": settings["plan"]["name"]}
    with atomic_folder(out, overwrite=overwrite) as folder:
        row = judged(net, test, made[0], folder, place=options["place"], label=label, dice=dice)
        written(folder / "records.jsonl", [(line, row)], settings, len(test))
        write_json(folder / "run.json", settings)
        scenes_page.write(folder)
    console.say(
        f"{out}: average precision on {len(test)} other photos {row['map_50']:.1f} %, with a patch of noise "
        f"{row['map_50_noise']:.1f} %, with this patch {row['map_50_patched']:.1f} %"
    )
    console.say(f"{out / 'report.html'}: the page")
    if json_:
        console.emit({"out": str(out), "method": "dpatch", "n": len(test), **row})


def defaults() -> dict[str, Any]:
    """The options of `dpatch_steps` as they are if not given."""
    parameters = inspect.signature(dpatch_steps).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in HIDDEN}


def judged(
    net: nn.Module, test: Scenes, made: Patched, out: Path, *, place: str, label: int | None, dice: Dice
) -> dict[str, float]:
    """Save the patch and the photos with it, all in 8 bits, and measure the detector on them, as `blinded` does."""
    patch = eight_bit(made.patch).cpu()
    places = drawn_places(test.images, patch.shape[1], place, dice.named("held-out").generator())
    row, found = blinded(net, test, patch, places, target=label, dice=dice)
    kept: dict[str, Any] = {"patch": patch.numpy(), "places": places.numpy(), "loss": made.loss.cpu().numpy()}
    for name in ("", "_patched"):
        kept |= {f"found{name}_{i:04}": packed(boxes) for i, boxes in enumerate(found[name])}
    with atomic(out / "patch.png") as temporary:
        temporary.write_bytes(png(patch))
    names = [str(Path(file).with_suffix(".png")) for file in test.files]
    for name, image in zip(names, stuck(patch, test.images, places), strict=True):
        with atomic(out / "images" / name) as temporary:
            temporary.write_bytes(png(image))
    write_arrays(out / "patch.npz", kept | {"files": np.array(names)})
    return row


def packed(boxes: Boxes) -> np.ndarray:
    """Detections as rows: xmin, ymin, xmax, ymax, label, score."""
    columns = [boxes["boxes"], boxes["labels"][:, None].float(), boxes["scores"][:, None]]
    return torch.cat(columns, dim=1).numpy()


dpatch = method_command(common, dpatch_steps, attack_scenes, hidden=HIDDEN)
