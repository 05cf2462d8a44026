"""The one exception for bad input, and the look-up that offers the near names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """What was asked for or handed over cannot be used. The message is one line and names the culprit."""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry `name` of `table`, or an InputError that lists the near names (or all of them)."""
    try:
        return table[name]
    except KeyError:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(filter(None, table))}"
        raise InputError(f"unknown {kind} {name!r}; {hint}") from None
