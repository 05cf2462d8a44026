"""`miscue reproduce [TABLE ...]`: the seeds' tables in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from miscue.cli import console
from miscue.cli.options import DEBUG, JSON, command_line
from miscue.errors import lookup
from miscue.files import write_json
from miscue.report import tables_page
from miscue.reproduce import cells, flat, run, standing, summed
from miscue.run import CELL, RECORD, lines, provenance, rewrite, torn
from miscue.tables import SCALES, TABLES
from miscue.tables.poisoned import device


def reproduce(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Names as --list shows them; all if none.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only say which tables there are.")] = False,
    scale: Annotated[
        str, typer.Option(help=f"One of: {', '.join(SCALES)}: seconds, hours on two cores, days.")
    ] = "laptop",
    seeds: Annotated[
        int | None, typer.Option(help="Networks or draws of each row; default: as many as the row says.", min=1)
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            help="Rows whose settings have all of these words, e.g. mnist,linear-svm or eps=0.2; -word: have it not."
        ),
    ] = "",
    jobs: Annotated[
        int, typer.Option(help="Processes of one thread side by side; 0: one a processor, one with a GPU.", min=0)
    ] = 0,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, or local for one started here.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of cells, records and what cells share.")] = Path("out/reproduce"),
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Measure what the seeds' tables say, row by row, with the published figure beside each.

    A killed run goes on where it stopped when it is given again. A cell that fails says why and does not stop the rest.
    """
    with console.guarded(debug=debug):
        lookup(dict.fromkeys(SCALES), scale, "scale")
        if list_:
            for name, table in {name: lookup(TABLES, name, "table") for name in tables or TABLES}.items():
                count = len(list(table.rows(scale)))
                if json_:
                    console.emit({"table": name, "title": table.title, "rows": count})
                else:
                    console.say(f"{name:26} {count:3} rows  {table.title}")
            return
        todo = cells(tables or [], scale=scale, seeds=seeds, only=only)
        damaged = {"cells": ("its cell is measured again", CELL), "records": ("it is summed up again", RECORD)}
        for name, (then, needs) in damaged.items():
            for number in torn(out / f"{name}.jsonl", needs):
                console.say(f"{out / name}.jsonl: line {number} is cut off; {then} where it is asked for")
        failed: list[dict[str, Any]] = []

        def described(line: dict[str, Any]) -> str:
            if "error" in line:
                failed.append(line)
            return words(line)

        console.follow(run(todo, out, jobs=jobs, cluster=cluster), "reproducing", described)
        about = provenance(command_line(), device())
        records = summed(todo, out, about["command"])
        rewrite(out / "records.jsonl", standing([*lines(out / "records.jsonl", RECORD), *records]))
        write_json(out / "run.json", {"kind": "reproduce", "scale": scale} | about)
        if records:
            console.say(f"{tables_page.write(out)}: the page")
        for record in records:
            if json_:
                console.emit(record)
            elif record["published"] is not None:
                console.say(compared(record))
        for name, table in TABLES.items():
            for sentence in table.verdicts([record for record in records if record["table"] == name]):
                console.say(f"{name}: {sentence}")
        console.say(f"{out / 'records.jsonl'}: {len(records)} measures; {len(failed)} of {len(todo)} cells failed")
        if failed:
            raise typer.Exit(console.EXIT_SYSTEM)


def words(line: dict[str, Any]) -> str:
    """A cell in words."""
    spec = line["spec"]
    row = ", ".join(f"{key} {value}" for key, value in flat(spec["row"]) if value is not None)
    if "error" in line:
        return f"{spec['table']}: {row}, seed {spec['seed']} failed: {line['error']}"
    first, value = next(iter(line["measures"].items()))
    return f"{spec['table']}: {row}, seed {spec['seed']}: {first} {value:.2f}, {console.clock(line['seconds'])}"


def compared(record: dict[str, Any]) -> str:
    """A measure beside the published figure."""
    row = ", ".join(str(value) for _, value in flat(record["row"]) if value is not None)
    spread = f" ± {record['std']:.2f}" if record["std"] is not None else ""
    found = f"{record['measure']} {record['mean']:.2f}{spread}"
    return f"{record['table']}: {row}: {found}, published {record['published']:.2f}"
