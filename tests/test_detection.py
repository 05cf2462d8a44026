"""Photos with boxes: reading, the small detector, average precision, and the patch that blinds a detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import look_at, within
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions.dpatch import detected, dpatch, stuck
from miscue.finder import RECIPE, Finder
from miscue.measures.detection import average_precision, overlaps
from miscue.models.detector import Centres, detections, losses
from miscue.models.modes import losing
from miscue.models.networks import placed
from miscue.models.store import load_model, save_model
from miscue.readers import read, read_scenes
from miscue.scenes import Boxes, Scenes, canvas, composed, frames

COLOURS = ((230, 40, 40), (40, 200, 60))


def street(n: int = 40, *, seed: int = 0) -> Scenes:
    """Noisy photos with one to three red or green squares."""
    generator = np.random.default_rng(seed)
    images, targets = [], []
    for _ in range(n):
        height, width = generator.integers(64, 97, 2).tolist()
        photo = generator.integers(60, 140, (3, height, width), dtype=np.uint8)
        boxes, labels = [], []
        for column in range(generator.integers(1, 4)):
            side, label = int(generator.integers(10, 19)), int(generator.integers(2))
            left = column * width // 3 + int(generator.integers(0, max(1, width // 3 - side)))
            top = int(generator.integers(0, height - side))
            photo[:, top : top + side, left : left + side] = np.array(COLOURS[label])[:, None, None]
            boxes.append([left, top, left + side, top + side])
            labels.append(label + 1)
        images.append(torch.from_numpy(photo))
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)})
    names = tuple(f"{i:03}.png" for i in range(n))
    return Scenes(images=tuple(images), targets=tuple(targets), classes=("red", "green"), files=names)


def numbers(scenes: Scenes) -> list[Tensor]:
    return [image.float() / 255 for image in scenes.images]


@pytest.fixture(scope="module")
def found() -> tuple[nn.Module, Scenes, Scenes]:
    """A trained detector, what it learned from, and other photos."""
    torch.set_num_threads(1)
    train, test = street(60), street(16, seed=1)
    finder = Finder(recipe=replace(RECIPE, epochs=14, batch_size=4, lr=4e-3))
    model = finder.untrained(train, Dice(0))
    for _ in finder.learning(model, train, Dice(0)):
        pass
    for parameter in model.parameters():
        parameter.grad = None
    return model, train, test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with boxes as files, in COCO's form."""
    path, scenes = tmp_path_factory.mktemp("street"), street(20, seed=2)
    (path / "images").mkdir()
    found: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    found["categories"] = [{"id": 7, "name": "red"}, {"id": 9, "name": "green"}]
    for i, (image, target, file) in enumerate(zip(scenes.images, scenes.targets, scenes.files, strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / "images" / file)
        found["images"].append({"id": i, "file_name": file})
        for (left, top, right, bottom), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            box = {"bbox": [left, top, right - left, bottom - top], "category_id": 7 if label == 1 else 9}
            found["annotations"].append(box | {"image_id": i})
    (path / "annotations.json").write_text(json.dumps(found))
    return path


def test_both_forms_of_annotations_read_alike(folder: Path, tmp_path: Path) -> None:
    scenes, wanted = read_scenes(folder), street(20, seed=2)
    assert scenes.classes == ("red", "green")
    assert scenes.files == wanted.files
    plain = {"images": []}
    for image, target, other, aim in zip(scenes.images, scenes.targets, wanted.images, wanted.targets, strict=True):
        assert torch.equal(image, other)
        assert torch.equal(target["boxes"], aim["boxes"])
        assert torch.equal(target["labels"], aim["labels"])
    for file, target in zip(scenes.files, scenes.targets, strict=True):
        words = [scenes.classes[label - 1] for label in target["labels"].tolist()]
        plain["images"].append({"file": file, "boxes": target["boxes"].tolist(), "labels": words})
        Image.open(folder / "images" / file).save(tmp_path / file)
    (tmp_path / "annotations.json").write_text(json.dumps(plain))
    again = read_scenes(tmp_path)
    assert again.classes == ("green", "red")
    assert all(torch.equal(a["labels"], 3 - b["labels"]) for a, b in zip(again.targets, scenes.targets, strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds no photos with boxes"),
        ("{", "not as expected"),
        ('{"images": [{"file": "a.png"}]}', "KeyError: 'labels'"),
        ('{"images": []}', "names no photos"),
        ('{"images": [{"file": "gone.png", "boxes": [], "labels": []}]}', r"gone\.png"),
        ('{"images": [{"file": "a.png", "boxes": [], "labels": ["b"]}]}', r"a\.png has 0 boxes and 1 labels"),
        ('{"images": [{"file": "a.png", "boxes": [[1, 2, 3]], "labels": ["b"]}]}', "a box that is not four numbers"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "annotations.json").write_text(text)
    with pytest.raises((InputError, OSError), match=words):
        read_scenes(tmp_path)


@pytest.mark.parametrize(
    ("boxes", "label", "words"),
    [([[0, 0, 99, 5]], 1, "reaches outside"), ([[3, 3, 3, 5]], 1, "is empty"), ([[0, 0, 5, 5]], 3, r"in 1\.\.2")],
)
def test_boxes_that_cannot_be(boxes: list[list[float]], label: int, words: str) -> None:
    target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([label])}
    with pytest.raises(InputError, match=words):
        Scenes(images=(torch.zeros(3, 9, 9).byte(),), targets=(target,), classes=("a", "b"), files=("one.png",))


def test_blocks_keep_neighbours_together() -> None:
    train, test = street(20).blocks()
    assert test.files == ("008.png", "009.png", "018.png", "019.png")
    assert sorted(train.files + test.files) == [f"{i:03}.png" for i in range(20)]
    with pytest.raises(InputError, match="too few"):
        street(4).blocks()


def test_frames_move_boxes_with_their_photos() -> None:
    scenes = street(8)
    shapes = set()
    for batch in [
        *frames(scenes, size=4, epochs=2, dice=Dice(1), stretch=0.4),
        *frames(scenes, size=4, epochs=4, dice=Dice(1), stretch=0.2, crop=50),
        *frames(scenes, size=4, epochs=2, dice=Dice(1), crop=50),
    ]:
        shapes.add(tuple(batch.x.shape[2:]))
        assert 0 <= float(batch.x.min()) <= float(batch.x.max()) <= 1
        for image, target in zip(batch.x, batch.targets, strict=True):
            for (left, top, right, bottom), label in zip(
                target["boxes"].tolist(), target["labels"].tolist(), strict=True
            ):
                middle = image[:, int((top + bottom) / 2), int((left + right) / 2)]
                assert int(middle.argmax()) == label - 1, "the square's colour lies where its box says"
    assert (50, 50) in shapes


def test_what_the_losses_ask_for_is_what_the_detections_give() -> None:
    """Maps that would lose nothing are found by descent on the losses; read back, they are the boxes."""
    boxes = torch.tensor([[3.0, 5.0, 21.0, 30.0], [40.0, 8.0, 52.0, 20.0], [30.0, 40.0, 63.0, 47.0]])
    target: Boxes = {"boxes": boxes, "labels": torch.tensor([2, 1, 2])}
    sure, box = torch.full((1, 2, 12, 16), -3.0).requires_grad_(), torch.zeros(1, 4, 12, 16).requires_grad_()
    adam = torch.optim.Adam([sure, box], 0.3)
    for step in range(400):
        adam.param_groups[0]["lr"] = 0.3 * (1 - step / 400)
        adam.zero_grad()
        sum(losses(sure, box, [target]).values()).backward()
        adam.step()
    read = detections(sure[0].detach(), box[0].detach(), sides=(64, 48), threshold=0.5)
    assert len(read["labels"]) == 3
    match = overlaps(boxes, read["boxes"]).argmax(1)
    assert torch.equal(read["labels"][match], target["labels"])
    assert float((read["boxes"][match] - boxes).abs().max()) < 0.1


def test_average_precision_of_known_cases() -> None:
    box = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    target: Boxes = {"boxes": box, "labels": torch.tensor([1])}

    def one(boxes: Tensor, *labels: int, scores: Sequence[float] = (0.9,)) -> dict[str, float]:
        found = {"boxes": boxes, "labels": torch.tensor(labels), "scores": torch.tensor(scores)}
        return average_precision([found], [target], 2)

    assert one(box, 1) == {"map": 100.0, "map_50": 100.0}
    assert one(box, 2)["map_50"] == 0
    assert one(torch.zeros(0, 4), scores=())["map_50"] == 0
    wide = box + torch.tensor([0.0, 0.0, 5.0, 0.0])  # overlap 0.8
    assert one(wide, 1)["map"] == pytest.approx(70.0)
    wrong_first = torch.cat([box + 100, box])
    assert one(wrong_first, 1, 1, scores=(0.9, 0.8))["map_50"] == pytest.approx(50.0, abs=0.5)
    flooded = torch.cat([(box + 200).expand(100, 4), box])
    assert one(flooded, *[1] * 101, scores=[0.9] * 100 + [0.8])["map_50"] == 0, "only 100 of a class count"
    assert one(flooded, *[2] * 100, 1, scores=[0.9] * 100 + [0.8])["map_50"] == 100
    with pytest.raises(InputError, match="no image has an object"):
        average_precision([], [], 2)


def test_overlaps_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0], [0.0, 0.0, 2.0, 2.0]])
    assert torch.allclose(overlaps(a, b), torch.tensor([[1 / 7, 0.0, 1.0]]))


def test_the_detector_finds_and_is_saved(found: tuple[nn.Module, Scenes, Scenes], tmp_path: Path) -> None:
    model, _, test = found
    before = detected(model, numbers(test))
    assert average_precision(before, test.targets, 2)["map_50"] > 80
    save_model(tmp_path / "m.safetensors", model, Finder().plan(test), classes=list(test.classes))
    again = detected(placed(load_model(tmp_path / "m.safetensors")[0], "cpu"), numbers(test))
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(before, again, strict=True))
    with pytest.raises(InputError, match="needs targets"):
        Centres(2).train()([torch.zeros(3, 32, 32)])


def test_composed_photos_hold_the_images_at_their_boxes() -> None:
    data = read("digits").train
    made = composed(data, 12, size=(40, 60), most=3, dice=Dice(0))
    assert len(made) == 12
    assert made.classes == data.classes
    counts = {len(target["labels"]) for target in made.targets}
    assert counts == {1, 2, 3}
    for photo, target in zip(made.images, made.targets, strict=True):
        apart = overlaps(target["boxes"], target["boxes"]).fill_diagonal_(0)
        assert float(apart.max()) == 0
        for (left, top, right, bottom), label in zip(target["boxes"].long().tolist(), target["labels"], strict=True):
            of_class = data.images[data.labels == label - 1]
            assert bool((photo[:, top:bottom, left:right] == of_class).flatten(1).all(1).any())
    assert all(map(torch.equal, made.images, composed(data, 12, size=(40, 60), most=3, dice=Dice(0)).images))
    with pytest.raises(InputError, match="side by side"):
        composed(data, 1, size=(40, 20), most=3, dice=Dice(0))


def test_a_canvas_changes_little_of_what_is_found(found: tuple[nn.Module, Scenes, Scenes]) -> None:
    model, _, test = found
    alone = detected(model, numbers(test), batch=1)
    together = detected(model, numbers(test), batch=16)
    for one, other, true in zip(alone, together, test.targets, strict=True):
        assert torch.equal(overlaps(true["boxes"], one["boxes"]).amax(1) > 0.5,
                           overlaps(true["boxes"], other["boxes"]).amax(1) > 0.5)  # fmt: skip
    assert canvas([torch.ones(3, 5, 9), torch.ones(3, 8, 2)], multiple=16).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("place", ["corner", "random"])
def test_dpatch_blinds_and_noise_does_not(found: tuple[nn.Module, Scenes, Scenes], place: str) -> None:
    model, train, test = found
    made = dpatch(model, numbers(train), train.targets, size=20, place=place, steps=120, lr=0.1, dice=Dice(2))
    assert made.loss[-20:].mean() > 1.5 * made.loss[:3].mean()
    assert 0 <= float(made.patch.min()) <= float(made.patch.max()) <= 1
    corner = torch.zeros(len(test), 2, dtype=torch.long)
    clean, noisy, patched = (
        average_precision(detected(model, images), test.targets, 2)["map_50"]
        for images in (
            numbers(test),
            stuck(torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)), numbers(test), corner),
            stuck(made.patch, numbers(test), corner),
        )
    )
    assert noisy > 0.7 * clean
    assert patched < noisy + (-5 if place == "corner" else 5)


def test_a_targeted_patch_draws_all_attention(found: tuple[nn.Module, Scenes, Scenes]) -> None:
    model, train, _ = found
    made = dpatch(model, numbers(train), train.targets, target=2, size=20, steps=60, lr=0.1, dice=Dice(2))
    assert made.loss[-10:].mean() > made.loss[:3].mean()
    first = torch.stack([one["labels"][0] for one in made.found])
    where = torch.stack([one["boxes"][0] for one in made.found])
    patch = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    assert float((first == 2).double().mean()) > 0.8
    assert float((overlaps(where, patch) > 0.3).double().mean()) > 0.5


def test_dpatch_leaves_all_as_it_was(found: tuple[nn.Module, Scenes, Scenes]) -> None:
    model, train, _ = found
    images = numbers(train)[:6]
    before = [image.clone() for image in images]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    next(iter(model.parameters())).requires_grad_(False)
    model.train()
    asked = [p.requires_grad for p in model.parameters()]
    try:
        one, other = (
            dpatch(model, images, train.targets[:6], size=12, steps=3, batch=2, dice=Dice(4)) for _ in range(2)
        )
        assert torch.equal(one.patch, other.patch)
        assert not torch.equal(one.patch, dpatch(model, images, train.targets[:6], size=12, steps=3).patch)
        assert model.training
        assert [p.requires_grad for p in model.parameters()] == asked
    finally:
        model.eval()
        model.requires_grad_(True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(images, before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_losing_keeps_normalisation_still(found: tuple[nn.Module, Scenes, Scenes]) -> None:
    model = found[0]
    with pytest.raises(RuntimeError, match="on the way"), losing(model):
        assert model.training
        assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        raise RuntimeError("on the way")
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "must be positive"),
        ({"place": "middle"}, "place"),
        ({"size": 80}, "smaller than the patch"),
        ({"target": 0}, "must be positive"),
    ],
)
def test_dpatch_refuses(found: tuple[nn.Module, Scenes, Scenes], options: dict[str, Any], words: str) -> None:
    model, train, _ = found
    with pytest.raises(InputError, match=words):
        dpatch(model, numbers(train), train.targets, **{"steps": 1} | options)
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        dpatch(model, [image.float() for image in train.images], train.targets, steps=1)


def test_the_commands_from_photos_to_a_page(folder: Path, tmp_path: Path, browser: Any) -> None:
    model, out = tmp_path / "m.safetensors", tmp_path / "out"
    done = within("train-detector", folder, model, "--epochs", "25", "--batch-size", "4", "--threads", "1", "--json")
    assert 0 <= json.loads(done.stdout)["map_50"] <= 100
    words = ["attack", "dpatch", model, folder, out, "--size", "20", "--steps", "12", "--threads", "1"]
    row = json.loads(within(*words, "--json").stdout)
    assert row["n"] == 4
    assert {"map_50", "map_50_noise", "map_50_patched", "success"} <= set(row)
    patch = np.asarray(Image.open(out / "patch.png"))
    for file in ("008.png", "009.png", "018.png", "019.png"):
        picture, clean = (np.asarray(Image.open(place / "images" / file)) for place in (out, folder))
        assert np.array_equal(picture[:20, :20], patch)
        assert np.array_equal(picture[20:], clean[20:])
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert {record["measure"]: record["mean"] for record in records}["map_50_patched"] == row["map_50_patched"]
    (out / "report.html").unlink()
    within("report", out)
    look_at(browser, out / "report.html", width=390, scheme="dark")
    refused = within(*words, check=False)
    assert refused.exit_code == 2
    assert "add --overwrite" in refused.stderr
    for more, text in ((["--target", "blue"], "no class 'blue'"), (["--place", "x"], "place")):
        refused = within(*words, "--overwrite", *more, check=False)
        assert refused.exit_code == 2
        assert text in refused.stderr
