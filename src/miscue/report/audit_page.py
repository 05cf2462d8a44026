"""The page of an audit: each sign beside what clean sets show, the pixels that give classes away, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from miscue.detectors.poison_probe import USUAL, beyond
from miscue.report import explain_page, figures
from miscue.report.figures import number, percent
from miscue.report.template import held, means, rendered, saved

CLASSES = 60  # at most so many are shown
SAID = {
    "marks": ("marks", "of a class's images have the same lone pixel", "a pixel gives a class away"),
    "simple": (
        "simple",
        "of what a network reads, a linear classifier does",
        "a linear classifier reads nearly as much",
    ),
    "fall": ("fall", "points, by a change that leaves what is shown", "what is read does not outlast a small change"),
    "gap": ("gap", "points, on trusted images", "trusted images are read far worse"),
}
"""The name of a sign on the page, what its number is of, and what it says where it is beyond the usual."""


POINTS = ("fall", "gap")  # signs that are differences of accuracies


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of an audit and return its path.

    Raises:
        InputError: the folder does not hold one.
    """
    return saved(run, html(run))


def html(run: Path) -> str:
    """The page as text."""
    settings, found, records = held(run, "audit.npz", "an audit")
    row = means(records)
    signs = {name: row[name] for name in USUAL if name in row}
    after = {name.removeprefix("after "): value for name, value in row.items() if name.startswith("after ")}
    return rendered(
        "audit.html.jinja",
        title=settings["title"],
        created=settings.get("created") or "",
        command=settings.get("command") or "",
        verdict=verdict(signs),
        tiles=[tile(name, value) for name, value in signs.items()],
        advice=advice(signs, after, settings["data"]),
        read=[
            ("held out, of the set itself", row["held_out"], ""),
            *((f"the same after {name}", value, "poisoned" if row["held_out"] - value > USUAL["fall"] else "")
              for name, value in after.items()),
            *([("trusted", row["trusted"], "poisoned" if "gap" in beyond(signs) else "")] if "trusted" in row else []),
            ("held out, by a linear classifier", row["linear"], "poisoned" if "simple" in beyond(signs) else ""),
        ],
        bar=explain_page.bar(signed=False),
        columns=columns(found, settings["classes"]),
        facts=[("images", str(settings["images"])), ("seed", str(settings["seed"]))],
        more=[(name, str(settings[name])) for name in ("data", "trusted", "device", "commit")],
    )  # fmt: skip


def verdict(signs: dict[str, float]) -> list[tuple[str, str]]:
    """The outcome in a sentence, in pieces: (text, the tone of a number or "")."""
    loud = beyond(signs)
    if not loud:
        if "simple" not in signs:
            return [("No pixel", "clean"), (" gives a class away; of the other signs nothing can be said.", "")]
        return [("None", "clean"), (f" of {len(signs)} signs of poison is beyond what clean sets show.", "")]
    what = ", ".join(SAID[name][2] for name in loud)
    return [
        (f"{len(loud)} of {len(signs)}", "poisoned"),
        (f" signs {'is' if len(loud) == 1 else 'are'} beyond what clean sets show: {what}.", ""),
    ]


def tile(name: str, value: float) -> dict[str, str]:
    """A sign as a key figure."""
    label, of, _ = SAID[name]
    return {
        "label": label,
        "value": number(value) if name in POINTS else percent(value),
        "note": f"{of}; clean sets: up to {USUAL[name]:g}",
        "tone": "poisoned" if value > USUAL[name] else "clean",
    }


def advice(signs: dict[str, float], after: dict[str, float], data: str) -> list[str]:
    """What to do about it, in sentences."""
    loud, told = beyond(signs), []
    if "marks" in loud:
        told.append(f"A pixel gives a class away: miscue harden pixel-outliers {data} OUT takes such pixels out.")
    if "fall" in loud:
        most = min(after, key=lambda name: after[name])
        cleaner = f": miscue harden {most} {data} OUT, then audit OUT again" if most != "blur" else ""
        told.append(f"What the network reads does not outlast {most}; it may be cured by it{cleaner}.")
    if "gap" in loud:
        told.append("Trusted images are read far worse than the set's own: do not train on it as it is.")
    if loud == ["simple"]:
        told.append(
            "A linear classifier does as well as a network: a simple set or a poisoned one, trusted images tell."
        )
    if "simple" not in signs:
        told.append(
            "The network reads held-out images no better than guessing does: it says nothing of poison. Give more "
            "images, or others: some sets are too hard for it."
        )
    elif "gap" not in signs:
        told.append("No image was trusted, so that nothing is proved: give some clean ones with --trusted.")
    return told


def largest(values: np.ndarray, stride: int) -> np.ndarray:
    """The largest of (h, w) in each square of `stride` by `stride`."""
    for axis in (0, 1):
        values = np.maximum.reduceat(values, np.arange(0, values.shape[axis], stride), axis=axis)
    return values


def columns(found: dict[str, np.ndarray], classes: list[str]) -> list[dict[str, Any]]:
    """The classes, that of the loudest pixel first: where it is, images, and how often pixels stand alone."""
    marks, labels = found["marks"], found["labels"]
    most = marks.reshape(len(classes), -1).max(1)
    stride = -(-max(found["images"].shape[2:]) // figures.SAMPLE_SIDE)
    made = []
    for label in np.argsort(-most, kind="stable")[:CLASSES].tolist():
        place = np.unravel_index(int(marks[label].argmax()), marks[label].shape)
        top, left = (int(at) % stride for at in place)  # so that this pixel is one of those shown
        own = [np.ascontiguousarray(one[:, top::stride, left::stride]) for one in found["images"][labels == label]]
        if not own:
            continue
        loudest = np.maximum(largest(marks[label][top:, left:], stride), 0)
        made.append(
            {
                "class": classes[label],
                "share": percent(100 * max(0.0, float(most[label]))),
                "place": f"row {place[0]}, column {place[1]}",
                "tone": "poisoned" if 100 * most[label] > USUAL["marks"] else "",
                "images": [figures.png(image) for image in own],
                "overlay": explain_page.overlay(own[0], loudest, signed=False),
            }
        )
    return made
