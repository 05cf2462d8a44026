"""`miscue harden`: clean data, train a network that is harder to fool, or change one that is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from miscue.balls import changed_pixels, linf
from miscue.cleaners import CLEANERS
from miscue.cli import console
from miscue.cli.meeting import changeable
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
    fraction,
    method_command,
)
from miscue.cli.train import START, TRAINED, VICTIM, learned, scored, walked, with_recipe
from miscue.data import Data
from miscue.defences import LOSSES, bound, feature_norm, tuning
from miscue.dice import Dice
from miscue.files import refuse_existing, refuse_file
from miscue.models.networks import placed
from miscue.models.store import Plan, save_model
from miscue.readers import read
from miscue.run import fingerprint, provenance
from miscue.train import Recipe
from miscue.writers import write

app = typer.Typer(no_args_is_help=True, help="Clean data, or make a network that is harder to fool.")
LARGE = 2000  # clean images that bounds and norms are read from
TUNED = Recipe(lr=0.01, momentum=0.9, epochs=2, batch_size=128, schedule="cosine")


def cleaning(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Where the cleaned copy goes.", show_default=False)],
    resize: RESIZE = None,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """What every cleaner takes beside its own options."""


def clean_data(
    name: str,
    cleaner: Callable[..., Data],
    given: dict[str, Any],
    *,
    data: str,
    out: Path,
    resize: int | None,
    overwrite: bool,
    json_: bool,
) -> None:
    """Write a copy of a set whose training images are cleaned."""
    refuse_existing(out, overwrite=overwrite)
    splits = read(data, resize=resize)
    cleaned = cleaner(splits.train, **given)
    facts = {
        "cleaner": name,
        "options": given,
        "input": splits.name,
        "input_sha256": fingerprint(splits.train),
        "largest_change": linf(cleaned.images, splits.train.images),
        "changed_pixels": changed_pixels(cleaned.images, splits.train.images),
    }
    write(replace(splits, train=cleaned), out, manifest=facts, overwrite=overwrite)
    console.say(
        f"{out}: {len(cleaned)} cleaned training images, at most {facts['changed_pixels']} pixels changed in one"
    )
    if json_:
        console.emit({"out": str(out), **facts})


@with_recipe
def training(
    data: DATA,
    out: TRAINED,
    *,
    victim: VICTIM = None,
    start: START = None,
    recipe: dict[str, Any],
    resize: RESIZE = None,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 1,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """What every loss takes beside its own options."""


@with_recipe
def train_by(name: str, given: dict[str, Any], *, recipe: dict[str, Any], **shared: Any) -> None:
    """Train a network by another loss."""
    learned(loss=LOSSES[name](**given), options={"name": name, **given}, recipe=recipe, **shared)


CHANGED = Annotated[Path, typer.Argument(help="A model saved by miscue train.", show_default=False)]


@app.command("bounded")
def bounded(
    model: CHANGED,
    data: DATA,
    out: TRAINED,
    percentile: Annotated[
        float, typer.Option(help="Of the activations; where bounds begin.", parser=fraction, metavar="NUMBER")
    ] = 99.5,
    slope: Annotated[
        float, typer.Option(help="Beyond the bound and below 0.", parser=fraction, metavar="NUMBER")
    ] = 0.0,
    per: Annotated[str, typer.Option(help="A bound for each layer or channel.")] = "channel",
    epochs: Annotated[int, typer.Option(help="Passes of fine-tuning; 0 for none.", min=0)] = TUNED.epochs,
    lr: Annotated[float, typer.Option(help="Learning rate of fine-tuning.")] = TUNED.lr,
    decay: Annotated[float, typer.Option(help="Weight of the sum of b^2.", parser=fraction, metavar="NUMBER")] = 1e-3,
    resize: RESIZE = None,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 1,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Put a trainable bound on every ReLU of a trained network, and fine-tune it."""
    with console.guarded(debug=debug):
        refuse_file(out, overwrite=overwrite)
        where = device(device_, threads)
        net, about, splits = changeable(model, data, resize=resize)
        images = splits.train.to(where)
        found = bound(placed(net, where), images.spread(LARGE), percentile=percentile, slope=slope, per=per)
        facts = scored(found, splits)
        if epochs:
            learning = tuning(
                found, images, replace(TUNED, lr=lr, epochs=epochs), Dice(seed).named("tune"), decay=decay
            )
            facts = walked("fine-tuning", learning, epochs, found, splits)
        keep(out, found, about, {"bounded": slope}, facts, where, json_=json_)


@app.command("feature-norm")
def clip(
    model: CHANGED,
    data: DATA,
    out: TRAINED,
    percentile: Annotated[
        float, typer.Option(help="Of the largest norms on clean images.", parser=fraction, metavar="NUMBER")
    ] = 99.0,
    resize: RESIZE = None,
    device_: DEVICE = "auto",
    threads: THREADS = 1,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Clip the norms of the last feature maps of a trained network, which a patch needs to be large."""
    with console.guarded(debug=debug):
        refuse_file(out, overwrite=overwrite)
        where = device(device_, threads)
        net, about, splits = changeable(model, data, resize=resize)
        found = feature_norm(placed(net, where), splits.train.to(where).spread(LARGE), percentile=percentile)
        keep(out, found, about, {"norm_clip": True}, scored(found, splits), where, json_=json_)


def keep(
    out: Path,
    model: nn.Module,
    about: dict[str, Any],
    option: dict[str, Any],
    facts: dict[str, Any],
    where: str,
    *,
    json_: bool,
) -> None:
    """Save a changed model with what is known of the one it was made from."""
    plan = Plan(**about.pop("plan"))
    known = {key: value for key, value in about.items() if key in ("classes", "recipe", "data", "seed")}
    changed = replace(plan, options=plan.options | option)
    save_model(out, model, changed, **known, scores=facts, **provenance(command_line(), where))
    test = f", {facts['test_accuracy']:.2f} % of the test images right" if "test_accuracy" in facts else ""
    console.say(f"{out}: the model{test}")
    if json_:
        console.emit({"out": str(out), **option, **facts})


for _name, _cleaner in CLEANERS.items():
    app.command(_name)(method_command(cleaning, _cleaner, partial(clean_data, _name, _cleaner), hidden=()))
for _name, _loss in LOSSES.items():
    app.command(_name)(method_command(training, _loss, partial(train_by, _name), hidden=()))
