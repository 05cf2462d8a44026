"""The pages' templates, filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from miscue.errors import InputError
from miscue.files import atomic
from miscue.report.figures import number, percent
from miscue.run import lines, torn


def held(
    run: Path, arrays: str, what: str, *, recorded: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[dict[str, Any]]]:
    """The settings of a run, the arrays in its file of that name, and its records; none where it is not `recorded`.

    Raises:
        InputError: the folder does not hold `what`.
    """
    try:
        settings = json.loads((run / "run.json").read_text(encoding="utf-8"))
        with np.load(run / arrays, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{run} does not hold {what}: {error}") from None
    records = lines(run / "records.jsonl") if recorded else []
    if recorded and (not records or torn(run / "records.jsonl")):
        raise InputError(f"{run} does not hold {what}: records.jsonl is missing or damaged")
    return settings, found, records


def means(records: list[dict[str, Any]]) -> dict[str, float]:
    """The measures of records; of several rows the first one's."""
    return {record["measure"]: record["mean"] for record in reversed(records)}


def saved(run: Path, text: str) -> Path:
    """Write a page into the folder `run` as report.html, atomically; its path."""
    page = run / "report.html"
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def rendered(name: str, **values: Any) -> str:
    """The template `name` of this folder with its values; all text is escaped, and a missing value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    return environment.get_template(name).render(**values)
