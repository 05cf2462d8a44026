"""The page of a search for stickers: the loudest alarms, where the sticker is, and the class behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from miscue.report import explain_page, figures
from miscue.report.figures import number, percent
from miscue.report.template import held, rendered, saved

SHOWN = 24  # images on the page


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of a search and return its path.

    Raises:
        InputError: the folder does not hold one.
    """
    return saved(run, html(run))


def html(run: Path) -> str:
    """The page as text."""
    settings, found, _ = held(run, "detections.npz", "a search for stickers", recorded=False)
    alarms, count = int(found["alarm"].sum()), len(found["alarm"])
    return rendered(
        "detect.html.jinja",
        title=settings["title"],
        created=settings.get("created") or "",
        command=settings.get("command") or "",
        verdict=[
            ("Of ", ""),
            (str(count), "clean"),
            (" images ", ""),
            (str(alarms), "poisoned"),
            (" surprise more when part of them is covered than clean images do.", ""),
        ],
        tiles=[
            {"label": "alarms", "value": percent(100 * alarms / count), "note": "of the images", "tone": "poisoned"},
            {
                "label": "expected",
                "value": percent(100 * float(settings["options"]["calibrated for"])),
                "note": "if all were clean",
                "tone": "clean",
            },
            {
                "label": "threshold",
                "value": number(settings["options"]["threshold"], 3),
                "note": "of the score",
                "tone": "",
            },
        ],
        columns=columns(found, settings["names"], settings["classes"]),
        bar=explain_page.bar(signed=False),
        skipped=settings["skipped"],
        facts=[(name, str(value)) for name, value in settings["options"].items()],
        more=[(name, str(settings[name])) for name in ("model", "detector", "images", "device", "commit")],
    )


def columns(found: dict[str, np.ndarray], names: list[str], classes: list[str]) -> list[dict[str, Any]]:
    """The images of the largest scores: original, overlay, and what is made of them."""
    stride = -(-max(found["images"].shape[2:]) // explain_page.SIDE)
    made = []
    for i in np.argsort(-found["score"], kind="stable")[:SHOWN].tolist():
        image = np.ascontiguousarray(found["images"][i][:, ::stride, ::stride])
        falls = np.maximum(found["maps"][i][::stride, ::stride], 0)
        made.append(
            {
                "name": names[i],
                "original": figures.png(image),
                "overlay": explain_page.overlay(image, falls, signed=False),
                "named": f"{classes[int(found['named'][i])]}, {100 * float(found['confidence'][i]):.0f} %",
                "recovered": classes[int(found["recovered"][i])],
                "alarm": bool(found["alarm"][i]),
                "score": number(float(found["score"][i]), 2),
            }
        )
    return made
