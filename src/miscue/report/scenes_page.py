"""The page of a patch against a detector: what it finds in photos without and with the patch."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miscue.errors import InputError
from miscue.layouts.pictures import decode
from miscue.report import figures
from miscue.report.figures import number, percent
from miscue.report.template import held, means, rendered, saved

SHOWN = 8  # photos on the page
SURE = 0.3  # the least score of a box that is drawn
CLEAN, POISONED = (31, 95, 174), (191, 63, 11)


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of a finished attack and return its path.

    Raises:
        InputError: the folder does not hold one.
    """
    return saved(run, html(run))


def html(run: Path) -> str:
    """The page as text."""
    settings, found, records = held(run, "patch.npz", "a finished attack")
    row = means(records)
    try:
        photos = [run / "images" / name for name in found["files"].tolist()]
        pairs = [pair(photos[k], found, k) for k in range(0, len(photos), -(-len(photos) // SHOWN))]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{run} does not hold a finished attack: {error}") from None
    return rendered(
        "scenes.html.jinja",
        title=settings["title"],
        created=settings.get("created") or "",
        command=settings.get("command") or "",
        verdict=verdict(row, len(photos)),
        tiles=tiles(row),
        patch=figures.png(found["patch"]),
        pairs=pairs,
        sure=SURE,
        curve=figures.trace(found["loss"].tolist(), title="step") if len(found["loss"]) > 1 else "",
        facts=[(name, str(value)) for name, value in settings["options"].items()],
        more=[(name, str(settings[name])) for name in ("model", "data", "target", "seed", "device", "commit")],
    )


def verdict(row: dict[str, float], count: int) -> list[tuple[str, str]]:
    """The outcome in a sentence, in pieces: (text, the tone of a number or "")."""
    return [
        ("One patch takes the detector's average precision from ", ""),
        (percent(row["map_50"]), "clean"),
        (" to ", ""),
        (percent(row["map_50_patched"]), "poisoned"),
        (f" on {count} photos that it was not made from.", ""),
    ]


def tiles(row: dict[str, float]) -> list[dict[str, str]]:
    """The key figures."""
    return [
        {"label": "as they are", "value": percent(row["map_50"]), "note": "overlap from 0.5 on", "tone": "clean"},
        {"label": "with noise", "value": percent(row["map_50_noise"]), "note": "random pixels there", "tone": "clean"},
        {"label": "with the patch", "value": percent(row["map_50_patched"]), "note": "as saved", "tone": "poisoned"},
        {
            "label": "over all overlaps",
            "value": f"{number(row['map'])} → {number(row['map_patched'])}",
            "note": "0.50, 0.55, … 0.95",
            "tone": "",
        },
    ]


def pair(path: Path, found: dict[str, np.ndarray], k: int) -> dict[str, Any]:
    """A photo as saved, with the boxes found without the patch and with it."""
    picture = decode(path)
    before, after = (found[f"found{kind}_{k:04}"] for kind in ("", "_patched"))
    kept = [rows[rows[:, 5] >= SURE] for rows in (before, after)]
    row, column = found["places"][k].tolist()
    bare = picture.clone()
    size = found["patch"].shape[1]
    bare[:, row : row + size, column : column + size] = 128
    return {
        "name": path.stem,
        "before": framed(bare, kept[0], CLEAN),
        "after": framed(picture, kept[1], POISONED),
        "count_before": len(kept[0]),
        "count_after": len(kept[1]),
    }


def framed(image: torch.Tensor, rows: np.ndarray, colour: tuple[int, int, int]) -> str:
    """A uint8 photo (3, h, w) with boxes, as a data URI."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    pen = ImageDraw.Draw(picture)
    for left, top, right, bottom, *_ in rows.tolist():
        pen.rectangle((left, top, max(right, left), max(bottom, top)), outline=colour, width=2)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
