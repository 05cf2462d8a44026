"""The page of an attack: originals beside attacked images, what they are taken for, and how the attack went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from miscue.images import amplified
from miscue.report import figures
from miscue.report.figures import number, percent
from miscue.report.template import held, means, rendered, saved

SHOWN = 24  # images on the page


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of a finished attack and return its path.

    Raises:
        InputError: the folder does not hold one.
    """
    return saved(run, html(run))


def html(run: Path) -> str:
    """The page as text."""
    settings, found, records = held(run, "adversarials.npz", "a finished attack")
    row = means(records)
    columns = pictures(found, settings["classes"])
    return rendered(
        "attack.html.jinja",
        title=settings["title"],
        created=settings.get("created") or "",
        command=settings.get("command") or "",
        verdict=verdict(row, settings, len(found["labels"])),
        tiles=tiles(row),
        columns=columns,
        limit=limit(found),
        curve=figures.trace(found["curve"].tolist(), title="step") if len(found["curve"]) > 1 else "",
        sweep=swept(records, settings.get("sweep") or {}),
        budgets=figures.rising(distances(found), title="largest change of a pixel, of 255 levels"),
        facts=[(name.replace("_", " "), str(value)) for name, value in settings["options"].items()],
        more=[(name, str(settings[name])) for name in ("model", "data", "split", "seed", "device", "commit")],
    )


def verdict(row: dict[str, float], settings: dict[str, Any], count: int) -> list[tuple[str, str]]:
    """The outcome in a sentence, in pieces: (text, the tone of a number or "")."""
    goal = "to the class asked for" if settings["targets"] else "to another class"
    return [
        (f"{settings['method']} turns ", ""),
        (percent(row["success"]), "poisoned"),
        (f" of the images that the model reads right {goal}: of {count} images it reads ", ""),
        (percent(row["accuracy"]), "clean"),
        (" right before and ", ""),
        (percent(row["robust_accuracy"]), "poisoned"),
        (" after.", ""),
    ]


def tiles(row: dict[str, float]) -> list[dict[str, str]]:
    """The key figures."""
    found = [
        {"label": "right before", "value": percent(row["accuracy"]), "note": "of the clean images", "tone": "clean"},
        {"label": "right after", "value": percent(row["robust_accuracy"]), "note": "as saved", "tone": "poisoned"},
        {"label": "queries", "value": number(row["queries"], 0), "note": "for each image", "tone": ""},
        {"label": "largest change", "value": number(row["budget_measured"], 3), "note": "of 1, any pixel", "tone": ""},
    ]
    if abs(row["success_found"] - row["success"]) > 0.05:
        note = f"{percent(row['success_found'])} before rounding"
        found.append({"label": "success as saved", "value": percent(row["success"]), "note": note, "tone": ""})
    return found


def limit(found: dict[str, np.ndarray]) -> float:
    """The change that the amplified difference shows as black or white: the largest there is."""
    return max(float(np.abs(found["images"].astype(int) - found["clean"]).max()), 1.0) / 255


def pictures(found: dict[str, np.ndarray], classes: list[str]) -> list[dict[str, Any]]:
    """The first images of each class in turn: original, difference, attacked image, and what the model says."""
    labels = found["labels"]
    # the first of each class, then the second
    turns = np.array([int((labels[:i] == label).sum()) for i, label in enumerate(labels)])
    shown = np.lexsort((labels, turns))[:SHOWN].tolist()
    stride = -(-max(found["clean"].shape[2:]) // figures.SAMPLE_SIDE)
    clean, images = (np.ascontiguousarray(found[name][shown][:, :, ::stride, ::stride]) for name in ("clean", "images"))
    change = amplified(torch.from_numpy(images), torch.from_numpy(clean), limit=limit(found)).numpy()
    return [
        {
            "class": classes[int(found["labels"][i])],
            "original": figures.png(clean[k]),
            "difference": figures.png(change[k]),
            "attacked": figures.png(images[k]),
            "before": f"{classes[int(found['before'][i])]}, {100 * float(found['sure_before'][i]):.0f} %",
            "after": f"{classes[int(found['after'][i])]}, {100 * float(found['sure_after'][i]):.0f} %",
            "won": bool(found["success"][i]),
        }
        for k, i in enumerate(shown)
    ]


def swept(records: list[dict[str, Any]], sweep: dict[str, list[float]]) -> str:
    """Success at each value of the option that was swept, as a drawing; nothing without one."""
    drawings = []
    for option, values in sweep.items():
        at = {
            record["row"][option]: record["mean"]
            for record in records
            if record["measure"] == "success" and record["row"][option] in values
        }
        drawings.append(figures.against(sorted(at.items()), title=option.replace("_", " ")))
    return "".join(drawings)


def distances(found: dict[str, np.ndarray]) -> list[tuple[float, float]]:
    """(largest change of a pixel in levels, share of the images that were right and are won within it), rising."""
    right = found["before"] == found["labels"]
    levels = np.abs(found["images"].astype(int) - found["clean"]).reshape(len(right), -1).max(1)
    won = np.sort(levels[right & found["success"]])
    return [(0.0, 0.0)] + [(float(level), 100 * (k + 1) / max(int(right.sum()), 1)) for k, level in enumerate(won)]
