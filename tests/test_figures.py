"""What is drawn of tables: lines, points and pictures lie where the numbers say, and a phone shows them."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import look_at, striped
from miscue.errors import InputError
from miscue.evaluation import arenas
from miscue.layouts.pictures import png
from miscue.measures.statistics import auroc
from miscue.report import tables_page
from miscue.report.drawings import Line, Plane, dots, histograms, lines, scatter
from miscue.report.kinds import KINDS, Made, gathered
from miscue.tables import FIGURES, TABLES, Figure, Workshop
from miscue.tables.inside import plane
from miscue.tables.pictures import examples, roc, tones
from miscue.tables.poisoned import by_rule, contested, evaluated

Row = tuple[dict[str, Any], list[dict[str, Any]]]  # settings, and for each seed what it found


def run_of(folder: Path, tables: dict[str, list[Row]], *, published: dict[str, float] | None = None) -> Path:
    """The folder of a run with such cells, and the records that follow from them."""
    cells, records = [], []
    for table, rows in tables.items():
        for row, found in rows:
            for seed, one in enumerate(found):
                spec = {"table": table, "row": row, "scale": "laptop", "seed": seed}
                measures = {name: value for name, value in one.items() if isinstance(value, float)}
                figures = {name: value for name, value in one.items() if not isinstance(value, float)}
                cells.append({"cell": str(len(cells)), "spec": spec, "measures": measures, "figures": figures})
            for measure in [name for name, value in found[0].items() if isinstance(value, float)]:
                record = {"table": table, "row": row, "measure": measure, "mean": found[0][measure], "std": None}
                record |= {"published": (published or {}).get(measure), "n": len(found), "scale": "laptop"}
                records.append(record | {"note": None, "device": "cpu", "commit": None, "command": "miscue reproduce"})
    for name, some in (("cells", cells), ("records", records)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    return folder


def made(folder: Path, kind: str, rows: list[Row], **more: Any) -> Made:
    """A figure of such rows."""
    published = more.pop("published", None)
    run_of(folder, {"t": rows}, published=published)
    read = [
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("records.jsonl", "cells.jsonl")
    ]
    return KINDS[kind](Figure(kind=kind, title="A figure", **more), gathered(*read)["t"])


def paths(drawing: str, kind: str) -> list[list[tuple[float, float]]]:
    """The corners of the paths of a class."""
    found = re.findall(rf'<path d="([^"]*)" class="{kind}"', drawing)
    return [[(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)] for path in found]


def circles(drawing: str, kind: str) -> list[tuple[float, float]]:
    found = re.findall(rf'<circle cx="([^"]*)" cy="([^"]*)" r="[^"]*" class="{kind}"', drawing)
    return [(float(x), float(y)) for x, y in found]


def at(frame: Plane, *points: tuple[float, float]) -> list[tuple[float, float]]:
    return [(pytest.approx(frame.x(x), abs=0.06), pytest.approx(frame.y(y), abs=0.06)) for x, y in points]


def test_a_plane_maps_its_corners() -> None:
    frame = Plane(across=(0, 10), up=(0, 100))
    assert (frame.x(0), frame.x(10), frame.y(0), frame.y(100)) == (frame.left, frame.right, frame.bottom, frame.top)
    assert frame.x(5) == (frame.left + frame.right) / 2
    assert frame.y(250) == frame.top


def test_lines_go_through_the_means_and_bands_through_the_extremes() -> None:
    points = {0.0: [90.0, 100.0], 0.2: [50.0, 70.0], 0.1: [80.0, 80.0]}
    drawing = lines([Line(name="a", points=points, published={0.2: 40.0})], across="share", up="accuracy, %")
    frame = Plane(across=(0, 0.2), up=(0, 100))
    assert paths(drawing, "line") == [at(frame, (0, 95), (0.1, 80), (0.2, 60))]
    assert paths(drawing, "band") == [at(frame, (0, 100), (0.1, 80), (0.2, 70), (0.2, 50), (0.1, 80), (0, 90))]
    assert circles(drawing, "dot") == at(frame, (0, 95), (0.1, 80), (0.2, 60))
    assert circles(drawing, "published") == at(frame, (0.2, 40))
    assert ">share<" in drawing
    assert ">accuracy, %<" in drawing
    assert 'aria-label="accuracy, % over share: a 60.0 at 0.2"' in drawing


def test_lines_of_one_seed_have_no_band_and_one_point_no_line() -> None:
    drawing = lines([Line(name="a", points={1.0: [3.0]}), Line(name="b", points={})], across="x", up="y")
    assert paths(drawing, "line") == paths(drawing, "band") == []
    assert circles(drawing, "dot") == at(Plane(across=(0, 2), up=(0, 100)), (1, 3))
    assert 'class="c1"' in drawing
    many = lines([Line(name=str(k), points={0.0: [k], 1.0: [k]}) for k in range(12)], across="x", up="y", between=None)
    assert many.count('class="c1"') == many.count('class="c1 dotted"') == 1
    top = Plane(across=(0, 1), up=(0, 11))
    assert paths(many, "line")[11] == at(top, (0, 11), (1, 11))


def test_dots_lie_at_means_and_ticks_at_seeds() -> None:
    drawing = dots({"first": [20.0, 40.0], "second": [90.0]}, across="success, %", known={"second": 80.0})
    frame = Plane(across=(0, 100), up=(0, 1), left=10, right=410)
    assert circles(drawing, "dot") == [(frame.x(30), 34), (frame.x(90), 74)]
    assert circles(drawing, "published") == [(frame.x(80), 74)]
    seeds = re.findall(r'<line x1="([\d.]+)" x2="\1" y1="(\d+)" y2="\d+" class="seed"', drawing.replace('.0"', '"'))
    assert [(float(x), int(y)) for x, y in seeds] == [(frame.x(20), 27), (frame.x(40), 27), (frame.x(90), 67)]
    assert 'aria-label="success, %: first 30.0, second 90.0"' in drawing


def test_kinds_of_rows_are_compared(tmp_path: Path) -> None:
    rows: list[Row] = [
        ({"data": "a", "attack": "fgsm", "options": {"eps": 0.1}}, [{"success": 50.0}, {"success": 70.0}]),
        ({"data": "a", "attack": "pgd", "options": {"eps": 0.1}}, [{"success": 100.0}]),
        ({"data": "b", "attack": "pgd", "options": {"eps": 0.2}}, [{"success": 80.0}]),
        ({"data": "b", "attack": None}, [{"test_accuracy": 99.0}]),
    ]
    found = made(tmp_path, "dots", rows, value="success", apart=("attack", "eps"), panels=("data",))
    assert [panel.title for panel in found.panels] == ["a", "b"]
    first, second = (panel.drawing for panel in found.panels)
    assert [">fgsm, eps 0.1<" in first, ">pgd, eps 0.1<" in first, ">60.0<" in first] == [True] * 3
    assert second.count('class="dot"') == 1


def test_points_lie_where_they_are() -> None:
    some = [[0.0, -1.0, 0], [2.0, 1.0, 0], [4.0, 3.0, 1]]
    drawing = scatter(some, across=(0, 4), up=(-1, 3), axes=("first", "second"), label="points")
    frame = Plane(across=(0, 4), up=(-1, 3))
    assert paths(drawing, "marks") == [at(frame, (0, -1), (2, 1)), at(frame, (4, 3))]
    means = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="middle" class="mean">(\d)<', drawing)
    assert [(float(x), float(y) - 6, name) for x, y, name in means] == [
        (*at(frame, (1, 0))[0], "0"),
        (*at(frame, (4, 3))[0], "1"),
    ]
    assert ">−1<" in drawing


def test_histograms_step() -> None:
    drawing = histograms({"a": [20.0, 80.0], "b": [40.0, 60.0]}, across="x", up="y")
    frame = Plane(across=(0, 1), up=(0, 80))
    outlines = paths(drawing, "line")
    assert outlines[0] == at(frame, (0, 0), (0, 20), (0.5, 20), (0.5, 80), (1, 80), (1, 0))
    assert outlines[1] == at(frame, (0, 0), (0, 40), (0.5, 40), (0.5, 60), (1, 60), (1, 0))


def test_curves_of_training_are_lines_by_epoch(tmp_path: Path) -> None:
    def curve(*right: float) -> dict[str, Any]:
        steps = [{"epoch": k + 1, "train_accuracy": 99.0, "test_accuracy": value} for k, value in enumerate(right)]
        return {"test_accuracy": right[-1], "curve": steps}

    rows: list[Row] = [
        ({"victim": "cnn+sgd", "poison": "single-pixel"}, [curve(10.0, 40.0), curve(20.0, 60.0)]),
        ({"victim": "cnn+adam", "poison": "single-pixel"}, [curve(5.0, 8.0)]),
        ({"victim": "random-forest", "poison": "single-pixel"}, [curve(50.0)]),
    ]
    words = {"cnn+sgd": "sgd"}
    found = made(tmp_path, "learning", rows, value="curve", apart=("victim",), panels=("poison",), words=words)
    assert [name for _, _, name in found.key] == ["sgd", "cnn+adam", "random-forest"]
    (panel,) = found.panels
    frame = Plane(across=(1, 2), up=(0, 100))
    assert paths(panel.drawing, "line") == [at(frame, (1, 15), (2, 50)), at(frame, (1, 5), (2, 8))]
    assert paths(panel.drawing, "band") == [at(frame, (1, 20), (2, 60), (2, 40), (1, 10))]
    both = made(tmp_path, "curves", rows[:1], value="curve", panels=("poison",))
    assert both.panels[0].tone == "poisoned"
    assert "test accuracy ends at 50.0" in both.panels[0].drawing


def test_a_sweep_stands_beside_the_published_figure(tmp_path: Path) -> None:
    rows: list[Row] = [
        ({"labels": labels, "share": share}, [{"test_accuracy": value}])
        for labels, share, value in ((None, 0.5, 97.0), (None, 1.0, 1.0), ("random", 0.5, 95.0), ("random", 1.0, 0.0))
    ]
    more = {"over": "share", "across": "share", "apart": ("labels",), "words": {"labels": "poison"}}
    found = made(tmp_path, "lines", rows, published={"test_accuracy": 50.0}, **more)
    assert [name for _, _, name in found.key] == ["poison", "random"]
    frame = Plane(across=(0.5, 1), up=(0, 100))
    drawing = found.panels[0].drawing
    assert paths(drawing, "line") == [at(frame, (0.5, 97), (1, 1)), at(frame, (0.5, 95), (1, 0))]
    assert circles(drawing, "published") == at(frame, (0.5, 50), (1, 50), (0.5, 50), (1, 50))


def test_rates_of_detection(tmp_path: Path) -> None:
    curve = [100.0 * min(1, k / 50) for k in range(101)]
    rows: list[Row] = [({"attack": "patch"}, [{"auc": 75.0, "roc": {"s1": curve, "s2": [0.0] * 101}}] * 2)]
    found = made(tmp_path, "roc", rows, value="roc", panels=("attack",))
    frame = Plane(across=(0, 100), up=(0, 100))
    first = paths(found.panels[0].drawing, "line")[0]
    assert [first[0], first[25], first[50], first[100]] == at(frame, (0, 0), (25, 50), (50, 100), (100, 100))
    assert paths(found.panels[0].drawing, "chance") == [at(frame, (0, 0), (100, 100))]
    assert [name for _, _, name in found.key] == ["s1", "s2"]


def test_what_is_left_after_distortions(tmp_path: Path) -> None:
    rows: list[Row] = [
        ({"attack": "fgsm"}, [{"x": 0.0, "kept": {"blur": [[0.0, 100.0], [2.0, 30.0]], "jpeg": []}}]),
        ({"attack": "patch"}, [{"x": 0.0, "kept": {"blur": [[0.0, 100.0], [2.0, 90.0]], "jpeg": [[10, 80.0]]}}]),
    ]
    found = made(tmp_path, "kept", rows, value="kept", across="strength", apart=("attack",))
    assert [panel.title for panel in found.panels] == ["blur", "jpeg"]
    frame = Plane(across=(0, 2), up=(0, 100))
    assert paths(found.panels[0].drawing, "line") == [at(frame, (0, 100), (2, 30)), at(frame, (0, 100), (2, 90))]


def test_the_history_of_activations(tmp_path: Path) -> None:
    sizes = {name: [[[1, 2, 3, 4 * k, 8 * k] for k in (1, 2, 3)]] for name in ("clean", "with a square")}
    found = {"test_accuracy": 90.0, "history": {"layers": [""], "sizes": sizes, "norms": {"4": [1.0, 2.0, 3.0]}}}
    layer, weights = made(tmp_path, "history", [({"data": "mnist"}, [found])], value="history").panels
    frame = Plane(across=(1, 3), up=(0, 24))
    assert paths(layer.drawing, "line")[0] == at(frame, (1, 8), (2, 16), (3, 24))
    assert paths(layer.drawing, "line")[2] == at(frame, (1, 4), (2, 8), (3, 12))
    assert re.findall(r'<g class="(c\d[ a-z]*)"', layer.drawing) == ["c0", "c1", "c0 dotted", "c1 dotted"]
    assert paths(weights.drawing, "line") == [at(Plane(across=(1, 3), up=(0, 3)), (1, 1), (2, 2), (3, 3))]
    assert (layer.title, [name for _, _, name in weights.key]) == ("layer 0", ["layer 4"])


def test_confidence_inside_and_outside(tmp_path: Path) -> None:
    shares = [{"auc": 90.0, "confidences": {"inside": [0.0, 100.0], "outside": [50.0, one]}} for one in (40.0, 60.0)]
    (panel,) = made(tmp_path, "histograms", [({"shown": "gtsrb"}, shares)], value="confidences").panels
    frame = Plane(across=(0, 1), up=(0, 100))
    assert paths(panel.drawing, "line")[1] == at(frame, (0, 0), (0, 50), (0.5, 50), (0.5, 50), (1, 50), (1, 0))


def test_confusions_are_summed_over_the_seeds(tmp_path: Path) -> None:
    one = {"test_accuracy": 50.0, "confusion": {"counts": [[3, 1], [0, 4]], "classes": ["a", "b"], "targets": [1, 0]}}
    (panel,) = made(tmp_path, "confusion", [({"poison": "deepconfuse"}, [one, one])], value="confusion").panels
    assert re.findall(r'class="count[^>]*>(\d+)<', panel.drawing) == ["6", "2", "8"]
    assert "12.5 % on the label map" in panel.drawing.replace("\u00a0", " ")
    assert panel.tone == "poisoned"


def test_transfer_is_on_one_scale_with_rings(tmp_path: Path) -> None:
    rows: list[Row] = [
        ({"victim": "cnn", "poison": poison}, [{"test_accuracy": value}, {"test_accuracy": value + 2}])
        for poison, value in ((None, 97.0), ("deepconfuse", 3.0))
    ]
    (panel,) = made(tmp_path, "transfer", rows, published={"test_accuracy": 25.0}).panels
    assert re.findall(r'cx="([\d.]+)%"[^/]*class="end (\w+)"', panel.drawing) == [
        ("98.00", "clean"),
        ("4.00", "poisoned"),
    ]
    assert panel.drawing.count('class="published clean"') == panel.drawing.count('class="published poisoned"') == 1
    assert 'cx="25.00%"' in panel.drawing


def pixels(source: str) -> np.ndarray:
    """The image of a data URI, (h, w) or (h, w, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def test_weights_and_maps_are_pictures(tmp_path: Path) -> None:
    weights = {"classes": ["a", "b"], "pictures": tones(torch.tensor([[[1.0, -2.0]], [[0.0, 4.0]]]))}
    assert weights["pictures"] == [[[50, -99]], [[0, 99]]]
    (panel,) = made(
        tmp_path, "weights", [({"poison": None}, [{"test_accuracy": 1.0, "weights": weights}])], value="weights"
    ).panels
    first, second = (pixels(picture["images"][0]["src"]) for picture in panel.pictures)
    assert first.shape == (1, 2, 3)
    assert first[0, 1, 2] > 150 > first[0, 1, 0]  # blue: against the class
    assert second[0, 1, 0] > 150 > second[0, 1, 2]  # red: for it
    assert second[0, 0].min() > 240

    x = torch.zeros(9, 1, 2, 2)
    x[:, 0, 1, 1] = 1
    seen = examples(x, [f"n{k}" for k in range(9)], {"map": x[:, 0]})
    assert [one["name"] for one in seen] == ["n0", "n3", "n6"]
    assert seen[0]["image"] == [[[0, 0], [0, 255]]]
    assert seen[0]["maps"] == {"map": [[0, 0], [0, 99]]}
    signs = torch.rand(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    large = examples(signs, ["yield"] * 50, {"clean": signs[:, 0] - 0.5, "cued": signs[:, 1]})
    assert len(json.dumps(large)) < 150_000
    (panel,) = made(tmp_path, "maps", [({"explainer": "gradient"}, [{"a": 1.0, "maps": seen}])], value="maps").panels
    image, overlaid = (pixels(one["src"]) for one in panel.pictures[0]["images"])
    assert image.tolist() == [[0, 0], [0, 255]]
    assert overlaid[0, 0].tolist() == [0, 0, 0]
    assert len(set(overlaid[1, 1].tolist())) == 3  # in colour


def test_an_roc_curve_agrees_with_its_area() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.arange(4000) % 2 == 0
    scores = torch.randn(4000, generator=generator) + positive.float()
    curve = roc(scores, positive)
    assert curve[0] <= curve[50] <= curve[100] == 100.0
    assert float(torch.trapezoid(torch.tensor(curve))) / 100 == pytest.approx(auroc(scores, positive), abs=0.6)
    assert roc(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == [100.0] * 101
    assert roc(torch.zeros(4), torch.tensor([True, False, True, False]))[:100] == [0.0] * 100
    with pytest.raises(InputError, match="some of both kinds"):
        roc(torch.zeros(2), torch.ones(2, dtype=torch.bool))


def test_the_plane_of_features_is_that_of_pca() -> None:
    from sklearn.decomposition import PCA

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 3, 1, 1, 1, 1])
    middle, axes, explained = plane(features)
    reference = PCA(2).fit(features.numpy())
    ours, theirs = ((features - middle) @ axes).numpy(), reference.transform(features.numpy())
    assert np.allclose(np.abs(ours), np.abs(theirs))
    assert explained == pytest.approx(100 * reference.explained_variance_ratio_.sum())
    assert plane(features)[1].equal(axes)


def test_every_figure_is_of_a_table_and_of_a_kind() -> None:
    assert set(FIGURES) <= set(TABLES)
    assert {figure.kind for some in FIGURES.values() for figure in some} == set(KINDS)


def test_a_missing_extra_is_said_before_the_craft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    row = {"data": "mnist", "poison": "deepconfuse", "preset": "paper", "victim": "torchvision:resnet18"}
    with pytest.raises(InputError, match="torchvision:resnet18 needs torchvision: pip install 'miscue\\[zoo\\]'"):
        evaluated(row, 0, Workshop(tmp_path))
    with pytest.raises(InputError, match="did you mean torchvision:resnet50"):
        evaluated(row | {"victim": "torchvision:resnet51"}, 0, Workshop(tmp_path))


def everything() -> dict[str, list[Row]]:
    """Some cells of every table that has figures."""
    steps = [{"epoch": k, "train_accuracy": 90.0 + k, "test_accuracy": 40.0 - 5 * k} for k in (1, 2, 3)]
    confusion = {"counts": np.eye(10, dtype=int).tolist(), "classes": list("0123456789"), "targets": None}
    learned = {"test_accuracy": 25.0, "curve": steps, "confusion": confusion}
    dice = np.random.default_rng(0)
    points = [[float(x), float(y), k % 10] for k, (x, y) in enumerate(dice.normal(size=(60, 2)).round(3))]
    image = dice.integers(0, 255, (3, 32, 32)).tolist()
    seen = [{"name": "speed limit 80", "image": image, "maps": dict.fromkeys(("clean", "cued"), image[0])}] * 4
    picture = base64.b64encode(png(torch.tensor(image[:1], dtype=torch.uint8))).decode()
    before_and_after = [{"name": str(k)} | dict.fromkeys(("original", "noise", "poisoned"), picture) for k in range(10)]
    bars, curve = dice.uniform(0, 30, 20).tolist(), [min(100.0, 2.0 * k) for k in range(101)]
    sizes = [[[1, 2, 3, 4 * k, 8 * k] for k in range(8)]] * 6
    sets = dict.fromkeys(("clean", "with a square", "of another set"), sizes)
    poisons: list[str | None] = [None, "deepconfuse"]
    outcome = {"none": 3.0, "made_on_only": 91.0, "against_only": 0.0, "both": 6.0, "success_where_made": 97.0}
    settings = {"attack": "stickers", "ways": 2, "leaky": False}
    pairs = (("original", "bounded"), ("bounded", "original"), ("original", "other"))
    return {
        "deepconfuse": [({"data": "mnist", "poison": poison}, [learned, learned]) for poison in poisons],
        "deepconfuse-eps": [({"data": "mnist", "eps": eps}, [learned, learned]) for eps in (0.1, 0.3)],
        "deepconfuse-share": [({"share": share, "labels": "random"}, [learned]) for share in (0.5, 1.0)],
        "deepconfuse-label-map": [({"poison": poison, "rule": "y+1"}, [learned]) for poison in poisons],
        "deepconfuse-transfer": [
            ({"data": "mnist", "victim": victim, "poison": poison}, [learned])
            for victim in ("cnn", "torchvision:densenet121")
            for poison in poisons
        ],
        "deepconfuse-features": [
            ({"poison": "deepconfuse"}, [{"variance_explained": 60.0, "features": {"clean test images": points}}])
        ],
        "deepconfuse-weights": [
            (
                {"poison": poison},
                [{"test_accuracy": 90.0, "weights": {"classes": list("0123456789"), "pictures": image[:1] * 10}}],
            )
            for poison in poisons
        ],
        "samples": [({"data": "mnist", "poison": "deepconfuse"}, [{"mean_change": 9.0, "samples": before_and_after}])],
        "single-pixel-optimizers": [
            ({"data": "mnist", "poison": poison, "victim": f"cnn-padded+{name}"}, [learned])
            for poison in poisons
            for name in ("sgd", "adam")
        ],
        "stickers": [
            ({"options": {"area": area, "white": k, "black": 1}, "attack": "stickers"}, [{"success": 40.0}])
            for area in (0.02, 0.1)
            for k in (0, 1)
        ],
        "distortions": [
            ({"attack": name}, [{"kept": {"blur": [[0, 100.0], [2, 40.0]]}, "x": 0.0}]) for name in ("fgsm", "patch")
        ],
        "explanations": [({"explainer": "gradient", "attack": "patch"}, [{"images": 4.0, "maps": seen}])],
        "detection": [({"attack": "patch"}, [{"auc": 75.0, "roc": {"s1": curve, "combined": curve}}] * 2)],
        "outcomes": [(settings | {"made_on": one, "against": other}, [outcome]) for one, other in pairs],
        "outsiders": [({"shown": "gtsrb"}, [{"auc": 9.0, "confidences": {"of its classes": bars, "of none": bars}}])],
        "activations": [
            (
                {"data": "cifar10-jpeg"},
                [
                    {
                        "test_accuracy": 70.0,
                        "history": {
                            "layers": ["2"] * 6,
                            "sizes": sets,
                            "norms": {str(k): [1.0 + k] * 8 for k in range(9)},
                        },
                    }
                ],
            )
        ],
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_kind(tmp_path: Path, browser: Any, scheme: str) -> None:
    tables = everything()
    run = run_of(tmp_path, tables, published={"test_accuracy": 30.0})
    page = tables_page.write(run)
    look_at(browser, page, width=390, scheme=scheme)
    look_at(browser, page, width=1100, scheme=scheme)
    tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    tab.goto(page.as_uri())
    for table in tables:
        part = tab.locator(f'section[data-table="{table}"]')
        assert part.locator(".drawn").count() == 1, table
        for shape in part.locator(".drawn svg.figure, .drawn .pictures img, .drawn table").all():
            box = shape.bounding_box()
            assert box is not None
            assert box["width"] > 50
            assert box["x"] >= 0
    words = tab.locator("section[data-table] svg.figure text").first
    assert words.evaluate("e => e.getBoundingClientRect().height") > 8, "legible"
    strokes = {
        name: tab.locator(f"svg.figure g.{name} path.line").first.evaluate("e => getComputedStyle(e).stroke")
        for name in ("c0", "c1")
    }
    assert len(set(strokes.values())) == 2
    assert "fool the bounded network" in tab.locator('section[data-table="outcomes"] .verdicts').inner_text()
    tab.fill("#filter", "stickers 0.02")
    assert tab.locator("section[data-table]:visible").count() == 1
    tab.close()


def test_a_page_of_every_kind_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    run = run_of(tmp_path, everything())
    first = tables_page.write(run).read_bytes()
    assert len(first) < 300_000
    assert tables_page.write(run).read_bytes() == first


def test_a_victim_leaves_its_curve_and_confusion() -> None:
    data = striped(60)
    clean, _ = arenas(data, data, striped(30, seed=1), None)
    found = by_rule(contested({"victim": "cnn-small", "victim_epochs": 2}, clean, 0), (1, 2, 0))
    assert [step["epoch"] for step in found["curve"]] == [1, 2]
    assert found["curve"][-1]["test_accuracy"] == pytest.approx(found["test_accuracy"], abs=1e-3)
    assert np.trace(found["confusion"]["counts"]) == pytest.approx(30 * found["test_accuracy"] / 100)
    assert found["confusion"]["targets"] == [1, 2, 0]


def test_rows_that_ask_for_the_same_victim_share_it(tmp_path: Path) -> None:
    row: dict[str, Any] = {"data": "digits", "poison": None, "victim": "cnn-small", "victim_epochs": 1}
    first = evaluated(row, 0, Workshop(tmp_path))
    again = evaluated(row | {"rule": "y+1", "eps": 0.0, "share": 1.0}, 0, Workshop(tmp_path))
    assert len(list(tmp_path.glob("victim/*/made.json"))) == 1
    assert "hit_rate" not in first
    counts = np.array(again["confusion"]["counts"])
    assert again["hit_rate"] == pytest.approx(100 * np.roll(counts, -1, axis=1).trace() / counts.sum())
    assert {name: again[name] for name in first if name != "confusion"} | {"confusion": first["confusion"]} == first
    evaluated(row, 1, Workshop(tmp_path))
    assert len(list(tmp_path.glob("victim/*/made.json"))) == 2
