"""`miscue train DATA MODEL`, and what other commands that train a network share with it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from miscue.cli import console
from miscue.cli.meeting import refuse_foreign, refuse_stranger
from miscue.cli.options import (
    DATA,
    DEBUG,
    DEVICE,
    JSON,
    OVERWRITE,
    RESIZE,
    SEED,
    THREADS,
    command_line,
    device,
    method_options,
)
from miscue.cli.rank import EMPHASIS, emphasis_of
from miscue.covers import FILLS
from miscue.data import Data, Splits
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.files import refuse_file
from miscue.losses import Loss, plain
from miscue.measures.accuracy import accuracy
from miscue.measures.activations import snapshot
from miscue.models.networks import NETWORKS, placed
from miscue.models.store import Plan, load_model, save_model
from miscue.optimizers import OPTIMIZERS
from miscue.readers import read
from miscue.run import Tick, provenance
from miscue.train import PRECISIONS, SCHEDULES, Epoch, Recipe
from miscue.victims import Victim, network

TRAINED = Annotated[Path, typer.Argument(help="File to write the model to (.safetensors).", show_default=False)]
VICTIM = Annotated[str | None, typer.Option(help=f"One of: {', '.join(NETWORKS)}; default: cnn.", show_default=False)]
START = Annotated[
    Path | None,
    typer.Option(
        help="A model saved by miscue train whose weights to go on from; default: fresh ones.", show_default=False
    ),
]
GLANCED_AT = 2000  # training and test images, evenly spread, that are scored before the last epoch
NAMES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "fill": FILLS}
"""Settings of a recipe that are names, and which there are."""


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `recipe` is the settings of a Recipe that were given, each by an option of its own."""
    own = method_options(Recipe, default="the victim's own", names=NAMES)

    @functools.wraps(command)
    def run(*arguments: Any, **given: Any) -> None:
        settings = {option.name: given.pop(option.name, None) for option in own}
        command(*arguments, recipe={key: value for key, value in settings.items() if value is not None}, **given)

    parameters = inspect.signature(command, eval_str=True).parameters.values()
    shown = [one for parameter in parameters for one in (own if parameter.name == "recipe" else [parameter])]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def learned(
    *,
    data: str,
    out: Path,
    victim: str | None,
    start: Path | None,
    recipe: dict[str, Any],
    resize: int | None,
    seed: int,
    device_: str,
    threads: int,
    overwrite: bool,
    json_: bool,
    loss: Loss = plain,
    options: dict[str, Any] | None = None,
    ranking: Path | None = None,
    emphasis: float | None = None,
    watch: int = 0,
) -> None:
    """Train a network and save it with its classes, recipe and scores; options: the loss's name and its own options."""
    refuse_file(out, overwrite=overwrite)
    where = device(device_, threads)
    chosen, plan, model = begun(victim, start)
    chosen = replace(chosen, recipe=replace(chosen.recipe, **recipe), loss=loss)
    splits = read(data, resize=resize)
    if plan is None:
        plan = chosen.plan(splits.train)
    else:
        refuse_stranger(plan.options.get("classes"), tuple(plan.shape), splits.train, str(start), data)
    name, manner = victim or plan.name, ""
    facts: dict[str, Any] = {"classes": list(splits.train.classes), "recipe": asdict(chosen.recipe)}
    facts |= {"data": data, "seed": seed} | ({"start": str(start)} if start else {})
    if options:
        facts["loss"], manner = options, f", {options['name']}"
    weights = None
    if ranking is not None:
        facts["emphasis"] = EMPHASIS if emphasis is None else emphasis
        weights = emphasis_of(ranking, splits.train, facts["emphasis"])
    images, dice = splits.train.near(where), Dice(seed).named("victim", name)
    model = chosen.untrained(images, dice, device=where) if model is None else placed(model, where)
    learning = chosen.learning(model, images, dice, weights=weights)
    if watch:
        facts["history"] = []
        learning = watched(learning, model, images.spread(watch), facts["history"])
    facts["scores"] = walked(f"training {name}{manner}", learning, chosen.epochs, model, splits)
    save_model(out, model, plan, **facts, **provenance(command_line(), where))
    console.say(f"{out}: the model")
    if json_:
        console.emit({"out": str(out), "victim": name, **facts["scores"]})


def begun(victim: str | None, start: Path | None) -> tuple[Victim, Plan | None, nn.Module | None]:
    """Who is to be trained, and the network and its plan where it has weights already.

    Raises:
        InputError: both are given, or there is no such victim or model.
    """
    if start is None:
        return network(victim or "cnn"), None, None
    if victim:
        raise InputError("--start says which network it is, so leave --victim out")
    refuse_foreign(start)
    model, facts = load_model(start)
    plan = Plan(**facts["plan"])
    return network(plan.name), plan, model


@with_recipe
def train(
    data: DATA,
    out: TRAINED,
    *,
    victim: VICTIM = None,
    start: START = None,
    recipe: dict[str, Any],
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
        if emphasis is not None and ranking is None:
            raise InputError("--emphasis says how much a ranking counts; give one with --ranking")
        learned(
            data=data,
            out=out,
            victim=victim,
            start=start,
            recipe=recipe,
            resize=resize,
            seed=seed,
            device_=device_,
            threads=threads,
            overwrite=overwrite,
            json_=json_,
            ranking=ranking,
            emphasis=emphasis,
            watch=watch,
        )


def watched(learning: Iterator[Epoch], model: nn.Module, some: Data, history: list[dict[str, Any]]) -> Iterator[Epoch]:
    """The epochs of a training, with what is inside the model before the first and after each put into `history`."""
    history.append({"epoch": 0, **snapshot(model, some.images)})
    for epoch in learning:
        history.append({"epoch": epoch.number, **snapshot(model, some.images)})
        yield epoch


def walked(title: str, learning: Iterator[Epoch], epochs: int, model: nn.Module, splits: Splits) -> dict[str, Any]:
    """Walk through a training with progress; the last epoch's number, loss and scores.

    Before the last epoch the scores are those of some of the images.
    """
    facts: dict[str, Any] = {}
    test = None if splits.test is None else splits.test.spread(GLANCED_AT)
    some = replace(splits, train=splits.train.spread(GLANCED_AT), test=test)

    def ticks() -> Iterator[Tick]:
        for epoch in learning:
            seen = splits if epoch.number == epochs else some
            facts.update(epoch=epoch.number, loss=epoch.loss, **scored(model, seen))
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
