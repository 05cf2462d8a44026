"""The page of an explanation: each image under its map, with a colour bar, and how good the maps are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from miscue.report import figures
from miscue.report.figures import number, percent
from miscue.report.template import held, means, rendered, saved

SHOWN = 24  # images on the page
SIDE = 224  # larger images are shown reduced, by taking every k-th pixel
STRENGTH = 0.65  # of the colours over the image, where the map is largest

RISING = (
    (0.0, (20, 22, 50)),
    (0.35, (112, 36, 110)),
    (0.65, (221, 81, 58)),
    (0.85, (250, 164, 52)),
    (1.0, (252, 244, 164)),
)
SIGNED = ((0.0, (33, 92, 168)), (0.5, (246, 246, 244)), (1.0, (190, 62, 20)))
Scale = tuple[tuple[float, tuple[int, int, int]], ...]


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of an explanation and return its path.

    Raises:
        InputError: the folder does not hold one.
    """
    return saved(run, html(run))


def html(run: Path) -> str:
    """The page as text."""
    settings, found, records = held(run, "maps.npz", "an explanation")
    row = means(records)
    signed = bool((found["maps"] < 0).any())
    return rendered(
        "explain.html.jinja",
        title=settings["title"],
        created=settings.get("created") or "",
        command=settings.get("command") or "",
        verdict=verdict(row, settings, len(found["labels"])),
        tiles=tiles(row),
        columns=columns(found, settings["classes"], signed=signed),
        bar=bar(signed=signed),
        signed=signed,
        facts=[(name.replace("_", " "), str(value)) for name, value in settings["options"].items()],
        more=[
            (name, str(settings[name]))
            for name in ("model", "data", "split", "of", "box", "masks", "seed", "device", "commit")
            if settings.get(name) is not None
        ],
    )


def verdict(row: dict[str, float], settings: dict[str, Any], count: int) -> list[tuple[str, str]]:
    """The outcome in a sentence, in pieces: (text, the tone of a number or "")."""
    if "inside" in row:
        return [
            (percent(row["inside"]), "clean"),
            (" of where the model looks lies on the object, which covers ", ""),
            (percent(row["inside_by_chance"]), ""),
            (f" of the pixels, over {count} images.", ""),
        ]
    better = row["deletion_random"] - row["deletion"]
    return [
        (f"Deleting what {settings['method']} points at lowers the class's probability by ", ""),
        (number(better), "clean"),
        (f" points more than deleting random pixels does, over {count} images.", ""),
    ]


def tiles(row: dict[str, float]) -> list[dict[str, str]]:
    """The key figures."""
    found = [
        {
            "label": "deletion",
            "value": percent(row["deletion"]),
            "note": "probability left, small is good",
            "tone": "clean",
        },
        {"label": "of random maps", "value": percent(row["deletion_random"]), "note": "deletion", "tone": ""},
        {
            "label": "insertion",
            "value": percent(row["insertion"]),
            "note": "probability won, large is good",
            "tone": "clean",
        },
        {"label": "of random maps", "value": percent(row["insertion_random"]), "note": "insertion", "tone": ""},
    ]
    if "inside" in row:
        note = f"of the maps' mass, {percent(row['inside_by_chance'])} by chance"
        found.append({"label": "on the object", "value": percent(row["inside"]), "note": note, "tone": "clean"})
    return found


def coloured(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Colours (..., 3) of values in [0, 1]."""
    places = [place for place, _ in scale]
    return np.stack([np.interp(values, places, [colour[k] for _, colour in scale]) for k in range(3)], axis=-1)


def heat(one: np.ndarray, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """(values in [0, 1] for the colours, how strongly they cover) of a map (h, w)."""
    most = max(float(np.abs(one).max()), 1e-12)
    share = one / most
    return ((share + 1) / 2 if signed else share), np.abs(share)


def overlay(image: np.ndarray, one: np.ndarray, *, signed: bool) -> str:
    """A uint8 image (c, h, w) in grey under its map (h, w), as a data URI."""
    values, cover = heat(one, signed=signed)
    ground = np.broadcast_to(image.mean(0)[..., None], (*image.shape[1:], 3))  # grey, so that colour is the map's
    mix = (STRENGTH * cover)[..., None]
    over = (1 - mix) * ground + mix * coloured(values, SIGNED if signed else RISING)
    return figures.png(over.round().astype(np.uint8).transpose(2, 0, 1))


def columns(found: dict[str, np.ndarray], classes: list[str], *, signed: bool) -> list[dict[str, Any]]:
    """The first images of each class in turn: original, overlay, and what the model says."""
    labels = found["labels"]
    turns = np.array([int((labels[:i] == label).sum()) for i, label in enumerate(labels)])
    stride = -(-max(found["images"].shape[2:]) // SIDE)
    made = []
    for i in np.lexsort((labels, turns))[:SHOWN].tolist():
        image = np.ascontiguousarray(found["images"][i][:, ::stride, ::stride])
        made.append(
            {
                "class": classes[int(labels[i])],
                "original": figures.png(image),
                "overlay": overlay(image, found["maps"][i][::stride, ::stride], signed=signed),
                "named": f"{classes[int(found['named'][i])]}, {100 * float(found['sure'][i]):.0f} %",
                "right": bool(found["named"][i] == labels[i]),
            }
        )
    return made


def bar(*, signed: bool) -> str:
    """The colour bar as a picture."""
    values = np.linspace(0, 1, 200)
    colours = coloured(values, SIGNED if signed else RISING)
    return figures.png(np.broadcast_to(colours[None], (12, 200, 3)).round().astype(np.uint8).transpose(2, 0, 1))
