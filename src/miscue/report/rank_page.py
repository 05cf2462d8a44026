"""The page of a ranking: the hardest and the easiest images of each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from miscue.report import figures
from miscue.report.figures import number, percent
from miscue.report.template import held, means, rendered, saved

EACH = 5  # images at each end of a class
CLASSES = 60  # at most so many are shown


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of a ranking and return its path.

    Raises:
        InputError: the folder does not hold one.
    """
    return saved(run, html(run))


def html(run: Path) -> str:
    """The page as text."""
    settings, found, records = held(run, "ranking.npz", "a ranking")
    row = means(records)
    return rendered(
        "rank.html.jinja",
        title=settings["title"],
        created=settings.get("created") or "",
        command=settings.get("command") or "",
        verdict=verdict(row, found, settings),
        tiles=tiles(row, found),
        rows=rows(found, settings["classes"]),
        by=settings["by"],
        facts=[("by", settings["by"])],
        more=[(name, str(settings[name])) for name in ("model", "data", "split", "device", "commit")],
    )


def verdict(row: dict[str, float], found: dict[str, np.ndarray], settings: dict[str, Any]) -> list[tuple[str, str]]:
    """The outcome in a sentence, in pieces: (text, the tone of a number or "")."""
    hardest = found["order"][: max(1, len(found["order"]) // 20)]
    wrong = 100 * float((found["named"][hardest] != found["labels"][hardest]).mean())
    return [
        ("Of the hardest twentieth of the images the model gets ", ""),
        (percent(wrong), "poisoned"),
        (" wrong, of all of them ", ""),
        (percent(100 - row["accuracy"]), "clean"),
        (".", ""),
    ]


def tiles(row: dict[str, float], found: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """The key figures."""
    made = [
        {"label": "accuracy", "value": percent(row["accuracy"]), "note": "of the images ranked", "tone": "clean"},
        {"label": "median", "value": number(float(np.median(found["values"])), 2), "note": "small is hard", "tone": ""},
    ]
    if "auroc_of_errors" in row:
        note = "errors found without labels, AUROC"
        made.append({"label": "tells errors", "value": percent(row["auroc_of_errors"]), "note": note, "tone": "clean"})
    return made


def rows(found: dict[str, np.ndarray], classes: list[str]) -> list[dict[str, Any]]:
    """For each class its hardest and its easiest images."""
    stride = -(-max(found["images"].shape[2:]) // figures.SAMPLE_SIDE)

    def shown(index: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "picture": figures.png(np.ascontiguousarray(found["images"][i][:, ::stride, ::stride])),
                "named": classes[int(found["named"][i])],
                "right": bool(found["named"][i] == found["labels"][i]),
                "value": number(float(found["values"][i]), 2),
            }
            for i in index.tolist()
        ]

    made = []
    for label, name in enumerate(classes[:CLASSES]):
        own = found["order"][found["labels"][found["order"]] == label]
        if len(own):
            ends = min(EACH, (len(own) + 1) // 2)
            made.append({"class": name, "hard": shown(own[:ends]), "easy": shown(own[::-1][:ends])})
    return made
