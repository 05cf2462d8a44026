"""`miscue explain`: real models, real files, a page that stands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import look_at, within
from miscue.cli.explain import judged
from miscue.data import floats
from miscue.explainers import EXPLAINERS
from miscue.models.networks import placed
from miscue.models.store import load_model
from miscue.report import explain_page


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    within("train", "digits", path, "--victim", "cnn-small", "--epochs", "6", "--threads", "1")
    return path


@pytest.mark.parametrize("name", EXPLAINERS)
def test_battery(name: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--window", "3"] if name == "occlusion" else []
    words = ["explain", name, model, "digits", out, "--images", "24", "--threads", "1", "--json", "--box", "1,1,7,7"]
    row = json.loads(within(*words, *more).stdout)
    assert row["n"] == 24
    assert {"deletion", "deletion_random", "insertion", "insertion_random"} <= set(row)
    if name != "gradcam":  # its maps of 8 x 8 images have few places
        assert row["deletion"] < row["deletion_random"]
        assert row["insertion"] > row["insertion_random"]
    assert 50 < row["inside"] <= 100  # digits lie in the middle
    with np.load(out / "maps.npz") as archive:
        found = {key: archive[key] for key in archive.files}
    net = placed(load_model(model)[0], "cpu")
    x = floats(torch.from_numpy(found["images"]), channels_last=True)
    named = net(x).argmax(1)
    assert np.array_equal(named.numpy(), found["named"])
    options = {"window": 3} if name == "occlusion" else {}
    expected = EXPLAINERS[name](net, x, named, **options)
    assert np.allclose(found["maps"], expected.numpy(), atol=1e-4)
    measured = {json.loads(line)["measure"] for line in (out / "records.jsonl").read_text().splitlines()}
    assert {"deletion", "insertion", "inside", "deletion_random"} <= measured
    page = (out / "report.html").read_text()
    assert ("against the class" in page) == (name == "occlusion")
    (out / "report.html").unlink()
    within("report", out)
    assert (out / "report.html").read_text() == page
    refused = within(*words, *more, check=False)
    assert refused.exit_code == 2
    assert "add --overwrite" in refused.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gradient", "--of", "wrong"], "--of must be true or named"),
        (["gradient", "--box", "1,2,3"], "--box needs TOP,LEFT,BOTTOM,RIGHT"),
        (["gradient", "--box", "1,2,9,9"], "reaches outside"),
        (["gradient", "--masks", "nowhere"], "digits has none"),
        (["occlusion", "--window", "9"], "window of 9 pixels"),
        (["gradcam", "--layer", "nothing"], "unknown layer"),
    ],
)
def test_bad_input_is_one_line(words: list[str], expected: str, model: Path, tmp_path: Path) -> None:
    done = within("explain", words[0], model, "digits", tmp_path / "out", *words[1:], check=False)
    assert done.exit_code == 2
    assert expected in done.stderr
    assert not (tmp_path / "out").exists()


def test_masks_of_the_objects(tmp_path: Path) -> None:
    """Images whose object is a square in a corner, as files; the masks lie beside them, under the same names."""
    for split, count in (("train", 24), ("test", 6)):
        for label, (row, column) in enumerate(((1, 1), (1, 7), (7, 1), (7, 7))):
            for number in range(count):
                image, mask = np.full((12, 12), 40 + number, np.uint8), np.zeros((12, 12), np.uint8)
                image[row : row + 4, column : column + 4], mask[row : row + 4, column : column + 4] = 230, 255
                for place, picture in (("data", image), ("masks", mask)):
                    file = tmp_path / place / split / str(label) / f"{number}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture).save(file)
    train = ["train", tmp_path / "data", tmp_path / "model", "--victim", "cnn-small", "--epochs", "30"]
    within(*train, "--batch-size", "8", "--lr", "0.02", "--threads", "1")
    words = ["explain", "gradient", tmp_path / "model", tmp_path / "data", tmp_path / "out", "--threads", "1"]
    masks = tmp_path / "masks" / "test"
    row = json.loads(within(*words, "--masks", masks, "--json").stdout)
    assert row["inside_by_chance"] == pytest.approx(100 * 16 / 144)
    assert row["inside"] > 2 * row["inside_by_chance"]
    both = within(*words, "--overwrite", "--masks", masks, "--box", "0,0,1,1", check=False)
    assert "not both" in both.stderr
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(masks / "1" / "3.png")
    wrong = within(*words, "--overwrite", "--masks", masks, check=False)
    assert wrong.exit_code == 2
    assert "5 x 5 pixels" in " ".join(wrong.stderr.split())
    (masks / "1" / "3.png").unlink()
    missing = within(*words, "--overwrite", "--masks", masks, check=False)
    assert "no such mask" in missing.stderr


def test_a_failure_leaves_what_was_there(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["explain", "gradient", model, "digits", out, "--images", "5", "--threads", "1"]
    within(*words)
    page = (out / "report.html").read_bytes()
    failed = within("explain", "occlusion", model, "digits", out, "--window", "9", "--overwrite", check=False)
    assert failed.exit_code == 2
    assert (out / "report.html").read_bytes() == page
    within(*words, "--overwrite", "--of", "true")
    assert (out / "report.html").read_bytes() != page
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("name", "width", "scheme"), [("gradcam", 390, "dark"), ("occlusion", 1280, "light")])
def test_browser_shows_the_page(browser: Any, model: Path, tmp_path: Path, name: str, width: int, scheme: str) -> None:
    out, more = tmp_path / "out", ["--window", "3"] if name == "occlusion" else []
    within("explain", name, model, "digits", out, "--images", "30", "--of", "true", "--threads", "1", *more)
    look_at(browser, out / "report.html", width=width, scheme=scheme)


def test_colours_run_from_end_to_end() -> None:
    for scale in (explain_page.RISING, explain_page.SIGNED):
        ends = explain_page.coloured(np.array([0.0, 1.0]), scale)
        assert tuple(ends[0]) == scale[0][1]
        assert tuple(ends[1]) == scale[-1][1]
    values, cover = explain_page.heat(np.array([[-2.0, 0.0, 1.0]]), signed=True)
    assert values.tolist() == [[0.0, 0.5, 0.75]]
    assert cover.tolist() == [[1.0, 0.0, 0.5]]


def test_a_killed_command_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops it: what was found of the first images is not looked for again, and the whole is the same."""
    out, words = tmp_path / "out", ["--images", "40", "--threads", "1", "--json"]
    whole = json.loads(within("explain", "gradient", model, "digits", tmp_path / "whole", *words).stdout)
    calls = []

    def stopped(*given: Any) -> Any:
        calls.append(given[-1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judged(*given)

    monkeypatch.setattr("miscue.cli.explain.judged", stopped)
    killed = within("explain", "gradient", model, "digits", out, *words, check=False)
    assert killed.exit_code != 0
    assert not out.exists()
    assert sorted(path.name for path in (tmp_path / "out.pieces").glob("*.npz")) == ["000000.npz", "000016.npz"]
    refused = within("explain", "gradcam", model, "digits", out, *words, check=False)
    assert refused.exit_code == 2
    assert "of another setting: method" in " ".join(refused.stderr.split())
    row = json.loads(within("explain", "gradient", model, "digits", out, *words).stdout)
    assert calls[3:] == [32]
    assert {key: value for key, value in row.items() if key != "out"} == {
        key: value for key, value in whole.items() if key != "out"
    }
    assert not (tmp_path / "out.pieces").exists()
