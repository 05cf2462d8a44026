"""Drawings of any numbers as inline SVG: lines with bands, points in a plane, histograms.

As in `figures`, fonts and colours come from the page's style sheet. The k-th of several things has the class "c0",
"c1", ... whose colour the style sheet gives for light and for dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from miscue.report.figures import element, number, svg, text, ticks

COLOURS = 10  # that the style sheet has; more things begin again
WIDTH = 420.0
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a line shows.

    points: x -> the values of the seeds there. published: x -> the figure to compare with.
    """

    name: str
    points: Mapping[float, Sequence[float]]
    published: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Where numbers lie in a drawing. across, up: the ranges of both axes."""

    across: Range
    up: Range
    left: float = 48.0
    right: float = WIDTH - 14
    top: float = 34.0
    bottom: float = 252.0

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.across
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Pixels from the top; what lies outside the range is drawn at its edge."""
        low, high = self.up
        return self.bottom - (min(max(value, low), high) - low) / (high - low) * (self.bottom - self.top)

    def path(self, points: Sequence[tuple[float, float]], *, close: bool = False) -> str:
        """A polygon through the points."""
        return f"M{' '.join(f'{self.x(x):.1f} {self.y(y):.1f}' for x, y in points)}{'Z' if close else ''}"

    def axes(self, across: str, up: str, *, whole: bool = False) -> list[str]:
        """The grid, its numbers, and what both axes are of."""
        out = []
        for value in ticks(*self.up, count=5):
            y = self.y(value)
            out.append(element("line", x1=self.left, x2=self.right, y1=y, y2=y, class_="grid"))
            out.append(text(self.left - 8, y + 4.5, short(value), text_anchor="end", class_="tick"))
        for value in ticks(*self.across, whole=whole):
            out.append(text(self.x(value), self.bottom + 20, short(value), text_anchor="middle", class_="tick"))
        middle = (self.left + self.right) / 2
        out.append(text(middle, self.bottom + 41, across, text_anchor="middle", class_="tick"))
        return [*out, text(6.0, self.top - 18, up, class_="tick")]


HEIGHT = Plane(across=(0, 1), up=(0, 1)).bottom + 48


def short(value: float) -> str:
    """A round number, with a real minus sign."""
    return f"{value:g}".replace("-", "−")


def widened(low: float, high: float) -> Range:
    """A range that is not empty: around a single number, or from 0 to twice that."""
    if high > low:
        return low, high
    return (0.0, 2 * low) if low > 0 else (low - 0.5, low + 0.5)


def style(k: int, colours: int = COLOURS) -> str:
    """The classes of the k-th of several things: after so many colours they begin again, dotted."""
    return f"c{k % colours}" + (" dotted" if k >= colours else "")


def lines(
    some: Sequence[Line],
    *,
    across: str,
    up: str,
    between: Range | None = (0.0, 100.0),
    diagonal: bool = False,
    colours: int = COLOURS,
) -> str:
    """Lines through the means over the seeds, each with a band from the smallest value to the largest.

    A published figure is a ring in the line's colour.

    Args:
        some: at least one line with points.
        across: what the horizontal axis is of.
        up: what the vertical one is of.
        between: the vertical range; from 0 to the largest value where there is none.
        diagonal: whether a dashed line runs from corner to corner, as chance does in an ROC curve.
        colours: after so many lines they begin again, dotted.
    """
    places = [x for line in some for x in (*line.points, *line.published)]
    values = [value for line in some for seen in line.points.values() for value in seen]
    plane = Plane(
        across=widened(min(places), max(places)),
        up=between or widened(min(0.0, *values), max(values)),
    )
    out = plane.axes(across, up, whole=all(float(x).is_integer() for x in places))
    if diagonal:
        corners = list(zip(plane.across, plane.up, strict=True))
        out.append(element("path", d=plane.path(corners), class_="chance"))
    spoken = []
    for k, line in enumerate(some):
        out.append(element("g", "".join(ranged(plane, line)), class_=style(k, colours)))
        last = max(line.points, default=None)
        if last is not None:
            spoken.append(f"{line.name} {number(mean(line.points[last]))} at {last:g}")
    return svg(WIDTH, HEIGHT, out, tone="", label=f"{up} over {across}: {', '.join(spoken)}")


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)


DOTTED = 12  # up to so many points each has a dot


def ranged(plane: Plane, line: Line) -> list[str]:
    """A line with its band, its dots and its rings."""
    order = sorted(line.points)
    middle = [(x, mean(line.points[x])) for x in order]
    edge = [(x, max(line.points[x])) for x in order] + [(x, min(line.points[x])) for x in reversed(order)]
    out = []
    if len(order) > 1:
        if any(len(seen) > 1 for seen in line.points.values()):
            out.append(element("path", d=plane.path(edge, close=True), class_="band"))
        out.append(element("path", d=plane.path(middle), class_="line"))
    for x, y in middle if len(middle) <= DOTTED else middle[-1:]:
        out.append(element("circle", cx=plane.x(x), cy=plane.y(y), r=3.5, class_="dot"))
    for x, y in line.published.items():
        out.append(element("circle", cx=plane.x(x), cy=plane.y(y), r=7.0, class_="published"))
    return out


def dots(
    values: Mapping[str, Sequence[float]], *, across: str, known: Mapping[str, float], reach: Range = (0.0, 100.0)
) -> str:
    """A dot for each name at the mean over its seeds, a fine tick for each seed; a published figure is a ring.

    Args:
        values: name -> the values of the seeds, at least one.
        across: what the axis is of.
        known: name -> the figure to compare with, where there is one.
        reach: the axis' range.
    """
    height = 40.0
    plane = Plane(across=reach, up=(0.0, 1.0), left=10.0, right=WIDTH - 10, top=8.0, bottom=12 + height * len(values))
    out = []
    for value in ticks(*reach, count=5):
        out.append(element("line", x1=plane.x(value), x2=plane.x(value), y1=8, y2=plane.bottom, class_="grid"))
        out.append(text(plane.x(value), plane.bottom + 18, short(value), text_anchor="middle", class_="tick"))
    out.append(text(WIDTH / 2, plane.bottom + 38, across, text_anchor="middle", class_="tick"))
    for k, (name, seen) in enumerate(values.items()):
        y, middle = 34 + k * height, mean(seen)
        shape = [element("line", x1=plane.x(x), x2=plane.x(x), y1=y - 7, y2=y + 7, class_="seed") for x in seen]
        if name in known:
            shape.append(element("circle", cx=plane.x(known[name]), cy=y, r=8, class_="published"))
        shape.append(element("circle", cx=plane.x(middle), cy=y, r=5, class_="dot"))
        out.append(element("line", x1=plane.left, x2=plane.right, y1=y, y2=y, class_="grid"))
        out.append(element("g", "".join(shape), class_=style(0)))
        out.append(text(plane.left, y - 11, name, class_="name"))
        out.append(text(plane.right, y - 11, number(middle), text_anchor="end", class_="name"))
    spoken = ", ".join(f"{name} {number(mean(seen))}" for name, seen in values.items())
    return svg(WIDTH, plane.bottom + 44, out, tone="", label=f"{across}: {spoken}")


def scatter(points: Sequence[Sequence[float]], *, across: Range, up: Range, axes: tuple[str, str], label: str) -> str:
    """Points of classes in a plane, the number of each class at the middle of its points.

    Args:
        points: (x, y, class), each.
        across: the horizontal range, so that several drawings can be compared.
        up: the vertical one.
        axes: what the horizontal and the vertical axis are of.
        label: what is said to those who do not see it.
    """
    plane = Plane(across=widened(*across), up=widened(*up))
    out = plane.axes(*axes)
    classes: dict[int, list[tuple[float, float]]] = {}
    for x, y, k in points:
        classes.setdefault(int(k), []).append((plane.x(x), plane.y(y)))
    for k, places in sorted(classes.items()):
        marks = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        out.append(element("g", element("path", d=marks, class_="marks"), class_=style(k)))
    for k, places in sorted(classes.items()):
        x, y = (mean(values) for values in zip(*places, strict=True))
        name = text(x, y + 6, str(k), text_anchor="middle", class_="mean")
        out.append(element("g", name, class_=style(k)))
    return svg(WIDTH, HEIGHT, out, tone="", label=label)


def histograms(shares: Mapping[str, Sequence[float]], *, across: str, up: str, reach: Range = (0.0, 1.0)) -> str:
    """Histograms over one another, as outlines.

    Args:
        shares: name -> the percentages of equal parts of `reach`.
        across: what the horizontal axis is of.
        up: what the vertical one is of.
        reach: the horizontal range.
    """
    plane = Plane(across=reach, up=widened(0.0, max(max(some) for some in shares.values())))
    out, spoken = plane.axes(across, up), []
    for k, (name, some) in enumerate(shares.items()):
        width = (reach[1] - reach[0]) / len(some)
        steps = [(reach[0] + (i + side) * width, share) for i, share in enumerate(some) for side in (0, 1)]
        outline = [(reach[0], 0.0), *steps, (reach[1], 0.0)]
        shape = element("path", d=plane.path(outline, close=True), class_="band")
        shape += element("path", d=plane.path(outline), class_="line")
        out.append(element("g", shape, class_=style(k)))
        spoken.append(f"{name}: {number(some[-1])} % in the last part")
    return svg(WIDTH, HEIGHT, out, tone="", label=f"{up} by {across}; {', '.join(spoken)}")
