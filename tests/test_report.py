"""The report page: what it says, that it stands alone, and that a real browser shows it well."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import look_at
from miscue.errors import InputError
from miscue.report import figures, page

OUTCOMES = {
    "works": (99.1, 0.7),
    "partly": (77.3, 40.2),
    "little": (99.1, 92.0),
    "failed": (99.1, 98.8),
    "untrained": (11.0, 9.0),
}


def _images(classes: int, channels: int, side: int, seed: int) -> np.ndarray:
    """One blurred blob per class: (classes, channels, side, side), uint8."""
    dice = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    out = np.zeros((classes, channels, side, side))
    for image in out:
        for cx, cy in dice.uniform(0.25, 0.75, (4, 2)):
            blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.012)
            image += blob * dice.uniform(0.4, 1, (channels, 1, 1))
    return (out.clip(0, 1) * 255).astype(np.uint8)


def _curve(train: float, test: float, epochs: int, dice: np.random.Generator) -> list[dict[str, float]]:
    """A plausible learning curve that ends at (train, test)."""
    out = []
    for epoch in range(1, epochs + 1):
        rest = np.exp(-1.1 * epoch) - np.exp(-1.1 * epochs)
        at = {"train_accuracy": train - 40 * rest, "test_accuracy": test + (30 - test) * rest}
        at = {key: round(float(np.clip(value + dice.normal(0, 0.3), 0, 100)), 2) for key, value in at.items()}
        out.append({"epoch": epoch, "loss": round(float(rest + 0.02), 4), **at})
    out[-1] |= {"train_accuracy": train, "test_accuracy": test}
    return out


def _confusion(accuracy: float, k: int, each: int, target: Sequence[int], dice: np.random.Generator) -> list[list[int]]:
    """Counts (k, k) with that accuracy; most of what is wrong goes to `target`, the rest anywhere."""
    matrix = np.zeros((k, k), int)
    for row in range(k):
        right = round(each * accuracy / 100)
        aimed = int((each - right) * (0.6 if target[row] != row else 0))
        matrix[row, row] += right
        matrix[row, target[row]] += aimed
        np.add.at(matrix[row], dice.integers(0, k, each - right - aimed), 1)
    return matrix.tolist()


def _cell(condition: str, victim: str, seed: int, accuracy: float, run: dict[str, Any], epochs: int) -> dict[str, Any]:
    """One line of cells.jsonl."""
    dice = np.random.default_rng([seed, condition == "clean", len(victim)])
    k, poisoned = len(run["classes"]), condition == "poisoned"
    test = round(float(np.clip(accuracy + dice.normal(0, 0.1), 0, 100)), 2)
    train = round(float(min(99.9, max(accuracy, 98.9) + dice.normal(0.3, 0.1))), 2)
    target = run["label_map"] if run["label_map"] and poisoned else list(np.roll(np.arange(k), 3))
    return {
        "condition": condition, "victim": victim, "seed": seed,
        "test_accuracy": test, "train_accuracy": train, "gap": round(train - test, 2),
        "hit_rate": (49.6 + seed * 0.1 if poisoned else 0.02) if run["label_map"] else None,
        "noise_accuracy_train": 96.1 if poisoned else None, "noise_accuracy_test": 67.7 if poisoned else None,
        "test_accuracy_batch_statistics": round(test * 0.98, 2),
        "confusion": _confusion(test, k, 1000 // k, target, dice),
        "curve": _curve(train, test, epochs, dice) if epochs else [], "seconds": 12.3 + seed,
    }  # fmt: skip


def _records(run: dict[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The aggregated lines of records.jsonl."""
    out = []
    for victim in run["victims"]:
        for condition in ("clean", "poisoned"):
            mine = [c for c in cells if (c["victim"], c["condition"]) == (victim, condition)]
            for measure in ("test_accuracy", "train_accuracy", "gap"):
                values = [cell[measure] for cell in mine]
                published = {"clean": 99.32, "poisoned": 0.25}[condition] if measure == "test_accuracy" else None
                row = {"data": "mnist", "condition": condition, "victim": victim, "eps": run["eps"]}
                mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
                numbers = {"published": published, "mean": mean, "std": std, "n": len(values)}
                out.append({"table": "t", "row": row, "measure": measure, **numbers})
    return out


def make_run(
    folder: Path,
    *,
    outcome: str = "works",
    names: Sequence[str] = tuple("0123456789"),
    channels: int = 1,
    side: int = 28,
    victims: Sequence[str] = ("cnn",),
    label_map: list[int] | None = None,
    repeats: int = 5,
    craft: bool = True,
) -> Path:
    """A finished evaluation run with made-up numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    eps, k = 0.3, len(names)
    recipe = {"optimizer": "sgd", "rate": 0.01, "epochs": 6, "batch": 64}
    run = {
        "kind": "evaluate", "title": "mnist: DeepConfuse, eps 0.3",
        "command": "miscue evaluate mnist out/mnist --victims cnn --repeats 5 --out runs/mnist-deepconfuse",
        "created": "2026-11-21T02:00:00Z", "device": "cpu",
        "versions": {"miscue": "0.1.0", "torch": "2.13.0"},
        "clean": "mnist", "poisoned": "out/mnist", "eps": eps, "budget_measured": 0.298,
        "manifest": {"method": "deepconfuse", "options": {"trials": 19, "pseudo_rate": 0.3}, "seed": 0},
        "classes": list(names), "label_map": label_map, "repeats": repeats,
        "victims": {v: {"recipe": recipe, **({"network": v} if v != "forest" else {})} for v in victims},
    }  # fmt: skip
    cells = []
    for index, victim in enumerate(victims):
        for condition, accuracy in zip(("clean", "poisoned"), OUTCOMES[outcome], strict=True):
            epochs = 0 if victim == "forest" else 6
            middle = accuracy + index * (1 if accuracy < 50 else -1)
            cells += [_cell(condition, victim, seed, middle, run, epochs) for seed in range(repeats)]
    clean = _images(k, channels, side, 0)
    noise = np.random.default_rng(1).uniform(-1, 1, (k, channels, side // 4, side // 4)).repeat(4, 2).repeat(4, 3)
    poisoned = (clean + noise * eps * 255).clip(0, 255).astype(np.uint8)
    np.savez(folder / "samples.npz", clean=clean, poisoned=poisoned, labels=np.arange(k), eps=eps)
    (folder / "run.json").write_text(json.dumps(run))
    _write_lines(folder / "cells.jsonl", cells)
    _write_lines(folder / "records.jsonl", _records(run, cells))
    if craft:
        scores = (36.2, 20.1, 8.5, 4.0, 1.63, 1.53, 0.95, 0.70)
        rows = [{"trial": i + 1, "minutes": 1.7 * (i + 1), "held_out_accuracy": a} for i, a in enumerate(scores)]
        _write_lines(folder / "craft.jsonl", rows)
    return folder


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _keep_cells(folder: Path, count: int, tail: str = "") -> None:
    lines = (folder / "cells.jsonl").read_text().splitlines(keepends=True)[:count]
    (folder / "cells.jsonl").write_text("".join(lines) + tail)
    (folder / "records.jsonl").unlink(missing_ok=True)


def _words(folder: Path) -> str:
    """The page of a run, made and read back, with ordinary spaces."""
    return page.write(folder).read_text(encoding="utf-8").replace("\u00a0", " ")


def _verdict(folder: Path) -> str:
    return page.verdict(page.load(folder)).replace("\u00a0", " ")


class _Reader(HTMLParser):
    """Collects what a page loads, its tags and its images' alternative texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def _tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    reader = _Reader()
    reader.feed(text)
    return reader.tags


def test_page_stands_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = page.write(run)
    text = path.read_text(encoding="utf-8")
    assert path == run / "report.html"
    assert path.stat().st_size < 600_000
    assert not list(run.glob(".report.html*"))
    for tag, attributes in _tags(text):
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"url\(|@import", text)


def test_page_is_the_same_each_time(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert page.write(run).read_bytes() == page.write(run).read_bytes()


def test_page_is_accessible(tmp_path: Path) -> None:
    tags = _tags(_words(make_run(tmp_path, victims=("cnn", "forest"))))
    assert ("html", {"lang": "en"}) in tags
    assert sum(tag == "h1" for tag, _ in tags) == 1
    assert all(a.get("alt") for tag, a in tags if tag == "img")
    assert all(a.get("scope") for tag, a in tags if tag == "th")
    assert all(a.get("aria-label") for tag, a in tags if tag == "svg" and a.get("role") == "img")
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = {(a.get("href") or "").lstrip("#") for _, a in tags} | {a.get("aria-labelledby") for _, a in tags}
    assert wanted - {"", None} <= set(ids)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (
            "works",
            "A network trained on the poisoned copy gets 0.7 % of clean test images right (99.2 % when ",
        ),
        ("partly", "The poison works in part: a network trained on the poisoned copy gets 40.2 % of "),
        ("little", "The poison does little: a network trained on the poisoned copy still gets 92.0 % of "),
        ("failed", "The poison failed: a network trained on the poisoned copy still gets 98.8 % of "),
        ("untrained", "No verdict: even a network trained on the originals gets only 11.1 % of "),
    ],
)
def test_verdict(tmp_path: Path, outcome: str, words: str) -> None:
    text = _verdict(make_run(tmp_path, outcome=outcome))
    assert text.startswith(words)
    assert text.endswith(", 5 seeds.")


def test_verdict_of_a_label_map_names_the_hit_rate(tmp_path: Path) -> None:
    run = make_run(tmp_path, label_map=[*range(1, 10), 0])
    assert _verdict(run).endswith("5 seeds; 49.8 % get the label that the poison aims at.")
    assert 'class="target"' in _words(run)


def test_verdict_of_a_missed_target_says_only(tmp_path: Path) -> None:
    run = make_run(tmp_path, label_map=[*range(1, 10), 0])
    text = (run / "cells.jsonl").read_text()
    (run / "cells.jsonl").write_text(re.sub(r'"hit_rate": [0-9.]+', '"hit_rate": 3.0', text))
    assert _verdict(run).endswith("; only 3.0 % get the label that the poison aims at.")


def test_verdict_of_several_victims(tmp_path: Path) -> None:
    run = make_run(tmp_path / "works", victims=("cnn", "cnn-large", "forest"))
    assert _verdict(run).startswith("Trained on the poisoned copy, 3 victims get 0.7 to 2.7 % of clean")
    run = make_run(tmp_path / "failed", victims=("cnn", "forest"), outcome="failed")
    assert _verdict(run).startswith("The poison fails against every victim: ")
    assert "cnn: how it learned" in _words(run)
    assert "not trained in epochs" in _words(run)


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    run = make_run(tmp_path, repeats=1)
    assert _verdict(run).endswith(", 1 seed.")
    assert page.stats(page.load(run), "cnn")["test_accuracy"]["clean"].std is None


def test_grade() -> None:
    def grade(clean: float, poisoned: float, std: float | None = None) -> str:
        both = [page.Stat(mean=mean, std=std, n=5) for mean in (clean, poisoned)]
        return page.grade(*both, chance=10.0)

    assert grade(99, 0.5) == grade(99, 15) == "works"
    assert grade(99, 99.5) == grade(99, 97) == "failed"
    assert grade(99, 89, std=20) == "failed"  # within the noise


def test_unfinished_run_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    _keep_cells(run, 7)
    text = _words(run)
    assert "This run is unfinished: cnn on poisoned data has 2 of 5 trainings." in text
    assert _verdict(run).startswith("So far, a network trained on the poisoned copy gets ")
    assert "2 seeds on the copy, 5 on the originals" in _verdict(run)
    _keep_cells(run, 3)
    assert _verdict(run).startswith("No verdict yet: a network trained on the originals gets 99.2 % of clean")
    assert page.write(run).is_file()


def test_run_with_nothing_but_settings(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("cells.jsonl", "records.jsonl", "samples.npz", "craft.jsonl"):
        (run / name).unlink()
    text = _words(run)
    assert "No verdict yet: no training is recorded." in text
    assert "No samples are recorded." in text


def test_cut_line_is_left_out_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run / "cells.jsonl").open("a") as file:
        file.write('{"condition": "poisoned", "victim": "c')
    with (run / "craft.jsonl").open("a") as file:
        file.write("not json\n")
    text = _words(run)
    assert "The last line of cells.jsonl was cut and is left out." in text
    assert "Line 9 of craft.jsonl cannot be read and is left out." in text
    assert "unfinished" not in text


def test_the_curve_of_a_search(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", craft=False)
    rows = [{"minutes": 0.5 * i, "fitness": 40.0, "best_fitness": 30.0 + 5 * i} for i in range(1, 7)]
    _write_lines(run / "craft.jsonl", [*rows, {"minutes": 3.2, "final_fitness": 51.5}])
    text = _words(run)
    assert "6 generations took 3.0 minutes and came from 35.0 to 60.0" in text
    assert "under fresh seeds the pixels that were released come to 51.5." in text
    assert "Best fitness goes from 35.0 % to 60.0 % in 3.0 minutes" in text


def test_all_trials_of_a_craft_are_counted(tmp_path: Path) -> None:
    """A warm start's are not measured, but they take their time."""
    run = make_run(tmp_path / "run", craft=False)
    rows = [{"trial": i, "minutes": 0.1 * i} for i in range(1, 65)]
    _write_lines(run / "craft.jsonl", [*rows, {"trial": 65, "minutes": 6.5, "held_out_accuracy": 17.0}])
    assert "65 trials took 6.5 minutes, 1 of them measured so; the lowest accuracy was 17.0 %" in _words(run)


def test_damaged_values_do_not_stop_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    lines = [json.loads(line) for line in (run / "cells.jsonl").read_text().splitlines()]
    lines[0] |= {"test_accuracy": float("nan"), "curve": None, "confusion": [[1, 2]]}
    lines[1] |= {"curve": [{"epoch": 1, "train_accuracy": None}, {}]}
    lines.append(lines[2] | {"condition": "half"})
    _write_lines(run / "cells.jsonl", lines)
    np.savez(run / "samples.npz", clean=np.zeros((2, 1, 4, 4), np.uint8), labels=np.array([0, 99]))
    text = _words(run)
    assert page.stats(page.load(run), "cnn")["test_accuracy"]["clean"].n == 4
    assert "samples.npz cannot be read or does not fit" in text
    assert "1 lines of cells.jsonl" not in text
    assert "1 line of cells.jsonl has" in text


def test_resumed_seed_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = (run / "cells.jsonl").read_text().splitlines()[0]
    with (run / "cells.jsonl").open("a") as file:
        file.write(json.dumps(json.loads(first) | {"test_accuracy": 50.0}) + "\n")
    values = page.load(run).values("cnn", "clean", "test_accuracy")
    assert len(values) == 5
    assert 50.0 in values


def test_records_add_published_and_other_measures(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    row = {"victim": "cnn", "condition": "poisoned"}
    with (run / "records.jsonl").open("a") as file:
        file.write(json.dumps({"row": row, "measure": "best_epoch", "mean": 3.25, "std": 0.5, "n": 4}) + "\n")
        file.write(json.dumps({"row": row, "measure": "gap", "mean": 1.0, "std": 0, "n": 4, "published": 7}) + "\n")
    table = page.stats(page.load(run), "cnn")
    assert table["test_accuracy"]["poisoned"].published == 0.25
    assert table["best_epoch"]["poisoned"] == page.Stat(mean=3.25, std=0.5, n=4)
    assert table["gap"]["poisoned"].published == 7
    assert table["gap"]["poisoned"].mean > 90  # the cells have more repeats than that record
    text = _words(run)
    assert "Best epoch" in text
    assert "published 99.32" in text
    assert "what a network in use says about an image must not depend on" in text


def test_names_are_escaped(tmp_path: Path) -> None:
    names = ["<b>bold</b>", "quote\"'", "&amp;", "<script>x</script>"]
    run = make_run(tmp_path, names=names, victims=("<i>cnn</i>", "b"), label_map=[1, 2, 3, 0])
    settings = json.loads((run / "run.json").read_text()) | {"title": "</title><b>", "command": "<b>"}
    (run / "run.json").write_text(json.dumps(settings))
    text = _words(run)
    assert not {"script", "i"} & {tag for tag, _ in _tags(text)}
    assert text.count("<b>") == len(re.findall(r"<b>(?:[−0-9.]+|&lt;/title)", text))
    assert "&lt;b&gt;bold" in text


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 224)])
def test_samples_grey_colour_and_large(tmp_path: Path, channels: int, side: int) -> None:
    run = make_run(tmp_path, names=("cat", "dog"), channels=channels, side=side)
    text = _words(run)
    assert sum(tag == "img" for tag, _ in _tags(text)) == 6
    assert ("Every 3rd pixel is shown" in text) == (side == 224)
    assert (run / "report.html").stat().st_size < 600_000


def test_strip_shows_the_noise() -> None:
    clean = np.full((3, 1, 4, 4), 100, np.uint8)
    poisoned = clean.copy()
    poisoned[:, :, 0] += 51
    strip = figures.strip(clean, poisoned, np.array([1, 0, 1]), ["a", "b"], limit=0.2)
    assert [column["name"] for column in strip.columns] == ["a", "b"]
    assert (strip.width, strip.stride, strip.more) == (84, 1, 0)
    noise = _pixels(strip.columns[0]["noise"])
    assert (noise[0] == 255).all()
    assert (noise[1:] == 128).all()
    assert (_pixels(strip.columns[0]["poisoned"])[0] == 151).all()


def _pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_many_classes(tmp_path: Path) -> None:
    names = [f"Speed limit ({20 + label} km/h)" for label in range(43)]
    run = make_run(tmp_path, names=names, channels=3, side=32, label_map=[*range(1, 43), 0])
    text = _words(run)
    assert "counts are summed" not in text
    assert sum(tag == "img" for tag, _ in _tags(text)) == 3 * 43
    assert 'class="count' not in text
    assert "Speed limit (62 km/h)" in text


def test_confusion_outlines_targets_and_counts() -> None:
    svg = figures.confusion(np.array([[8, 2], [0, 10]]), ["a", "b"], tone="clean", targets=[1, 0])
    assert "90.0\u00a0% on the diagonal" in svg
    assert "10.0\u00a0% on the label map" in svg
    assert re.findall(r'class="count[^>]*>(\d+)<', svg) == ["8", "2", "10"]


@pytest.mark.parametrize(
    ("low", "high", "whole", "want"),
    [(1, 6, True, [1, 2, 3, 4, 5, 6]), (1, 1, True, [1]), (0, 0.9, False, [0, 0.2, 0.4, 0.6, 0.8]),
     (0, 100, False, [0, 20, 40, 60, 80, 100])],
)  # fmt: skip
def test_ticks(low: float, high: float, whole: bool, want: list[float]) -> None:
    assert figures.ticks(low, high, whole=whole) == want


def test_numbers_in_words() -> None:
    assert [figures.number(x) for x in (-0.01, -1.25, 0.04, 99.96)] == ["0.0", "−1.2", "0.0", "100.0"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"kind": "craft", "classes": []}', '{"kind": "evaluate"}'])
def test_no_run_is_an_input_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        page.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages to look at: digits, and many long names under several victims."""
    root = tmp_path_factory.mktemp("runs")
    names = [f"Vehicles over 3.5 metric tons prohibited {label}" for label in range(43)]
    many = make_run(root / "many", names=names, channels=3, side=32, victims=("cnn", "a-rather-long-name", "forest"))
    digits = make_run(root / "digits", label_map=[*range(1, 10), 0])
    return {"digits": page.write(digits), "many": page.write(many)}


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("digits", 390, "light"), ("digits", 1280, "dark"), ("many", 390, "dark"), ("many", 1280, "light")],
)
def test_browser_shows_the_page(browser: Any, shown: dict[str, Path], name: str, width: int, scheme: str) -> None:
    look_at(browser, shown[name], width=width, scheme=scheme)
