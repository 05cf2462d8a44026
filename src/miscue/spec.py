"""One cell of a table as plain data. Its hash names its record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is measured, at which scale, under which seed.

    table: its name. row: the settings, plain data. scale: "smoke", "laptop" or "paper".
    """

    table: str
    row: dict[str, Any]
    scale: str
    seed: int

    @property
    def name(self) -> str:
        """The same for the same settings, whatever their order."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]
