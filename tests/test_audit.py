"""Signs of poison in training data: pixels that stand alone, what a linear classifier reads, what a change takes."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import look_at, within
from miscue.cleaners.pixel_outliers import alone
from miscue.data import Data, mix
from miscue.detectors.poison_probe import CHANGES, Probed, beyond, lone_pixels, probe
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.poisons import POISONS, Attacker
from miscue.readers import read
from miscue.report.audit_page import advice, columns


@pytest.fixture(scope="module")
def digits() -> Data:
    return read("digits").train


def test_the_page_shows_a_lone_pixel_of_a_large_image() -> None:
    images = np.zeros((2, 1, 224, 224), dtype=np.uint8)
    marks = np.zeros((2, 224, 224), dtype=np.float32)
    images[0, 0, 100, 7], marks[0, 100, 7] = 255, 1
    first, _ = columns({"images": images, "marks": marks, "labels": np.array([0, 1])}, ["a", "b"])
    assert first["place"] == "row 100, column 7"
    shown, covered = (
        np.asarray(Image.open(BytesIO(b64decode(uri.split(",")[1])))) for uri in (first["images"][0], first["overlay"])
    )
    assert int((shown == 255).sum()) == 1
    assert int((covered.reshape(*shown.shape, 3).max(2) > 0).sum()) == 1


def poisoned(data: Data, name: str) -> Data:
    return POISONS[name](data, Attacker())(data)


def probed(data: Data, **options: Any) -> Probed:
    *looks, last = probe(data, Dice(0), **options)
    assert all(look.found is None for look in looks)
    assert [look.done for look in (*looks, last)] == list(range(1, last.total + 1))
    assert last.found is not None
    return last.found


def test_a_pixel_stands_alone_where_all_its_neighbours_differ() -> None:
    images = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    images[0, 1, 0, 0] = 200  # a corner, in one channel
    images[0, :, 3, 2:4] = 255  # two side by side are none
    assert alone(images, 0.5)[0].nonzero().tolist() == [[0, 0]]
    assert alone(images, 0.9).sum() == 0
    with pytest.raises(InputError, match="threshold"):
        alone(images, 1.0)


def test_lone_pixels_are_counted_against_the_other_classes() -> None:
    images = torch.full((8, 1, 6, 6), 100, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    images[:3, 0, 2, 2] = 0  # three of four of the first class
    images[4, 0, 2, 2] = 0  # one of four of the second
    found = lone_pixels(Data(images=images, labels=labels, classes=("a", "b")))
    assert found[:, 2, 2].tolist() == [0.5, -0.5]
    assert found.abs().sum() == 1


def test_clean_digits_show_no_sign_and_a_shortcut_shows_where_it_is(digits: Data) -> None:
    test = read("digits").test
    clean = probed(digits, trusted=test)
    assert beyond(clean.signs) == []
    assert set(clean.signs) == {"marks", "simple", "fall", "gap"}
    assert clean.held_out > 85
    marked = poisoned(digits, "one-pixel-shortcut")
    found = probed(marked, trusted=test)
    assert "marks" in beyond(found.signs)
    changed = (marked.images != digits.images).any(1)
    for label in range(len(digits.classes)):
        loudest = int(found.marks[label].argmax())
        assert float(changed[digits.labels == label].flatten(1).double().mean(0)[loudest]) > 0.9
    assert found.signs["gap"] > clean.signs["gap"]


def test_a_part_of_marked_images_counts_as_much_as_it_is(digits: Data) -> None:
    marked, _ = mix(digits, poisoned(digits, "one-pixel-shortcut"), 0.5, Dice(0))
    assert 35 < 100 * float(lone_pixels(marked).max()) < 75


def test_noise_that_a_linear_classifier_reads_is_a_sign(digits: Data) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 60 * (2 * torch.randint(0, 2, (10, 1, 8, 8), generator=generator) - 1)
    data = digits.with_images((digits.images + noise[digits.labels]).clamp(0, 255).to(torch.uint8))
    found = probed(data)
    assert "simple" in beyond(found.signs)
    assert found.trusted is None
    assert "gap" not in found.signs
    assert found.linear > 95


def test_what_nothing_can_learn_is_no_cue(digits: Data) -> None:
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    found = probed(replace(digits, labels=digits.labels[order]))
    assert found.held_out < 25
    assert set(found.signs) == {"marks"}
    assert beyond(found.signs) == []
    told = advice(found.signs, found.after, "digits")
    assert any("no better than guessing" in text for text in told)


def test_few_images_are_looked_at_for_longer(digits: Data) -> None:
    found = probed(digits.take(slice(0, 240)))
    assert found.held_out > found.guessing + 20
    assert set(found.signs) == {"marks", "simple", "fall"}


def test_changes_leave_images_alike(digits: Data) -> None:
    for name, change in CHANGES.items():
        changed = change(digits).images.float()
        assert changed.shape == digits.images.shape, name
        flat = torch.stack([changed.flatten(), digits.images.float().flatten()])
        assert torch.corrcoef(flat)[0, 1] > 0.8, name


def test_bad_input(digits: Data) -> None:
    with pytest.raises(InputError, match="too few"):
        next(probe(digits.take(slice(0, 40)), Dice(0)))
    other = replace(digits, images=digits.images[:, :, :7])
    with pytest.raises(InputError, match="trusted images are"):
        next(probe(digits, Dice(0), trusted=other))
    turned = replace(digits, classes=digits.classes[::-1])
    with pytest.raises(InputError, match="9, 8, 7"):
        next(probe(digits, Dice(0), trusted=turned))


def test_the_command_makes_a_page(digits: Data, tmp_path: Path, browser: Any) -> None:
    marked, test = poisoned(digits, "border-pixel"), read("digits").test
    assert test is not None
    arrays = {"x_train": marked.images, "x_test": test.images}
    named = {key: value.permute(0, 2, 3, 1).numpy() for key, value in arrays.items()}
    np.savez(tmp_path / "set.npz", **named, y_train=marked.labels.numpy(), y_test=test.labels.numpy())
    out = tmp_path / "out"
    line = json.loads(within("audit", tmp_path / "set.npz", out, "--threads", "1", "--json").stdout)
    assert "marks" in line["beyond"]
    assert line["n"] == len(marked)
    records = [json.loads(text) for text in (out / "records.jsonl").read_text().splitlines()]
    assert {record["measure"]: record["mean"] for record in records}["marks"] == line["marks"]
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    within("report", out)
    assert (out / "report.html").read_text() == page
    (out / "records.jsonl").rename(out / "elsewhere")
    lost = within("report", out, check=False)
    assert lost.exit_code == 2
    assert "does not hold an audit: records.jsonl is missing" in lost.stderr
    assert "miscue harden pixel-outliers" in page
    look_at(browser, out / "report.html", width=390, scheme="dark")
    refused = within("audit", tmp_path / "set.npz", tmp_path / "no", "--trusted", "mnist-of-old", check=False)
    assert refused.exit_code == 2
    assert "mnist-of-old" in refused.stderr
    assert not (tmp_path / "no").exists()
