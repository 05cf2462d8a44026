"""Stickers found by covering, and classes certified against patches."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import look_at, within
from miscue.covers import BLIND, covered
from miscue.detectors.consistency import Detector, Looks
from miscue.detectors.patchcleanser import Masks, certified, cleanse
from miscue.errors import InputError
from miscue.models.store import save_tensors
from miscue.readers import read


class Blocks(nn.Module):
    """Names the quarter of the image with the most light; a pixel that is whiter than white decides alone."""

    def __init__(self, sharpness: float = 6.0):
        super().__init__()
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)
        loud = nn.functional.adaptive_max_pool2d((x.mean(1, keepdim=True) - 0.9).clamp(min=0), 2).flatten(1)
        return self.sharpness * (quarters + 40 * loud)


def scenes(n: int = 80, *, side: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Dim noise and one bright quarter."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.rand(n, 3, side, side, generator=generator)
    y, half = torch.arange(n) % 4, side // 2
    for i, label in enumerate(y.tolist()):
        row, column = label // 2 * half, label % 2 * half
        x[i, :, row : row + half, column : column + half] += 0.5 + 0.2 * torch.rand((), generator=generator)
    return x, y


def stickered(x: Tensor, y: Tensor, *, size: int = 4) -> tuple[Tensor, Tensor]:
    """White squares in the quarter of the next class, and where they are."""
    half = x.shape[2] // 2
    attacked, masks = x.clone(), torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
    for i, label in enumerate(((y + 1) % 4).tolist()):
        row, column = label // 2 * half + 3, label % 2 * half + 5
        attacked[i, :, row : row + size, column : column + size] = 1
        masks[i, row : row + size, column : column + size] = True
    return attacked, masks


def test_scores_by_hand() -> None:
    whole = torch.tensor([[0.6, 0.3, 0.1]])
    covered = torch.tensor([[[0.5, 0.4, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7], [0.05, 0.9, 0.05]]])
    changes = torch.tensor([[3.0, 1.0, 5.0, 2.0]])
    looks = Looks(whole=whole, covered=covered, changes=changes)
    assert looks.named.tolist() == [0]
    assert looks.scores[0].tolist() == pytest.approx([0.55, 0.75, 0.9, -5 * math.log(0.201)])
    assert looks.recovered().tolist() == [2]
    quiet = Looks(whole=whole, covered=covered, changes=torch.tensor([[3.0, 1.0, 5.0, 9.0]]))
    assert quiet.recovered().tolist() == [1]
    same = Looks(whole=whole, covered=whole[:, None].expand(1, 4, 3), changes=changes)
    assert same.scores[0].tolist() == pytest.approx([0, 0, 0, -5 * math.log(0.601)])
    assert same.recovered().tolist() == [0]


def test_a_cover_changes_what_is_under_it() -> None:
    """Squared changes are summed over the window, whatever its place; one that lies over the edge is cut off."""
    x = torch.zeros(2, 3, 8, 8)
    x[1, 0, 7, 7] = 1
    looks = Detector(window=5, stride=2, fill="black").looks(Blocks(), x)
    assert looks.changes.tolist() == [[0] * 9, pytest.approx([0] * 8 + [1 / 3])]
    assert looks.covered.shape == (2, 9, 4)


@pytest.mark.parametrize("sharpness", [3.0, 12.0])
def test_a_sticker_is_found_named_and_undone(sharpness: float) -> None:
    model = Blocks(sharpness)
    (clean, _), (x, y) = scenes(120, seed=1), scenes(80)
    attacked, masks = stickered(x, y)
    assert bool((model(x).argmax(1) == y).all())
    assert bool((model(attacked).argmax(1) == (y + 1) % 4).all())
    detector = Detector(window=6, stride=3).calibrated(model, clean, false_positives=0.05)
    quiet, loud = detector(model, x), detector(model, attacked)
    assert float(quiet.alarm.double().mean()) <= 0.12
    assert torch.equal(quiet.recovered[~quiet.alarm], y[~quiet.alarm])
    assert bool(loud.alarm.all())
    assert torch.equal(loud.named, (y + 1) % 4)
    assert torch.equal(loud.recovered, y)
    top = loud.maps.flatten(1).argmax(1)
    grown = nn.functional.max_pool2d(masks.float()[:, None], 5, stride=1, padding=2).flatten(1)
    assert float(grown.gather(1, top[:, None]).mean()) > 0.9


def test_calibration_keeps_its_share() -> None:
    model, (x, _) = Blocks(), scenes(200, seed=3)
    for share in (0.05, 0.2):
        detector = Detector(window=6, stride=3).calibrated(model, x, false_positives=share)
        assert float(detector(model, x).alarm.double().mean()) <= share + 1e-9
    with pytest.raises(InputError, match="not calibrated"):
        Detector(window=6)(model, x[:2])
    with pytest.raises(InputError, match="cannot show a false-positive rate"):
        Detector(window=6).calibrated(model, x[:10])
    with pytest.raises(InputError, match="window of 30"):
        Detector(window=30).looks(model, x[:2])
    with pytest.raises(InputError, match="fill"):
        replace(detector, fill="gray")(model, x[:2])


def test_masks_cover_every_patch() -> None:
    masks = Masks.against(5, (32, 32), per_side=6)
    assert len(masks) == 36
    assert len(masks.alone) + len(masks.pairs) == 666
    assert set(masks.inside.flatten(1).sum(1).tolist()) == {81}
    for patch, size, per_side in ((5, (32, 32), 6), (3, (10, 17), 4), (1, (7, 7), 2), (7, (7, 9), 3)):
        masks = Masks.against(patch, size, per_side=per_side)
        for row in range(size[0] - patch + 1):
            for column in range(size[1] - patch + 1):
                inside = masks.inside[:, row : row + patch, column : column + patch].flatten(1).all(1)
                assert inside.any(), (patch, size, row, column)
    with pytest.raises(InputError, match="patch of 8"):
        Masks.against(8, (7, 9))
    with pytest.raises(InputError, match="fill"):
        Masks.against(5, (32, 32), fill="mean")


def test_a_patch_is_cleansed_and_certificates_hold() -> None:
    """No patch anywhere undoes a certified image; images without one may be undone."""
    model, (x, y) = Blocks(), scenes(12)
    masks = Masks.against(4, (24, 24), per_side=4)
    sure = certified(model, x, y, masks)
    assert sure.any()
    clean = cleanse(model, x, masks)
    assert torch.equal(clean.named, y)
    attacked, _ = stickered(x, y, size=4)
    assert bool((model(attacked).argmax(1) != y).all())
    assert torch.equal(cleanse(model, attacked, masks).named[sure], y[sure])
    assert not cleanse(model, attacked, masks).unanimous.any()
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        row, column = torch.randint(21, (2,), generator=generator).tolist()
        tried = x.clone()
        tried[:, :, row : row + 4, column : column + 4] = torch.rand(3, 4, 4, generator=generator).round()
        assert torch.equal(cleanse(model, tried, masks).named[sure], y[sure])


@pytest.mark.parametrize("fill", BLIND)
def test_certificates_by_brute_force(fill: str) -> None:
    """Every pair of masks, one by one."""
    model, (x, y) = Blocks(2.0), scenes(8, seed=5)
    x = (x + 0.25 * torch.rand(x.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    masks = Masks.against(6, (24, 24), per_side=3, fill=fill)
    expected = torch.ones(8, dtype=torch.bool)
    for i, j in torch.cat([masks.alone, masks.pairs]).tolist():
        seen = covered(x, (masks.inside[i] | masks.inside[j]).expand(len(x), -1, -1), fill)
        expected &= model(seen).argmax(1) == y
    assert torch.equal(certified(model, x, y, masks), expected)
    assert 0 <= int(expected.sum()) < 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    within("train", "digits", path, "--victim", "cnn-small", "--epochs", "6", "--threads", "1")
    return path


@pytest.fixture(scope="module")
def guard(model: Path) -> Path:
    path = model.with_name("guard.safetensors")
    small = ["--window", "3", "--stride", "1", "--images", "200", "--threads", "1"]
    within("calibrate", model, "digits", path, *small)
    return path


def test_a_saved_detector_says_the_same(tmp_path: Path) -> None:
    classifier, (x, y) = Blocks(), scenes(60)
    detector = Detector(window=6, stride=3).calibrated(classifier, x)
    detector.save(tmp_path / "d.safetensors", note="kept")
    again, facts = Detector.load(tmp_path / "d.safetensors")
    assert facts == {"note": "kept"}
    attacked, _ = stickered(x, y)
    one, other = detector(classifier, attacked), again(classifier, attacked)
    assert torch.equal(one.alarm, other.alarm)
    assert torch.equal(one.score, other.score)
    with pytest.raises(InputError, match="not calibrated"):
        Detector().save(tmp_path / "e.safetensors")
    save_tensors(tmp_path / "old.safetensors", {"clean": x}, kind="detector", window=6, stride=3)
    with pytest.raises(InputError, match="calibrate it again"):
        Detector.load(tmp_path / "old.safetensors")


def test_images_in_a_folder(model: Path, guard: Path, tmp_path: Path, browser: Any) -> None:
    digits = read("digits").test
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(12):
        picture = digits.images[i, 0].clone()
        if i < 4:
            picture[2:5, :3] = 255
        Image.fromarray(picture.numpy()).save(folder / f"{i:02}.png")
    words = ["detect", model, guard, folder, out, "--threads", "1", "--json"]
    rows = [json.loads(line) for line in within(*words).stdout.splitlines()]
    assert [row["file"] for row in rows] == [f"{i:02}.png" for i in range(12)]
    assert all(row["recovered"] == row["class"] for row in rows if not row["alarm"])
    with (out / "detections.csv").open(encoding="utf-8") as file:
        assert [line["class"] for line in csv.DictReader(file)] == [row["class"] for row in rows]
    look_at(browser, out / "report.html", width=390, scheme="dark")
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    within("report", out)
    assert (out / "report.html").read_text() == page
    (folder / "05.png").write_bytes(b"no picture")
    refused = within(*words, "--overwrite", check=False)
    assert refused.exit_code == 2
    assert "05.png cannot be read" in refused.stderr
    going = within(*words, "--overwrite", "--keep-going")
    assert len(going.stdout.splitlines()) == 11
    assert "skipped, cannot be read: 05.png" in going.stderr


def test_a_test_set_and_its_share_of_alarms(model: Path, guard: Path, tmp_path: Path) -> None:
    done = within("detect", model, guard, "digits", tmp_path / "out", "--threads", "1", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 359
    assert sum(row["alarm"] for row in rows) / len(rows) < 0.2


def test_detect_refuses(model: Path, guard: Path, tmp_path: Path) -> None:
    other, empty = tmp_path / "other.safetensors", tmp_path / "empty"
    within("train", "digits", other, "--victim", "cnn-small", "--epochs", "1", "--threads", "1", "--seed", "3")
    empty.mkdir()
    for words, expected in (
        ([other, guard, "digits"], "calibrated for another model"),
        ([model, model, "digits"], "not a detector"),
        ([model, guard, empty], "is empty"),
        ([model, tmp_path / "none.safetensors", "digits"], "no such file"),
    ):
        done = within("detect", *words, tmp_path / "out", check=False)
        assert done.exit_code == 2
        assert expected in done.stderr
    done = within("calibrate", model, "digits", tmp_path / "c.safetensors", "--window", "9", check=False)
    assert done.exit_code == 2
    assert "window of 9 pixels" in done.stderr


def test_certify(model: Path, tmp_path: Path) -> None:
    words = [
        "certify",
        model,
        "digits",
        "--patch",
        "2",
        "--per-side",
        "3",
        "--images",
        "60",
        "--threads",
        "1",
        "--json",
    ]
    row = json.loads(within(*words).stdout)
    assert 0 <= row["certified_accuracy"] <= row["cleansed_accuracy"] <= 100
    assert row["n"] == 60
    holed = tmp_path / "holed.safetensors"
    more = ["--victim", "cnn-small", "--epochs", "20", "--holes", "2", "--hole", "3", "--threads", "1"]
    within("train", "digits", holed, *more)
    better = json.loads(within("certify", holed, *words[2:]).stdout)
    assert better["certified_accuracy"] > row["certified_accuracy"]
    done = within("certify", model, "digits", "--patch", "9", check=False)
    assert done.exit_code == 2
    assert "patch of 9 pixels" in done.stderr
