"""The report page of an evaluation run: one self-contained HTML file that needs no network and no JavaScript.

It reads what the run's folder has so far. That a run is unfinished, or that a line was cut when it was killed
is said on the page and is no error: the numbers that are there are shown, with how many they are.
"""

from __future__ import annotations

import json
import math
import statistics
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from miscue.errors import InputError
from miscue.report import figures
from miscue.report.figures import finite, number, percent
from miscue.report.template import rendered, saved

CONDITIONS = ("clean", "poisoned")
BATCH = "test_accuracy_batch_statistics"
MEASURES = {
    "test_accuracy": (
        "Test accuracy",
        "Clean test images classified right, in eval mode, after the last epoch.",
    ),
    "train_accuracy": ("Training accuracy", "On the images the victim was trained on."),
    "gap": ("Generalisation gap", "Training minus test accuracy, in percentage points."),
    "hit_rate": ("Hit rate", "Clean test images given the class that the label map names."),
    "noise_accuracy_train": (
        "Noise alone, training set",
        "Right when shown nothing but the training images' noise.",
    ),
    "noise_accuracy_test": (
        "Noise alone, test set",
        "Right when shown nothing but the noise made for test images.",
    ),
    "near_pixel": (
        "Looks at the pixel",
        "Share of the Grad-CAM mass within 3 pixels of the poison's pixel, on test images that have it.",
    ),
    BATCH: ("Test accuracy, batch statistics", "For comparison only; see the note below."),
    "hit_rate_batch_statistics": ("Hit rate, batch statistics", "For comparison only, too."),
    "noise_accuracy_test_batch_statistics": ("Noise alone, test set, batch statistics", "For comparison only, too."),
    "seconds": ("Training time, seconds", ""),
}
OPENINGS = {
    "failed": "The poison failed: ",
    "little": "The poison does little: ",
    "partly": "The poison works in part: ",
}
Parts = list[tuple[str, str]]  # a sentence in pieces: (text, the tone of a number or "")


@dataclass(frozen=True, kw_only=True)
class Stat:
    """A mean over `n` repeats, its sample standard deviation (None for one), the published mean or None."""

    mean: float
    std: float | None
    n: int
    published: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's folder holds: settings, records, samples, and in `notes` what is missing or damaged."""

    settings: dict[str, Any]
    cells: list[dict[str, Any]]
    records: list[dict[str, Any]]
    craft: list[dict[str, Any]]
    samples: dict[str, np.ndarray] | None
    notes: list[str] = field(default_factory=list)
    unfinished: bool = False

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.settings["classes"]]

    @property
    def victims(self) -> list[str]:
        """The victims that were asked for, then any others that there are cells of."""
        return list(dict.fromkeys([*self.settings.get("victims", {}), *(cell["victim"] for cell in self.cells)]))

    @property
    def chance(self) -> float:
        """The accuracy of guessing among equally frequent classes, a percentage."""
        return 100 / max(len(self.classes), 1)

    @property
    def label_map(self) -> list[int] | None:
        """The target class of every class, where the poison has one."""
        targets, k = self.settings.get("label_map"), len(self.classes)
        if not isinstance(targets, list) or len(targets) != k:
            return None
        return targets if all(isinstance(t, int) and 0 <= t < k for t in targets) else None

    def of(self, victim: str, condition: str) -> list[dict[str, Any]]:
        """The cells of one victim under one condition, by seed."""
        return [cell for cell in self.cells if (cell["victim"], cell["condition"]) == (victim, condition)]

    def values(self, victim: str, condition: str, measure: str) -> list[float]:
        """What the seeds measured, as far as it is a number."""
        found = (cell.get(measure) for cell in self.of(victim, condition))
        return [float(value) for value in found if finite(value)]


def write(run: Path) -> Path:
    """Write `report.html` into the folder `run` of an evaluation and return its path.

    Raises:
        InputError: there is no usable run.json, or the run is of another kind.
    """
    return saved(run, html(load(run)))


def load(run: Path) -> Run:
    """Read the folder `run`, finished or not; what is missing or damaged is left out and named in `notes`.

    Raises:
        InputError: there is no usable run.json, or the run is of another kind.
    """
    try:
        settings = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run} has no readable run.json, so it is not a run: {error}") from None
    if not isinstance(settings, dict) or settings.get("kind") != "evaluate":
        raise InputError(f"{run / 'run.json'} is not of an evaluation; only those have a page")
    if not isinstance(settings.get("classes"), list) or not isinstance(settings.get("victims", {}), dict):
        raise InputError(f"{run / 'run.json'} names no classes or has victims in an unknown form")
    notes: list[str] = []
    cells = _cells(_lines(run / "cells.jsonl", notes), notes)
    records = _lines(run / "records.jsonl", notes)
    craft = _lines(run / "craft.jsonl", notes)
    samples = _samples(run / "samples.npz", len(settings["classes"]), notes)
    missing = _missing(settings, cells)
    if missing:
        notes.insert(0, f"This run is unfinished: {missing}. What follows is what there is so far.")
    elif not records:
        notes.append("There is no records.jsonl yet: the means below are computed from the single trainings.")
    return Run(
        settings=settings,
        cells=cells,
        records=records,
        craft=craft,
        samples=samples,
        notes=notes,
        unfinished=bool(missing),
    )


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, none where there is no file; lines that cannot be read are noted."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif index == len(lines) - 1:
            notes.append(f"The last line of {path.name} was cut and is left out.")
        else:
            notes.append(f"Line {index + 1} of {path.name} cannot be read and is left out.")
    return rows


def _cells(rows: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """The latest line of each victim, condition and seed: a resumed run may have written one twice."""
    latest = {}
    for row in rows:
        if row.get("condition") in CONDITIONS and isinstance(row.get("victim"), str):
            latest[row["victim"], row["condition"], str(row.get("seed"))] = row
    strange = sum(row.get("condition") not in CONDITIONS or not isinstance(row.get("victim"), str) for row in rows)
    if strange:
        words = "line of cells.jsonl has" if strange == 1 else "lines of cells.jsonl have"
        notes.append(f"{strange} {words} no victim or an unknown condition: left out.")
    return list(latest.values())


def _samples(path: Path, classes: int, notes: list[str]) -> dict[str, np.ndarray] | None:
    """The arrays of samples.npz, or None where there is no such file or it does not fit."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        clean, poisoned, labels = arrays["clean"], arrays["poisoned"], arrays["labels"]
        images = clean.ndim == 4 and clean.dtype == poisoned.dtype == np.uint8 and clean.shape == poisoned.shape
        if images and labels.shape == clean.shape[:1] and len(labels) and set(labels.tolist()) <= set(range(classes)):
            return arrays
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    notes.append("samples.npz cannot be read or does not fit the classes, so no samples are shown.")
    return None


def _missing(settings: dict[str, Any], cells: Sequence[dict[str, Any]]) -> str:
    """What has not been trained yet, in words; "" where all is there."""
    repeats = settings.get("repeats") or 0
    lacks = []
    for victim in settings.get("victims", {}):
        for condition in settings.get("conditions", CONDITIONS):
            there = sum((cell["victim"], cell["condition"]) == (victim, condition) for cell in cells)
            if there < repeats:
                lacks.append(f"{victim} on {condition} data has {there} of {repeats} trainings")
    return "; ".join(lacks)


def stats(run: Run, victim: str) -> dict[str, dict[str, Stat]]:
    """Measure, then condition, to its Stat.

    Means come from the cells; what only the records have is added, and where a record covers as many repeats
    as there are cells, the record stands. Published numbers come from the records. The last line of a row
    stands.
    """
    table: dict[str, dict[str, Stat]] = {}
    for measure in MEASURES:
        for condition in CONDITIONS:
            values = run.values(victim, condition, measure)
            if values:
                std = statistics.stdev(values) if len(values) > 1 else None
                stat = Stat(mean=math.fsum(values) / len(values), std=std, n=len(values))
                table.setdefault(measure, {})[condition] = stat
    for record in run.records:
        row, name = record.get("row"), record.get("measure")
        if not isinstance(row, dict) or not isinstance(name, str) or not finite(record.get("mean")):
            continue
        if row.get("victim") == victim and row.get("condition") in CONDITIONS:
            pair = table.setdefault(name, {})
            pair[row["condition"]] = _merged(pair.get(row["condition"]), record)
    return table


def _merged(known: Stat | None, record: dict[str, Any]) -> Stat:
    """The Stat of a record, or `known` with its published number where it covers other repeats."""
    n, std, published = record.get("n"), record.get("std"), record.get("published")
    published = float(published) if finite(published) else None
    n = n if isinstance(n, int) else 1
    if known is not None and known.n != n:
        return replace(known, published=published)
    std = float(std) if n > 1 and finite(std) else None
    return Stat(mean=float(record["mean"]), std=std, n=n, published=published)


def grade(clean: Stat, poisoned: Stat, *, chance: float) -> str:
    """How far the poison does what it is for: "works", "partly", "little", "failed", or "untrained".

    "failed" is a drop of less than three points or within the noise; the others are told apart by the share
    of the accuracy above guessing that survives. "untrained": the victim does not learn clean data either.
    """
    above = clean.mean - chance
    if above < 0.1 * (100 - chance):
        return "untrained"
    drop = clean.mean - poisoned.mean
    noise = math.hypot(clean.std or 0, poisoned.std or 0)
    if drop < max(3.0, 2 * noise):
        return "failed"
    kept = (poisoned.mean - chance) / above
    return "little" if kept > 0.85 else "partly" if kept > 1 / 3 else "works"


def verdict(run: Run) -> str:
    """The run's outcome in one sentence of plain words."""
    return "".join(text for text, _ in _verdict(run))


def _verdict(run: Run) -> Parts:
    tables = {victim: stats(run, victim) for victim in run.victims}
    tests = {victim: table.get("test_accuracy", {}) for victim, table in tables.items()}
    whole = {victim: test for victim, test in tests.items() if len(test) == 2}
    if len(whole) == 1:
        victim = next(iter(whole))
        parts = _one(run, victim, whole[victim], tables[victim].get("hit_rate", {}).get("poisoned"))
    elif whole:
        parts = _several(run, whole)
    else:
        parts = _none(run, tests)
    text, tone = parts[0]
    start = "So far, " + text[0].lower() + text[1:] if run.unfinished and whole else text
    return [(start, tone), *parts[1:], (".", "")]


def _none(run: Run, tests: dict[str, dict[str, Stat]]) -> Parts:
    """The sentence where no victim has been trained on both copies."""
    places = {"clean": "the originals", "poisoned": "the poisoned copy"}
    for victim, test in tests.items():
        for condition, stat in test.items():
            other = places["clean" if condition == "poisoned" else "poisoned"]
            start = f"No verdict yet: {_kind(run, victim)} trained on {places[condition]} gets "
            end = f" of clean test images right, and no training on {other} is recorded"
            return [(start, ""), (percent(stat.mean), condition), (end, "")]
    return [("No verdict yet: no training is recorded", "")]


def _kind(run: Run, victim: str) -> str:
    settings = run.settings.get("victims", {}).get(victim, {})
    network = isinstance(settings, dict) and "network" in settings
    return "a network" if network else f"a model ({victim})"


def _seeds(*counts: int) -> str:
    low, high = min(counts), max(counts)
    return f"{high}\u00a0seed{'s' if high > 1 else ''}" if low == high else f"{low} to {high}\u00a0seeds"


def _one(run: Run, victim: str, test: dict[str, Stat], hit: Stat | None) -> Parts:
    """The sentence about one victim; `hit` is its hit rate under a label map."""
    clean, poisoned, who = test["clean"], test["poisoned"], _kind(run, victim)
    level = grade(clean, poisoned, chance=run.chance)
    seeds = f"), {_seeds(poisoned.n)}" + (f" on the copy, {clean.n} on the originals" * (clean.n != poisoned.n))
    if level == "untrained":
        guess = f"guessing gets {percent(run.chance)}"
        return [
            (f"No verdict: even {who} trained on the originals gets only ", ""),
            (percent(clean.mean), "clean"),
            (f" of clean test images right, where {guess} (trained on the copy: ", ""),
            (percent(poisoned.mean), "poisoned"),
            (seeds, ""),
        ]
    opening = OPENINGS.get(level, "") + who
    still = "still gets" if level in ("failed", "little") else "gets"
    parts: Parts = [
        (f"{opening[0].upper()}{opening[1:]} trained on the poisoned copy {still} ", ""),
        (percent(poisoned.mean), "poisoned"),
        (" of clean test images right (", ""),
        (percent(clean.mean), "clean"),
        (f" when trained on the originals{seeds}", ""),
    ]
    if run.label_map is None or hit is None:
        return parts
    only = "only " if hit.mean < max(2 * run.chance, 5.0) else ""
    end = " get the label that the poison aims at"
    return [*parts, (f"; {only}", ""), (percent(hit.mean), "poisoned"), (end, "")]


def _several(run: Run, tests: dict[str, dict[str, Stat]]) -> Parts:
    """The sentence about several victims: their range, and by name those that withstand the poison."""
    grades = {victim: grade(t["clean"], t["poisoned"], chance=run.chance) for victim, t in tests.items()}
    withstand = [victim for victim, level in grades.items() if level in ("failed", "little")]
    partly = [victim for victim, level in grades.items() if level == "partly"]
    opening = "Trained on the poisoned copy, "
    if withstand:
        who = "every victim" if len(withstand) == len(tests) else ", ".join(withstand)
        opening = f"The poison fails against {who}: trained on the poisoned copy, "
    elif partly:
        opening = f"The poison works only in part against {', '.join(partly)}: trained on the poisoned copy, "
    counts = _seeds(*(t[c].n for t in tests.values() for c in CONDITIONS))
    clean, poisoned = ([t[condition].mean for t in tests.values()] for condition in CONDITIONS)
    return [
        (f"{opening}{len(tests)} victims get ", ""),
        (number(min(poisoned)), "poisoned"),
        (" to ", ""),
        (percent(max(poisoned)), "poisoned"),
        (" of clean test images right (", ""),
        (number(min(clean)), "clean"),
        (" to ", ""),
        (percent(max(clean)), "clean"),
        (f" when trained on the originals), {counts} each", ""),
    ]


def html(run: Run) -> str:
    """The page as text."""
    tables = {victim: stats(run, victim) for victim in run.victims}
    limit = _limit(run)
    return rendered(
        "page.html.jinja",
        run=run,
        title=str(run.settings.get("title") or "Evaluation"),
        created=str(run.settings.get("created") or ""),
        command=str(run.settings.get("command") or ""),
        verdict=_verdict(run),
        tiles=_tiles(run, tables),
        overview=_overview(run),
        strip=_strip(run),
        limit=limit,
        levels=f" ({math.floor(limit * 255 + 1e-6)} of 255 levels)",
        name_lines=1 + sum(max(map(len, run.classes), default=0) > length for length in (8, 16)),
        batch=BATCH,
        victims=[
            _section(run, victim) for victim in run.victims if run.of(victim, "clean") + run.of(victim, "poisoned")
        ],
        tables=tables,
        measures=MEASURES,
        craft=_craft(run),
        facts=_facts(run),
    )


def _tile(label: str, value: str, note: str = "", tone: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "note": note, "tone": tone}


def _tiles(run: Run, tables: dict[str, dict[str, dict[str, Stat]]]) -> list[dict[str, str]]:
    """The key figures: of the one victim, or of the extremes among several."""
    tests = {victim: table.get("test_accuracy", {}) for victim, table in tables.items()}
    whole = {victim: test for victim, test in tests.items() if len(test) == 2}
    tiles = []
    if len(whole) == 1:
        ((victim, test),) = whole.items()
        tiles.append(_tile("trained on originals", percent(test["clean"].mean), _spread(test["clean"]), "clean"))
        note = _spread(test["poisoned"])
        tiles.append(_tile("trained on the copy", percent(test["poisoned"].mean), note, "poisoned"))
        for measure, label, note, unit in (
            ("gap", "generalisation gap", "points, on the copy", ""),
            ("hit_rate", "hit rate", "get the target's label", "%"),
            ("noise_accuracy_test", "noise alone", "right on the test images' noise", "%"),
        ):
            stat = tables[victim].get(measure, {}).get("poisoned")
            if stat is not None and (measure != "hit_rate" or run.label_map is not None):
                tiles.append(_tile(label, percent(stat.mean) if unit else number(stat.mean), note))
    elif whole:
        drops = {victim: test["clean"].mean - test["poisoned"].mean for victim, test in whole.items()}
        for words, pick in (("largest drop", max), ("smallest drop", min)):
            victim = pick(drops, key=lambda name: drops[name])
            tiles.append(_tile(words, number(drops[victim]), f"points, {victim}", "poisoned"))
        tiles.append(_tile("victims", str(len(whole)), f"{len(run.cells)} trainings"))
    eps, measured = run.settings.get("eps"), run.settings.get("budget_measured")
    if finite(measured):
        note = f"of 1; {eps:g} was allowed" if finite(eps) else "of 1"
        tiles.append(_tile("largest pixel change", f"{measured:.3g}", note))
    return tiles


def _spread(stat: Stat) -> str:
    """The standard deviation and the number of repeats, in words."""
    return (f"± {number(stat.std, 2)}, " if stat.std is not None else "") + _seeds(stat.n)


def _overview(run: Run) -> str:
    rows: list[dict[str, Any]] = [
        {"name": victim, **{key: run.values(victim, key, "test_accuracy") for key in CONDITIONS}}
        for victim in run.victims
    ]
    rows = [row for row in rows if row["clean"] or row["poisoned"]]
    return figures.overview(rows, chance=run.chance) if rows else ""


def _limit(run: Run) -> float:
    """The perturbation that the amplified noise shows as black or white."""
    recorded = run.samples["eps"].item() if run.samples and run.samples.get("eps", np.zeros(2)).size == 1 else None
    for value in (recorded, run.settings.get("eps"), run.settings.get("budget_measured")):
        if finite(value) and value > 0:
            return float(value)
    return 1.0


def _strip(run: Run) -> figures.Strip | None:
    if run.samples is None:
        return None
    clean, poisoned, labels = (run.samples[name] for name in ("clean", "poisoned", "labels"))
    return figures.strip(clean, poisoned, labels, run.classes, limit=_limit(run))


def _section(run: Run, victim: str) -> dict[str, Any]:
    """What the page shows of one victim: per condition its learning curves and its confusion matrix."""
    k = len(run.classes)
    panels: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        cells = run.of(victim, condition)
        if not cells:
            continue
        recorded = [cell["curve"] for cell in cells if isinstance(cell.get("curve"), list)]
        runs = [[step for step in curve if isinstance(step, dict)] for curve in recorded]
        counts = [np.asarray(cell["confusion"]) for cell in cells if _square(cell.get("confusion"), k)]
        matrix = ""
        if counts:
            total = np.sum(counts, axis=0)
            matrix = figures.confusion(total, run.classes, tone=condition, targets=run.label_map)
        panels.append(
            {
                "condition": condition,
                "title": "Trained on the originals" if condition == "clean" else "Trained on the poisoned copy",
                "seeds": _seeds(len(cells)),
                "curves": figures.curves(runs, tone=condition),
                "confusion": matrix,
                "maps": _maps(run, cells),
            }
        )
    matrices = [panel for panel in panels if panel["confusion"]]
    return {
        "name": victim,
        "panels": panels,
        "matrices": matrices,
        "looked": [panel for panel in panels if panel["maps"]],
        "learned": any(p["curves"] for p in panels),
    }


def _maps(run: Run, cells: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Where the networks look, as a picture for each class: the mean over the seeds."""
    k = len(run.classes)
    found = [np.asarray(cell["maps"], dtype=float) for cell in cells if isinstance(cell.get("maps"), list)]
    found = [maps for maps in found if maps.ndim == 3 and len(maps) == k]
    if not found:
        return []
    places = run.settings.get("places")
    pictures = figures.attention(np.mean(found, axis=0), places if isinstance(places, list) else None)
    return [{"name": name, "picture": picture} for name, picture in zip(run.classes, pictures, strict=True)][:60]


def _square(matrix: Any, k: int) -> bool:
    """Whether a recorded confusion matrix is k rows of k counts."""
    if not isinstance(matrix, list) or len(matrix) != k:
        return False
    return all(isinstance(row, list) and len(row) == k and all(map(finite, row)) for row in matrix)


def _craft(run: Run) -> dict[str, str] | None:
    """The crafting's damage curve, or that of its search, and a sentence about it."""
    points = _curve(run, "held_out_accuracy")
    if points:
        best = min(points, key=lambda point: point[1])
        text = (
            "The accuracy that a victim keeps on held-out images, after each trial of the crafting. "
            f"{len(run.craft)} trials took {number(points[-1][0])} minutes"
            f"{'' if len(points) == len(run.craft) else f', {len(points)} of them measured so'}; "
            f"the lowest accuracy was {percent(best[1])}, after {number(best[0])} minutes."
        )
        return {"figure": figures.damage(points), "text": text}
    points = _curve(run, "best_fitness")
    if not points:
        return None
    text = (
        "The fitness of the best candidate so far, after each generation of the search: how many more poisoned "
        f"training images than clean held-out ones a fresh network reads right, in percentage points. "
        f"{len(points)} generations took {number(points[-1][0])} minutes and came from {number(points[0][1])} to "
        f"{number(points[-1][1])}. The best of many is partly luck"
    )
    final = [row["final_fitness"] for row in run.craft if finite(row.get("final_fitness"))]
    text += f": under fresh seeds the pixels that were released come to {number(final[-1])}." if final else "."
    return {"figure": figures.damage(points, "Best fitness"), "text": text}


def _curve(run: Run, measure: str) -> list[tuple[float, float]]:
    """(minutes, measure) of the crafting's trials that have both."""
    rows = [row for row in run.craft if finite(row.get("minutes")) and finite(row.get(measure))]
    return sorted((float(row["minutes"]), float(row[measure])) for row in rows)


def _facts(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """The settings and provenance: groups of (name, text)."""
    known = ("kind", "title", "command", "victims", "manifest", "classes", "label_map", "versions")
    groups = [
        ("Run", _flat({key: value for key, value in run.settings.items() if key not in known})),
        ("Versions", _flat(run.settings.get("versions") or {})),
        ("Poison", _flat(run.settings.get("manifest") or {})),
    ]
    groups += [(f"Victim {name}", _flat(value)) for name, value in run.settings.get("victims", {}).items()]
    targets = run.label_map
    names = run.classes
    arrows = [f"{name} → {names[targets[i]]}" if targets else name for i, name in enumerate(names)]
    numbered = [(str(index), arrow) for index, arrow in enumerate(arrows)]
    groups.append(("Classes and the label map" if targets else "Classes", numbered))
    return [(title, facts) for title, facts in groups if facts]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text); long texts are cut, long lists counted."""
    if isinstance(value, dict):
        return [fact for key, part in value.items() for fact in _flat(part, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        text = f"{len(value)} values" if len(value) > 16 else ", ".join(map(str, value))
    else:
        words = {"None": "none", "True": "yes", "False": "no"}
        text = words.get(str(value), str(value))
    return [(prefix or "value", figures.short(text, 300))]
