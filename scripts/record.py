"""Copy a run's records into results/, with the published figure beside each, and write docs/results.md from them all.

python scripts/record.py TABLE RUN [RUN ...]     append the runs' records to results/TABLE.jsonl
python scripts/record.py reproduce RUN [RUN ...] append what `miscue reproduce` measured, each table to its own file
python scripts/record.py                         only write docs/results.md again
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from miscue.cli.poison import full_options
from miscue.poisons import POISONS, PRESETS
from miscue.run import append, lines
from miscue.tables import single_pixel

ROOT = Path(__file__).parent.parent

# (table, data, method, victim, condition, measure) -> the seed's figure; None stands for any
PUBLISHED: dict[tuple[str | None, ...], float] = {
    ("deepconfuse", "mnist", None, None, "clean", "test_accuracy"): 99.32,
    ("deepconfuse", "mnist", None, None, "poisoned", "test_accuracy"): 0.25,
    ("deepconfuse", "mnist", None, None, "poisoned", "noise_accuracy_train"): 95.62,
    ("deepconfuse", "mnist", None, None, "poisoned", "noise_accuracy_test"): 95.15,
    ("deepconfuse", "cifar10-jpeg", None, "conv5", "clean", "test_accuracy"): 77.28,
    ("deepconfuse", "cifar10-jpeg", None, "conv5", "poisoned", "test_accuracy"): 28.77,
    ("deepconfuse", "cifar10-jpeg", None, "conv5", "poisoned", "noise_accuracy_train"): 78.57,
    ("deepconfuse-label-map", "mnist", None, None, "poisoned", "hit_rate"): 79.7,
    ("deepconfuse-label-map", "mnist", None, None, "clean", "hit_rate"): 0.0,
    ("deepconfuse-label-map", "mnist", None, None, "poisoned", "test_accuracy"): 1.48,
}
for (_data, _method), _error in single_pixel.ERRORS.items():
    _row = (_data, _method and _method.replace("-", "_"), None, "poisoned" if _method else "clean", "test_error")
    PUBLISHED["single-pixel", *_row] = _error
for _learner, _errors in single_pixel.LEARNERS.items():
    for _method, _error in _errors.items():
        _row = (_method and _method.replace("-", "_"), _learner, "poisoned" if _method else "clean", "test_error")
        PUBLISHED["single-pixel-learners", "mnist", *_row] = _error
CURVES = {
    "held_out_hit_rate": "a surrogate on held-out training images after {minutes:.1f} minutes of crafting",
    "held_out_accuracy": "a surrogate on held-out training images after {minutes:.1f} minutes of crafting",
    "best_fitness": "the best of all candidates so far, after {minutes:.1f} minutes of the search",
    "final_fitness": "the best finalist under the fresh seeds so far, after {minutes:.1f} minutes",
}
IN_ERRORS = (
    "single-pixel",
    "single-pixel-learners",
    "single-pixel-heads",
    "single-pixel-optimizers",
)  # tables whose seed states errors, not accuracies
CRAFTED = ("deepconfuse", "deepconfuse-label-map", "single-pixel")  # tables that have the curves of the crafting, too
MANY = 20  # measures of a row that are folded on the page
ASIDE = ("benchmarks", "deepconfuse_search", "victims")  # how settings were found and what they cost: at the page's end


def published(table: str, record: dict[str, Any]) -> float | None:
    """The seed's figure for a record: the most particular that fits."""
    row = record["row"]
    names = (table, record["data"], row["method"], row["victim"], row["condition"], record["measure"])
    fits = [key for key in PUBLISHED if all(a in (None, b) for a, b in zip(key, names, strict=True))]
    return PUBLISHED[min(fits, key=lambda key: key.count(None))] if fits else None


def as_stated(table: str, record: dict[str, Any]) -> dict[str, Any]:
    """The record in the terms of its table, with the published figure."""
    if table in IN_ERRORS and record["measure"] == "test_accuracy":
        record = record | {"measure": "test_error", "mean": round(100 - record["mean"], 6)}
    return record | {"table": table, "published": published(table, record)}


def add(table: str, run: Path) -> None:
    """Append the means of a run, and the curve of its crafting."""
    settings = json.loads((run / "run.json").read_text(encoding="utf-8"))
    target = ROOT / "results" / f"{table}.jsonl"
    for record in lines(run / "records.jsonl"):
        append(target, as_stated(table, record))
    manifest = settings.get("manifest") or {}
    if table == "single-pixel-optimizers":
        row = {"data": settings["clean"], "method": manifest.get("method"), "eps": settings["eps"]}
        for record in learning(settings, lines(run / "cells.jsonl"), row):
            append(target, record)
    trials = lines(run / "craft.jsonl") if table in CRAFTED else []
    row = {"data": settings["clean"], "method": manifest.get("method"), "eps": settings["eps"], "curve": "crafting"}
    for trial in trials:
        measure = next((name for name in CURVES if name in trial), None)
        if measure is None:
            continue  # a trial of the warm start
        append(
            target,
            {
                "table": table,
                "row": row | {"trial": trial["trial"]},
                "measure": measure,
                "published": None,
                "mean": round(trial[measure], 2),
                "std": None,
                "n": 1,
                "scale": "laptop",
                "data": settings["clean"],
                "seconds": round(60 * trial["minutes"], 1),
                "device": settings["device"],
                "commit": settings["commit"],
                "command": command(manifest),
                "note": CURVES[measure].format(minutes=trial["minutes"]),
            },
        )


def add_tables(run: Path) -> None:
    """Append the records of reproduced tables as they are.

    Raises:
        SystemExit: there are none, or they are of the smallest scale, which says nothing of the seeds' figures.
    """
    records = lines(run / "records.jsonl")
    if not records:
        raise SystemExit(f"{run} has no records of tables")
    if any(record["scale"] == "smoke" for record in records):
        raise SystemExit(f"{run} is of the scale smoke, which is not recorded")
    for record in records:
        append(ROOT / "results" / f"{record['table']}.jsonl", record)


def learning(settings: dict[str, Any], cells: list[dict[str, Any]], row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The mean test error of each victim and condition after each epoch."""
    epochs: dict[tuple[str, str, int], list[float]] = {}
    for one in cells:
        for point in one["curve"]:
            key = (one["victim"], one["condition"], point["epoch"])
            epochs.setdefault(key, []).append(100 - point["test_accuracy"])
    for (victim, condition, epoch), errors in epochs.items():
        yield {
            "table": "single-pixel-optimizers",
            "row": row | {"victim": victim, "condition": condition, "curve": "learning", "epoch": epoch},
            "measure": "test_error",
            "published": None,
            "mean": round(statistics.fmean(errors), 3),
            "std": round(statistics.stdev(errors), 3) if len(errors) > 1 else None,
            "n": len(errors),
            "scale": "laptop",
            "data": settings["clean"],
            "seconds": None,
            "device": settings["device"],
            "commit": settings["commit"],
            "command": settings["command"],
            "note": f"after epoch {epoch}",
        }


def command(manifest: dict[str, Any]) -> str:
    """The crafting's command line, but for the paths: the preset, and what was given beside it."""
    method, name = manifest["method"].replace("_", "-"), manifest["preset"]
    preset = PRESETS[method][name]
    usual = full_options(POISONS[method], preset.options) | asdict(preset.recipe) | {"surrogate": preset.surrogate}
    made = manifest["options"] | manifest["recipe"] | {"surrogate": manifest["surrogate"]}
    words = ["miscue", "poison", method, "--preset", name]
    for option, value in made.items():
        if value != usual[option]:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{option.replace('_', '-')}", text]
    return " ".join(words)


def shown(value: object) -> str:
    """A setting in few characters."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(value: object) -> str:
    """A value of the table in few characters."""
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def standing(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last record of each row and measure; of a curve, only those of its last run."""
    last, made_by = {}, {}
    for record in records:
        curve = json.dumps({key: value for key, value in record["row"].items() if key != "trial"}, sort_keys=True)
        made_by[curve] = record["command"]
        last[json.dumps([record["row"], record["measure"]], sort_keys=True)] = curve, record
    return [
        record for curve, record in last.values() if "curve" not in record["row"] or record["command"] == made_by[curve]
    ]


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row's settings with its options beside the others."""
    own = {key: value for key, value in row.items() if key != "options"}
    return own | (row.get("options") or {})


def shared(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all rows have in common, where there are several rows."""
    first = records[0]["row"]
    if all(record["row"] == first for record in records):
        return {}
    return {key: value for key, value in first.items() if all(r["row"].get(key) == value for r in records)}


def words(settings: dict[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{key} {shown(value)}" for key, value in settings.items() if value is not None)


def measured(record: dict[str, Any]) -> str:
    """The mean, and its spread over several seeds."""
    spread = f" ± {cell(record['std'])}" if record["std"] is not None and record["n"] > 1 else ""
    return cell(record["mean"]) + spread


def ruled(found: list[dict[str, str]], columns: dict[str, str]) -> list[str]:
    """Lines as a table of those columns that are not empty."""
    names = [name for name in columns if any(line[name] for line in found)]
    parts = [names, [columns[name] for name in names], *([line[name] for name in names] for line in found)]
    return [*(f"| {' | '.join(part)} |" for part in parts), ""]


def table(records: list[dict[str, Any]]) -> list[str]:
    """The records as a table: what all rows share before it, a row's settings once, no empty columns."""
    common = shared(records)
    columns = {"row": "---", "measure": "---", "published": "---:", "measured": "---:", "n": "---:", "note": "---"}
    found, latest = [], None
    for record in records:
        settings = words({key: value for key, value in record["row"].items() if key not in common})
        found.append(
            {
                "row": "" if settings == latest else settings,
                "measure": record["measure"],
                "published": cell(record["published"]),
                "measured": measured(record),
                "n": cell(record["n"]),
                "note": record["note"] or "",
            }
        )
        latest = settings
    return [*([f"All rows: {words(common)}.", ""] if common else []), *ruled(found, columns)]


def beside(tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    """All records of which there is a published figure, and how far apart they are."""
    columns = {"table": "---", "row": "---", "measure": "---", "published": "---:", "measured": "---:"}
    found, latest = [], ("", "")
    for name, records in tables.items():
        for record in records:
            if record["published"] is None:
                continue
            now = name, words(record["row"])
            found.append(
                {
                    "table": "" if name == latest[0] else f"[{name}](#{name})",
                    "row": "" if now == latest else now[1],
                    "measure": record["measure"],
                    "published": cell(float(record["published"])),
                    "measured": measured(record),
                    "difference": f"{record['mean'] - record['published']:+.2f}",
                    "n": cell(record["n"]),
                    "note": record["note"] or "",
                }
            )
            latest = now
    return ruled(found, columns | {"difference": "---:", "n": "---:", "note": "---"}) if found else []


def page() -> str:
    """docs/results.md: every table in results/, as far as it stands; curves, and rows of many measures, are folded."""
    parts = ["# Results", "", "Made by `python scripts/record.py` from the records in `results/`; do not edit.", ""]
    parts += ["Means over n, ± the standard deviation; shares are percentages, in eval mode, after the last epoch.", ""]
    paths = sorted((ROOT / "results").glob("*.jsonl"), key=lambda path: (path.stem in ASIDE, path.stem))
    tables = {path.stem: [r | {"row": flat(r["row"])} for r in standing(lines(path))] for path in paths}
    if compared := beside(tables):
        parts += ["## Beside the published figures", "", *compared]
    for name, records in tables.items():
        parts += [f"## {name}", ""]
        points: dict[str, list[dict[str, Any]]] = {}
        common, sizes = shared(records), Counter(words(record["row"]) for record in records)
        for record in records:
            row = record["row"]
            own = words({key: value for key, value in row.items() if key not in common})
            title = f"Curve: {row['curve']}" if "curve" in row else own if sizes[words(row)] > MANY else ""
            points.setdefault(title, []).append(record)
        for title, some in points.items():
            folded = [f"<details><summary>{title}, {len(some)} numbers</summary>", ""] if title else []
            parts += [*folded, *table(some), *(["</details>", ""] if title else [])]
        commands = dict.fromkeys(f"- `{r['command']}` (commit {r['commit']}, {r['device']})" for r in records)
        parts += ["Made by:", "", *commands, ""]
    return "\n".join(parts)


def main() -> None:
    """Append what is named, then write the page."""
    if len(sys.argv) > 2:
        for run in map(Path, sys.argv[2:]):
            if sys.argv[1] == "reproduce":
                add_tables(run)
            else:
                add(sys.argv[1], run)
    (ROOT / "docs" / "results.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
