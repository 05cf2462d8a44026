"""Label maps eta: the rule by which an attacker wants clean images of class y to be read as class eta(y)."""

from __future__ import annotations

import re

from miscue.errors import InputError


def label_map(rule: str, classes: int) -> tuple[int, ...]:
    """Read a rule: "y+1" (a shift, modulo the classes) or one target per class, "1,2,0".

    Returns:
        eta as a tuple: entry y is the class that images of class y are to be read as.

    Raises:
        InputError: the rule is not a function from the labels to the labels.
    """
    text = rule.replace(" ", "")
    if shift := re.fullmatch(r"y([+-]\d+)", text):
        return checked_map(tuple((y + int(shift[1])) % classes for y in range(classes)), classes)
    if not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        raise InputError(f"label map {rule!r} is neither a shift such as y+1 nor a list such as 1,2,0")
    return checked_map(tuple(map(int, text.split(","))), classes)


def checked_map(targets: tuple[int, ...], classes: int) -> tuple[int, ...]:
    """`targets` itself, or an InputError where it is no function from {0..classes-1} to itself or changes no class."""
    if isinstance(targets, str):
        raise InputError(f"a label map is a tuple of classes; label_map({targets!r}, {classes}) makes one of a rule")
    if len(targets) != classes:
        raise InputError(f"a label map needs one target for each of the {classes} classes, got {len(targets)}")
    outside = [t for t in targets if not 0 <= t < classes]
    if outside:
        raise InputError(f"label map target {outside[0]} is outside 0..{classes - 1}")
    if tuple(targets) == tuple(range(classes)):
        raise InputError(f"the label map leaves each of the {classes} classes as it is")
    return targets
