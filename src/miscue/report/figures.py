"""The pictures of a report page as text: inline SVG, and PNG data URIs for images.

The drawings are made by hand rather than plotted: they take their fonts and their light or dark colours from
the page's style sheet, stay legible on a phone, weigh a few kB and are the same bytes every time. All text is
escaped here.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
import torch

from miscue.images import amplified

LEVELS = 20  # shades of a confusion matrix
TEXT_CLASSES = 12  # up to here a confusion matrix shows its counts
SAMPLE_SIDE = 96  # larger samples are shown reduced, by taking every k-th pixel
COLUMN = 84  # the width on the page that a sample's whole-number scaling aims at

Points = Sequence[tuple[float, float]]


def number(value: float, digits: int = 1) -> str:
    """`value` with `digits` decimals, a real minus sign, and no minus zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def percent(value: float, digits: int = 1) -> str:
    """A percentage (0 to 100) in words, with a space that does not break."""
    return f"{number(value, digits)}\u00a0%"


def short(name: str, limit: int) -> str:
    """`name`, cut to `limit` characters."""
    return name if len(name) <= limit else name[: limit - 1].rstrip() + "…"


def element(name: str, content: str = "", **attributes: Any) -> str:
    """One SVG element. `content` is markup; attributes are escaped, and `stroke_width` is stroke-width."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    return "".join(parts) + (f">{content}</{name}>" if content else "/>")


def text(x: float | str, y: float, words: str, **attributes: Any) -> str:
    """Words at a place; they are escaped here."""
    return element("text", escape(words), x=x, y=y, **attributes)


def svg(width: float, height: float, content: Sequence[str], *, tone: str, label: str) -> str:
    """A whole drawing with a spoken `label`; `tone` names the colour that the style sheet gives it."""
    box = f"0 0 {width:g} {height:g}"
    return element("svg", "".join(content), viewBox=box, role="img", aria_label=label, class_=f"figure {tone}")


def ticks(low: float, high: float, *, count: int = 6, whole: bool = False) -> list[float]:
    """Round positions in [low, high], at most about `count`; with `whole`, integers only."""
    span = max(high - low, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-6)
    return [round(k * step, 9) for k in range(first, math.floor(high / step + 1e-6) + 1)]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A plot whose vertical axis runs over 0 to 100 percent, and its place in the drawing."""

    low: float
    high: float
    right: float
    left: float = 46.0
    top: float = 14.0
    bottom: float = 250.0

    def x(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span > 0 else 0.5
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - min(max(value, 0.0), 100.0) / 100 * (self.bottom - self.top)

    def path(self, points: Points, *, close: bool = False) -> str:
        steps = " ".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        return f"M{steps}{'Z' if close else ''}"

    def axes(self, title: str, *, whole: bool) -> list[str]:
        """Grid lines, tick labels, and the horizontal axis' title."""
        out = []
        for level in (0, 25, 50, 75, 100):
            y = self.y(level)
            out.append(element("line", x1=self.left, x2=self.right, y1=y, y2=y, class_="grid"))
            unit = "\u00a0%" if level == 100 else ""
            out.append(text(self.left - 8, y + 4.5, f"{level}{unit}", text_anchor="end", class_="tick"))
        for value in ticks(self.low, self.high, whole=whole):
            out.append(text(self.x(value), self.bottom + 20, f"{value:g}", text_anchor="middle", class_="tick"))
        middle = (self.left + self.right) / 2
        return [*out, text(middle, self.bottom + 40, title, text_anchor="middle", class_="tick")]


def _spread(curves: Sequence[Sequence[dict[str, Any]]], key: str) -> dict[float, tuple[float, float, float]]:
    """Epoch to (smallest, mean, largest) of `key` over the seeds that have it there."""
    values: dict[float, list[float]] = {}
    for curve in curves:
        for step in curve:
            if finite(step.get("epoch")) and finite(step.get(key)):
                values.setdefault(float(step["epoch"]), []).append(float(step[key]))
    return {x: (min(v), sum(v) / len(v), max(v)) for x, v in sorted(values.items())}


def finite(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number to draw with: not null, not a flag, not NaN or infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curves(runs: Sequence[Sequence[dict[str, Any]]], *, tone: str) -> str:
    """Learning curves of the seeds of one condition: training and test accuracy per epoch.

    A line is the mean over the seeds, its band runs from the smallest to the largest; the generalisation gap
    is shaded, and measured at the last epoch that has both numbers.

    Args:
        runs: one list per seed of {"epoch", "train_accuracy", "test_accuracy"}, percentages from 0 to 100.
        tone: "clean" or "poisoned", the colour.

    Returns:
        SVG markup, or "" where there is nothing to draw.
    """
    train, test = _spread(runs, "train_accuracy"), _spread(runs, "test_accuracy")
    epochs = sorted({*train, *test})
    if not epochs:
        return ""
    frame = _Frame(low=min(epochs), high=max(epochs), right=368.0)
    out = frame.axes("epoch", whole=True)
    both = [x for x in epochs if x in train and x in test]
    if len(both) > 1:
        area = [(x, train[x][1]) for x in both] + [(x, test[x][1]) for x in reversed(both)]
        out.append(element("path", d=frame.path(area, close=True), class_="gap"))
    words = []
    for name, spread in (("train", train), ("test", test)):
        if spread:
            out += _line(frame, spread, name)
            words.append(f"{name} accuracy ends at {percent(spread[max(spread)][1])}")
    if both:
        out += _bracket(frame, both[-1], train[both[-1]][1], test[both[-1]][1])
    return svg(460, 298, out, tone=tone, label=f"Learning curves: {', '.join(words)}")


def _line(frame: _Frame, spread: dict[float, tuple[float, float, float]], name: str) -> list[str]:
    """A mean line with its band and a dot at its end."""
    mean = [(x, middle) for x, (_, middle, _) in spread.items()]
    edge = [(x, high) for x, (_, _, high) in spread.items()]
    edge += [(x, low) for x, (low, _, _) in reversed(spread.items())]
    x, y = mean[-1]
    return [
        element("path", d=frame.path(edge, close=True), class_="band"),
        element("path", d=frame.path(mean), class_=f"line {name}"),
        element("circle", cx=frame.x(x), cy=frame.y(y), r=4.0, class_=f"dot {name}"),
    ]


def _bracket(frame: _Frame, epoch: float, train: float, test: float) -> list[str]:
    """The generalisation gap at `epoch`, as a bracket beside the lines."""
    x, top, low = frame.x(epoch) + 10, frame.y(max(train, test)), frame.y(min(train, test))
    middle = min(max((top + low) / 2, frame.top + 10), frame.bottom - 12)
    return [
        element("path", d=f"M{x:.1f} {top:.1f}h6V{low:.1f}h-6", class_="bracket"),
        text(x + 13, middle - 3, "gap", class_="tick"),
        text(x + 13, middle + 16, number(train - test), class_="value"),
    ]


def damage(points: Points, measure: str = "Held-out accuracy") -> str:
    """The crafting's curve of a measure (0 to 100) against minutes; "" where there is none."""
    points = sorted(points)
    if not points:
        return ""
    (_, first), (x, last) = points[0], points[-1]
    label = f"{measure} goes from {percent(first)} to {percent(last)} in {number(x)} minutes"
    return _through(points, title="minutes of crafting", label=label)


def against(points: Points, *, title: str) -> str:
    """A share, 0 to 100, at some values of whatever `title` says."""
    (low, first), (high, last) = points[0], points[-1]
    label = f"{percent(first)} at {low:.3g}, {percent(last)} at {high:.3g}; {title}"
    return _through(points, title=title, label=label)


def _through(points: Points, *, title: str, label: str) -> str:
    """A line from point to point, heights from 0 to 100, the last one written beside it."""
    frame = _Frame(low=0.0, high=max(points[-1][0], 1e-3), right=400.0)
    out = frame.axes(title, whole=False)
    out.append(element("path", d=frame.path(points), class_="line test"))
    out += [element("circle", cx=frame.x(x), cy=frame.y(y), r=3.5, class_="point") for x, y in points]
    x, last = points[-1]
    out.append(text(frame.x(x) + 10, max(frame.y(last) + 5, frame.top + 8), number(last), class_="value"))
    return svg(460, 298, out, tone="poisoned", label=label)


def rising(points: Points, *, title: str) -> str:
    """A share that grows in steps, 0 to 100, against whatever `title` says."""
    frame = _Frame(low=0.0, high=max(points[-1][0], 1e-3), right=400.0)
    steps = [corner for (_, y), (x, top) in pairwise(points) for corner in ((x, y), (x, top))]
    x, y = points[-1]
    out = [*frame.axes(title, whole=False), element("path", d=frame.path([points[0], *steps]), class_="line test")]
    out.append(element("circle", cx=frame.x(x), cy=frame.y(y), r=4.0, class_="dot test"))
    out.append(text(frame.x(x) + 10, max(frame.y(y) + 5, frame.top + 8), percent(y), class_="value"))
    return svg(460, 298, out, tone="poisoned", label=f"{percent(y)} within {x:g}; {title}")


def trace(values: Sequence[float], *, title: str) -> str:
    """Any numbers, one after another: a line between its smallest and its largest value."""
    low, high = min(values), max(values)
    frame = _Frame(low=1.0, high=float(max(len(values), 2)), right=400.0)
    scaled = [(k + 1.0, 100 * (value - low) / max(high - low, 1e-12)) for k, value in enumerate(values)]
    out = []
    for y, value in ((0.0, low), (100.0, high)):
        out.append(element("line", x1=frame.left, x2=frame.right, y1=frame.y(y), y2=frame.y(y), class_="grid"))
        out.append(text(frame.left - 8, frame.y(y) + 4.5, f"{value:.3g}", text_anchor="end", class_="tick"))
    for tick in ticks(frame.low, frame.high, whole=True):
        out.append(text(frame.x(tick), frame.bottom + 20, f"{tick:g}", text_anchor="middle", class_="tick"))
    middle = (frame.left + frame.right) / 2
    out.append(text(middle, frame.bottom + 40, title, text_anchor="middle", class_="tick"))
    out.append(element("path", d=frame.path(scaled), class_="line test"))
    x, y = scaled[-1]
    out.append(element("circle", cx=frame.x(x), cy=frame.y(y), r=4.0, class_="dot test"))
    out.append(text(frame.x(x) + 10, max(frame.y(y) + 5, frame.top + 8), f"{values[-1]:.3g}", class_="value"))
    return svg(
        460, 298, out, tone="poisoned", label=f"from {values[0]:.3g} to {values[-1]:.3g} over {len(values)} steps"
    )


def confusion(matrix: np.ndarray, classes: Sequence[str], *, tone: str, targets: Sequence[int] | None = None) -> str:
    """A confusion matrix, coloured by each row's shares; counts are written for at most TEXT_CLASSES classes.

    Args:
        matrix: counts (k, k), rows true, columns predicted.
        classes: the k names.
        tone: "clean" or "poisoned", the colour.
        targets: per true class the column to outline, for a label map.
    """
    k = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = k <= TEXT_CLASSES
    names = [short(name, 11) for name in classes] if named else [str(label) for label in range(k)]
    shown = range(k) if named else [int(tick) for tick in ticks(0, k - 1, count=8, whole=True)]
    upright = max(len(names[label]) for label in shown) <= 3
    widest = 7 * max(len(names[label]) for label in shown)
    gutter, head, side = max(50, 30 + widest), (24 if upright else 14 + widest), 330.0
    cell = side / k
    out = [element("rect", x=gutter, y=head, width=side, height=side, class_="ground")]
    out += _shades(shares, gutter, head, cell)
    out += _names(names, shown, gutter, head, cell, upright=upright)
    if named:
        out += _counts(matrix, shares, gutter, head, cell)
    if targets is not None:
        boxes = "".join(
            f"M{gutter + column * cell:.1f} {head + row * cell:.1f}h{cell:.1f}v{cell:.1f}h-{cell:.1f}z"
            for row, column in enumerate(targets)
        )
        out.append(element("path", d=boxes, class_="target" if named else "target fine"))
    right = float(np.trace(matrix)) / max(float(matrix.sum()), 1.0) * 100
    label = f"Confusion matrix of {k} classes, rows true, columns predicted: {percent(right)} on the diagonal"
    if targets is not None:
        hit = sum(float(matrix[row, column]) for row, column in enumerate(targets))
        label += f", {percent(hit / max(float(matrix.sum()), 1.0) * 100)} on the label map's targets"
    axis = head + side / 2
    out.append(text(gutter + side / 2, head + side + 20, "predicted", text_anchor="middle", class_="tick"))
    turn = f"rotate(-90 12 {axis:g})"
    out.append(text(12.0, axis, "true", text_anchor="middle", class_="tick", transform=turn))
    return svg(gutter + side + 2, head + side + 28, out, tone=tone, label=label)


def _shades(shares: np.ndarray, left: float, top: float, cell: float) -> list[str]:
    """The filled cells, one path per shade."""
    levels = np.ceil(shares * LEVELS - 0.2).astype(int)
    out = []
    for level in range(1, LEVELS + 1):
        rows, columns = np.nonzero(levels == level)
        boxes = "".join(
            f"M{left + j * cell:.1f} {top + i * cell:.1f}h{cell:.1f}v{cell:.1f}h-{cell:.1f}z"
            for i, j in zip(rows, columns, strict=True)
        )
        if boxes:
            out.append(element("path", d=boxes, class_="shade", fill_opacity=level / LEVELS))
    return out


def _names(
    names: Sequence[str], shown: Sequence[int], left: float, top: float, cell: float, *, upright: bool
) -> list[str]:
    """Class names beside the rows and above the columns."""
    out = []
    for label in shown:
        middle = (label + 0.5) * cell
        out.append(text(left - 6, top + middle + 4, names[label], text_anchor="end", class_="tick"))
        x, y = left + middle, top - 7
        if upright:
            out.append(text(x, y, names[label], text_anchor="middle", class_="tick"))
        else:
            turn = f"rotate(-90 {x + 4:.1f} {y:.1f})"
            out.append(text(round(x + 4, 1), y, names[label], class_="tick", transform=turn))
    return out


def _counts(matrix: np.ndarray, shares: np.ndarray, left: float, top: float, cell: float) -> list[str]:
    """The counts that are not zero, in a colour that is legible on their shade."""
    size = min(16.0, cell * 0.38)
    out = []
    for row, column in zip(*np.nonzero(matrix), strict=True):
        count, share = int(matrix[row, column]), float(shares[row, column])
        words = f"{count}" if count < 10000 else f"{count / 1000:.0f}k"
        x, y = left + (column + 0.5) * cell, top + (row + 0.5) * cell + size * 0.36
        kind = "count high" if share > 0.8 else "count middle" if share > 0.55 else "count"
        out.append(text(float(x), float(y), words, text_anchor="middle", class_=kind, font_size=size))
    return out


def overview(rows: Sequence[dict[str, Any]], *, chance: float) -> str:
    """Test accuracy per victim on one scale: a dot for each condition's mean, a fine tick for each seed.

    It has no view box: positions are percentages, so that its text keeps its size at any width.

    Args:
        rows: per victim {"name", "clean": [accuracies], "poisoned": [accuracies]}, and "published": condition ->
            accuracy where there is something to compare with, drawn as a ring.
        chance: the accuracy of guessing, a percentage.
    """
    height, bottom = 78, 78 * len(rows) + 14
    out = [element("line", x1=f"{x}%", x2=f"{x}%", y1=18, y2=bottom, class_="grid") for x in (0, 25, 50, 75, 100)]
    out.append(element("line", x1=f"{chance:.2f}%", x2=f"{chance:.2f}%", y1=18, y2=bottom, class_="chance"))
    out.append(text(f"{chance:.2f}%", 12, "guessing", text_anchor=_anchor(chance), class_="tick"))
    for index, row in enumerate(rows):
        out += _dumbbell(row, index * height + 58, named=len(rows) > 1)
    for x in (0, 25, 50, 75, 100):
        unit = "\u00a0%" if x == 100 else ""
        out.append(text(f"{x}%", bottom + 18, f"{x}{unit}", text_anchor=_anchor(x), class_="tick"))
    label = "Test accuracy: " + "; ".join(
        f"{row['name']} "
        + ", ".join(f"{key} {percent(sum(row[key]) / len(row[key]))}" for key in ("clean", "poisoned") if row[key])
        for row in rows
    )
    content, style = "".join(out), f"height:{bottom + 26}px"
    return element("svg", content, role="img", aria_label=label, class_="figure overview", style=style)


def _anchor(x: float) -> str:
    return "start" if x < 9 else "end" if x > 91 else "middle"


def _dumbbell(row: dict[str, Any], y: float, *, named: bool) -> list[str]:
    means = {key: sum(row[key]) / len(row[key]) for key in ("clean", "poisoned") if row[key]}
    out = [element("line", x1="0%", x2="100%", y1=y, y2=y, class_="track")]
    if len(means) == 2:
        out.append(
            element("line", x1=f"{means['clean']:.2f}%", x2=f"{means['poisoned']:.2f}%", y1=y, y2=y, class_="fall")
        )
    if named:
        out.append(text("50%", y - 16, row["name"], text_anchor="middle", class_="name"))
    for key, mean in means.items():
        ends: dict[str, Any] = {"class_": f"seed {key}", "y1": y - 12, "y2": y + 12}
        out += [element("line", x1=f"{seed:.2f}%", x2=f"{seed:.2f}%", **ends) for seed in row[key]]
        known = row.get("published", {}).get(key)
        if known is not None:
            out.append(element("circle", cx=f"{known:.2f}%", cy=y, r=10, class_=f"published {key}"))
        out.append(element("circle", cx=f"{mean:.2f}%", cy=y, r=7, class_=f"end {key}"))
        place = y - 16 if key == "clean" else y + 27
        out.append(text(f"{mean:.2f}%", place, percent(mean), text_anchor=_anchor(mean), class_=f"value {key}"))
    return out


def png(image: np.ndarray) -> str:
    """A uint8 image (c, h, w) as a PNG data URI; of other than three channels the first is shown."""
    from PIL import Image

    channels = image.transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(channels if channels.shape[2] == 3 else channels[:, :, 0]))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


FRAME = (232, 89, 60)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A sample strip: per column {"name", "original", "noise", "poisoned"}, the last three data URIs.

    width, height: of an image on the page, CSS pixels; stride: every stride-th pixel is shown; more: how many
    columns are left out.
    """

    columns: list[dict[str, str]]
    width: int
    height: int
    stride: int
    more: int


def strip(
    clean: np.ndarray,
    poisoned: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    limit: float,
    most: int = 60,
) -> Strip:
    """The first sample of each class, with its noise amplified to the range -limit..limit.

    Args:
        clean, poisoned: uint8 (k, c, h, w).
        labels: integers (k,), indices into `classes`.
        limit: the perturbation, in [0, 1], that is shown as black or white.
        most: columns at most.
    """
    first = {int(label): index for index, label in reversed(list(enumerate(labels)))}
    stride = -(-max(clean.shape[2:]) // SAMPLE_SIDE)
    order = [first[label] for label in sorted(first)][:most]
    a, b = (np.ascontiguousarray(part[order][:, :, ::stride, ::stride]) for part in (clean, poisoned))
    noise = amplified(torch.from_numpy(b), torch.from_numpy(a), limit=limit).numpy()
    columns = [
        {
            "name": classes[int(labels[i])],
            "original": png(a[k]),
            "noise": png(noise[k]),
            "poisoned": png(b[k]),
        }
        for k, i in enumerate(order)
    ]
    height, width = a.shape[2:]
    scale = max(1, COLUMN // max(width, 1))
    more = len(first) - len(order)
    return Strip(columns=columns, width=width * scale, height=height * scale, stride=stride, more=more)


def attention(maps: np.ndarray, places: Sequence[Sequence[int]] | None) -> list[str]:
    """Mean maps as pictures, dark to bright, the pixel of each class in a frame.

    Args:
        maps: (classes, h, w), not negative.
        places: row and column of each class's pixel, row -1 for none.
    """
    scale = max(2, COLUMN // max(maps.shape[2], 1))
    pictures = []
    for label, one in enumerate(maps):
        tones = np.repeat(np.repeat(255 * one / max(one.max(), 1e-12), scale, axis=0), scale, axis=1)
        image = np.stack([tones] * 3).round().astype(np.uint8)
        row, column = places[label] if places else (-1, 0)
        if row >= 0:
            low = [max(0, (place - 1) * scale) for place in (row, column)]
            high = [min(side, (place + 2) * scale) for side, place in zip(tones.shape, (row, column), strict=True)]
            frame = np.zeros(tones.shape, dtype=bool)
            frame[low[0] : high[0], low[1] : high[1]] = True
            frame[low[0] + 1 : high[0] - 1, low[1] + 1 : high[1] - 1] = False
            image[:, frame] = np.array(FRAME, dtype=np.uint8)[:, None]
        pictures.append(png(image))
    return pictures
