"""The page of a network's activations: quantiles by layer, and the images that drive a neuron too far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from miscue.measures.activations import QUANTILES
from miscue.measures.outside import SCALES
from miscue.report import drawings, figures, kinds
from miscue.report.figures import number
from miscue.report.template import held, rendered, saved


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` and return its path.

    Raises:
        InputError: the folder does not hold such a run.
    """
    return saved(run, html(run))


def html(run: Path) -> str:
    """The page as text."""
    settings, found, _ = held(run, "images.npz", "a look at activations", recorded=False)
    images = dict(zip(found["index"].tolist(), found["images"], strict=True))
    usual, looked = settings["layers"]["usual"], settings["layers"]["looked at"]
    return rendered(
        "activations.html.jinja",
        title=settings["title"],
        created=settings.get("created") or "",
        command=settings.get("command") or "",
        verdict=verdict(settings),
        tiles=tiles(usual, looked),
        layers=[bars(one, other) for one, other in zip(usual, looked, strict=True)],
        weights=[(name, number(norm, 2)) for name, norm in settings["weights"].items()],
        confidence=sure(settings["confidence"]),
        history=grown(settings["history"]),
        neurons=[pictured(neuron, images) for neuron in settings["neurons"]],
        facts=[("other", str(settings["other"]))],
        more=[(name, str(settings[name])) for name in ("model", "data", "split", "device", "commit")],
    )


def verdict(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """The outcome in a sentence, in pieces: (text, the tone of a number or "")."""
    loud = settings["neurons"][0]
    return [
        ("The loudest image drives channel ", ""),
        (f"{loud['channel']} of layer {loud['layer'] or '0'}", "poisoned"),
        (" to ", ""),
        (f"{loud['beyond']:.1f} times", "poisoned"),
        (" what it usually reaches.", ""),
    ]


def sure(confidence: dict[str, Any]) -> dict[str, Any]:
    """How sure the model is: in a sentence, as histograms, and by brightness."""
    measures = confidence["measures"]
    lines = []
    for name, key in (("usual", "confidence_inside"), ("looked at", "confidence_outside")):
        points = {1.0: [measures[key]]} | {scale: [measures[f"{key}, times {scale:g}"]] for scale in SCALES}
        lines.append(drawings.Line(name=name, points=points))
    return {
        "said": f"By its confidence alone an image of the usual kind is told from one looked at in "
        f"{number(measures['auc'])} % of the pairs; where 95 % of the usual pass, {number(measures['fpr_at_95'])} % of "
        f"the others do.",
        "key": kinds.legend(confidence["shares"]),
        "panels": [
            drawings.histograms(confidence["shares"], across="largest class probability, of 1", up="images, %"),
            drawings.lines(lines, across="brightness, times", up="mean confidence, %"),
        ],
    }


MARKS = {"largest": -1, **{f"{100 * quantile:g} %": k for k, quantile in enumerate(QUANTILES)}}


def grown(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Each layer's activations by epoch, and the norms of the weights; nothing where training was not watched."""
    panels = []
    for place, layer in enumerate(history[0]["layers"] if history else ()):
        drawn = []
        for name, mark in MARKS.items():
            sizes = {
                one["epoch"]: [*one["layers"][place]["quantiles"], one["layers"][place]["largest"]] for one in history
            }
            points = {float(epoch): [values[mark]] for epoch, values in sizes.items()}
            drawn.append(drawings.Line(name=name, points=points))
        title = f"layer {layer['name'] or '0'}"
        panels.append({"title": title, "drawing": drawings.lines(drawn, across="epoch", up="activation", between=None)})
    names = list(history[0]["weights"]) if history else []
    norms = [
        drawings.Line(name=name, points={float(one["epoch"]): [one["weights"][name]] for one in history})
        for name in names
    ]
    return {
        "key": kinds.legend(MARKS),
        "panels": panels,
        "names": kinds.legend(f"layer {name or '0'}" for name in names),
        "norms": drawings.lines(norms, across="epoch", up="norm of the weights", between=None) if norms else "",
    }


def tiles(usual: list[dict[str, Any]], looked: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The key figures."""
    most, other = (max(layer["largest"] for layer in some) for some in (usual, looked))
    return [
        {"label": "layers", "value": str(len(usual)), "note": "with activations", "tone": ""},
        {"label": "largest, usual", "value": number(most, 2), "note": "activation", "tone": "clean"},
        {"label": "largest, looked at", "value": number(other, 2), "note": "activation", "tone": "poisoned"},
    ]


def bars(usual: dict[str, Any], looked: dict[str, Any]) -> dict[str, Any]:
    """A layer's quantiles as shares of the larger maximum."""
    most = max(usual["largest"], looked["largest"], 1e-12)
    return {
        "name": f"layer {usual['name'] or '0'}",
        "rows": [
            {
                "tone": tone,
                "what": what,
                "marks": [100 * max(value, 0) / most for value in (*layer["quantiles"], layer["largest"])],
                "largest": number(layer["largest"], 2),
                "active": number(layer["active"]),
            }
            for tone, what, layer in (("clean", "usual", usual), ("poisoned", "looked at", looked))
        ],
    }


def pictured(neuron: dict[str, Any], images: dict[int, np.ndarray]) -> dict[str, Any]:
    """A neuron with the images that drive it."""
    stride = -(-max(next(iter(images.values())).shape[1:]) // figures.SAMPLE_SIDE)
    return {
        "name": f"layer {neuron['layer'] or '0'}, channel {neuron['channel']}",
        "images": [
            {"picture": figures.png(np.ascontiguousarray(images[i][:, ::stride, ::stride])), "value": f"{value:.1f} ×"}
            for i, value in zip(neuron["images"], neuron["values"], strict=True)
        ],
    }
