"""`miscue attack`: a real model, real files, a real kill, and a page that stands alone."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import look_at, within
from miscue.assault import Attacked, measures
from miscue.cli.attack import HIDDEN
from miscue.cli.options import method_options
from miscue.evasions import EVASIONS
from miscue.models.store import load_model

QUICK = {
    "fgsm": ["--eps", "0.15"],
    "pgd": ["--eps", "0.15", "--steps", "4"],
    "deepfool": [],
    "one-pixel": ["--population", "10", "--generations", "2"],
    "one-pixel-exhaustive": [],
    "universal": ["--passes", "1"],
    "universal-gradient": ["--passes", "2"],
    "stickers": ["--population", "8", "--generations", "2", "--area", "0.2"],
    "soft-stickers": ["--starts", "2", "--steps", "3", "--area", "0.2"],
    "patch": ["--steps", "5", "--area", "0.2"],
    "physical": ["--steps", "3", "--samples", "1"],
    "scene": ["--starts", "2", "--steps", "2"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    within("train", "digits", path, "--victim", "cnn-small", "--epochs", "6", "--threads", "1")
    return path


def test_every_attack_has_a_command() -> None:
    assert set(QUICK) == set(EVASIONS)


@pytest.mark.parametrize("name", EVASIONS)
def test_help_says_what_every_option_is(name: str) -> None:
    for option in method_options(EVASIONS[name], hidden=HIDDEN):
        words = option.annotation.__metadata__[0].help
        assert not words.startswith("Default"), option.name
        usual = inspect.signature(EVASIONS[name]).parameters[option.name].default
        shown = f"{usual:g}" if isinstance(usual, float) else str(usual)
        assert f"Default: {shown}." in words or not shown


@pytest.mark.parametrize("name", QUICK)
def test_battery(name: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["attack", name, model, "digits", out, "--images", "12", "--threads", "1", "--json", *QUICK[name]]
    row = json.loads(within(*words).stdout)
    assert row["method"] == name
    assert 0 <= row["success"] <= 100
    with np.load(out / "adversarials.npz") as saved:
        found = {key: saved[key] for key in saved.files}
    pictures = sorted((out / "images").glob("*.png"))
    assert len(pictures) == len(found["labels"]) == row["n"]
    assert all(np.array_equal(np.asarray(Image.open(p)), found["images"][i, 0]) for i, p in enumerate(pictures))
    net, _ = load_model(model)  # what is recorded is what the saved pictures do
    with torch.no_grad():
        after = net(torch.from_numpy(np.stack([np.asarray(Image.open(p)) for p in pictures]))[:, None] / 255).argmax(1)
    assert np.array_equal(after.numpy(), found["after"])
    assert np.array_equal(found["success"], found["after"] != found["labels"])
    if name in ("fgsm", "pgd"):
        assert row["budget_measured"] <= 0.15 + 1e-9
    assert not (out / "parts").exists()
    page = (out / "report.html").read_text()
    assert name in page
    assert "http" not in page.replace("http-equiv", "")
    measured = {json.loads(line)["measure"] for line in (out / "records.jsonl").read_text().splitlines()}
    assert {"accuracy", "robust_accuracy", "success", "queries"} <= measured
    if name == "fgsm":
        (out / "report.html").unlink()
        within("report", out)
        assert (out / "report.html").read_text() == page


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_browser_shows_the_page(model: Path, tmp_path: Path, browser: Any, width: int, scheme: str) -> None:
    within("attack", "pgd", model, "digits", tmp_path / "out", "--images", "30", "--threads", "1", *QUICK["pgd"])
    look_at(browser, tmp_path / "out" / "report.html", width=width, scheme=scheme)


def test_targets_and_another_split(model: Path, tmp_path: Path) -> None:
    words = ["attack", "pgd", model, "digits", tmp_path / "out", "--images", "10", "--split", "train", "--threads", "1"]
    row = json.loads(within(*words, "--eps", "0.3", "--target", "y+1", "--json").stdout)
    with np.load(tmp_path / "out" / "adversarials.npz") as found:
        assert np.array_equal(found["targets"], (found["labels"] + 1) % 10)
        assert np.array_equal(found["success"], found["after"] == found["targets"])
    assert row["success"] > 15


def test_images_of_the_target_class_are_left_out(model: Path, tmp_path: Path) -> None:
    words = ["attack", "fgsm", model, "digits", tmp_path / "out", "--images", "50", "--threads", "1"]
    done = within(*words, "--target", ",".join(["3"] * 10), "--json")
    with np.load(tmp_path / "out" / "adversarials.npz") as found:
        assert 3 not in found["labels"].tolist()
        assert json.loads(done.stdout)["n"] == len(found["labels"]) < 50
    assert "left out" in done.stderr


def test_a_killed_attack_goes_on_and_ends_the_same(model: Path, tmp_path: Path) -> None:
    words = ["attack", "one-pixel", str(model), "digits"]
    more = ["--images", "120", "--population", "80", "--generations", "10", "--threads", "1", "--json"]
    command = [sys.executable, "-m", "miscue", *words, str(tmp_path / "out"), *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    parts = tmp_path / "out" / "parts"
    while len(list(parts.glob("*.npz"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= len(list(parts.glob("*.npz"))) < 4
    known = {file: file.stat().st_mtime_ns for file in parts.glob("*.npz")}
    refused = within(*words, tmp_path / "out", *more, "--seed", "1", check=False)
    assert refused.exit_code == 2
    assert "of another setting: seed" in refused.stderr
    row = json.loads(within(*words, tmp_path / "out", *more).stdout)
    assert known
    whole = json.loads(within(*words, tmp_path / "whole", *more).stdout)
    assert {k: v for k, v in row.items() if k != "out"} == {k: v for k, v in whole.items() if k != "out"}
    again = within(*words, tmp_path / "out", *more, check=False)
    assert again.exit_code == 2
    assert "holds a finished attack" in again.stderr


def test_success_rises_with_the_budget_that_is_swept(model: Path, tmp_path: Path) -> None:
    words = ["attack", "fgsm", model, "digits", tmp_path / "out", "--images", "60", "--threads", "1"]
    within(*words, "--eps", "0.1", "--sweep", "eps=0.01,25/255,0.1,0.3")
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    success = [(r["row"]["eps"], r["mean"]) for r in records if r["measure"] == "success"]
    assert [eps for eps, _ in success] == pytest.approx([0.1, 0.01, 25 / 255, 0.1, 0.3])
    main, *curve = (share for _, share in success)
    assert curve == sorted(curve)
    assert curve[0] < curve[-1]
    assert main == curve[2]
    budgets = [r["mean"] for r in records if r["measure"] == "budget_measured"]
    assert all(used <= eps + 1e-9 for used, (eps, _) in zip(budgets, success, strict=True))
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{curve[0]:.1f}\u00a0% at 0.01, {curve[-1]:.1f}\u00a0% at 0.3; eps" in page


@pytest.mark.parametrize(
    ("sweep", "complaint"),
    [
        ("epps=0.1", "did you mean eps"),
        ("eps=", "takes values as in eps=1/255,2/255"),
        ("eps=0.1,x", "takes values as in eps=1/255,2/255"),
        ("steps=1.5", "steps takes whole numbers"),
        ("norm=1", "needs an option that is a number; norm is 'linf'"),
        ("eps=0,0.1", "must be positive"),
        ("side=3,99", "a square of 99 pixels does not lie in images of 8 x 8"),
    ],
)
def test_sweeps_that_cannot_be(model: Path, tmp_path: Path, sweep: str, complaint: str) -> None:
    done = within("attack", "pgd", model, "digits", tmp_path / "out", "--sweep", sweep, check=False)
    assert done.exit_code == 2
    assert complaint in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


USERS = """
import torch
from torch import nn
from sklearn.linear_model import LogisticRegression
from miscue.data import floats
from miscue.readers import read

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        torch.manual_seed(0)
        nn.init.normal_(self.net[1].weight)
        self.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}

    def forward(self, x):
        return self.net(x)

def forest():
    train = read("digits").train
    return LogisticRegression(max_iter=200, tol=1e-3).fit(floats(train.images).flatten(1).numpy(), train.labels.numpy())

colour = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
network = Wide
broken = lambda: 1 / 0
"""


def test_a_model_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(USERS)
    more = ["--images", "12", "--threads", "1", "--json"]
    row = json.loads(within("attack", "pgd", f"{file}:network", "digits", tmp_path / "net", *more).stdout)
    assert row["n"] == 12
    queries = ["--population", "30", "--generations", "4"]
    words = ["attack", "one-pixel", f"{file}:forest", "digits", tmp_path / "forest", *more, *queries]
    row = json.loads(within(*words).stdout)
    assert row["accuracy"] > 70
    settings = json.loads((tmp_path / "forest" / "run.json").read_text())
    assert settings["network"] == "forest"
    for text, expected in (
        (f"{file}:absent", "has nothing called absent"),
        (f"{file}:three", "scores (1, 3) for an image"),
        (f"{file}:broken", "ZeroDivisionError"),
        (f"{file}:colour", "cannot take images (1, 8, 8)"),
        (f"{tmp_path}/no.py:network", "no such file"),
    ):
        done = within("attack", "pgd", text, "digits", tmp_path / "out", check=False)
        assert done.exit_code == 2
        assert expected in done.stderr
    done = within("attack", "pgd", f"{file}:forest", "digits", tmp_path / "out", *more, check=False)
    assert done.exit_code == 2
    assert "has no gradient" in done.stderr
    for words in (["explain", "gradient"], ["attack", "deepfool"], ["attack", "soft-stickers"]):
        done = within(*words, f"{file}:forest", "digits", tmp_path / words[1], "--images", "3", check=False)
        assert done.exit_code == 2
        assert "has no gradient" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pgd", "nowhere.safetensors", "digits"], "no such file"),
        (["pgd", "MODEL", "digits", "--norm", "l1"], "unknown norm"),
        (["pgd", "MODEL", "digits", "--split", "tests"], "did you mean test"),
        (["universal", "MODEL", "digits", "--target", "y+1"], "universal has no targets"),
        (["pgd", "MODEL", "digits", "--target", "1,2"], "one target for each of the 10"),
        (["pgd", "MODEL", "digits", "--resize", "12"], "is for 10 classes of images (1, 8, 8)"),
    ],
)
def test_bad_input_is_one_line(words: list[str], expected: str, model: Path, tmp_path: Path) -> None:
    words = [str(model) if word == "MODEL" else word for word in words]
    done = within("attack", *words[:3], tmp_path / "out", *words[3:], check=False)
    assert done.exit_code == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_measures_count_what_they_say() -> None:
    clean = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    images = clean.clone()
    images[0, 0, 0, 0], images[1, 0, 0, :] = 51, 102
    attacked = Attacked(
        clean=clean,
        images=images,
        labels=torch.tensor([0, 0, 0, 1]),
        targets=torch.full((4,), -1),
        before=torch.tensor([0, 0, 0, 0]),
        after=torch.tensor([1, 1, 0, 0]),
        sure_before=torch.ones(4),
        sure_after=torch.ones(4),
        found=torch.tensor([True, True, True, True]),
        success=torch.tensor([True, True, False, True]),
        queries=torch.tensor([10, 20, 30, 40]),
        flat=torch.tensor([False, False, True, False]),
    )
    row = measures(attacked)
    assert row["accuracy"] == 75
    assert row["robust_accuracy"] == 25
    assert row["success"] == pytest.approx(200 / 3)
    assert row["success_found"] == 100
    assert row["flat"] == 25
    assert row["queries"] == 25
    assert row["queries_per_success"] == 30
    assert row["linf"] == pytest.approx((0.2 + 0.4) / 2)
    assert row["l2"] == pytest.approx((0.2 + 0.4 * 2**0.5) / 2)
    assert row["pixels"] == 1.5
    assert row["budget_measured"] == pytest.approx(0.4)
