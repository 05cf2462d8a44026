"""`miscue train DATA MODEL` and `miscue report RUN`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from miscue.cli import console
from miscue.cli.options import (
    DATA,
    DEBUG,
    DEVICE,
    JSON,
    OVERWRITE,
    PRECISION,
    RESIZE,
    SEED,
    THREADS,
    command_line,
    device,
    fraction,
)
from miscue.cli.rank import EMPHASIS, emphasis_of
from miscue.covers import FILLS
from miscue.data import Data, Splits
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.files import refuse_file
from miscue.measures.accuracy import accuracy
from miscue.measures.activations import snapshot
from miscue.models.networks import NETWORKS
from miscue.models.store import save_model
from miscue.optimizers import OPTIMIZERS
from miscue.readers import read
from miscue.report import (
    activations_page,
    attack_page,
    audit_page,
    detect_page,
    explain_page,
    page,
    rank_page,
    scenes_page,
    tables_page,
)
from miscue.run import Tick, provenance
from miscue.train import Epoch
from miscue.victims import network

TRAINED = Annotated[Path, typer.Argument(help="File to write the model to (.safetensors).", show_default=False)]


def train(
    data: DATA,
    out: TRAINED,
    victim: Annotated[str, typer.Option(help=f"One of: {', '.join(NETWORKS)}.")] = "cnn",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; default: the victim's own.", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the victim's own.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step; default: the victim's own.", min=1)] = None,
    optimizer: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(OPTIMIZERS)}; default: the victim's own.")
    ] = None,
    shift: Annotated[int, typer.Option(help="Move each image by up to so many pixels, anew in each pass.", min=0)] = 0,
    scenes: Annotated[
        float,
        typer.Option(
            help="Show such a share of the images, drawn anew in each pass, turned, tilted, lit or coloured otherwise.",
            parser=fraction,
            metavar="NUMBER",
        ),
    ] = 0.0,
    holes: Annotated[
        int, typer.Option(help="Cover so many squares on each image, anew in each pass; see --hole and --fill.", min=0)
    ] = 0,
    hole: Annotated[int, typer.Option(help="Side of such a square in pixels.", min=1)] = 9,
    fill: Annotated[str, typer.Option(help=f"What covered pixels become: {', '.join(FILLS)}.")] = "grey",
    ranking: Annotated[
        Path | None,
        typer.Option(
            help="A table of miscue rank --split train over all training images: hard ones are drawn more often.",
            show_default=False,
        ),
    ] = None,
    emphasis: Annotated[
        float | None,
        typer.Option(
            help="With --ranking: how many times as often the hardest image is drawn as the easiest; "
            f"{EMPHASIS:g} if not given.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        int,
        typer.Option(
            help="Keep how large the activations of so many training images and all weights are after each epoch, "
            "for the page of miscue activations; 0: of none.",
            min=0,
        ),
    ] = 0,
    precision: PRECISION = None,
    resize: RESIZE = None,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 1,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Train a classifier and save it with its classes, recipe and scores."""
    with console.guarded(debug=debug):
        refuse_file(out, overwrite=overwrite)
        if emphasis is not None and ranking is None:
            raise InputError("--emphasis says how much a ranking counts; give one with --ranking")
        where = device(device_, threads)
        chosen = network(victim, epochs, precision)
        given = {"lr": lr, "batch_size": batch_size, "optimizer": optimizer}
        recipe = replace(chosen.recipe, shift=shift, scenes=scenes, holes=holes, hole=hole, fill=fill)
        recipe = replace(recipe, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
        chosen = replace(chosen, recipe=recipe)
        splits = read(data, resize=resize)
        images = splits.train.near(where)
        emphasis = EMPHASIS if emphasis is None else emphasis
        weights = None if ranking is None else emphasis_of(ranking, splits.train, emphasis)
        dice = Dice(seed).named("victim", victim)
        model = chosen.untrained(images, dice, device=where)
        learning = chosen.learning(model, images, dice, weights=weights)
        history: list[dict[str, Any]] = []
        if watch:
            learning = watched(learning, model, images.spread(watch), history)
        facts = walked(f"training {victim}", learning, recipe.epochs, model, splits)
        about = {
            "classes": list(splits.train.classes),
            "recipe": asdict(recipe),
            "scores": facts,
            "data": data,
            "seed": seed,
        }
        if ranking is not None:
            about["emphasis"] = emphasis
        if watch:
            about["history"] = history
        about |= provenance(command_line(), where)
        save_model(out, model, chosen.plan(images), **about)
        console.say(f"{out}: the model")
        if json_:
            console.emit({"out": str(out), "victim": victim, **facts})


def watched(learning: Iterator[Epoch], model: nn.Module, some: Data, history: list[dict[str, Any]]) -> Iterator[Epoch]:
    """The epochs of a training, with what is inside the model before the first and after each put into `history`."""
    history.append({"epoch": 0, **snapshot(model, some.images)})
    for epoch in learning:
        history.append({"epoch": epoch.number, **snapshot(model, some.images)})
        yield epoch


def walked(title: str, learning: Iterator[Epoch], epochs: int, model: nn.Module, splits: Splits) -> dict[str, Any]:
    """Walk through a training with progress; the last epoch's number, loss and scores."""
    facts: dict[str, Any] = {}

    def ticks() -> Iterator[Tick]:
        for epoch in learning:
            facts.update(epoch=epoch.number, loss=epoch.loss, **scored(model, splits))
            yield Tick(done=epoch.number, total=epochs, fact=dict(facts))

    console.follow(ticks(), title, epoch_words)
    return facts


def scored(model: nn.Module, splits: Splits) -> dict[str, float]:
    """The accuracies of a model."""
    facts = {"train_accuracy": accuracy(model, splits.train)}
    return facts if splits.test is None else facts | {"test_accuracy": accuracy(model, splits.test)}


def epoch_words(fact: dict[str, Any]) -> str:
    """An epoch in words."""
    test = f", {fact['test_accuracy']:.2f} % of the test images" if "test_accuracy" in fact else ""
    train = f"{fact['train_accuracy']:.2f} % of the training images right"
    return f"epoch {fact['epoch']}: loss {fact['loss']:.4f}, {train}{test}"


PAGES = {
    "activations": activations_page,
    "attack": attack_page,
    "audit": audit_page,
    "scenes": scenes_page,
    "explain": explain_page,
    "rank": rank_page,
    "detect": detect_page,
    "reproduce": tables_page,
}


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)],
    debug: DEBUG = False,
) -> None:
    """Write the page of a run again from its records: RUN/report.html."""
    with console.guarded(debug=debug):
        if not (run / "run.json").is_file():
            raise InputError(f"{run} is not the folder of a run: no run.json in it")
        try:
            kind = json.loads((run / "run.json").read_text(encoding="utf-8")).get("kind")
        except (ValueError, AttributeError):
            raise InputError(f"{run} is not a run: its run.json is damaged") from None
        writer = PAGES.get(kind, page)
        console.say(f"{writer.write(run)}: the page")
