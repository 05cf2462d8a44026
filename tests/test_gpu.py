"""The same on a GPU: all methods run there, leave what they are given there, and give what a CPU gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from miscue.cli import app
from miscue.data import Data, floats
from miscue.defences import bound, feature_norm, tuning
from miscue.detectors.consistency import Detector
from miscue.detectors.patchcleanser import Masks, certified, cleanse
from miscue.dice import Dice
from miscue.evaluation import MEASURES, Contest, arenas, whole_cell
from miscue.explainers import EXPLAINERS
from miscue.hardness import HARDNESS, ease
from miscue.measures.accuracy import accuracy, predictions
from miscue.measures.activations import layers, maxima
from miscue.models.networks import device_of, placed
from miscue.models.store import Plan, build
from miscue.perturbation import Perturbation
from miscue.poisons import POISONS, PRESETS, Attacker
from miscue.population import fit_many
from miscue.readers import read
from miscue.train import Recipe
from miscue.victims import Victim
from test_evasions import BATTERY
from test_population import alone, members

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

RECIPE = Recipe(lr=0.1, momentum=0.9, epochs=12, batch_size=64, schedule="cosine")
DETERMINED = ("fgsm", "deepfool", "deepfool, linf", "one-pixel-exhaustive")
TINY = {
    "deepconfuse": {"preset": "digits", "trials": 2, "steps": 6, "warm_up": 1},
    "single-pixel": {"generations": 1, "candidates": 4, "first_candidates": 2, "finalists": 2, "images": 120}
    | {"held_out": 60},
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network that reads scikit-learn's digits."""
    return Victim(network="cnn-small", recipe=RECIPE)(read("digits").train, Dice(0), device="cuda")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = read("digits").test
    assert test is not None
    return floats(test.images).cuda(), test.labels.cuda()


@pytest.fixture(autouse=True)
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in single precision, so that a CPU gives the same."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_cpu(model: nn.Module) -> nn.Module:
    """A copy of a digits' network."""
    copy = build(Plan(name="cnn-small", shape=(1, 8, 8), options={"classes": 10}), Dice(1))
    copy.load_state_dict(model.state_dict())
    return placed(copy, "cpu").eval()


def test_training(model: nn.Module) -> None:
    test = read("digits").test
    assert device_of(model).type == "cuda"
    assert accuracy(model, test) > 90
    assert torch.equal(predictions(model, test.images).cpu(), predictions(on_cpu(model), test.images))


@pytest.mark.parametrize("name", BATTERY)
def test_attacks(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:24] for part in digits)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = BATTERY[name](model, x, y)
    assert {part.device.type for part in (found.x, found.success, found.already, found.queries)} == {"cuda"}
    assert found.success.any()
    assert 0 <= float(found.x.min()) <= float(found.x.max()) <= 1
    with torch.no_grad():
        assert torch.equal(found.success, (model(found.x).argmax(1) != y) & ~found.already)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    if name in DETERMINED:
        same = BATTERY[name](on_cpu(model), x.cpu(), y.cpu())
        assert torch.equal(found.already.cpu(), same.already)
        assert (found.success.cpu() == same.success).float().mean() > 0.95
        assert (found.x.cpu() - same.x).abs().flatten(1).amax(1).lt(1e-2).float().mean() > 0.9


@pytest.mark.parametrize("name", EXPLAINERS)
def test_explanations(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:9] for part in digits)
    maps = EXPLAINERS[name](model, x, y)
    assert maps.device.type == "cuda"
    assert torch.allclose(maps.cpu(), EXPLAINERS[name](on_cpu(model), x.cpu(), y.cpu()), atol=1e-4)


def test_detectors(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    verdicts = []
    for one, images in ((model, x), (on_cpu(model), x.cpu())):
        detector = Detector(window=3, stride=1).calibrated(one, images[:100])
        verdicts.append(detector(one, images[100:160]))
    assert (verdicts[0].alarm.cpu() == verdicts[1].alarm).float().mean() > 0.95
    masks = Masks.against(2, (8, 8), per_side=3)
    assert (
        cleanse(model, x[:30], masks).named.cpu().tolist() == cleanse(on_cpu(model), x[:30].cpu(), masks).named.tolist()
    )
    assert torch.equal(
        certified(model, x[:30], y[:30], masks).cpu(), certified(on_cpu(model), x[:30].cpu(), y[:30].cpu(), masks)
    )


def test_hardness_and_activations(model: nn.Module) -> None:
    some = read("digits").test.take(slice(0, 60))
    for name in HARDNESS:
        here, there = ease(name, model, some), ease(name, on_cpu(model), some)
        assert (here.cpu() - there).abs().le(0.05 * (1 + there.abs())).float().mean() > 0.9
    sizes = maxima(model, some.images)
    assert all(torch.allclose(sizes[k].cpu(), v, atol=1e-3) for k, v in maxima(on_cpu(model), some.images).items())
    assert len(layers(model, some.images)) == len(layers(on_cpu(model), some.images))


def test_bounds(model: nn.Module) -> None:
    train, test = read("digits").train, read("digits").test
    bounded = bound(model, train.spread(200))
    for _ in tuning(bounded, train.to("cuda"), replace(RECIPE, lr=0.02, epochs=2), Dice(0)):
        pass
    assert accuracy(bounded, test) > 90
    assert accuracy(feature_norm(model, train.spread(200)), test) > 80


@pytest.mark.parametrize("network", ["cnn-plain", "cnn"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_population_is_what_separate_fits_are(data: Data, network: str, optimizer: str) -> None:
    many = members(data, network, optimizer)
    x = data.images[:50].float() / 255
    for member, found in zip(many, fit_many(data, many, device="cuda"), strict=True):
        assert device_of(found).type == "cuda"
        scores, expected = found(x.cuda()).cpu(), alone(data, member)(x)
        assert (scores - expected).abs().mean() < 0.05 * expected.abs().mean()  # Adam's steps grow what rounding began


@pytest.mark.parametrize("name", POISONS)
def test_poisons(name: str, tmp_path: Path) -> None:
    """The command, a second time from the checkpoint of the first, and the perturbation on 8-bit images."""
    words = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.get(name, {}).items()]
    surrogate = ["--surrogate", "cnn-small"] if name == "single-pixel" else []
    for device, place in (("cuda", tmp_path / "gpu"), ("cpu", tmp_path / "cpu")):
        done = CliRunner().invoke(
            app, ["poison", name, "digits", str(place), "--device", device, *words, *surrogate], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
    train = read("digits").train
    gpu, cpu = (Perturbation.load(tmp_path / f"{place}.craft" / "perturbation.safetensors") for place in ("gpu", "cpu"))
    assert (gpu(train).images != train.images).any()
    if name not in TINY:
        assert torch.equal(gpu(train).images, cpu(train).images)


@pytest.mark.parametrize("options", [{}, {"online_trials": 2}, {"gradient": "difference"}, {"pool": 2}])
def test_deepconfuse_goes_on(options: dict, data: Data) -> None:
    """A run from the checkpoint of another ends where that one ends."""
    preset = PRESETS["deepconfuse"]["digits"]
    attacker = Attacker(surrogate="cnn-small", recipe=preset.recipe, dice=Dice(0), device="cuda")
    given = {"trials": 2, "steps": 4, "warm_up": 1, "generator": "unet"} | options
    whole = [p.checkpoint for p in POISONS["deepconfuse"].steps(data, attacker, **given) if p.checkpoint]
    state = {name: tensor.cpu() for name, tensor in whole[1].state.items()}
    rest = [p.checkpoint for p in POISONS["deepconfuse"].steps(data, attacker, **given, resume=state) if p.checkpoint]
    assert whole[-1].measures["damage"] == pytest.approx(rest[-1].measures["damage"], abs=10)
    noise = [one.perturbation(data).images.int() - data.images.int() for one in (whole[-1], rest[-1])]
    assert (noise[0] - noise[1]).abs().float().mean() < 2


def test_a_contest(data: Data) -> None:
    arena, _ = arenas(data, data, data, None)
    victim = Victim(network="cnn-small", recipe=replace(RECIPE, epochs=3, precision="auto", shift=1, holes=1, hole=3))
    contest = Contest(arena=arena, name="cnn-small", victim=victim, seed=0, label_map=None, device="cuda")
    cell = whole_cell([contest], 0)
    assert cell["test_accuracy"] > 60
    assert {"curve", "confusion"} <= cell.keys()
    assert MEASURES[0] in cell
