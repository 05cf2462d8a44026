"""Copy what `miscue reproduce` measured into results/, and write docs/results.md from all that is there.

python scripts/record.py RUN [RUN ...]   append the runs' records, and keep what their figures are drawn from
python scripts/record.py                 only write docs/results.md again
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from miscue.reproduce import standing
from miscue.run import CELL, RECORD, append, lines, rewrite, torn
from miscue.tables import TABLES

ROOT = Path(__file__).parent.parent
MANY = 20  # measures of a row that are folded on the page
ASIDE = ("benchmarks", "deepconfuse-search", "victims")  # how settings were found and what they cost: at the page's end


def add(run: Path) -> None:
    """Append the records of a run to the file of their table, and the cells that figures are drawn from to `cells`.

    Raises:
        SystemExit: there are none, a line is damaged, or they are of the smallest scale, which says nothing of the
            seeds' figures.
    """
    file = run / "records.jsonl"
    if damaged := torn(file, RECORD):
        raise SystemExit(f"{file}: line {damaged[0]} is cut off or damaged; give the command that wrote it again")
    records = lines(file, RECORD)
    if not records:
        raise SystemExit(f"{run} has no records of tables")
    if any(record["scale"] == "smoke" for record in records):
        raise SystemExit(f"{run} is of the scale smoke, which is not recorded")
    for record in records:
        append(ROOT / "results" / f"{record['table']}.jsonl", record)
    rows = {(record["table"], json.dumps(record["row"], sort_keys=True)) for record in records}
    drawn: dict[str, dict[str, Any]] = {}
    for cell in lines(run / "cells.jsonl", CELL):
        own = cell["spec"]["table"], json.dumps(cell["spec"]["row"], sort_keys=True)
        if cell.get("figures") and own in rows:
            drawn.setdefault(cell["spec"]["table"], {})[cell["cell"]] = cell
    (ROOT / "results" / "cells").mkdir(exist_ok=True)
    for table, some in drawn.items():
        place = ROOT / "results" / "cells" / f"{table}.jsonl"
        rewrite(place, list(({cell["cell"]: cell for cell in lines(place, CELL)} | some).values()))


def shown(value: object) -> str:
    """A setting in few characters."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(value: object) -> str:
    """A value of the table in few characters."""
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def newest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that stand; of a curve, only those of its last run."""

    def curve(record: dict[str, Any]) -> str:
        return json.dumps({key: value for key, value in record["row"].items() if key != "trial"}, sort_keys=True)

    made_by = {curve(record): record["command"] for record in records}
    return [
        record
        for record in standing(records)
        if "curve" not in record["row"] or record["command"] == made_by[curve(record)]
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
    common, scales = shared(records), {record["scale"] for record in records}
    columns = {"row": "---", "measure": "---", "published": "---:", "measured": "---:", "n": "---:", "note": "---"}
    found, latest = [], None
    for record in records:
        settings = words({key: value for key, value in record["row"].items() if key not in common})
        settings += f", {record['scale']} scale" if len(scales) > 1 else ""
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


def covered(row: dict[str, Any]) -> str:
    """What tells rows of a table apart whatever their scale: the data, the poison or none, and the victim."""
    return json.dumps([row.get("data"), row.get("poison"), row.get("victim")])


def left_out(name: str, records: list[dict[str, Any]]) -> list[str]:
    """The rows of a table with published figures of which nothing is recorded at any scale, as lines."""
    have = {covered(record["row"]) for record in records}
    rows = [row for scale in ("laptop", "paper") for row in TABLES[name].rows(scale) if row.published]
    missing = {covered(row.settings): row for row in rows if covered(row.settings) not in have}
    if not missing:
        return []
    found = [f"- {words(flat(row.settings))}" for row in missing.values()]
    return ["Published, and not measured here for want of a GPU:", "", *found, ""]


def page() -> str:
    """docs/results.md: every table in results/, as far as it stands; curves, and rows of many measures, are folded."""
    parts = ["# Results", "", "Made by `python scripts/record.py` from the records in `results/`; do not edit.", ""]
    parts += ["Means over n, ± the standard deviation; shares are percentages, in eval mode, after the last epoch.", ""]
    parts += [
        '`miscue report results` draws the figures, too; in the built site <a href="tables.html">on one page</a>.',
        "",
    ]
    paths = sorted((ROOT / "results").glob("*.jsonl"), key=lambda path: (path.stem in ASIDE, path.stem))
    tables = {path.stem: [r | {"row": flat(r["row"])} for r in newest(lines(path, RECORD))] for path in paths}
    if compared := beside(tables):
        parts += ["## Beside the published figures", "", *compared]
    for name, records in tables.items():
        about = TABLES.get(name)
        parts += [f"## {name}", "", *([about.said, ""] if about and about.said else [])]
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
        parts += left_out(name, records) if about else []
        commands = dict.fromkeys(f"- `{r['command']}` (commit {r['commit']}, {r['device']})" for r in records)
        parts += ["Made by:", "", *commands, ""]
    return "\n".join(parts)


def main() -> None:
    """Append what is named, then write the page."""
    for run in map(Path, sys.argv[1:]):
        add(run)
    (ROOT / "docs" / "results.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
