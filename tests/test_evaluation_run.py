"""Fresh victims on clean and poisoned data, run folders, and going on after a kill."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import striped
from miscue.data import Data
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evaluation import Arena, Contest, arenas, summary, whole_cell
from miscue.marks import Pixels
from miscue.perturbation import Perturbation
from miscue.poisons import Attacker, deepconfuse
from miscue.run import Tick, commit, craft, evaluate, fingerprint, lines
from miscue.train import Recipe
from miscue.victims import Victim, victim

QUICK = Attacker(surrogate="cnn-small", recipe=Recipe(lr=0.05, batch_size=24), dice=Dice(3))
OPTIONS = {"trials": 3, "steps": 4, "alpha": 0.3, "generator_lr": 1e-3}
VICTIM = {"cnn-small": victim("cnn-small", 2)}


def mislabelled(data: Data) -> Data:
    """Clean images whose stripe is replaced by the next class's: a poison with a known effect."""
    shifted = data.images.roll(-1, dims=0)
    return data.with_images(shifted)


@pytest.fixture
def pair(data: Data) -> tuple[Arena, Arena]:
    return arenas(data, mislabelled(data), striped(90, seed=7), None)


def run_cell(arena: Arena, **changed: object) -> dict:
    one = Victim(network="cnn-small", recipe=Recipe(lr=0.05, epochs=5, batch_size=32))
    return whole_cell([Contest(arena=arena, name="v", victim=one, seed=0, label_map=(2, 0, 1), device="cpu")], 0)


def test_a_known_poison_gives_the_known_numbers(pair: tuple[Arena, Arena]) -> None:
    """Every image of class y shows the stripe of y + 1, so a clean image of class y is read as y - 1."""
    clean, poisoned = (run_cell(arena) for arena in pair)
    assert clean["test_accuracy"] > 95
    assert clean["hit_rate"] < 5
    assert poisoned["test_accuracy"] < 5
    assert poisoned["hit_rate"] > 95
    assert poisoned["train_accuracy"] > 95
    assert poisoned["gap"] == pytest.approx(poisoned["train_accuracy"] - poisoned["test_accuracy"])
    assert sum(map(sum, poisoned["confusion"])) == 90
    assert poisoned["confusion"][0][2] > 25
    assert [e["epoch"] for e in poisoned["curve"]] == [1, 2, 3, 4, 5]
    assert poisoned["curve"][-1]["test_accuracy"] == poisoned["test_accuracy"]
    assert clean["noise_accuracy_train"] is None
    assert poisoned["noise_accuracy_train"] is not None
    assert poisoned["noise_accuracy_test"] is None
    by_batch = torch.tensor(poisoned["confusion_batch_statistics"])
    assert by_batch.diag().sum() == pytest.approx(0.9 * poisoned["test_accuracy_batch_statistics"])
    assert by_batch.roll(1, 1).diag().sum() == pytest.approx(0.9 * poisoned["hit_rate_batch_statistics"])


def test_noise_of_test_images_comes_from_the_perturbation(data: Data) -> None:
    perturbation = deepconfuse(data, QUICK, **OPTIONS | {"trials": 1})
    test = striped(30, seed=7)
    _, poisoned = arenas(data, perturbation(data), test, perturbation)
    expected = (perturbation(test).images.float() - test.images.float()) / 255
    assert torch.equal(poisoned.noise_test[:], expected)
    assert poisoned.noise_train[:].abs().max() <= 0.3 + 1e-6


def test_sets_that_do_not_belong_together_are_refused(data: Data) -> None:
    with pytest.raises(InputError, match="same images in the same order"):
        arenas(data, data.take(slice(0, 10)), data, None)
    with pytest.raises(InputError, match="labels differ"):
        arenas(data, replace(data, labels=data.labels.roll(1)), data, None)


def test_plain_nets_have_no_batch_statistics(pair: tuple[Arena, Arena]) -> None:
    plain = victim("cnn-plain", 1)
    measured = whole_cell([Contest(arena=pair[0], name="v", victim=plain, seed=0, label_map=None, device="cpu")], 0)
    assert measured["test_accuracy_batch_statistics"] is None
    assert measured["hit_rate"] is measured["hit_rate_batch_statistics"] is None


def test_summary_is_mean_and_sample_deviation() -> None:
    base = dict.fromkeys(("train_accuracy", "gap", "hit_rate", "noise_accuracy_train", "noise_accuracy_test")) | {
        "test_accuracy_batch_statistics": None,
        "condition": "clean",
        "victim": "v",
        "seconds": 2.0,
    }
    rows = list(summary([base | {"seed": s, "test_accuracy": a} for s, a in enumerate((90.0, 92.0, 97.0))]))
    assert len(rows) == 1
    assert rows[0]["mean"] == 93
    assert rows[0]["std"] == pytest.approx(3.6055512)
    assert (rows[0]["n"], rows[0]["seconds"]) == (3, 6)
    looks = [math.nan, 10.0, 30.0]  # one that has learned nothing looks nowhere
    rows = list(summary([base | {"seed": s, "near_pixel": look} for s, look in enumerate(looks)]))
    assert [(row["measure"], row["mean"], row["n"]) for row in rows] == [("near_pixel", 20.0, 2)]
    assert list(summary([base | {"seed": 0, "near_pixel": math.nan}])) == []


def evaluating(folder: Path, pair: tuple[Arena, Arena], *, jobs: int = 1, **changes: object) -> Iterator[object]:
    settings = {"clean": "striped", "eps": 0.3, "device": "cpu", "commit": None, "command": "test", "kind": "evaluate"}
    asked = {"repeats": 2, "seed": 0, "label_map": None, "device": "cpu", "jobs": jobs}
    return evaluate(folder, settings | changes, pair, VICTIM, **asked)


def stripped(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in lines(path)]


def test_an_interrupted_evaluation_ends_as_an_uninterrupted_one(tmp_path: Path, pair: tuple[Arena, Arena]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(evaluating(whole, pair))
    for tick in evaluating(cut, pair):
        if tick.fact is not None and tick.fact["condition"] == "poisoned":
            break
    with (cut / "cells.jsonl").open("a") as file:
        file.write('{"condition": "clea')  # killed in the middle of a line
    assert len(lines(cut / "cells.jsonl")) == 2
    rest = [tick.fact for tick in evaluating(cut, pair) if tick.fact]
    assert len(rest) == 2
    assert stripped(cut / "cells.jsonl") == stripped(whole / "cells.jsonl")
    assert stripped(cut / "records.jsonl") == stripped(whole / "records.jsonl")
    assert not list(evaluating(cut, pair))  # nothing left to do


def test_a_run_of_other_settings_is_refused(tmp_path: Path, pair: tuple[Arena, Arena]) -> None:
    next(iter(evaluating(tmp_path, pair)))
    with pytest.raises(InputError, match="another setting: eps"):
        list(evaluating(tmp_path, pair, eps=0.1))


def test_an_interrupted_crafting_ends_as_an_uninterrupted_one(tmp_path: Path, data: Data) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(craft(deepconfuse, data, QUICK, OPTIONS, whole))
    for tick in craft(deepconfuse, data, QUICK, OPTIONS, cut):
        if tick.done == 10:  # in the middle of the third trial
            break
    assert (cut / "checkpoint.safetensors").exists()
    ticks = list(craft(deepconfuse, data, QUICK, OPTIONS, cut))
    assert ticks[0].done > 8
    a, b = (Perturbation.load(folder / "perturbation.safetensors") for folder in (whole, cut))
    assert torch.equal(a(data).images, b(data).images)
    logs = [[row["held_out_accuracy"] for row in lines(folder / "craft.jsonl")] for folder in (whole, cut)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 4
    assert not (cut / "checkpoint.safetensors").exists()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, data: Data, pair: tuple[Arena, Arena]) -> None:
    def crafting() -> Iterator[Tick]:
        return craft(deepconfuse, data, QUICK, OPTIONS, tmp_path / "craft")

    def training() -> Iterator[Tick]:
        return evaluating(tmp_path / "run", pair)

    for begin in (crafting, training):
        at_work = begin()
        next(at_work)
        with pytest.raises(InputError, match="another run is at work in"):
            list(begin())
        assert list(at_work)


@pytest.mark.parametrize("change", ["options", "data", "seed", "recipe"])
def test_a_checkpoint_of_another_setting_is_refused(tmp_path: Path, data: Data, change: str) -> None:
    for tick in craft(deepconfuse, data, QUICK, OPTIONS, tmp_path):
        if tick.fact:
            break
    options, attacker, images = OPTIONS, QUICK, data
    if change == "options":
        options = OPTIONS | {"eps": 0.1}
    elif change == "data":
        images = data.take(slice(0, 200))
    elif change == "seed":
        attacker = replace(QUICK, dice=Dice(4))
    else:
        attacker = replace(QUICK, recipe=replace(QUICK.recipe, lr=0.04))
    with pytest.raises(InputError, match="is of another setting"):
        next(craft(deepconfuse, images, attacker, options, tmp_path))


def test_a_damaged_checkpoint_is_named(tmp_path: Path, data: Data) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors is not a readable"):
        next(craft(deepconfuse, data, QUICK, OPTIONS, tmp_path))


def test_fingerprint_sees_images_labels_and_shape(data: Data) -> None:
    changed = data.images.clone()
    changed[0, 0, 0, 0] ^= 1
    prints = {
        fingerprint(d)
        for d in (
            data,
            data.with_images(changed),
            replace(data, labels=data.labels.roll(1)),
            data.with_images(data.images.reshape(-1, 1, 8, 18)),
        )
    }
    assert len(prints) == 4
    assert fingerprint(data) == fingerprint(striped())


def test_lines_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert lines(path) == []
    path.write_text(json.dumps({"a": 1}) + "\n" + '{"a": ')
    assert lines(path) == [{"a": 1}]


def test_jobs_side_by_side_give_the_same_cells(tmp_path: Path, pair: tuple[Arena, Arena]) -> None:
    torch.set_num_threads(1)
    done = {jobs: list(evaluating(tmp_path / str(jobs), pair, jobs=jobs)) for jobs in (1, 2)}
    assert done[1][-1].done == done[2][-1].done == done[2][-1].total

    def cells(jobs: int) -> list[dict]:
        found = stripped(tmp_path / str(jobs) / "cells.jsonl")
        return sorted(found, key=lambda one: (one["seed"], one["condition"]))

    assert len(cells(1)) == 4
    assert cells(1) == cells(2)
    assert stripped(tmp_path / "2" / "records.jsonl")


def test_the_share_near_the_pixel_grows_where_only_the_pixel_tells(data: Data) -> None:
    """Where images tell nothing else, the poisoned network looks at a pixel in the lower right, unlike a clean one."""
    places, values = torch.tensor([[10, 8], [10, 10], [-1, 0]]), torch.full((3, 1), 255, dtype=torch.uint8)
    dark = data.with_images(data.images // 4)
    perturbation = Perturbation(mark=Pixels(places=places, values=values, shape=data.shape), eps=1.0)
    shuffled = dark.with_images(dark.images[torch.randperm(len(dark), generator=torch.Generator().manual_seed(0))])
    recipe = Recipe(optimizer="adam", lr=3e-3, epochs=8, batch_size=32)
    one = Victim(network="cnn-plain", recipe=recipe)
    pair = (
        arenas(dark, perturbation(dark), dark, perturbation)[0],
        arenas(shuffled, perturbation(shuffled), dark, perturbation)[1],
    )
    clean, poisoned = (
        whole_cell([Contest(arena=arena, name="v", victim=one, seed=0, label_map=None, device="cpu")], 0)
        for arena in pair
    )
    assert poisoned["near_pixel"] > clean["near_pixel"] + 10
    assert np.asarray(poisoned["maps"]).shape == (3, 12, 12)
    assert 0 <= np.asarray(poisoned["maps"]).min() <= np.asarray(poisoned["maps"]).max() <= 99


def test_a_commit_is_marked_where_the_sources_differ_from_it(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, "-C", tmp_path, *words], check=True, capture_output=True)

    here = tmp_path / "src" / "miscue"
    here.mkdir(parents=True)
    (here / "run.py").write_text("1")
    assert commit(here) is None
    git("init")
    assert commit(here) is None
    git("add", ".")
    git("commit", "-m", "one")
    clean = commit(here)
    assert clean is not None
    assert len(clean) == 12
    (tmp_path / "notes.txt").write_text("not a source")
    assert commit(here) == clean
    (here / "new.py").write_text("2")
    assert commit(here) == f"{clean}+"
