"""The kinds of figures that tables have: what is drawn of their rows' cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miscue.report import figures
from miscue.report.drawings import Line, dots, histograms, lines, scatter, style
from miscue.report.explain_page import SIGNED, coloured, overlay
from miscue.report.figures import number
from miscue.tables import Figure


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A row as its figures see it.

    settings: flat, those of its options beside the others. records: measure -> its record. cells: in the order of their
    seeds, lines of cells.jsonl.
    """

    settings: dict[str, Any]
    records: dict[str, dict[str, Any]]
    cells: list[dict[str, Any]]

    def published(self, measure: str) -> float | None:
        """The figure to compare with."""
        return self.records[measure]["published"] if measure in self.records else None

    def values(self, name: str) -> list[Any]:
        """A measure, or what a figure is drawn from, of each cell that has it; else the mean that is recorded."""
        every = [cell["measures"] | cell.get("figures", {}) for cell in self.cells]
        found = [one[name] for one in every if name in one]
        return found or [self.records[name]["mean"]] if name in self.records else found


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A drawing with its title, or pictures: {"name", "images": [{"src", "what"}]}; tone: "clean" or "poisoned".

    key: a legend of its own.
    """

    title: str
    drawing: str = ""
    pictures: list[dict[str, Any]] = field(default_factory=list)
    tone: str = ""
    key: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A figure's panels, its legend (class, form of the mark, words), and a small table: a head and rows of cells."""

    panels: list[Panel] = field(default_factory=list)
    key: list[tuple[str, str, str]] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def gathered(records: Iterable[dict[str, Any]], cells: Iterable[dict[str, Any]]) -> dict[str, list[Shown]]:
    """Table -> its rows in the order of the records, each with the cells of its scale."""
    found: dict[tuple[str, str, str], Shown] = {}
    for record in records:
        row = record["row"]
        settings = {**row, **(row.get("options") or {})}
        settings.pop("options", None)
        own = (record["table"], json.dumps(row, sort_keys=True), record["scale"])
        found.setdefault(own, Shown(settings=settings, records={}, cells=[])).records[record["measure"]] = record
    for cell in cells:
        spec = cell["spec"]
        own = (spec["table"], json.dumps(spec["row"], sort_keys=True), spec["scale"])
        if own in found and "measures" in cell:
            found[own].cells.append(cell)
    tables: dict[str, list[Shown]] = {}
    for (table, _, _), shown in found.items():
        shown.cells.sort(key=lambda cell: cell["spec"]["seed"])
        tables.setdefault(table, []).append(shown)
    return tables


def word(figure: Figure, setting: str, value: Any) -> str:
    """What a setting's value is called; "" for nothing to say."""
    if value is None:
        return figure.words.get(setting, "")
    if isinstance(value, bool):
        return setting if value else ""
    if str(value) in figure.words:
        return figure.words[str(value)]
    return value if isinstance(value, str) else f"{setting} {value:g}"


def named(figure: Figure, row: Shown, settings: Sequence[str]) -> str:
    """What is said of a row by some of its settings."""
    return ", ".join(filter(None, (word(figure, setting, row.settings.get(setting)) for setting in settings)))


def grouped(figure: Figure, rows: Sequence[Shown], settings: Sequence[str]) -> dict[str, list[Shown]]:
    """The rows by what these settings say."""
    groups: dict[str, list[Shown]] = {}
    for row in rows:
        groups.setdefault(named(figure, row, settings), []).append(row)
    return groups


def legend(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """A line in its style for each name."""
    return [(style(k), "line", name) for k, name in enumerate(names)]


def plain(measure: str) -> str:
    """A measure as an axis' title."""
    return f"{measure.replace('_', ' ')}, %"


def curves(figure: Figure, rows: Sequence[Shown]) -> Made:
    """Training and test accuracy after each epoch, clean beside poisoned."""
    panels = []
    for name, some in grouped(figure, rows, figure.panels).items():
        runs = [curve for row in some for curve in row.values(figure.value) if len(curve) > 1]
        tone = "poisoned" if some[0].settings.get("poison") else "clean"
        if drawing := figures.curves(runs, tone=tone):
            panels.append(Panel(title=name, drawing=drawing, tone=tone))
    return Made(panels=panels, key=[("", "line train", "images trained on"), ("", "line test", "clean test images")])


def learning(figure: Figure, rows: Sequence[Shown]) -> Made:
    """Test accuracy after each epoch, a line for each kind of row."""
    every = list(grouped(figure, rows, figure.apart))
    panels = []
    for title, some in grouped(figure, rows, figure.panels).items():
        found = {name: points(of) for name, of in grouped(figure, some, figure.apart).items()}
        if any(found.values()):
            drawn = [Line(name=name, points=found.get(name, {})) for name in every]
            panels.append(Panel(title=title, drawing=lines(drawn, across="epoch", up=plain("test_accuracy"))))
    return Made(panels=panels, key=legend(every))


def points(rows: Sequence[Shown]) -> dict[float, list[float]]:
    """Epoch -> test accuracies of the seeds, of curves that have several epochs."""
    found: dict[float, list[float]] = {}
    for row in rows:
        for curve in row.values("curve"):
            for step in curve if len(curve) > 1 else ():
                found.setdefault(float(step["epoch"]), []).append(step["test_accuracy"])
    return found


def swept(figure: Figure, rows: Sequence[Shown]) -> Made:
    """A measure over a setting, the published figure beside it."""
    rows = [row for row in rows if row.settings.get(figure.over) is not None and row.values(figure.value)]
    every = list(grouped(figure, rows, figure.apart))
    panels = []
    for title, some in grouped(figure, rows, figure.panels).items():
        drawn = []
        for name in every:
            of = grouped(figure, some, figure.apart).get(name, [])
            known = {row.settings[figure.over]: row.published(figure.value) for row in of}
            drawn.append(
                Line(
                    name=name,
                    points={row.settings[figure.over]: row.values(figure.value) for row in of},
                    published={x: value for x, value in known.items() if value is not None},
                )
            )
        panels.append(Panel(title=title, drawing=lines(drawn, across=figure.across, up=plain(figure.value))))
    return Made(panels=panels, key=legend(every) if len(every) > 1 else [])


def compared(figure: Figure, rows: Sequence[Shown]) -> Made:
    """A measure of several kinds of rows on one scale."""
    panels = []
    for title, some in grouped(figure, rows, figure.panels).items():
        kinds = grouped(figure, some, figure.apart)
        seen = {name: [value for row in of for value in row.values(figure.value)] for name, of in kinds.items()}
        seen = {name: values for name, values in seen.items() if values}
        known = {name: of[0].published(figure.value) for name, of in kinds.items()}
        if seen:
            rings = {name: value for name, value in known.items() if value is not None}
            panels.append(Panel(title=title, drawing=dots(seen, across=plain(figure.value), known=rings)))
    return Made(panels=panels)


def confusion(figure: Figure, rows: Sequence[Shown]) -> Made:
    """What is taken for what, summed over the seeds."""
    panels = []
    for row in rows:
        if found := row.values(figure.value):
            tone = "poisoned" if row.settings.get("poison") else "clean"
            counts = np.sum([one["counts"] for one in found], axis=0)
            drawing = figures.confusion(counts, found[0]["classes"], tone=tone, targets=found[0]["targets"])
            panels.append(Panel(title=named(figure, row, figure.panels), drawing=drawing, tone=tone))
    return Made(panels=panels)


def transfer(figure: Figure, rows: Sequence[Shown]) -> Made:
    """Each victim's accuracy after clean and after poisoned training data, on one scale."""
    panels = []
    for title, some in grouped(figure, rows, figure.panels).items():
        victims: dict[str, dict[str, Any]] = {}
        for row in some:
            own = row.settings["victim"]
            one = victims.setdefault(own, {"name": own, "clean": [], "poisoned": [], "published": {}})
            condition = "poisoned" if row.settings.get("poison") else "clean"
            one[condition] = row.values(figure.value)
            if (known := row.published(figure.value)) is not None:
                one["published"][condition] = known
        seen = [one for one in victims.values() if one["clean"] or one["poisoned"]]
        if seen:
            classes = max((len(found["classes"]) for row in some for found in row.values("confusion")), default=10)
            panels.append(Panel(title=title, drawing=figures.overview(seen, chance=100 / classes)))
    return Made(panels=panels, key=[("clean", "dot", "clean images"), ("poisoned", "dot", "poisoned images")])


def scattered(figure: Figure, rows: Sequence[Shown]) -> Made:
    """Deep features of the first seed in the plane of each row's own network."""
    panels = []
    for row in rows:
        for sets in row.values(figure.value)[:1]:
            seen = np.concatenate([np.asarray(some) for some in sets.values()])
            (left, low, _), (right, high, _) = seen.min(0).tolist(), seen.max(0).tolist()
            for name, some in sets.items():
                title = f"{named(figure, row, figure.panels)}: {name}"
                drawing = scatter(
                    some,
                    across=(left, right),
                    up=(low, high),
                    axes=("first component", "second component"),
                    label=f"{title}: {len(some)} points of {len({int(point[2]) for point in some})} classes",
                )
                panels.append(Panel(title=title, drawing=drawing))
    return Made(panels=panels)


def samples(figure: Figure, rows: Sequence[Shown]) -> Made:
    """Images before and after a poison, and what it adds, amplified."""
    panels = []
    for row in rows:
        for found in row.values(figure.value)[:1]:
            pictures = [
                {
                    "name": one["name"],
                    "images": [
                        {"src": f"data:image/png;base64,{one[what]}", "what": what}
                        for what in ("original", "noise", "poisoned")
                        if what in one
                    ],
                }
                for one in found
            ]
            panels.append(Panel(title=named(figure, row, figure.panels), pictures=pictures))
    return Made(panels=panels)


def weights(figure: Figure, rows: Sequence[Shown]) -> Made:
    """A picture for each class of a linear classifier."""
    panels = []
    for row in rows:
        for found in row.values(figure.value)[:1]:
            images = [
                figures.png(
                    coloured((np.asarray(one) / 99 + 1) / 2, SIGNED).round().astype(np.uint8).transpose(2, 0, 1)
                )
                for one in found["pictures"]
            ]
            pictures = [
                {"name": name, "images": [{"src": image, "what": ""}]}
                for name, image in zip(found["classes"], images, strict=True)
            ]
            tone = "poisoned" if row.settings.get("poison") else "clean"
            panels.append(Panel(title=named(figure, row, figure.panels), pictures=pictures, tone=tone))
    return Made(panels=panels, key=[("against", "patch", "against the class"), ("for", "patch", "for it")])


def maps(figure: Figure, rows: Sequence[Shown]) -> Made:
    """Images under their maps, of the first seed that has some."""
    panels = []
    for row in rows:
        for found in [some for some in row.values(figure.value) if some][:1]:
            pictures = []
            for one in found:
                image = np.asarray(one["image"], dtype=np.uint8)
                images = [{"src": figures.png(image), "what": ""}]
                for name, values in one["maps"].items():
                    shades = np.asarray(values, dtype=float)
                    images.append({"src": overlay(image, shades, signed=bool((shades < 0).any())), "what": name})
                pictures.append({"name": one["name"], "images": images})
            panels.append(Panel(title=named(figure, row, figure.panels), pictures=pictures))
    return Made(panels=panels)


def rates(figure: Figure, rows: Sequence[Shown]) -> Made:
    """ROC curves, a line for each score."""
    panels: list[Panel] = []
    names: dict[str, None] = {}
    for row in rows:
        found = row.values(figure.value)
        if found:
            names = dict.fromkeys([*names, *found[0]])
            drawn = [
                Line(name=name, points={float(k): [one[name][k] for one in found] for k in range(len(found[0][name]))})
                for name in found[0]
            ]
            drawing = lines(drawn, across="false positives, %", up="true positives, %", diagonal=True)
            panels.append(Panel(title=named(figure, row, figure.panels), drawing=drawing))
    return Made(panels=panels, key=legend(names))


def kept(figure: Figure, rows: Sequence[Shown]) -> Made:
    """What is left of each attack, a drawing for each distortion."""
    every = list(grouped(figure, rows, figure.apart))
    seen: dict[str, dict[str, dict[float, list[float]]]] = {}
    for row in rows:
        for found in row.values(figure.value):
            for kind, curve in found.items():
                for strength, share in curve:
                    line = seen.setdefault(kind, {}).setdefault(named(figure, row, figure.apart), {})
                    line.setdefault(strength, []).append(share)
    panels = [
        Panel(
            title=kind,
            drawing=lines(
                [Line(name=name, points=found.get(name, {})) for name in every], across=figure.across, up="kept, %"
            ),
        )
        for kind, found in seen.items()
    ]
    return Made(panels=panels, key=legend(every))


def confidences(figure: Figure, rows: Sequence[Shown]) -> Made:
    """How sure a network is of images of its classes and of others."""
    panels, names = [], []
    for row in rows:
        if found := row.values(figure.value):
            names = list(found[0])
            shares = {name: np.mean([one[name] for one in found], axis=0).tolist() for name in names}
            drawing = histograms(shares, across="largest class probability, of 1", up="images, %")
            panels.append(Panel(title=named(figure, row, figure.panels), drawing=drawing))
    return Made(panels=panels, key=legend(f"images {name}" for name in names))


def history(figure: Figure, rows: Sequence[Shown]) -> Made:
    """A drawing for each layer, and one of the weights."""
    panels, names = [], []
    for row in rows:
        found = row.values(figure.value)
        if not found:
            continue
        first = found[0]
        names = list(first["sizes"])
        for place, layer in enumerate(first["layers"]):
            drawn = [
                Line(name=name, points=by_epoch([one["sizes"][name][place] for one in found], mark))
                for mark in (-1, -2)  # the largest, and the last quantile
                for name in names
            ]
            panels.append(
                Panel(
                    title=f"layer {layer or '0'}",
                    drawing=lines(drawn, across="epoch", up="activation", between=None, colours=len(names)),
                )
            )
        drawn = [
            Line(name=name, points={k + 1.0: [one["norms"][name][k] for one in found] for k in range(len(norms))})
            for name, norms in first["norms"].items()
        ]
        drawing = lines(drawn, across="epoch", up="norm of a layer's weights", between=None)
        panels.append(
            Panel(title="weights", drawing=drawing, key=legend(f"layer {line.name or '0'}" for line in drawn))
        )
    return Made(panels=panels, key=legend(names))


def by_epoch(found: Sequence[Sequence[Sequence[float]]], mark: int) -> dict[float, list[float]]:
    """Epoch -> one of the sizes of a layer, for each seed."""
    return {k + 1.0: [one[k][mark] for one in found] for k in range(len(found[0]))}


SHARES = ("none", "made_on_only", "against_only", "both", "success_where_made")


def outcomes(figure: Figure, rows: Sequence[Shown]) -> Made:
    """The slides' table, a row for each attack and pair of networks."""
    made = []
    for row in rows:
        settings = row.settings
        maker = f"{settings['made_on']}{', leaking' if settings.get('leaky') else ''}"
        cells = [settings["attack"], str(settings["ways"]), maker, settings["against"]]
        for share in SHARES:
            record = row.records.get(share)
            if record is None:
                cells.append("–")
                continue
            known = "" if record["published"] is None else f" ({number(record['published'])})"
            cells.append(number(record["mean"]) + known)
        made.append(cells)
    head = ["attack", "classes", "made on", "tried on", "neither", "the first only", "the second only", "both"]
    return Made(head=[*head, "works where made"], rows=made)


KINDS: dict[str, Callable[[Figure, Sequence[Shown]], Made]] = {
    "curves": curves,
    "learning": learning,
    "lines": swept,
    "dots": compared,
    "confusion": confusion,
    "transfer": transfer,
    "points": scattered,
    "samples": samples,
    "weights": weights,
    "maps": maps,
    "roc": rates,
    "kept": kept,
    "histograms": confidences,
    "history": history,
    "outcomes": outcomes,
}
