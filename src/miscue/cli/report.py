"""`miscue report RUN`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from miscue.cli import console
from miscue.cli.options import DEBUG
from miscue.errors import InputError
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
    """Write the page of a run again from its records, RUN/report.html; of a folder of recorded tables (results/),
    one page of them all.
    """
    with console.guarded(debug=debug):
        console.say(f"{PAGES.get(kind_of(run), page).write(run)}: the page")


def kind_of(run: Path) -> str:
    """The kind of a run by its run.json; without one, that of tables where there are records."""
    about = run / "run.json"
    if not about.is_file():
        if any(run.glob("*.jsonl")):
            return "reproduce"
        raise InputError(f"{run} is not the folder of a run: no run.json in it")
    try:
        return str(json.loads(about.read_text(encoding="utf-8")).get("kind"))
    except (ValueError, AttributeError):
        raise InputError(f"{run} is not a run: its run.json is damaged") from None
