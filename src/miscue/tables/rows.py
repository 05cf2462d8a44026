"""What a row of a table is, and the workshop where its cells share what is costly: crafted poison, trained networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miscue.files import locked

SCALES = ("smoke", "laptop", "paper")
Measures = dict[str, float]
Drawn = dict[str, Any]
"""Measures, and beside them what figures are drawn from: lists, and dicts of lists, of numbers and words."""


@dataclass(frozen=True)
class Workshop:
    """A folder in which each thing is made once, by whichever process comes first."""

    folder: Path

    def made(self, kind: str, settings: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a thing of such settings (plain data), made by `make` if nobody has.

        `make` may find what a killed one left there, and go on from it.
        """
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
        place = self.folder / kind / hashlib.sha256(text.encode()).hexdigest()[:16]
        with locked(place.with_suffix(".lock")):
            done = place / "made.json"
            if not done.exists():
                place.mkdir(parents=True, exist_ok=True)
                make(place)
                done.write_text(text + "\n", encoding="utf-8")
        return place


Measure = Callable[[dict[str, Any], int, Workshop], Mapping[str, Any]]
"""(the row's settings, seed, workshop) -> Measures or Drawn: a function of a module, as it may run in another process.

A float is a measure, and is summed up over the seeds. Anything else stays in the cell, for the page to draw from.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    settings: what it is of, plain data. measure: how a cell of it is measured. published: measure -> the seed's figure.
    seeds: how many networks, or draws, it takes. note: what to know when comparing with them, or of a row without any.
    """

    settings: dict[str, Any]
    measure: Measure
    published: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 5
    note: str = ""
