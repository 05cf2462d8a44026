"""What makes networks harder to fool: bounds, losses, clipped features; and what cleans data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import look_at, striped, within
from miscue.cleaners import CLEANERS, bit_depth, grayscale, jpeg, median, pixel_outliers
from miscue.covers import covered
from miscue.data import Batch, Data, floats
from miscue.defences import LOSSES
from miscue.defences.adversarial import Adversarial
from miscue.defences.bounded import bound, functional_relus, leaky, tuning
from miscue.defences.feature_norm import feature_norm
from miscue.defences.masked import Masked
from miscue.defences.occluded import Occluded
from miscue.detectors.patchcleanser import Masks, certified
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions import pgd
from miscue.evasions.attempt import slope
from miscue.losses import plain, shared
from miscue.measures.accuracy import accuracy
from miscue.measures.activations import QUANTILES, layers, maxima, overdriven, snapshot, weight_norms
from miscue.models.bounded import BoundedLeakyReLU, bounds, squared
from miscue.models.clipping import NormClip, gathers
from miscue.models.functions import Bound
from miscue.models.store import Plan, build, load_model, save_model
from miscue.readers import read
from miscue.train import Recipe
from miscue.victims import Victim

RECIPE = Recipe(lr=0.05, momentum=0.9, epochs=4, batch_size=32)


@pytest.fixture(scope="module")
def data() -> Data:
    return striped()


@pytest.fixture(scope="module")
def model(data: Data) -> nn.Module:
    torch.set_num_threads(1)
    return Victim(network="cnn-small", recipe=RECIPE)(data, Dice(0))


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_bounded_by_its_definition(slope: float) -> None:
    unit = BoundedLeakyReLU(torch.tensor([1.0, 2.0]), slope=slope).double()
    x = torch.tensor([[-1.0, 3.0], [0.5, 1.5], [1.5, -2.0]]).double().requires_grad_()
    wanted = [
        [-slope, 2 - slope],
        [0.5, 1.5],
        [1 - 0.5 * slope, -2 * slope],
    ]
    y = unit(x)
    assert y.tolist() == [pytest.approx(row) for row in wanted]
    assert torch.allclose(unit.bound, torch.tensor([1.0, 2.0]).double(), atol=1e-6)
    (by_b,) = torch.autograd.grad(y.sum(), unit.raw)
    soft = torch.sigmoid(unit.raw)
    assert torch.allclose(by_b / soft, torch.tensor([1.0, 1.0]).double() * (1 + slope))
    maps = torch.randn(2, 2, 3, 3).double()
    assert torch.equal(unit(maps)[:, 1], unit(maps.permute(0, 2, 3, 1).reshape(-1, 2)).reshape(2, 3, 3, 2)[..., 1])
    assert torch.autograd.gradcheck(unit, (torch.randn(4, 2).double().requires_grad_(),))
    with pytest.raises(InputError, match="must be positive"):
        BoundedLeakyReLU(torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("shape", [(3,), ()])
@pytest.mark.parametrize("s", [0.0, 0.2])
def test_bounds_are_differentiable_twice_and_batched(shape: tuple[int, ...], s: float) -> None:
    torch.manual_seed(0)
    x = (2 * torch.randn(4, 3, 5, 2).double()).requires_grad_()
    b = torch.full(shape, 1.2).double().view([1, -1, 1, 1]).requires_grad_()

    def bounded(x: Tensor, b: Tensor) -> Tensor:
        return Bound.apply(x, b, s)

    by_hand = torch.where(x < 0, s * x, torch.where(x > b, b - s * (x - b), x))
    assert torch.allclose(bounded(x, b), by_hand)
    weights = torch.randn_like(x)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), (x, b)) for y in (bounded(x, b), by_hand))
    assert all(torch.allclose(one, other) for one, other in zip(ours, theirs, strict=True))
    assert torch.autograd.gradgradcheck(bounded, (x, b))
    every = torch.stack([x, 2 * x, -x])
    together = torch.vmap(bounded, in_dims=(0, None))(every, b)
    assert torch.equal(together, torch.stack([bounded(one, b) for one in every]))


def test_bounds_keep_the_precision_of_what_they_bound() -> None:
    unit = BoundedLeakyReLU(torch.tensor([1.0, 2.0]))
    x = torch.tensor([[0.5, 3.0], [1.5, 1.0]], dtype=torch.bfloat16).requires_grad_()
    y = unit(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.tolist() == [[1, 0], [0, 1]]
    assert torch.allclose(unit.raw.grad, torch.sigmoid(unit.raw), atol=0.01)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_bounding_a_trained_network_changes_little(model: nn.Module, data: Data, per: str, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = bound(model, data, percentile=100.0, per=per)
    assert not bounds(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(bounds(found)) == sum(isinstance(m, nn.ReLU) for m in model.modules())
    x = floats(data.images)
    assert torch.allclose(found(x), model(x), atol=1e-3)
    tight = bound(model, data, percentile=50.0, per=per)
    for wide, narrow in zip(bounds(found).values(), bounds(tight).values(), strict=True):
        assert bool((narrow.bound <= wide.bound + 1e-5).all())
    plan = Plan(name="cnn-small", shape=data.shape, options={"classes": 3, "bounded": 0.0})
    save_model(tmp_path / "b.safetensors", tight, plan)
    again = load_model(tmp_path / "b.safetensors")[0]
    assert torch.equal(again(x), tight(x))
    assert [m.slope for m in bounds(again).values()] == [0.0] * len(bounds(again))


def test_fine_tuning_brings_bounds_down_and_keeps_accuracy(model: nn.Module, data: Data) -> None:
    found = bound(model, data, percentile=99.5)
    start = squared(found).item()
    losses = [
        epoch.loss for epoch in tuning(found, data, replace(RECIPE, lr=0.02, epochs=3), Dice(1), decay=0.02, pace=5.0)
    ]
    assert len(losses) == 3
    assert squared(found).item() < 0.8 * start
    assert accuracy(found, data) >= accuracy(model, data) - 2
    assert not found.training
    with pytest.raises(InputError, match="bound it first"):
        next(tuning(model, data, RECIPE, Dice(1)))


class Hidden(nn.Module):
    """Calls ReLU as a function in one place, as a module, twice, in another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.block = Block()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(F.relu(self.first(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(self.relu(x)))


def test_functional_relus_are_named(data: Data) -> None:
    torch.manual_seed(0)
    hidden = Hidden().eval()
    assert functional_relus(hidden, data) == ["Hidden"]
    with pytest.raises(InputError, match="function in Hidden"):
        bound(hidden, data)
    alone = nn.Sequential(nn.Conv2d(1, 4, 3), Block(), nn.Flatten(), nn.LazyLinear(3)).eval()
    alone(floats(data.images[:1]))
    found = bound(alone, data, percentile=100.0, per="channel")
    assert len(bounds(found)) == 1, "one module in two places stays one"
    assert torch.allclose(found(floats(data.images)), alone(floats(data.images)), atol=1e-4)
    with pytest.raises(InputError, match="no ReLU"):
        bound(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), data)


def test_a_leaky_copy_says_the_same_but_has_slopes(model: nn.Module, data: Data) -> None:
    tight = bound(model, data, percentile=20.0)
    soft, x, y = leaky(tight), floats(data.images[:40]), data.labels[:40]
    assert torch.allclose(soft(x), tight(x), atol=1e-5)
    flat, full = (
        slope(lambda z, net=net: -net(z).log_softmax(1).gather(1, y[:, None])[:, 0], x)[0] for net in (tight, soft)
    )
    assert float(full.abs().mean()) > float(flat.abs().mean())
    assert not bounds(model)


def test_activations_are_counted(model: nn.Module, data: Data) -> None:
    found = layers(model, data.images)
    many, black = data.images.repeat(9, 1, 1, 1), torch.zeros_like(data.images[:1])
    whole, parts = (layers(model, torch.cat([many[:count], black])) for count in (255, 256))  # the last part: one image
    assert [one.active for one in parts] == pytest.approx([one.active for one in whole], abs=0.5)
    kept: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, i, output, name=name: kept.__setitem__(name, output.detach()))
    with torch.no_grad():
        model(floats(data.images))
    for module in model.modules():
        module._forward_hooks.clear()
    assert [layer.name for layer in found] == list(kept)
    for layer in found:
        values = kept[layer.name].flatten()
        assert layer.largest == pytest.approx(float(values.max()), rel=1e-4)
        assert layer.active == pytest.approx(100 * float((values > 0).double().mean()), abs=0.2)
        wanted = values.double().quantile(torch.tensor(QUANTILES).double())
        assert layer.quantiles == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-4)
    most = maxima(model, data.images)
    first = next(iter(most))
    assert torch.allclose(most[first], kept[first].flatten(2).amax(2), atol=1e-4)
    driven = overdriven(most, maxima(model, data.images // 2 + 128))
    assert driven[first].shape == most[first].shape
    assert float(overdriven(most, most, quantile=1.0)[first].max()) == pytest.approx(1)
    assert set(weight_norms(model)) == {
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize(
    "loss",
    [
        Adversarial(eps=0.1, steps=3),
        Occluded(side=4),
        Occluded(side=4, candidates=0, drawn=3, whole=0.4),
        Masked(patch=2, per_side=3),
    ],
)
def test_losses_train_and_leave_modes_alone(loss: object, data: Data) -> None:
    victim = Victim(network="cnn-small", recipe=RECIPE, loss=loss)
    model = victim(data, Dice(0))
    assert accuracy(model, data) > 80
    brief = replace(victim, recipe=replace(RECIPE, epochs=1))
    one, again = (brief(data, Dice(0)).state_dict() for _ in range(2))  # the loss keeps nothing from one to the next
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()
    batch = Batch(x=floats(data.images[:8]), y=data.labels[:8], index=torch.arange(8))
    before = batch.x.clone()
    value = loss(model, batch)
    assert value.requires_grad
    assert model.training
    assert torch.equal(batch.x, before)


def test_adversarial_training_makes_robust(data: Data) -> None:
    recipe = replace(RECIPE, epochs=10)
    plain = Victim(network="cnn-small", recipe=recipe)(data, Dice(0))
    robust = Victim(network="cnn-small", recipe=recipe, loss=Adversarial(eps=0.12, steps=5))(data, Dice(0))
    test = striped(120, seed=9)
    x, y = floats(test.images), test.labels
    survived = [
        float((~pgd(net, x, y, eps=0.12, alpha=0.03, steps=10).success).double().mean()) for net in (plain, robust)
    ]
    assert survived[1] > survived[0] + 0.1


def test_the_worst_square_is_worse_than_a_random_one(model: nn.Module, data: Data) -> None:
    batch = Batch(x=floats(data.images[:60]), y=data.labels[:60], index=torch.arange(60))
    x, masks = Occluded(side=5, candidates=6).placed(model, batch)
    assert set(masks.flatten(1).sum(1).tolist()) == {25.0}
    assert torch.equal(x * (1 - masks), batch.x * (1 - masks))
    with torch.no_grad():
        worst, whole = (F.cross_entropy(model(z), batch.y).item() for z in (x, batch.x))
        rolled = torch.roll(masks, 3, dims=0).bool()
        other = F.cross_entropy(model(batch.x.masked_fill(rolled, 0.5)), batch.y).item()
    assert worst > other
    assert worst > whole
    at_random = Occluded(side=5, candidates=0, drawn=1)
    drawn = [at_random.placed(model, batch, Dice(seed).generator())[1] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].flatten(1).unique(dim=0)) > 20
    with pytest.raises(InputError, match="square of 13 pixels"):
        Occluded(side=13).placed(model, batch)
    for wrong in ({"candidates": 0}, {"drawn": -1}, {"whole": 1.0}, {"alpha": 0.0}):
        with pytest.raises(InputError, match="must"):
            Occluded(**wrong)


def test_the_whole_images_have_their_share_of_the_loss(model: nn.Module, data: Data) -> None:
    batch = Batch(x=floats(data.images[:60]), y=data.labels[:60], index=torch.arange(60))
    hard = 1 - batch.x
    with torch.no_grad():
        own, changed, both = (
            float(shared(model, batch, x, whole=whole)) for x, whole in ((batch.x, 0.0), (hard, 0.0), (hard, 0.3))
        )
    assert changed > own
    assert both == pytest.approx(0.3 * own + 0.7 * changed, rel=1e-4)


def test_a_victim_goes_on_from_a_trained_network(model: nn.Module, data: Data) -> None:
    before = [p.clone() for p in model.parameters()]
    slow = Victim(network="cnn-small", recipe=replace(RECIPE, epochs=1, lr=1e-4))
    after = slow(data, Dice(0), start=model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not torch.equal(next(after.parameters()), before[0])
    assert accuracy(after, data) > accuracy(slow(data, Dice(0)), data) + 20


def test_masks_are_hard_and_come_in_pairs(model: nn.Module, data: Data) -> None:
    batch = Batch(x=floats(data.images[:60]), y=data.labels[:60], index=torch.arange(60))
    inside = Masks.against(2, (12, 12), per_side=3).inside

    def loss_under(tries: int) -> float:
        found = Masked(patch=2, per_side=3, tries=tries).hardest(model, batch, inside)
        pairs = (inside[:, None] | inside[None]).flatten(0, 1)
        assert bool((found[:, None] == pairs[None]).flatten(2).all(2).any(1).all())
        with torch.no_grad():
            return F.cross_entropy(model(covered(batch.x, found, "grey")), batch.y).item()

    assert loss_under(40) > loss_under(1)


def test_training_under_masks_certifies_more(data: Data) -> None:
    recipe, masks = replace(RECIPE, epochs=10), Masks.against(3, (12, 12), per_side=3)
    test = striped(120, seed=9)
    sure = []
    for loss in (plain, Masked(patch=3, per_side=3)):
        net = Victim(network="cnn-small", recipe=recipe, loss=loss)(data, Dice(0))
        sure.append(float(certified(net, floats(test.images), test.labels, masks).double().mean()))
    assert sure[1] > sure[0] + 0.1
    with pytest.raises(InputError, match="tries"):
        Masked(tries=0)


def test_feature_norms_are_clipped(model: nn.Module, data: Data, tmp_path: Path) -> None:
    x = floats(data.images)
    wide, tight = (feature_norm(model, data, percentile=p) for p in (100.0, 10.0))
    assert torch.allclose(wide(x), model(x), atol=1e-4)
    assert not torch.allclose(tight(x), model(x), atol=1e-2)
    plan = Plan(name="cnn-small", shape=data.shape, options={"classes": 3, "norm_clip": True})
    save_model(tmp_path / "c.safetensors", tight, plan)
    assert torch.equal(load_model(tmp_path / "c.safetensors")[0](x), tight(x))
    maps = torch.randn(5, 7, 3, 3) * 100
    kept = NormClip(nn.Identity(), torch.tensor(2.0))(maps)
    assert float(kept.norm(dim=1).max()) <= 2 + 1e-4
    assert torch.allclose(F.normalize(kept, dim=1), F.normalize(maps, dim=1), atol=1e-5)
    with pytest.raises(InputError, match="no Flatten"):
        feature_norm(nn.Sequential(nn.Conv2d(1, 2, 3)), data)


def test_the_norms_of_the_last_maps_are_clipped_where_images_are_averaged_first() -> None:
    model = build(Plan(name="conv5-coarse", shape=(3, 112, 112), options={"classes": 2}), Dice())
    name, _ = gathers(model)
    *_, last = (name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    assert int(name) > int(last)


def coloured(n: int = 20) -> Data:
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(n, 3, 4, 4, generator=generator), (24, 20), mode="bicubic").clamp(0, 1)
    labels = torch.arange(n) % 2
    return Data(images=(255 * smooth).round().byte(), labels=labels, classes=("a", "b"))


@pytest.mark.parametrize("name", CLEANERS)
def test_cleaners_keep_everything_else(name: str) -> None:
    for data in (coloured(), striped(30)):
        before = data.images.clone()
        cleaned = CLEANERS[name](data)
        assert cleaned.images.shape == data.images.shape
        assert cleaned.images.dtype == torch.uint8
        assert torch.equal(cleaned.labels, data.labels)
        assert cleaned.classes == data.classes
        assert torch.equal(data.images, before)


def test_cleaners_by_hand() -> None:
    data = coloured()
    grey = grayscale(data).images
    assert torch.equal(grey[:, 0], grey[:, 2])
    red = replace(data, images=torch.zeros_like(data.images))
    red.images[:, 0] = 255
    assert set(grayscale(red).images.unique().tolist()) == {76}
    assert grayscale(striped(6)).images.shape[1] == 1
    assert bit_depth(data, bits=1).images.unique().tolist() == [0, 255]
    assert torch.equal(bit_depth(data, bits=8).images, data.images)
    assert bit_depth(data, bits=2).images.unique().tolist() == [0, 85, 170, 255]
    assert (jpeg(data, quality=95).images.float() - data.images.float()).abs().mean() < 6
    assert (jpeg(data, quality=10).images.float() - data.images.float()).abs().mean() > 1
    scipy = pytest.importorskip("scipy.ndimage")
    theirs = scipy.median_filter(data.images.numpy(), size=(1, 1, 3, 3), mode="nearest")
    assert torch.equal(median(data).images, torch.from_numpy(theirs))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_pixel_is_taken_out_and_strokes_stay(channels: int) -> None:
    images = torch.zeros(4, channels, 12, 12, dtype=torch.uint8)
    images[:, :, 4:8, 5] = 220  # a stroke of one pixel's width
    images[:, :, 9, 2:6] = 200
    data = Data(images=images, labels=torch.arange(4) % 2, classes=("a", "b"))
    marked = images.clone()
    for i, (row, column) in enumerate(((0, 0), (11, 3), (2, 9), (6, 8))):
        marked[i, :, row, column] = 255
    cleaned = pixel_outliers(data.with_images(marked))
    assert torch.equal(cleaned.images, images)
    assert torch.equal(pixel_outliers(data).images, images)


@pytest.mark.parametrize(
    ("cleaner", "options", "words"),
    [(jpeg, {"quality": 0}, "quality"), (bit_depth, {"bits": 9}, "bits"), (median, {"side": 4}, "odd"),
     (pixel_outliers, {"threshold": 1.0}, "threshold")],
)  # fmt: skip
def test_cleaners_refuse(cleaner: object, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cleaner(coloured(), **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    within("train", "digits", path, "--victim", "cnn-small", "--epochs", "6", "--threads", "1")
    return path


def test_every_cleaner_and_loss_has_a_command() -> None:
    shown = within("harden", "--help").stdout
    assert all(name in shown for name in (*CLEANERS, *LOSSES, "bounded", "feature-norm"))


def test_cleaned_copies_are_data_sets(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    data = coloured()
    for i, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        (folder / "train" / "ab"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "train" / "ab"[label] / f"{i}.png")
    done = within("harden", "jpeg", folder, tmp_path / "out", "--quality", "20", "--json")
    row = json.loads(done.stdout)
    assert row["cleaner"] == "jpeg"
    assert row["options"] == {"quality": 20}
    original, copy = read(folder).train, read(tmp_path / "out").train
    assert torch.equal(copy.images, jpeg(original, quality=20).images)
    assert torch.equal(copy.labels, original.labels)
    refused = within("harden", "jpeg", folder, tmp_path / "out", check=False)
    assert refused.exit_code == 2
    refused = within("harden", "median", folder, tmp_path / "other", "--side", "2", check=False)
    assert refused.exit_code == 2
    assert "side must be odd" in refused.stderr


def test_models_are_changed_and_saved(saved: Path, tmp_path: Path) -> None:
    plain, x = load_model(saved)[0], floats(read("digits").test.images)
    for name, more in (("bounded", ["--epochs", "2"]), ("feature-norm", ["--percentile", "99"])):
        out = tmp_path / f"{name}.safetensors"
        row = json.loads(within("harden", name, saved, "digits", out, *more, "--threads", "1", "--json").stdout)
        found, facts = load_model(out)
        assert facts["scores"]["test_accuracy"] == row["test_accuracy"] > 80
        assert not torch.equal(found(x), plain(x))
        attack = ["attack", "fgsm", out, "digits", tmp_path / f"{name}-fgsm", "--images", "10", "--threads", "1"]
        within(*attack)
    refused = within("harden", "bounded", saved, "digits", tmp_path / "bounded.safetensors", check=False)
    assert refused.exit_code == 2
    assert "add --overwrite" in refused.stderr
    again = within(
        "harden", "feature-norm", tmp_path / "feature-norm.safetensors", "digits", tmp_path / "t", check=False
    )
    assert again.exit_code == 2
    assert "clipped already" in again.stderr
    other = within("harden", "bounded", saved, "digits", tmp_path / "t", "--resize", "12", check=False)
    assert other.exit_code == 2
    assert "is for 10 classes of images (1, 8, 8)" in other.stderr
    refused = within("harden", "bounded", saved, "digits", tmp_path / "b", "--percentile", "0", check=False)
    assert "percentile must lie" in refused.stderr
    first = within("harden", "bounded", tmp_path / "none", tmp_path / "no-data", tmp_path / "b", check=False)
    assert f"{tmp_path / 'none'}" in first.stderr, "the model is looked at before the data, which may take minutes"


@pytest.mark.parametrize(
    ("name", "more"), [("adversarial", ["--eps", "0.1"]), ("occluded", ["--side", "3"]), ("masked", ["--patch", "2"])]
)
def test_training_by_another_loss(name: str, more: list[str], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    words = ["harden", name, "digits", out, "--victim", "cnn-small", "--epochs", "4", "--threads", "1", "--json"]
    row = json.loads(within(*words, *more).stdout)
    assert row["test_accuracy"] > 60
    assert load_model(out)[1]["loss"]["name"] == name


def test_training_by_another_loss_goes_on_from_a_trained_network(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    words = ["harden", "occluded", "digits", out, "--side", "3", "--start", saved, "--threads", "1"]
    row = json.loads(within(*words, "--epochs", "1", "--lr", "0.01", "--json").stdout)
    before, after = load_model(saved)[1], load_model(out)[1]
    assert row["test_accuracy"] > 90  # one pass from fresh weights does not get there
    assert row["victim"] == before["plan"]["name"]
    assert after["plan"] == before["plan"]
    assert after["start"] == str(saved)
    refused = within(*words, "--overwrite", "--victim", "cnn", check=False)
    assert refused.exit_code == 2
    assert "leave --victim out" in refused.stderr
    other = within(*words, "--overwrite", "--resize", "12", check=False)
    assert other.exit_code == 2
    assert "is for 10 classes of images (1, 8, 8)" in other.stderr


def test_training_that_is_watched(tmp_path: Path, browser: Any) -> None:
    words = ["train", "digits", tmp_path / "m", "--victim", "cnn-small", "--epochs", "3", "--threads", "1"]
    within(*words, "--watch", "100")
    model, facts = load_model(tmp_path / "m")
    assert [one["epoch"] for one in facts["history"]] == [0, 1, 2, 3]
    last, some = facts["history"][-1], read("digits").train.spread(100)
    now = snapshot(model, some.images)
    assert last["weights"] == pytest.approx(now["weights"])
    for layer, expected in zip(last["layers"], now["layers"], strict=True):
        assert [*layer.pop("quantiles")] == pytest.approx(expected.pop("quantiles"), rel=1e-4)
        assert layer.pop("name") == expected.pop("name")
        assert layer == pytest.approx(expected, rel=1e-4)
    assert facts["history"][0]["weights"] != last["weights"]
    within(*words, "--overwrite")
    assert "history" not in load_model(tmp_path / "m")[1]
    within(*words, "--overwrite", "--watch", "100")
    within("activations", tmp_path / "m", "digits", tmp_path / "out", "--images", "60", "--threads", "1")
    look_at(browser, tmp_path / "out" / "report.html", width=1280, scheme="light")
    assert "During training" in (tmp_path / "out" / "report.html").read_text()


def test_activations_as_a_page(saved: Path, tmp_path: Path, browser: Any) -> None:
    out = tmp_path / "out"
    words = ["activations", saved, "digits", out, "--images", "200", "--threads", "1", "--json"]
    row = json.loads(within(*words).stdout)
    assert row["layers"] == 3
    look_at(browser, out / "report.html", width=390, scheme="dark")
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    within("report", out)
    assert (out / "report.html").read_text() == page
    bright = tmp_path / "bright.npz"
    digits = read("digits")
    white = torch.full_like(digits.test.images, 255)
    arrays = {
        "x_train": white[:, 0],
        "y_train": digits.test.labels,
        "x_test": white[:, 0],
        "y_test": digits.test.labels,
    }
    np.savez(bright, **{key: value.numpy() for key, value in arrays.items()})
    louder = json.loads(within(*words, "--overwrite", "--other", bright).stdout)
    assert louder["overdriven"] > row["overdriven"]
    assert 40 < row["auc"] < 60  # halves of one set
    measured = {json.loads(line)["measure"] for line in (out / "records.jsonl").read_text().splitlines()}
    assert {"auc", "fpr_at_95", "confidence_outside", "confidence_inside, times 0.25"} <= measured
    assert "During training" not in page
    refused = within(*words, "--overwrite", "--other", "nowhere.npz", check=False)
    assert refused.exit_code == 2
