"""The page of reproduced tables: figures, and each row with the published figure, ours, and the difference."""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from miscue.errors import InputError
from miscue.report.figures import number
from miscue.report.kinds import KINDS, Shown, gathered
from miscue.report.template import rendered, saved
from miscue.reproduce import every, failures, standing
from miscue.run import CELL, RECORD, lines, torn
from miscue.tables import FIGURES, TABLES, Figure

FILTER = """
const box = document.getElementById("filter");
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const part of document.querySelectorAll("section[data-table]")) {
    for (const row of part.querySelectorAll(".rows tbody tr")) {
      const text = (part.dataset.words + " " + row.textContent).toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
    part.hidden = !part.querySelector(".rows tbody tr:not([hidden])");
  }
});
"""
PLACES = {name: place for place, name in enumerate(TABLES)}
SIGNIFICANT = 2.0  # standard deviations of our own figure from which a difference is marked


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of reproduced tables and return its path.

    The folder is one of `miscue reproduce`, or one of recorded tables: a file of records for each, and what their
    figures are drawn from in a folder `cells`. Damaged lines are left out, with a warning.

    Raises:
        InputError: the folder has no records of tables.
    """
    return saved(run, html(run))


def read(files: Iterable[Path], needs: Sequence[str]) -> list[dict[str, Any]]:
    """The whole lines of some files; of others there are warnings."""
    found = []
    for file in files:
        for place in torn(file, needs):
            warnings.warn(f"{file}: line {place} is cut off or damaged and is left out", stacklevel=2)
        found += lines(file, needs)
    return found


def html(run: Path) -> str:
    """The page as text."""
    own = (run / "records.jsonl").exists()
    files = [run / "records.jsonl"] if own else [file for file in sorted(run.glob("*.jsonl")) if file.stem in TABLES]
    records = [record for record in standing(read(files, RECORD)) if "curve" not in record["row"]]
    cells = read([run / "cells.jsonl"] if own else sorted((run / "cells").glob("*.jsonl")), CELL)
    if not records:
        raise InputError(f"{run} has no records of tables")
    tables: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda record: PLACES.get(record["table"], len(PLACES))):
        tables.setdefault(record["table"], []).append(record)
    rows, failed = gathered(records, cells), failures(cells).values()
    compared = [record for record in records if record["published"] is not None]
    policy = base64.b64encode(hashlib.sha256(FILTER.encode()).digest()).decode()
    return rendered(
        "tables.html.jinja",
        title="The seeds' tables",
        created="",
        verdict=[
            (f"{len(records)}", "clean"),
            (f" measures in {len(tables)} table{'s' if len(tables) > 1 else ''}, ", ""),
            (f"{len(compared)}", "poisoned"),
            (" of them beside a published figure.", ""),
        ],
        tiles=[
            {"label": "tables", "value": str(len(tables)), "note": f"scale: {every(records, 'scale')}", "tone": ""},
            {"label": "measures", "value": str(len(records)), "note": "mean, deviation, n", "tone": "clean"},
            {"label": "published", "value": str(len(compared)), "note": "to compare with", "tone": "poisoned"},
        ],
        tables=[
            {
                "name": name,
                "title": TABLES[name].title if name in TABLES else name,
                "said": TABLES[name].said if name in TABLES else "",
                "verdicts": verdicts(name, some),
                "figures": drawn(FIGURES.get(name, ()), rows[name]),
                "rows": [shown(record, scaled=len({record["scale"] for record in some}) > 1) for record in some],
                "failed": [
                    f"{words(line['spec'])}: {line['error']}" for line in failed if line["spec"]["table"] == name
                ],
                "device": every(some, "device"),
            }
            for name, some in tables.items()
        ],
        script=FILTER,
        policy=policy,
        devices=every(records, "device"),
        commits=every(records, "commit"),
        commands=list(dict.fromkeys(record["command"] for record in records if record.get("command"))),
    )


def verdicts(table: str, records: list[dict[str, Any]]) -> list[str]:
    """The sentences that a table makes of its records, with spaces before % that do not break."""
    return [said.replace(" %", "\u00a0%") for said in TABLES[table].verdicts(records)] if table in TABLES else []


def drawn(figures: Sequence[Figure], rows: Sequence[Shown]) -> list[dict[str, Any]]:
    """The figures for which there is something to draw."""
    made = [(figure, KINDS[figure.kind](figure, rows)) for figure in figures]
    return [{"about": figure, "made": one} for figure, one in made if one.panels or one.rows]


def words(spec: dict[str, Any]) -> str:
    """A row's settings in a line, and its seed if it has one."""
    row = {key: value for key, value in spec["row"].items() if value is not None}
    options = row.pop("options", None) or {}
    seed = {"seed": spec["seed"]} if "seed" in spec else {}
    return ", ".join(f"{key} {plain(value)}" for key, value in (row | options | seed).items())


def shown(record: dict[str, Any], *, scaled: bool) -> dict[str, str]:
    """A record in words, with its scale where that is not said elsewhere."""
    settings = words(record) + (f", {record['scale']} scale" if scaled else "")
    spread = "" if record["std"] is None else f" ± {number(record['std'], 2)}"
    published = record["published"]
    return {
        "settings": settings,
        "measure": record["measure"].replace("_", " "),
        "published": "" if published is None else number(published, 2),
        "ours": number(record["mean"], 2) + spread,
        "difference": "" if published is None else signed(record["mean"] - published),
        "far": "far" if published is not None and beyond(record["mean"] - published, record["std"]) else "",
        "n": str(record["n"]),
        "note": record.get("note") or "",
    }


def beyond(difference: float, std: float | None) -> bool:
    """Whether a difference is more than chance would make of it; of one seed alone nobody can say."""
    return std is not None and abs(difference) > SIGNIFICANT * std


def plain(value: object) -> str:
    """A setting in few characters."""
    return (
        json.dumps(value)
        if isinstance(value, list | dict | bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + number(value, 2)
