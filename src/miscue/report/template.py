"""The pages' templates, filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miscue.files import atomic
from miscue.report.figures import number, percent


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
