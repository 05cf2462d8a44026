"""The page of reproduced tables: figures, and each row with the published figure, ours, and the difference."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miscue.errors import InputError
from miscue.report.figures import number
from miscue.report.kinds import KINDS, Shown, gathered
from miscue.report.template import rendered, saved
from miscue.run import lines
from miscue.tables import FIGURES, TABLES, Figure

FILTER = """
const box = document.getElementById("filter");
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of document.querySelectorAll(".rows tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  }
  for (const part of document.querySelectorAll("section[data-table]")) {
    part.hidden = !part.querySelector(".rows tbody tr:not([hidden])");
  }
});
"""
SIGNIFICANT = 2.0  # standard deviations of our own figure from which a difference is marked


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of reproduced tables and return its path.

    Raises:
        InputError: the folder has no records of tables.
    """
    return saved(run, html(run))


def html(run: Path) -> str:
    """The page as text."""
    records = lines(run / "records.jsonl")
    if not records:
        raise InputError(f"{run} has no records of tables")
    tables: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        tables.setdefault(record["table"], []).append(record)
    rows = gathered(records, lines(run / "cells.jsonl"))
    compared = [record for record in records if record["published"] is not None]
    policy = base64.b64encode(hashlib.sha256(FILTER.encode()).digest()).decode()
    return rendered(
        "tables.html.jinja",
        title="The seeds' tables",
        created="",
        verdict=[
            (f"{len(records)}", "clean"),
            (f" measures in {len(tables)} tables, ", ""),
            (f"{len(compared)}", "poisoned"),
            (" of them beside a published figure.", ""),
        ],
        tiles=[
            {"label": "tables", "value": str(len(tables)), "note": records[0]["scale"] + " scale", "tone": ""},
            {"label": "measures", "value": str(len(records)), "note": "mean, deviation, n", "tone": "clean"},
            {"label": "published", "value": str(len(compared)), "note": "to compare with", "tone": "poisoned"},
        ],
        tables=[
            {
                "name": name,
                "title": TABLES[name].title if name in TABLES else name,
                "verdicts": verdicts(name, some),
                "figures": drawn(FIGURES.get(name, ()), rows[name]),
                "rows": [shown(record) for record in some],
            }
            for name, some in tables.items()
        ],
        script=FILTER,
        policy=policy,
        device=records[0]["device"],
        commit=records[0]["commit"],
        command=records[0].get("command") or "",
    )


def verdicts(table: str, records: list[dict[str, Any]]) -> list[str]:
    """The sentences that a table makes of its records, with spaces before % that do not break."""
    return [said.replace(" %", "\u00a0%") for said in TABLES[table].verdicts(records)] if table in TABLES else []


def drawn(figures: Sequence[Figure], rows: Sequence[Shown]) -> list[dict[str, Any]]:
    """The figures for which there is something to draw."""
    made = [(figure, KINDS[figure.kind](figure, rows)) for figure in figures]
    return [{"about": figure, "made": one} for figure, one in made if one.panels or one.rows]


def shown(record: dict[str, Any]) -> dict[str, str]:
    """A record in words."""
    row = {key: value for key, value in record["row"].items() if value is not None}
    options = row.pop("options", None) or {}
    settings = ", ".join(f"{key} {plain(value)}" for key, value in (row | options).items())
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
        "note": record["note"] or "",
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
