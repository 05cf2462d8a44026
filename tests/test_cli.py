"""The command line as people use it: real processes, real files, real kills."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import miscue, striped, within
from miscue.cli import console
from miscue.data import Data
from miscue.models.store import load_model
from miscue.readers import read
from miscue.run import Tick
from miscue.train import Recipe, settled
from miscue.victims import DEFAULT

ROOT = Path(__file__).parent.parent
CRAFT = ["--trials", "2", "--steps", "4", "--batch-size", "16", "--surrogate", "cnn-small", "--threads", "1"]


def save_npz(path: Path, train: Data, test: Data) -> None:
    arrays = {
        "x_train": train.images[:, 0],
        "y_train": train.labels,
        "x_test": test.images[:, 0],
        "y_test": test.labels,
    }
    np.savez(path, **{k: v.numpy() for k, v in arrays.items()})


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "set.npz"
    save_npz(path, striped(120), striped(60, seed=5))
    return path


@pytest.fixture(scope="module")
def poisoned(npz: Path) -> Path:
    out = npz.parent / "out"
    done = miscue("poison", "deepconfuse", npz, out, *CRAFT, "--eps", "8/255", "--json")
    row = json.loads(done.stdout)
    assert row["eps"] == pytest.approx(8 / 255)
    assert 0 < row["budget_measured"] <= 8 / 255 + 1e-9
    return out


def test_poison_writes_the_layout_of_its_input_and_a_manifest(npz: Path, poisoned: Path) -> None:
    clean, copy = read(npz), read(poisoned)
    assert torch.equal(clean.train.labels, copy.train.labels)
    assert torch.equal(clean.test.images, copy.test.images)
    worst = (clean.train.images.int() - copy.train.images.int()).abs().max()
    assert 0 < worst <= 8
    manifest = json.loads((poisoned / "manifest.json").read_text())
    assert manifest["method"] == "deepconfuse"
    assert manifest["options"]["trials"] == 2
    assert manifest["options"]["objective"] == "cross-entropy"  # a default, written down
    assert manifest["poisoned_images"] == {"train": 120}
    assert str(ROOT) not in json.dumps(manifest)


def test_apply_reproduces_the_copy_and_takes_a_share(npz: Path, poisoned: Path, tmp_path: Path) -> None:
    kept = poisoned.with_name("out.craft") / "perturbation.safetensors"
    within("poison", "apply", kept, npz, tmp_path / "again", "--threads", "1")
    assert torch.equal(read(tmp_path / "again").train.images, read(poisoned).train.images)
    within("poison", "apply", kept, npz, tmp_path / "part", "--share", "0.25", "--part", "both")
    changed = (read(tmp_path / "part").train.images != read(npz).train.images).flatten(1).any(1)
    assert changed.sum() == 30
    assert json.loads((tmp_path / "part" / "manifest.json").read_text())["poisoned_images"] == {"train": 30, "test": 15}


def test_evaluate_writes_records_and_a_page_and_resumes(npz: Path, poisoned: Path, tmp_path: Path) -> None:
    words = ["evaluate", npz, poisoned, "--victims", "cnn-small,cnn-plain", "--repeats", "2", "--epochs", "1"]
    words += ["--precision", "auto", "--out", tmp_path / "run", "--threads", "1", "--json"]
    rows = [json.loads(line) for line in miscue(*words).stdout.splitlines()]
    fields = {"table", "row", "measure", "published", "mean", "std", "n", "scale", "data", "seconds", "device"}
    assert all(fields | {"commit", "command", "note"} == row.keys() for row in rows)
    measures = {(r["row"]["victim"], r["row"]["condition"], r["measure"]) for r in rows}
    assert ("cnn-plain", "poisoned", "noise_accuracy_test") in measures
    assert ("cnn-small", "clean", "test_accuracy_batch_statistics") in measures
    by_batch = {(v, c) for v, c, measure in measures if measure == "noise_accuracy_test_batch_statistics"}
    assert by_batch == {("cnn-small", "poisoned")}
    assert {r["n"] for r in rows} == {2}
    assert {r["row"]["precision"] for r in rows} == {settled("auto", "cpu")} <= {"float32", "bfloat16"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<html" in page
    again = miscue(*words)
    assert [json.loads(line) for line in again.stdout.splitlines()] == rows
    (tmp_path / "run" / "report.html").unlink()
    within("report", tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()


def test_a_folder_without_a_test_set_is_scored_on_another(tmp_path: Path) -> None:
    data = striped(60)
    for name, some in (
        ("flat", data),
        ("copy", data.with_images(data.images.roll(-1, 0))),
        ("other", striped(30, seed=7)),
    ):
        for number, (image, label) in enumerate(zip(some.images, some.labels.tolist(), strict=True)):
            (tmp_path / name / some.classes[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(tmp_path / name / some.classes[label] / f"{number:02}.png")
    words = [
        "evaluate",
        tmp_path / "flat",
        tmp_path / "copy",
        "--victims",
        "cnn-small",
        "--repeats",
        "2",
        "--threads",
        "1",
    ]
    refused = within(*words, check=False)
    assert refused.exit_code == 2
    assert "has no test set; name clean images of the same classes with --test" in refused.stderr
    done = within(*words, "--epochs", "8", "--test", tmp_path / "other")
    assert re.search(
        r"cnn-small: [\d.]+ ± [\d.]+ % of the test images right after training on the originals, ", done.stderr
    )
    assert "trained on the poisoned copy" in done.stderr
    wrong = within(*words, "--test", "digits", check=False)
    assert "digits: its images or classes are others" in wrong.stderr


def test_evaluate_on_one_condition_alone_and_then_on_both(npz: Path, poisoned: Path, tmp_path: Path) -> None:
    words = ["evaluate", npz, poisoned, "--victims", "cnn-small", "--repeats", "1", "--epochs", "1"]
    words += ["--out", tmp_path / "run", "--threads", "1", "--json"]
    for conditions in ("poisoned", "clean,poisoned"):
        rows = [json.loads(line) for line in within(*words, "--conditions", conditions).stdout.splitlines()]
        assert {row["row"]["condition"] for row in rows} == set(conditions.split(","))
        assert "<html" in (tmp_path / "run" / "report.html").read_text()


def test_train_saves_a_model_with_its_scores(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    done = within("train", npz, out, "--victim", "cnn-small", "--epochs", "3", "--threads", "1", "--json")
    assert json.loads(done.stdout)["test_accuracy"] > 50
    assert out.exists()
    assert "exists already" in within("train", npz, out, check=False).stderr


@pytest.mark.parametrize("command", [["train"], ["harden", "adversarial"]])
def test_each_setting_of_a_recipe_is_an_option(command: list[str], npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    given = {"optimizer": "sgd", "lr": 0.02, "momentum": 0.5, "weight_decay": 0.001, "epochs": 1, "batch_size": 32}
    given |= {"schedule": "constant", "precision": "bfloat16", "shift": 1, "scenes": 0.25}
    given |= {"holes": 1, "hole": 3, "fill": "black"}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    within(*command, npz, out, "--victim", "cnn-small", "--threads", "1", *options)
    assert load_model(out)[1]["recipe"] == given == asdict(Recipe(**given))
    within(*command, npz, out, "--victim", "cnn-small", "--threads", "1", "--epochs", "1", "--overwrite")
    assert load_model(out)[1]["recipe"] == asdict(replace(DEFAULT, epochs=1))


def test_a_killed_craft_goes_on_and_ends_the_same(npz: Path, tmp_path: Path) -> None:
    options = ["--trials", "6", "--steps", "12", "--batch-size", "16", "--surrogate", "cnn-small", "--threads", "1"]
    within("poison", "deepconfuse", npz, tmp_path / "whole", *options)
    command = [sys.executable, "-m", "miscue", "poison", "deepconfuse", str(npz), str(tmp_path / "cut"), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "cut.craft" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "cut").exists()
    other = within("poison", "deepconfuse", npz, tmp_path / "cut", *options, "--eps", "0.1", check=False)
    assert other.exit_code == 2
    assert "another setting: options.eps" in other.stderr
    within("poison", "deepconfuse", npz, tmp_path / "cut", *options)
    a, b = ((tmp_path / name / "set.npz").read_bytes() for name in ("whole", "cut"))
    assert a == b


def test_an_interrupt_ends_with_one_line(npz: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "miscue",
        "poison",
        "deepconfuse",
        str(npz),
        str(tmp_path / "out"),
        "--threads",
        "1",
    ]
    # whoever starts the tests in the background has interrupts ignored, and children inherit that
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **listening)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.craft" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from the last checkpoint" in words
    assert "Traceback" not in words


def picture(path: Path, seed: int, size: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(striped(1, size=size, seed=seed).images[0, 0].numpy()).save(path)


def test_a_folder_of_new_images_is_poisoned_one_by_one(poisoned: Path, tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / "new" / "cats" / f"{i}.png", i)
        picture(tmp_path / "new" / "dogs" / f"{i}.jpg", 50 + i, size=20)
    kept = poisoned.with_name("out.craft") / "perturbation.safetensors"
    done = within("poison", "apply", kept, tmp_path / "new", tmp_path / "out", "--part", "all", "--json")
    assert json.loads(done.stdout)["poisoned_images"] == {"all": 10}
    for old in (tmp_path / "new").rglob("*.*"):
        new = (tmp_path / "out" / old.relative_to(tmp_path / "new")).with_suffix(".png")
        a, b = (np.asarray(Image.open(path)).astype(int) for path in (old, new))
        assert 0 < np.abs(a - b).max() <= 8


BAD = [
    (["poison", "deepconfuse", "minst", "OUT"], "mnist"),
    (["poison", "deepconfuse", "digits", "OUT", "--eps", "0"], "eps must lie in (0, 1]"),
    (["poison", "deepconfuse", "digits", "OUT", "--eps", "1.5"], "eps must lie in (0, 1]"),
    (["poison", "deepconfuse", "digits", "OUT", "--eps", "0.003"], "less than one grey level"),
    (["poison", "deepconfuse", "digits", "OUT", "--trials", "0"], "must not all be 0"),
    (["poison", "deepconfuse", "digits", "OUT", "--preset", "fsat"], "did you mean fast"),
    (["poison", "deepconfuse", "digits", "OUT", "--surrogate", "cnm"], "did you mean cnn"),
    (["poison", "deepconfuse", "digits", "OUT", "--label-map", "1,2"], "one target for each of the 10"),
    (["poison", "deepconfuse", "digits", "OUT", "--share", "2"], "share must lie in [0, 1]"),
    (["poison", "deepconfuse", "digits", "OUT", "--device", "cuda:9"], "no device 'cuda:9'"),
    (["poison", "deepconfuse", "digits", "OUT", "--layout", "hdf"], "unknown layout"),
    (["poison", "apply", "nothing.safetensors", "digits", "OUT"], "no such file"),
    (["evaluate", "digits", "digits", "--victims", "cn"], "did you mean cnn"),
    (["evaluate", "digits", "nowhere"], "nowhere"),
    (["evaluate", "digits", "digits", "--victims", "net.py:make"], "unknown victim 'net.py:make'; known: cnn"),
    (["harden", "bounded", "net.py:make", "digits", "OUT"], "only networks saved by miscue train"),
    (["harden", "adversarial", "digits", "OUT", "--start", "net.py:make"], "only networks saved by miscue train"),
    (["evaluate", "digits", "digits", "--conditions", "poison"], "did you mean poisoned"),
    (["report", "nowhere"], "not the folder of a run"),
    (["train", "digits", "OUT", "--optimizer", "sdg"], "did you mean sgd"),
    (["train", "nowhere", "OUT", "--victim", "cn"], "did you mean cnn"),  # before the data are read
    (["data", "download", "digits"], "nothing to download"),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[" ".join(words[:2] + words[-2:]) for words, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = within(*[str(tmp_path / "out") if w == "OUT" else w for w in words], check=False)
    assert done.exit_code == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if "out.run" not in path.parts], "nothing is left behind"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = miscue("report", "nowhere", "--debug", check=False, cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_an_existing_output_is_refused_before_any_work(npz: Path, poisoned: Path) -> None:
    started = time.monotonic()
    done = miscue("poison", "deepconfuse", npz, poisoned, "--trials", "100000", check=False)
    assert done.returncode == 2
    assert "add --overwrite" in done.stderr
    assert time.monotonic() - started < 30


def test_a_full_disk_is_one_line(npz: Path, tmp_path: Path) -> None:
    """A file-size limit makes the kernel refuse the write as a full disk would."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    out = tmp_path / "out"
    done = miscue("poison", "deepconfuse", npz, out, *CRAFT, check=False, preexec_fn=limited, env=environment)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_help_names_every_option_with_its_default() -> None:
    text = " ".join(miscue("poison", "deepconfuse", "--help", env=os.environ | {"COLUMNS": "200"}).stdout.split())
    for words in (
        "--generator-lr",
        "Default: 0.0001",
        "--label-map",
        "--alpha",
        "--preset",
        "--eps",
    ):
        assert words in text


def test_version() -> None:
    assert miscue("--version").stdout.startswith("miscue ")


def test_pixels_searched_killed_resumed_and_met_by_all_kinds_of_victims(npz: Path, tmp_path: Path) -> None:
    """The search goes on after a kill and ends the same; records say where networks look, and what a forest does."""
    search = ["--generations", "6", "--candidates", "3", "--images", "60", "--held-out", "30", "--finalists", "2"]
    search += ["--first-candidates", "3"]
    search += ["--surrogate", "cnn-small", "--epochs", "2", "--batch-size", "16", "--processes", "1", "--threads", "1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    row = json.loads(within("poison", "single-pixel", npz, whole, *search, "--json").stdout)
    assert row["changed_pixels"] == 1
    command = [sys.executable, "-m", "miscue", "poison", "single-pixel", str(npz), str(cut), *search]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    log = tmp_path / "cut.craft" / "craft.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut.craft" / "perturbation.safetensors").exists(), "killed too late to show anything"
    within("poison", "single-pixel", npz, cut, *search)
    assert torch.equal(read(cut).train.images, read(whole).train.images)
    words = ["--victims", "cnn-small+adam,random-forest", "--repeats", "1", "--epochs", "1", "--jobs", "1", "--json"]
    records = [json.loads(line) for line in within("evaluate", npz, whole, *words).stdout.splitlines()]
    looked = {r["row"]["victim"] for r in records if r["measure"] == "near_pixel"}
    scored = {r["row"]["victim"] for r in records if r["measure"] == "test_accuracy"}
    assert looked == {"cnn-small+adam"}
    assert scored == {"cnn-small+adam", "random-forest"}
    assert "where it looks" in (tmp_path / "whole.run" / "report.html").read_text()


def test_a_preset_brings_its_label_map(npz: Path, tmp_path: Path) -> None:
    """The rule fits the set's classes, and what is given beside the preset wins."""
    short = ["--preset", "label-map", "--steps", "4", "--warm-up", "1", "--online-trials", "1", "--unroll", "2"]
    short += ["--surrogate", "cnn-small", "--warm-up-surrogates", "cnn-small", "--batch-size", "16", "--threads", "1"]
    targets = {}
    for name, given in (("usual", []), ("other", ["--label-map", "2,0,1"])):
        within("poison", "deepconfuse", npz, tmp_path / name, *short, *given)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        targets[name] = manifest["options"]["label_map"]
    assert targets == {"usual": [1, 2, 0], "other": [2, 0, 1]}


def test_time_left_goes_by_the_pace_since_the_first_tick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """48 of 100 came at once, from a checkpoint or as one generation; then 14 took 70 s."""
    clock = iter([0.0, 300.0, 370.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    console.plain(iter([Tick(done=48, total=100), Tick(done=62, total=100)]), "searching", str)
    assert capsys.readouterr().err.splitlines() == ["searching: 62 %, about 3 min left"]


@pytest.mark.parametrize(
    "words", ["evaluate", "train", "train-detector", "attack pgd", "attack dpatch", "poison random-pixel"]
)
def test_every_command_names_its_shared_options_alike(words: str) -> None:
    shown = within(*words.split(), "--help").stdout
    for option in ("--device ", "--seed ", "--json ", "--overwrite ", "--debug "):
        assert option in shown
