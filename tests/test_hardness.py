"""Which images are hard: closed forms for a linear model, and what the measures find on real digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import look_at, within
from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions import fgsm, pgd
from miscue.hardness import HARDNESS, ease, emphasised, forgotten, kappa, smallest_eps
from miscue.measures.statistics import auroc
from miscue.models.store import load_model
from miscue.readers import read
from miscue.train import Recipe
from miscue.victims import Victim


class Between(nn.Module):
    """Two classes, told apart by the sum of four pixels: score of class 1 is w (sum - 2), of class 0 minus that."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).sum(1) - 2
        return torch.stack([-score, score], dim=1) / 2


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Data, Data]:
    """A network that reads scikit-learn's digits, but for 5 % wrong labels in its training set."""
    torch.set_num_threads(1)
    splits = read("digits")
    labels = splits.train.labels.clone()
    labels[::20] = (labels[::20] + 3) % 10
    noisy = Data(images=splits.train.images, labels=labels, classes=splits.train.classes)
    recipe = Recipe(lr=0.1, momentum=0.9, epochs=6, batch_size=64, schedule="cosine")
    model = Victim(network="cnn-small", recipe=recipe)(noisy, Dice(0))
    assert splits.test is not None
    return model, noisy, splits.test


def test_closed_forms() -> None:
    """The boundary lies |sum - 2| / 4 away in L-infinity and |sum - 2| / 2 in L2."""
    x = torch.full((4, 1, 2, 2), 0.5)
    for i, away in enumerate((0.05, 0.11, -0.07, 0.03)):
        x[i] += away  # sum - 2 = 4 away
    y = torch.tensor([1, 1, 1, 1])
    steps = kappa(Between(), x, y, eps=0.1, alpha=0.02)
    assert steps.tolist() == [3, 6, 0, 2]  # 0.05 needs three steps of 0.02
    eps = smallest_eps(Between(), x, y, most=0.1, halvings=10)
    assert eps[:2].tolist() == pytest.approx([0.05, 0.2], abs=2e-3)
    assert eps[2] == 0
    assert eps[3] == pytest.approx(0.03, abs=2e-3)
    distances = HARDNESS["distance"](Between(), x, y)
    assert distances.tolist() == pytest.approx([0.1, 0.22, 0, 0.06], rel=0.03, abs=1e-3)
    assert HARDNESS["margin"](Between(), x, y).tolist() == pytest.approx([0.2, 0.44, -0.28, 0.12], abs=1e-5)


def test_kappa_is_when_attacks_begin_to_succeed(trained: tuple[nn.Module, Data, Data]) -> None:
    model, _, test = trained
    x, y = floats(test.images[:60]), test.labels[:60]
    alpha = 0.03
    steps = kappa(model, x, y, eps=0.3, alpha=alpha)
    one = fgsm(model, x, y, eps=alpha)
    assert torch.equal(steps <= 1, one.success | one.already)
    weak = pgd(model, x, y, eps=0.3, alpha=alpha, steps=10, random_start=False)
    assert bool((weak.success <= (steps <= 10)).all())
    assert len(steps.unique()) > 3


@pytest.mark.parametrize("name", HARDNESS)
def test_hard_images_are_the_wrong_ones(name: str, trained: tuple[nn.Module, Data, Data]) -> None:
    model, noisy, test = trained
    with torch.no_grad():
        wrong = model(floats(test.images)).argmax(1) != test.labels
    assert 3 < int(wrong.sum()) < 60
    state = {key: value.clone() for key, value in model.state_dict().items()}
    # towards the class that is *named*, so that the label gives nothing away
    named = Data(images=test.images, labels=model(floats(test.images)).argmax(1), classes=test.classes)
    assert auroc(-ease(name, model, named), wrong) > 80
    mislabelled = torch.zeros(len(noisy), dtype=torch.bool)
    mislabelled[::20] = True
    assert auroc(-ease(name, model, noisy), mislabelled) > 80
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_ties_of_kappa_are_broken_within_a_step(trained: tuple[nn.Module, Data, Data]) -> None:
    model, _, test = trained
    some = test.spread(40)
    whole = kappa(model, floats(some.images), some.labels)
    assert torch.equal(ease("kappa", model, some).floor(), whole)
    assert len(ease("kappa", model, some).unique()) > len(whole.unique())


def test_forgetting_counts_falls() -> None:
    right = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1]]).bool()
    assert forgotten(right).tolist() == [2, 4, 0, 0]


def test_auroc_by_hand() -> None:
    assert auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])) == pytest.approx(75)
    with pytest.raises(InputError, match="both kinds"):
        auroc(torch.rand(3), torch.ones(3).bool())


def test_the_hardest_is_drawn_most() -> None:
    weights = emphasised(torch.tensor([5.0, 1.0, 3.0, 3.0, 9.0]), 3.0)
    assert weights.tolist() == pytest.approx([1.5, 3.0, 2.25, 2.25, 1.0])
    assert emphasised(torch.tensor([2.0, 1.0]), 1.0).tolist() == [1.0, 1.0]
    for values, emphasis in ((torch.tensor([1.0, 2.0]), 0.5), (torch.tensor([1.0]), 2.0)):
        with pytest.raises(InputError, match="emphasis must be at least 1"):
            emphasised(values, emphasis)


def test_training_draws_by_the_ranking(saved: Path, tmp_path: Path) -> None:
    count = len(read("digits").train)
    words = ["rank", saved, "digits", tmp_path / "rank", "--split", "train", "--by", "margin", "--threads", "1"]
    within(*words, "--images", str(count))
    table = tmp_path / "rank" / "ranking.csv"
    train = ["train", "digits", tmp_path / "hard", "--victim", "cnn-small", "--epochs", "2", "--ranking", table]
    row = json.loads(within(*train, "--emphasis", "5", "--json").stdout)
    assert row["test_accuracy"] > 50
    _, facts = load_model(tmp_path / "hard")
    assert facts["emphasis"] == 5.0
    rows = table.read_text().splitlines()
    for name, lines, complaint in (
        ("short", rows[:50], f"ranks 49 images, the training set has {count}"),
        ("other", [rows[0], *(f"{row.rsplit(',', 3)[0]},none,0,0" for row in rows[1:])], "classes are not those"),
        ("torn", ["rank;image", "1;2"], "is not a ranking"),
    ):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        done = within(*train[:-1], tmp_path / name, "--overwrite", check=False)
        assert done.exit_code == 2, name
        assert complaint in " ".join(done.stderr.split())
    done = within("train", "digits", tmp_path / "none", "--emphasis", "5", check=False)
    assert done.exit_code == 2
    assert "give one with --ranking" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("measure", "options", "words"),
    [(kappa, {"alpha": 0.5}, "alpha must lie"), (smallest_eps, {"most": 0.0}, "must be positive")],
)
def test_bad_numbers(measure: object, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure(Between(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    within("train", "digits", path, "--victim", "cnn-small", "--epochs", "3", "--threads", "1")
    return path


@pytest.mark.parametrize("by", ["kappa", "margin"])
def test_the_ranking_as_files(by: str, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["rank", saved, "digits", out, "--by", by, "--images", "200", "--threads", "1", "--json"]
    row = json.loads(within(*words).stdout)
    with (out / "ranking.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == row["n"]
    values = [float(line["value"]) for line in lines]
    assert values == sorted(values)
    wrong = [line["class"] != line["named"] for line in lines]
    assert row["accuracy"] == pytest.approx(100 - 100 * sum(wrong) / len(wrong))
    assert sum(wrong[: len(wrong) // 5]) >= 0.8 * sum(wrong), "errors are among the hardest"
    assert row["auroc_of_errors"] > 75
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    within("report", out)
    assert (out / "report.html").read_text() == page


def test_browser_shows_the_page(saved: Path, tmp_path: Path, browser: Any) -> None:
    within("rank", saved, "digits", tmp_path / "out", "--by", "certainty", "--images", "150", "--threads", "1")
    look_at(browser, tmp_path / "out" / "report.html", width=390, scheme="light")


def test_unknown_measures_are_named(saved: Path, tmp_path: Path) -> None:
    done = within("rank", saved, "digits", tmp_path / "out", "--by", "kapa", check=False)
    assert done.exit_code == 2
    assert "did you mean kappa" in done.stderr
