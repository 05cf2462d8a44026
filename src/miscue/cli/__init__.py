"""The command line: `miscue VERB ...`. Words for people go to stderr, `--json` rows to stdout."""

from __future__ import annotations

import warnings
from importlib import metadata
from typing import Annotated

import typer

from miscue.cli import attack, data, demo, explain, harden, poison
from miscue.cli.activations import activations
from miscue.cli.audit import audit
from miscue.cli.detect import calibrate, certify, detect
from miscue.cli.evaluate import evaluate
from miscue.cli.rank import rank
from miscue.cli.report import report
from miscue.cli.reproduce import reproduce
from miscue.cli.scenes import train_detector
from miscue.cli.train import train
from miscue.memory import keep_freed_memory

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure, cause and cure wrong cues in image classifiers.",
)
app.add_typer(poison.app, name="poison")
app.add_typer(attack.app, name="attack")
app.add_typer(explain.app, name="explain")
app.add_typer(harden.app, name="harden")
app.add_typer(data.app, name="data")
app.command("demo")(demo.demo)
app.command("evaluate")(evaluate)
app.command("audit")(audit)
app.command("train")(train)
app.command("train-detector")(train_detector)
app.command("rank")(rank)
app.command("activations")(activations)
app.command("calibrate")(calibrate)
app.command("detect")(detect)
app.command("certify")(certify)
app.command("reproduce")(reproduce)
app.command("report")(report)


def version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"miscue {metadata.version('miscue')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Measure, cause and cure wrong cues in image classifiers."""


def main() -> None:
    """Set this process up and run the command."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    keep_freed_memory()
    app()
