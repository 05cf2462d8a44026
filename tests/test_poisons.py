"""What every training-time attack must do. A new one enters by entering POISONS, and QUICK here."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import striped
from miscue.balls import changed_pixels, linf
from miscue.cli.poison import trial_words
from miscue.data import Data
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.marks import Pixels
from miscue.measures.accuracy import accuracy
from miscue.perturbation import Perturbation
from miscue.poisons import POISONS, PRESETS, Attacker
from miscue.poisons.crafting import Checkpoint, Progress
from miscue.poisons.places import Search, Space, crossed, scattered, visibility
from miscue.poisons.single_pixel import gaps, parts
from miscue.population import FitMany, Member, population
from miscue.run import PERTURBATION, Tick, craft
from miscue.train import Recipe
from miscue.victims import Victim
from miscue.workers import LostWorkerError

ATTACKER = Attacker(surrogate="cnn-small", recipe=Recipe(lr=0.05, batch_size=24, epochs=3), dice=Dice(3))
SEARCH = {"generations": 3, "candidates": 4, "images": 120, "held_out": 60, "finalists": 2, "processes": 1}
SEARCH |= {"first_candidates": 3, "longer": 2}
QUICK: dict[str, dict] = {
    "deepconfuse": {"trials": 2, "steps": 5, "alpha": 0.3, "generator_lr": 1e-3},
    "single-pixel": SEARCH,
    "one-pixel-shortcut": {},
    "border-pixel": {},
    "random-pixel": {},
}
SAME_FOR_ALL_SEEDS = ("border-pixel", "one-pixel-shortcut")  # the dice only break ties
PIXELS = [name for name in POISONS if name != "deepconfuse"]


def checkpoints(name: str, data: Data, attacker: Attacker = ATTACKER, **options: object) -> list[Checkpoint]:
    return [p.checkpoint for p in POISONS[name].steps(data, attacker, **QUICK[name] | options) if p.checkpoint]


@cache
def whole(name: str, channels: int = 1) -> list[Progress]:
    """A craft on a set like the fixture `data`, once for all tests that only look at it; the set is left as it was."""
    data = striped(channels=channels)
    steps = list(POISONS[name].steps(data, ATTACKER, **QUICK[name]))
    assert torch.equal(data.images, striped(channels=channels).images)
    return steps


def crafted(name: str, channels: int = 1) -> Perturbation:
    """What it ends with."""
    last = whole(name, channels)[-1].checkpoint
    assert last is not None
    return last.perturbation


def tensors(perturbation: Perturbation) -> list[Tensor]:
    return list(perturbation.mark.packed()[0].values())


def equal(a: Perturbation, b: Perturbation) -> bool:
    return all(torch.equal(p, q) for p, q in zip(tensors(a), tensors(b), strict=True))


def alike(a: Checkpoint, b: Checkpoint) -> bool:
    same = all(torch.equal(a.state[name], value) for name, value in b.state.items())
    return same and a.state.keys() == b.state.keys() and equal(a.perturbation, b.perturbation)


def test_tables_agree() -> None:
    assert POISONS.keys() == PRESETS.keys() == QUICK.keys()


@pytest.mark.parametrize("name", POISONS)
class TestBattery:
    def test_repeats_and_seeds(self, name: str, data: Data) -> None:
        again, other = (checkpoints(name, data, replace(ATTACKER, dice=Dice(seed)))[-1].perturbation for seed in (3, 4))
        assert equal(crafted(name), again)
        assert equal(crafted(name), other) == (name in SAME_FOR_ALL_SEEDS)

    def test_keeps_labels_order_and_its_input(self, name: str, data: Data) -> None:
        before = data.images.clone()
        poisoned = crafted(name)(data)
        assert torch.equal(data.images, before)
        assert torch.equal(poisoned.labels, data.labels)
        assert poisoned.images.dtype == torch.uint8
        assert linf(poisoned.images, data.images) > 0

    def test_resumes_exactly(self, name: str, data: Data) -> None:
        """From the first checkpoint to the end, and from each other one to the next."""
        *_, end = whole(name)
        first, *others = [p.checkpoint for p in whole(name) if p.checkpoint]
        for stop, later in pairwise(others):
            rest = POISONS[name].steps(data, ATTACKER, **QUICK[name], resume=stop.state)
            assert alike(next(p.checkpoint for p in rest if p.checkpoint), later)
            rest.close()
        if others:
            *_, last = POISONS[name].steps(data, ATTACKER, **QUICK[name], resume=first.state)
            assert last.done == end.done == last.total
            assert alike(last.checkpoint, others[-1])

    def test_killed_after_its_last_checkpoint(self, name: str, data: Data, tmp_path: Path) -> None:
        """Nothing is left to do then but to hand over what was made."""

        def walk() -> Iterator[Tick]:
            return craft(POISONS[name], data, ATTACKER, QUICK[name], tmp_path)

        count = sum(1 for _ in whole(name))
        killed = walk()
        for _ in range(count):
            next(killed)
        killed.close()
        assert not (tmp_path / PERTURBATION).exists()
        list(walk())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["craft.jsonl", PERTURBATION]
        assert equal(Perturbation.load(tmp_path / PERTURBATION), crafted(name))

    def test_survives_the_disk(self, name: str, data: Data, tmp_path: Path) -> None:
        perturbation = crafted(name)
        perturbation.save(tmp_path / "p.safetensors")
        loaded = Perturbation.load(tmp_path / "p.safetensors")
        assert torch.equal(loaded(data).images, perturbation(data).images)
        assert loaded.eps == perturbation.eps

    def test_poisons_image_by_image_as_all_at_once(self, name: str, data: Data) -> None:
        perturbation = crafted(name)
        images, labels = data.images[:40], data.labels[:40]
        together = perturbation.images(images, labels)
        alone = torch.cat([perturbation.images(images[i : i + 1], labels[i : i + 1]) for i in range(40)])
        assert (together.int() - alone.int()).abs().max() <= 1  # the order of float additions may differ

    def test_refuses_other_images(self, name: str) -> None:
        perturbation = crafted(name)
        with pytest.raises(InputError, match=r"this perturbation is for .* (have 3|\(3, 12, 12\))"):
            perturbation(striped(6, channels=3))

    def test_colour(self, name: str) -> None:
        data = striped(channels=3)
        poisoned = crafted(name, channels=3)(data)
        assert poisoned.images.shape == data.images.shape
        assert linf(poisoned.images, data.images) > 0


def test_deepconfuse_keeps_its_budget(data: Data) -> None:
    poisoned = POISONS["deepconfuse"](data, ATTACKER, eps=8 / 255, **QUICK["deepconfuse"])(data)
    assert 0 < linf(poisoned.images, data.images) <= 8 / 255 + 1e-9


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PIXELS)
def test_pixel_poisons_change_one_pixel_the_same_in_all_images_of_a_class(name: str, channels: int) -> None:
    data = striped(channels=channels)
    poisoned = crafted(name, channels)(data)
    assert changed_pixels(poisoned.images, data.images) == 1
    moved = (poisoned.images != data.images).any(1)
    for label in range(3):
        of_class = data.labels == label
        place = moved[of_class].any(0).nonzero()
        assert len(place) <= 1
        for row, column in place.tolist():
            assert len(poisoned.images[of_class][:, :, row, column].unique(dim=0)) == 1


def test_the_search_starts_from_white_pixels_but_for_one_class() -> None:
    """Apart from each other, in the quarter that is seen best of what lies outside the classes' regions."""
    nearest = everywhere(4, 8, 6)
    nearest[1, 4:] = torch.tensor([3, 0])  # out of bounds for class 1
    visible = torch.arange(48.0).reshape(8, 6)
    for mark in scattered(Space(nearest=nearest, channels=3), visible, 20, Dice(0)):
        assert len({tuple(place) for place in mark.places.tolist()}) == 4
        assert sorted(mark.values.tolist()) == [[0] * 3] + 3 * [[255] * 3]
        rows = mark.places[:, 0].tolist()
        assert rows[1] == 3
        assert min(rows[0], *rows[2:]) >= 6


def test_visibility_is_what_a_network_can_see(data: Data) -> None:
    """A white pixel on white says nothing, nor does one where a network without padding drops the border."""
    half = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    half[:, :, :, :10] = 255
    images = replace(data, images=half, labels=data.labels[:40])
    visible = visibility(Victim(network="cnn-plain", recipe=ATTACKER.recipe), images, ATTACKER, networks=1)
    assert visible[:, :10].max() == 0
    assert visible[:, 26:].max() == 0
    assert visible[2:24, 12:24].min() > 0
    some = visibility(Victim(network="cnn-plain", recipe=ATTACKER.recipe), images, ATTACKER, networks=1, most=50)
    assert 0 < (some > 0).sum() <= 50
    assert torch.equal(some[some > 0], visible[some > 0])


def everywhere(classes: int, height: int, width: int) -> Tensor:
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    return places.repeat(classes, 1, 1, 1)


def test_points_of_the_search_stand_for_pixels() -> None:
    space = Space(nearest=everywhere(3, 20, 30), channels=3)
    values = torch.tensor([[0, 128, 255], [255, 255, 255], [7, 0, 99]], dtype=torch.uint8)
    mark = Pixels(places=torch.tensor([[0, 29], [19, 0], [7, 11]]), values=values, shape=(3, 20, 30))
    again = space.decode(space.encode(mark) + np.array([0, 0, -0.0001, 0.0001, 0]))
    assert torch.equal(again.places, mark.places)
    assert torch.equal(again.values, mark.values)
    far = space.decode(np.array([[0.0, 1.0, 0.05, 0.92, 1.0]] * 3))
    assert far.values.tolist() == [[0, 255, 255]] * 3


@pytest.mark.parametrize("joint", [False, True])
def test_each_class_is_searched_by_its_own_part_of_the_fitness(joint: bool) -> None:
    """Parts that fall with the distance to a place and an intensity of the class's own."""
    space = Space(nearest=everywhere(4, 20, 20), channels=1)
    values = torch.tensor([[255], [255], [0], [255]], dtype=torch.uint8)
    start = Pixels(places=torch.tensor([[5, 5], [14, 5], [9, 9], [14, 14]]), values=values, shape=(1, 20, 20))
    goals = torch.tensor([[1, 1], [18, 3], [2, 2], [17, 17]])
    search = Search(space, start, ATTACKER, sigma=0.1, size=12, joint=joint)
    for _ in range(150 if joint else 15):
        marks = search.ask()
        away = torch.stack([(mark.places - goals).abs().sum(1) for mark in marks])
        dark = torch.stack([255 - mark.values[:, 0].double() for mark in marks]) / 255
        search.tell(-away - dark)
    end = search.centre()
    marked = [0, 1, 3]
    assert (end.places - goals)[marked].abs().max() <= 1
    assert end.values[marked].min() > 230
    if not joint:  # a class without a pixel stays where it is
        assert end.places[2].tolist() == [9, 9]
        assert end.values[2] == 0


def test_the_best_first_candidate_is_followed_by_children_and_finalists_by_rounds(data: Data) -> None:
    for options, counts in (({"first_candidates": 10}, [10, 3, 4, 4, 4]), ({"start": "shortcut"}, [4, 1, 4, 4, 4])):
        stops = list(POISONS["single-pixel"].steps(data, ATTACKER, **SEARCH | options))
        state = stops[-1].checkpoint.state
        assert [len(state[f"generation {number}"]) for number in range(5)] == counts
        first = state["generation 0"].mean(1)
        assert stops[0].checkpoint.measures["best_fitness"] == first.max()
        rounds = torch.stack([state[f"generation {number}"] for number in (5, 6, 7)])
        assert stops[-1].checkpoint.measures["final_fitness"] == pytest.approx(float(rounds.mean((0, 2)).max()))
        assert stops[-1].done == stops[-1].total


def test_children_have_each_class_s_best_pixel_under_the_best_unmarked_class() -> None:
    """Parts that depend on the place alone, and on which class is unmarked: 2 is the best, its pixels are not."""
    places = torch.arange(24).reshape(6, 4)
    parts_of = places.double() / 24
    marks = []
    for number, row in enumerate(places):
        values = torch.full((4, 1), 255, dtype=torch.uint8)
        values[number % 3] = 0
        pairs = torch.stack([row // 5, row % 5], dim=1)
        marks.append(Pixels(places=pairs, values=values, shape=(1, 5, 5)))
        parts_of[number] += 10 * (number % 3)
    first, second, third, other = crossed(marks, parts_of, 4)
    assert [child.values[:, 0].tolist() for child in (first, second, third)] == [[255, 255, 0, 255]] * 3
    assert other.values[:, 0].tolist() == [255, 0, 255, 255]  # the second best unmarked class
    by_rank = [[places[i, label].item() for label in (0, 1, 3)] for i in (5, 4, 3)]
    found = [[5 * row + column for row, column in child.places[[0, 1, 3]].tolist()] for child in (first, second)]
    assert found[0] == [by_rank[0][0], by_rank[0][1], by_rank[0][2]]
    assert all(a <= b for a, b in zip(found[1], found[0], strict=True))
    for child in (first, second, third, other):
        assert len({tuple(place) for place in child.places.tolist()}) == 4


def test_a_lost_candidate_is_reported_and_the_search_goes_on(monkeypatch: pytest.MonkeyPatch, data: Data) -> None:
    @contextmanager
    def lossy(*sets: Data, **options: object) -> Iterator[FitMany]:
        with population(*sets, **options) as fit:
            yield lambda members, then: (
                (i, LostWorkerError("it died") if i == 1 else found) for i, found in fit(members, then=then)
            )

    monkeypatch.setattr(sys.modules["miscue.poisons.single_pixel"], "population", lossy)
    stops = checkpoints("single-pixel", data)
    assert [stop.measures.get("lost") for stop in stops] == [1.0, None, *[1.0] * 6]
    assert "died twice: 1" in trial_words({"trial": 1, "minutes": 0.0, **stops[0].measures})
    assert all(math.isfinite(value) for stop in stops for value in stop.measures.values())
    assert changed_pixels(stops[-1].perturbation(data).images, data.images) == 1


@pytest.mark.parametrize("name", ["random-pixel", "border-pixel", "one-pixel-shortcut"])
def test_pixels_can_be_learned(name: str) -> None:
    """Where images tell nothing, a network reads the class of new images from the pixel, and from nothing else."""
    train, test = (striped(600, seed=seed) for seed in (0, 1))
    shuffled = train.with_images(train.images[torch.randperm(600, generator=torch.Generator().manual_seed(0))])
    perturbation = POISONS[name](shuffled, ATTACKER, **QUICK[name])
    recipe = Recipe(optimizer="adam", lr=3e-3, epochs=12, batch_size=32)
    model = Victim(network="cnn-plain", recipe=recipe)(perturbation(shuffled), Dice(5))
    assert accuracy(model, perturbation(test)) > 90
    assert accuracy(model, test) < 50


def test_border_pixels_lie_on_the_border(data: Data) -> None:
    places = POISONS["border-pixel"](data, ATTACKER).mark.places
    assert places.tolist() == [[0, 0], [3, 11], [11, 4]]


def test_the_shortcut_is_the_best_by_brute_force() -> None:
    """Every place and corner of a small set, one at a time."""
    data = striped(30, size=5, channels=3)
    mark = POISONS["one-pixel-shortcut"](data, ATTACKER).mark
    for label in range(3):
        x = data.images[data.labels == label].double() / 255
        scores = {}
        for row in range(5):
            for column in range(5):
                for corner in range(8):
                    v = torch.tensor([(corner >> 2) & 1, (corner >> 1) & 1, corner & 1]).double()
                    far = (x[:, :, row, column] - v).abs().sum(1)
                    scores[row, column, tuple((255 * v).int().tolist())] = float(
                        far.mean() / (far.std(correction=0) + 1 / 255)
                    )
        found = (*mark.places[label].tolist(), tuple(mark.values[label].tolist()))
        best = max(scores.values())
        assert scores[found] > best * 0.9  # its own best, but for classes that want the same place


def test_a_small_set_is_shared_between_training_and_held_out_images(data: Data) -> None:
    train, kept = parts(data, 0, 0, Dice(0))
    assert (len(train), len(kept)) == (192, 48)
    many = data.take(torch.arange(20_000) % len(data))
    sizes = [len(part) for part in parts(many, 0, 0, Dice(0))]
    assert sizes == pytest.approx([18_000, 2_000], abs=len(data.classes))  # each class is rounded


def test_the_gaps_of_a_set_sorted_by_class_are_those_of_all_classes(data: Data) -> None:
    """Every class's part counts training images of its own, whatever the order of the set."""
    inert = Pixels(places=torch.tensor([[-1, 0]] * 3), values=torch.zeros(3, 1, dtype=torch.uint8), shape=data.shape)
    victim = Victim(network="cnn-small", recipe=replace(ATTACKER.recipe, epochs=4))
    model, kept = victim(data, Dice(0)), data.take(slice(0, 60))
    sorted_by_class = data.take(data.labels.argsort(stable=True))
    found = gaps(model, Member(victim=victim, dice=Dice(0), mark=inert), sorted_by_class, kept)
    assert accuracy(model, data) > 95
    assert found.abs().max() < 20


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("random-pixel", {"value": 1.5}, "value must lie"),
        ("single-pixel", {"start": "zero"}, "unknown start"),
        ("single-pixel", {"interest": 1.0}, "interest must lie"),
        ("single-pixel", {"interest": 0.99}, "free pixels, 2 are left"),
        ("single-pixel", {"images": 300}, "of 240 training images"),
        ("single-pixel", {"images": 2}, "cannot show all of 3 classes"),
        ("single-pixel", {"images": -1}, "images must not be negative, got -1"),
        ("single-pixel", {"generations": 0}, "must be positive"),
    ],
)
def test_bad_options(data: Data, name: str, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        POISONS[name](data, ATTACKER, **QUICK[name] | options)


@pytest.mark.parametrize("name", ["random-pixel", "border-pixel", "one-pixel-shortcut"])
def test_more_classes_than_places(name: str) -> None:
    data = striped(50, size=4)
    many = replace(data, images=data.images[:, :, :2, :2], labels=torch.arange(50) % 5, classes=tuple("abcde"))
    with pytest.raises(InputError, match="5 classes need as many places"):
        POISONS[name](many, ATTACKER)
