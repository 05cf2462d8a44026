"""`miscue poison METHOD DATA OUT` and `miscue poison apply PERTURBATION DATA OUT`."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from miscue.balls import changed_pixels, linf
from miscue.cli import console
from miscue.cli.options import (
    DATA,
    DEBUG,
    DEVICE,
    JSON,
    OVERWRITE,
    RESIZE,
    SEED,
    THREADS,
    device,
    folder_beside,
    fraction,
    method_command,
)
from miscue.data import Data, Splits, mix
from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.files import refuse_existing
from miscue.labels import label_map
from miscue.perturbation import Perturbation
from miscue.poisons import POISONS, PRESETS, Attacker, Poison, Preset
from miscue.readers import read, recognise, stream
from miscue.run import craft, fingerprint
from miscue.writers import WRITERS, write, write_stream

app = typer.Typer(no_args_is_help=True, help="Make a poisoned copy of a data set.")

OUT = Annotated[Path, typer.Argument(help="Folder to write the poisoned copy to.", show_default=False)]
SHARE = Annotated[
    float,
    typer.Option(help="Share of the images that are poisoned, the rest stay clean.", parser=fraction, metavar="NUMBER"),
]
LAYOUT = Annotated[str | None, typer.Option(help="Write idx, cifar, npz or folder; default: as the input.")]

NAMES = ", ".join(dict.fromkeys(preset for presets in PRESETS.values() for preset in presets))


def common(
    data: DATA,
    out: OUT,
    preset: Annotated[
        str, typer.Option(help=f"Setting to start from: {NAMES}; options given beside it win.")
    ] = "paper",
    surrogate: Annotated[str | None, typer.Option(help="The attacker's network.", show_default=False)] = None,
    lr: Annotated[float | None, typer.Option(help="The surrogate's learning rate.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data a trial.", show_default=False)] = None,
    share: SHARE = 1.0,
    layout: LAYOUT = None,
    resize: RESIZE = None,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """What every crafting command takes beside its method's own options."""


def attacker_of(
    preset: Preset, *, surrogate: str | None, seed: int, device: str, **recipe: float | int | None
) -> Attacker:
    """The preset's attacker, with what was given on the command line instead."""
    given = {key: value for key, value in recipe.items() if value is not None}
    return Attacker(
        surrogate=surrogate or preset.surrogate,
        recipe=replace(preset.recipe, **given),  # type: ignore[arg-type]
        dice=Dice(seed),
        device=device,
    )


def poison_data(
    name: str,
    poison: Poison[...],
    given: dict[str, Any],
    *,
    data: str,
    out: Path,
    preset: str,
    share: float,
    layout: str | None,
    resize: int | None,
    overwrite: bool,
    json_: bool,
    device_: str,
    threads: int,
    seed: int,
    **training: Any,
) -> None:
    """Craft on the training images of `data` and write the poisoned copy to `out`."""
    refuse_request(out, share=share, layout=layout, overwrite=overwrite)
    chosen = lookup(PRESETS[name], preset, "preset")
    where = device(device_, threads)
    splits = read(data, resize=resize)
    options = chosen.options | given
    if "label_map" in options:
        options["label_map"] = label_map(options["label_map"], len(splits.train.classes))
    attacker = attacker_of(chosen, seed=seed, device=where, **training)
    workshop = folder_beside(out)
    if overwrite:
        shutil.rmtree(workshop, ignore_errors=True)
    kept = workshop / "perturbation.safetensors"
    if kept.exists():
        raise InputError(f"{kept} exists already; apply it with miscue poison apply, or add --overwrite to start anew")
    ticks = craft(poison, splits.train, attacker, options, workshop)
    console.follow(ticks, f"crafting {name}", trial_words)
    perturbation = Perturbation.load(kept)
    facts = {"preset": preset, "options": full_options(poison, options), "seed": seed}
    facts |= {"surrogate": attacker.surrogate, "recipe": asdict(attacker.recipe)}
    row = deliver(perturbation, splits, out, facts, share=share, seed=seed, layout=layout, overwrite=overwrite)
    report_written(row, out, kept, json_=json_)


def refuse_request(out: Path, *, share: float, layout: str | None, overwrite: bool) -> None:
    """Refuse before any work what could not be delivered after it."""
    refuse_existing(out, overwrite=overwrite)
    if not 0 <= share <= 1:
        raise InputError(f"share must lie in [0, 1], got {share:g}")
    if layout is not None:
        lookup(WRITERS, layout, "layout")


def full_options(poison: Poison[...], given: dict[str, Any]) -> dict[str, Any]:
    """All options of a method, defaults filled in from its signature."""
    parameters = inspect.signature(poison).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "resume"}
    return defaults | given


def deliver(
    perturbation: Perturbation,
    splits: Splits,
    out: Path,
    facts: dict[str, Any],
    *,
    share: float,
    seed: int,
    layout: str | None,
    overwrite: bool,
    parts: tuple[str, ...] = ("train",),
) -> dict[str, Any]:
    """Poison the named parts, write the copy with its manifest, return the manifest."""
    made: dict[str, Data] = {}
    counts: dict[str, int] = {}
    for part in parts:
        clean = getattr(splits, part)
        if clean is None:
            raise InputError(f"{splits.name} has no {part} set to poison")
        made[part], chosen = mix(clean, perturbation(clean), share, Dice(seed).named(part))
        counts[part] = len(chosen)
    pairs = [(made[part].images, getattr(splits, part).images) for part in parts]
    manifest = {
        "method": perturbation.settings.get("poison"),
        **facts,
        "eps": perturbation.eps,
        "budget_measured": max(linf(*pair) for pair in pairs),
        "changed_pixels": max(changed_pixels(*pair) for pair in pairs),
        "share": share,
        "poisoned_images": counts,
        "order": "as the input",
        "input": splits.name,
        "input_sha256": fingerprint(splits.train),
    }
    copy = replace(splits, train=made.get("train", splits.train), test=made.get("test", splits.test))
    write(copy, out, manifest=manifest, overwrite=overwrite, layout=layout)
    return manifest


def report_written(manifest: dict[str, Any], out: Path, kept: Path, *, json_: bool) -> None:
    """Say where things are and what the budget came to."""
    console.say(
        f"{out}: {sum(manifest['poisoned_images'].values())} poisoned images, "
        f"no pixel moved by more than {manifest['budget_measured']:.4f} (eps {manifest['eps']:g}), "
        f"at most {manifest['changed_pixels']} in an image"
    )
    console.say(f"{kept}: the perturbation; keep it to yourself")
    if json_:
        console.emit({"out": str(out), "perturbation": str(kept), **manifest})


def trial_words(fact: dict[str, Any]) -> str:
    """A trial or a generation in words."""
    start = f"{fact['trial']}, {fact['minutes']:.1f} min"
    lost = f"; candidates lost, as their process died twice: {fact['lost']:.0f}" if "lost" in fact else ""
    if "final_fitness" in fact:
        return f"finalists, {fact['minutes']:.1f} min: gap {fact['final_fitness']:.1f} points under fresh seeds{lost}"
    if "best_fitness" in fact:
        best = f"best candidate so far {fact['best_fitness']:.1f}"
        return f"generation {start}: gap {fact['fitness']:.1f} points, {best}{lost}"
    if "held_out_accuracy" not in fact:
        return f"trial {start}: nothing to measure yet"
    hits = fact.get("held_out_hit_rate")
    tail = "" if hits is None else f", {hits:.1f} % hits"
    return (
        f"trial {start}: a surrogate trained on the poison so far reads "
        f"{fact['held_out_accuracy']:.1f} % of held-out clean images right{tail}"
    )


@app.command("apply")
def apply(
    perturbation: Annotated[Path, typer.Argument(help="A saved perturbation.", show_default=False)],
    data: DATA,
    out: OUT,
    part: Annotated[
        str,
        typer.Option(help="What to poison: train, test, both, or all: every image of a folder, one at a time."),
    ] = "train",
    share: SHARE = 1.0,
    layout: LAYOUT = None,
    resize: RESIZE = None,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 1,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Apply a saved perturbation to a data set, or to a folder of new images in constant memory (--part all)."""
    with console.guarded(debug=debug):
        refuse_request(out, share=share, layout=layout, overwrite=overwrite)
        kept = Perturbation.load(perturbation).to(device(device_, threads))
        parts = lookup({"train": ("train",), "test": ("test",), "both": ("train", "test"), "all": ()}, part, "part")
        facts = {"perturbation": perturbation.name, **kept.settings}
        if parts:
            splits = read(data, resize=resize)
            row = deliver(
                kept,
                splits,
                out,
                facts,
                share=share,
                seed=seed,
                layout=layout,
                overwrite=overwrite,
                parts=parts,
            )
        else:
            row = stream_through(kept, Path(data), out, facts, resize=resize, overwrite=overwrite)
        report_written(row, out, perturbation, json_=json_)


def stream_through(
    perturbation: Perturbation,
    source: Path,
    out: Path,
    facts: dict[str, Any],
    *,
    resize: int | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Poison a folder image by image; memory does not grow with their number."""
    if recognise(source) != "folder":
        raise InputError(f"{source} is not an image folder; --part all is for those")
    measured, pixels, count = 0.0, 0, 0
    classes: dict[str, int] = {}

    def poisoned() -> Iterator[tuple[str, Tensor]]:
        nonlocal measured, pixels, count
        for name, class_name, image in stream(source, channels=perturbation.mark.channels, resize=resize):
            label = classes.setdefault(class_name, len(classes))
            channels, height, width = image.shape
            perturbation.mark.check((channels, height, width), len(classes))
            changed = perturbation.images(image[None], torch.tensor([label]))[0]
            measured, count = max(measured, linf(changed, image)), count + 1
            pixels = max(pixels, changed_pixels(changed[None], image[None]))
            yield name, changed

    manifest = {
        "method": perturbation.settings.get("poison"),
        **facts,
        "eps": perturbation.eps,
        "order": "as the input",
    }
    write_stream(poisoned(), out, manifest=manifest, overwrite=overwrite, source=source)
    facts = {"budget_measured": measured, "changed_pixels": pixels, "poisoned_images": {"all": count}}
    return manifest | facts


for _name, _poison in POISONS.items():
    app.command(_name)(method_command(common, _poison, partial(poison_data, _name, _poison), hidden=("resume",)))
