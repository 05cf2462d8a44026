"""The documentation site: MyST reads the Markdown pages, furo dresses them. Built by scripts/docs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from miscue.report import tables_page

ROOT = Path(__file__).parent.parent

project = "miscue"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
default_role = "literal"  # a name between backticks in a docstring
add_module_names = False
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
toc_object_entries = False

html_theme = "furo"
html_title = "miscue"
html_logo = html_favicon = "_static/mark.svg"
html_static_path = ["_static"]
html_css_files = ["miscue.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = html_show_copyright = False
html_theme_options = {
    "top_of_page_buttons": [],
    # the colours of the pages that miscue writes
    "light_css_variables": {
        "color-brand-primary": "#1f5fae",
        "color-brand-content": "#1f5fae",
        "color-brand-visited": "#1f5fae",
        "color-api-name": "#1f5fae",
        "color-api-pre-name": "#605d57",
        "color-background-primary": "#fbfaf7",
        "color-background-secondary": "#f4f2ec",
        "color-background-border": "#e2dfd8",
        "color-foreground-primary": "#1c1b19",
        "color-foreground-secondary": "#605d57",
        "color-wrong": "#bf3f0b",
    },
    "dark_css_variables": {
        "color-brand-primary": "#86b8f7",
        "color-brand-content": "#86b8f7",
        "color-brand-visited": "#86b8f7",
        "color-api-name": "#86b8f7",
        "color-api-pre-name": "#a7a49d",
        "color-background-primary": "#141517",
        "color-background-secondary": "#1b1d20",
        "color-background-border": "#34373b",
        "color-foreground-primary": "#e9e7e2",
        "color-foreground-secondary": "#a7a49d",
        "color-wrong": "#ff9560",
    },
}

SECTION = re.compile(r"(Args|Returns|Raises|Yields):$")
FIELD = re.compile(r"([a-z]\w*(?:, [a-z]\w*)*): (.*)")
KEPT = re.compile(r"(`[^`]*`|(?<!\w)\*\w[\w ]*\*(?!\w))")  # names, and words that are stressed


def as_rst(lines: list[str]) -> Iterator[str]:
    """A docstring of the house as reStructuredText.

    Before its sections an indented paragraph is a formula, one that begins with `name: text` describes fields, and
    the rest is prose, in which only backticks and pairs of asterisks mean anything.
    """
    start = next((i for i, line in enumerate(lines) if SECTION.match(line)), len(lines))
    for blank, paragraph in groupby(lines[:start], key=lambda line: not line.strip()):
        whole = list(paragraph)
        if blank:
            yield ""
        elif all(line.startswith(" ") for line in whole):
            yield from ("::", "", *whole)
        elif FIELD.match(whole[0]):
            for line in whole:
                field = FIELD.match(line)
                yield plain(f":param {field[1].replace(' ', '')}: {field[2]}" if field else f"    {line.strip()}")
        else:
            yield from map(plain, whole)
    yield from map(plain, lines[start:])


def plain(line: str) -> str:
    """A line in which bars, lone asterisks and final underscores outside backticks are what they look like."""
    parts = KEPT.split(line)
    parts[::2] = [re.sub(r"[|*]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def translate(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """The hook of autodoc: `lines` are changed in place, before napoleon reads the sections."""
    lines[:] = as_rst(lines)


def tables(app: Any, error: Exception | None) -> None:
    """The hook of the built site: the recorded tables and their figures as a page of their own, beside the others."""
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "tables.html").write_text(tables_page.html(ROOT / "results"), encoding="utf-8")


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", translate, priority=100)
    app.connect("build-finished", tables)
