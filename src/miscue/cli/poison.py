"""`miscue poison METHOD DATA OUT` and `miscue poison apply PERTURBATION DATA OUT`."""

from __future__ import annotations

import inspect
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from miscue.balls import changed_pixels, linf
from miscue.cli import console
from miscue.cli.options import (
    DATA,
    DEBUG,
    DEVICE,
    HELD,
    JSON,
    MEMORY,
    OVERWRITE,
    RESIZE,
    SEED,
    THREADS,
    device,
    folder_beside,
    fraction,
    method_command,
    room_in,
)
from miscue.copies import KINDS, Copy, manifest
from miscue.data import Data, Splits, mix
from miscue.datasets import SETS
from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.files import refuse_existing
from miscue.labels import label_map
from miscue.perturbation import Perturbation
from miscue.poisons import POISONS, PRESETS, Attacker, Poison, Preset
from miscue.readers import read, recognise
from miscue.run import PERTURBATION, craft, fingerprint
from miscue.writers import WRITERS, write

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
        str,
        typer.Option(
            help=f"Setting to start from: {NAMES}; deepconfuse's paper takes hours. Options given beside it win."
        ),
    ] = "paper",
    surrogate: Annotated[str | None, typer.Option(help="The attacker's network.", show_default=False)] = None,
    lr: Annotated[float | None, typer.Option(help="The surrogate's learning rate.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data a trial.", show_default=False)] = None,
    share: SHARE = 1.0,
    layout: LAYOUT = None,
    resize: RESIZE = None,
    memory: MEMORY = HELD,
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
    memory: int = HELD,
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
    workshop = folder_beside(out)
    if overwrite:
        shutil.rmtree(workshop, ignore_errors=True)
    splits = read(data, resize=resize, room=room_in(workshop / "images", memory))
    options = chosen.options | given
    if "label_map" in options:
        options["label_map"] = label_map(options["label_map"], len(splits.train.classes))
    attacker = attacker_of(chosen, seed=seed, device=where, **training)
    console.follow(craft(poison, splits.train, attacker, options, workshop), f"crafting {name}", trial_words)
    kept = workshop / PERTURBATION
    perturbation = Perturbation.load(kept).to(where)
    facts = {"preset": preset, "options": full_options(poison, options), "seed": seed}
    facts |= {"surrogate": attacker.surrogate, "recipe": asdict(attacker.recipe)}
    kind = streamed(data, layout)
    if kind is None:
        row = deliver(perturbation, splits, out, facts, share=share, seed=seed, layout=layout, overwrite=overwrite)
    else:
        copy = Copy(
            perturbation=perturbation,
            source=Path(data).expanduser(),
            kind=kind,
            share=share,
            seed=seed,
            resize=resize,
        )
        row = copied(copy, out, facts | {"input_sha256": perturbation.settings["data"]}, overwrite=overwrite)
    shutil.rmtree(workshop / "images", ignore_errors=True)
    report_written(row, out, kept, json_=json_)


def streamed(data: str, layout: str | None) -> str | None:
    """The layout of data that is copied piece by piece: of a folder or of npz files that stay what they are."""
    path = Path(data).expanduser()
    kind = recognise(path) if data not in SETS and path.exists() else None
    return kind if kind in KINDS and layout in (None, kind) else None


def copied(copy: Copy, out: Path, facts: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Make a copy with progress; returns what its manifest says."""
    console.follow(copy.making(out, facts, overwrite=overwrite), "copying", skipped_words)
    return copy.row(facts)


def skipped_words(fact: dict[str, Any]) -> str:
    """What had to be passed over, and why."""
    return f"{fact['skipped']} is left out: {fact['reason']}"


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
    row = manifest(
        perturbation,
        facts,
        measured=max(linf(*pair) for pair in pairs),
        pixels=max(changed_pixels(*pair) for pair in pairs),
        share=share,
        counts=counts,
        name=splits.name,
    ) | {"input_sha256": fingerprint(splits.train)}
    copy = replace(splits, train=made.get("train", splits.train), test=made.get("test", splits.test))
    write(copy, out, manifest=row, overwrite=overwrite, layout=layout)
    return row


def report_written(manifest: dict[str, Any], out: Path, kept: Path, *, json_: bool) -> None:
    """Say where things are and what the budget came to."""
    console.say(
        f"{out}: {sum(manifest['poisoned_images'].values())} poisoned images, "
        f"no pixel moved by more than {manifest['budget_measured']:.4f} (eps {manifest['eps']:g}), "
        f"at most {manifest['changed_pixels']} in an image"
    )
    console.say(f"{kept}: the perturbation; keep it to yourself")
    console.say(f"{out / 'manifest.json'}: how the copy was made, seed and all; leave it out of what you release")
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
        return f"trial {start}"
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
        typer.Option(help="What to poison: train, test, both, or all: every image of a folder or of npz files."),
    ] = "train",
    share: SHARE = 1.0,
    layout: LAYOUT = None,
    resize: RESIZE = None,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Leave out images that cannot be read, and say so, instead of stopping."),
    ] = False,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 1,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Apply a saved perturbation to a data set: folders of images and npz files in constant memory, piece by piece.

    A killed run goes on where it stopped.
    """
    with console.guarded(debug=debug):
        refuse_request(out, share=share, layout=layout, overwrite=overwrite)
        kept = Perturbation.load(perturbation).to(device(device_, threads))
        parts = lookup({"train": ("train",), "test": ("test",), "both": ("train", "test"), "all": ()}, part, "part")
        facts = {"perturbation": perturbation.name, **kept.settings}
        kind = streamed(data, layout)
        if kind is not None:
            copy = Copy(
                perturbation=kept,
                source=Path(data).expanduser(),
                kind=kind,
                parts=parts,
                share=share,
                seed=seed,
                resize=resize,
                keep_going=keep_going,
            )
            row = copied(copy, out, facts, overwrite=overwrite)
        elif not parts or keep_going:
            raise InputError(f"{data}: --part all and --keep-going are for folders of images and npz files")
        else:
            row = deliver(
                kept,
                read(data, resize=resize),
                out,
                facts,
                share=share,
                seed=seed,
                layout=layout,
                overwrite=overwrite,
                parts=parts,
            )
        report_written(row, out, perturbation, json_=json_)


for _name, _poison in POISONS.items():
    app.command(_name)(method_command(common, _poison, partial(poison_data, _name, _poison), hidden=("resume",)))
