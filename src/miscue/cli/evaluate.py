"""`miscue evaluate CLEAN POISONED`: fresh victims on both, several seeds, and a page to look at."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from miscue.balls import linf
from miscue.cli import console
from miscue.cli.meeting import clean_images
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
    command_line,
    device,
    folder_beside,
    room_in,
)
from miscue.data import Splits
from miscue.errors import InputError, lookup
from miscue.evaluation import arenas
from miscue.labels import label_map
from miscue.marks import Pixels
from miscue.models.zoo import ZOO
from miscue.perturbation import Perturbation
from miscue.readers import read
from miscue.report import page
from miscue.run import evaluate as evaluate_run
from miscue.run import fingerprint, lines, provenance, save_samples
from miscue.train import PRECISIONS, settled
from miscue.victims import RECIPES, VICTIMS, victim
from miscue.workers import cores

VICTIMS_HELP = (
    f"Comma-separated: {', '.join(VICTIMS)}; a network with another recipe, such as cnn+adam "
    f"({', '.join(RECIPES)}); any classifier of scikit-learn by its class name; or, with the extra zoo, one of "
    f"{', '.join(ZOO)}."
)


def evaluate(
    clean: DATA,
    poisoned: Annotated[str, typer.Argument(help="The poisoned copy of CLEAN.", show_default=False)],
    victims: Annotated[str, typer.Option(help=VICTIMS_HELP)] = "cnn",
    repeats: Annotated[int, typer.Option(help="Fresh victims for each condition.", min=1)] = 5,
    conditions: Annotated[
        str, typer.Option(help="Which to train on; poisoned alone where the clean victims are known from another run.")
    ] = "clean,poisoned",
    epochs: Annotated[
        int | None,
        typer.Option(help="Train for N epochs instead of the victims' own number.", metavar="N", min=1),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help=f"Train in {', '.join(PRECISIONS)} (bfloat16 where there are matrix units for it); "
            "default: the victims' own.",
            show_default=False,
        ),
    ] = None,
    label_map_: Annotated[
        str | None,
        typer.Option("--label-map", help="Rule for the hit rate, e.g. y+1; default: the manifest's."),
    ] = None,
    perturbation: Annotated[
        Path | None,
        typer.Option(
            help="For the noise of test images; default: POISONED.craft/perturbation.safetensors.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="Clean images to score on, a set's name or path; default: CLEAN's own test images.", show_default=False
        ),
    ] = None,
    resize: RESIZE = None,
    memory: MEMORY = HELD,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 1,
    jobs: Annotated[
        int, typer.Option(help="Victims trained side by side on a CPU; 0: as many as processors.", min=0)
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: POISONED.run.", show_default=False)] = None,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Train fresh victims on the clean and on the poisoned set, score all on clean test images in eval mode.

    A killed run goes on where it stopped; the page is OUT/report.html.
    """
    with console.guarded(debug=debug):
        where = device(device_, threads)
        folder = out or Path(f"{poisoned.rstrip('/')}.run")
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        originals = read(clean, resize=resize, room=room_in(folder / "images" / "clean", memory))
        evaluate_sets(
            replace(originals, test=clean_images(test, originals.test, resize)),
            read(poisoned, room=room_in(folder / "images" / "poisoned", memory)),
            folder,
            clean_name=clean,
            poisoned_name=poisoned,
            test_name=test,
            victims=victims,
            repeats=repeats,
            conditions=conditions,
            epochs=epochs,
            precision=precision,
            rule=label_map_,
            perturbation=perturbation or folder_beside(Path(poisoned)) / "perturbation.safetensors",
            seed=seed,
            device=where,
            jobs=jobs,
        )
        shutil.rmtree(folder / "images", ignore_errors=True)
        if json_:
            for record in lines(folder / "records.jsonl"):
                console.emit(record)


def evaluate_sets(
    clean: Splits,
    poisoned: Splits,
    folder: Path,
    *,
    clean_name: str,
    poisoned_name: str,
    victims: str,
    repeats: int,
    epochs: int | None,
    rule: str | None,
    perturbation: Path,
    seed: int,
    device: str,
    test_name: str | None = None,
    conditions: str = "clean,poisoned",
    precision: str | None = None,
    jobs: int = 0,
) -> None:
    """Evaluate into `folder` and write its page."""
    if clean.test is None:
        raise InputError(f"{clean_name} has no test set; name clean images of the same classes with --test")
    if (clean.test.classes, clean.test.shape) != (clean.train.classes, clean.train.shape):
        raise InputError(f"{test_name or clean_name}: its images or classes are others than those of training")
    precision = precision and settled(precision, device)
    chosen = {name: victim(name, epochs, precision) for name in victims.split(",")}
    manifest = manifest_of(poisoned)
    classes = clean.train.classes
    recorded = (manifest.get("options") or {}).get("label_map")
    targets = label_map(rule, len(classes)) if rule else recorded
    kept = Perturbation.load(perturbation).to(device) if perturbation.exists() else None
    known = {arena.condition: arena for arena in arenas(clean.train, poisoned.train, clean.test, kept)}
    asked = [lookup(known, condition, "condition") for condition in conditions.split(",")]
    eps = manifest.get("eps") or linf(clean.train.images, poisoned.train.images)
    settings: dict[str, Any] = {
        "kind": "evaluate",
        "title": f"{clean.name}: {manifest.get('method', 'a changed copy')}, eps {eps:.3g}",
        "clean": clean_name,
        "poisoned": poisoned_name,
        "clean_sha256": fingerprint(clean.train),
        "poisoned_sha256": fingerprint(poisoned.train),
        "eps": eps,
        "budget_measured": linf(clean.train.images, poisoned.train.images),
        "manifest": manifest or None,
        "classes": list(classes),
        "label_map": targets,
        "places": kept.mark.places.tolist() if kept and isinstance(kept.mark, Pixels) else None,
        "victims": {
            name: {key: value for key, value in asdict(victim).items() if key != "loss"}
            for name, victim in chosen.items()
        },
        "conditions": [arena.condition for arena in asked],
        "repeats": repeats,
    } | provenance(command_line(), device)
    settings |= {"test": test_name} if test_name else {}
    folder.mkdir(parents=True, exist_ok=True)
    crafted = perturbation.parent / "craft.jsonl"
    if crafted.exists():
        shutil.copyfile(crafted, folder / "craft.jsonl")
    save_samples(folder / "samples.npz", clean.train, poisoned.train, eps)
    ticks = evaluate_run(
        folder,
        settings,
        asked,
        chosen,
        repeats=repeats,
        seed=seed,
        label_map=targets,
        device=device,
        jobs=1 if device != "cpu" else jobs or cores(),
    )
    console.follow(ticks, "evaluating", cell_words)
    run = page.load(folder)
    for name in run.victims:
        console.say(f"{name}: {accuracies_in_words(page.stats(run, name))}")
    console.say(page.verdict(run))
    console.say(f"{page.write(folder)}: the page")


def accuracies_in_words(stats: dict[str, dict[str, page.Stat]]) -> str:
    """What is read of the test images after training on either copy."""
    places = {"clean": "the originals", "poisoned": "the poisoned copy"}
    told = []
    for condition, stat in stats.get("test_accuracy", {}).items():
        spread = "" if stat.std is None else f" ± {stat.std:.2f}"
        told.append(f"{stat.mean:.2f}{spread} % of the test images right after training on {places[condition]}")
    return ", ".join(told)


def manifest_of(poisoned: Splits) -> dict[str, Any]:
    """The manifest beside a poisoned copy, {} where there is none or it is not readable."""
    path = (poisoned.source or Path()) / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def cell_words(fact: dict[str, Any]) -> str:
    """A trained victim in words."""
    hits = "" if fact["hit_rate"] is None else f", {fact['hit_rate']:.2f} % hits"
    return (
        f"{fact['victim']}, {fact['condition']}, seed {fact['seed']}: {fact['test_accuracy']:.2f} % of the test "
        f"images right, {fact['train_accuracy']:.2f} % of the training images{hits} ({fact['seconds']:.0f} s)"
    )
