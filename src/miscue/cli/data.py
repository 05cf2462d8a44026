"""`miscue data list|download|check`: the named sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from miscue import datasets
from miscue.cli import console
from miscue.cli.options import DEBUG, JSON
from miscue.errors import InputError
from miscue.run import Tick

app = typer.Typer(no_args_is_help=True, help="List, download and check the named sets.")
NAME = Annotated[str, typer.Argument(help="A named set.", show_default=False)]


@app.command("list")
def list_sets(json_: JSON = False) -> None:
    """The named sets and where they lie."""
    for name, entry in datasets.SETS.items():
        try:
            place = "with scikit-learn" if name == "digits" else str(datasets.locate(name))
        except InputError:
            place = "not here" + ("; miscue data download " + name if entry.remotes else "")
        if json_:
            console.emit({"name": name, "summary": entry.summary, "place": place})
        else:
            typer.echo(f"{name:18} {entry.summary}\n{'':18} {place}")


@app.command("download")
def download(
    name: NAME,
    to: Annotated[
        Path | None, typer.Option(help="Data folder; default: the first of $MISCUE_DATA.", show_default=False)
    ] = None,
    debug: DEBUG = False,
) -> None:
    """Download a named set from its public address; what was cut off is resumed, checksums are compared."""
    with console.guarded(debug=debug):

        def ticks() -> Iterator[Tick]:
            for done, total in datasets.download(name, to):
                yield Tick(done=done, total=total)

        console.follow(ticks(), f"downloading {name}", str)
        console.say(f"{name}: complete, checksums as published")


@app.command("check")
def check(name: NAME, debug: DEBUG = False) -> None:
    """Compare a named set's files with the published checksums."""
    with console.guarded(debug=debug):
        datasets.verify(name)
        console.say(f"{name}: as published")
