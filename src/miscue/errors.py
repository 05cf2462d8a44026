"""The one exception for bad input, the look-up that offers the near names, and numbers that are out of range."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
MOST = 40  # names that a message lists


class InputError(ValueError):
    """What was asked for or handed over cannot be used. The message is one line and names the culprit."""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry `name` of `table`, or an InputError that lists the near names (or all of them)."""
    try:
        return table[name]
    except KeyError:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
        names = [name for name in table if name]
        known = ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {known}"
        raise InputError(f"unknown {kind} {name!r}; {hint}") from None


def positive(**numbers: float) -> None:
    """Raise an InputError that names the first of the numbers that is not above 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise InputError(f"{name} must be positive, got {value:g}")


def not_negative(**numbers: float) -> None:
    """Raise an InputError that names the first of the numbers that is below 0."""
    for name, value in numbers.items():
        if not value >= 0:
            raise InputError(f"{name} must not be negative, got {value:g}")


def share_of_one(**numbers: float) -> None:
    """Raise an InputError that names the first of the numbers that does not lie in (0, 1]."""
    for name, value in numbers.items():
        if not 0 < value <= 1:
            raise InputError(f"{name} must lie in (0, 1], got {value:g}")
