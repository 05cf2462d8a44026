"""Networks, generators, storage, the loop and its consumers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import striped
from miscue.data import Data, batches
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.measures.accuracy import (
    accuracy,
    batch_statistics_predictions,
    class_accuracies,
    confusion,
    hit_rate,
    percent,
    predictions,
)
from miscue.models.generators import GENERATORS
from miscue.models.heads import Nystrom, RandomFourier, rbf
from miscue.models.networks import NETWORKS
from miscue.models.store import Plan, build, load_model, load_tensors, save_model
from miscue.optimizers import OPTIMIZERS, descend
from miscue.readers import read
from miscue.train import Recipe, augmented, fit, fitting, holed, moved, settled, training
from miscue.victims import VICTIMS, Victim, victim


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 9, 21)])
def test_networks_score_every_image_size(name: str, shape: tuple[int, int, int]) -> None:
    model = build(Plan(name=name, shape=shape, options={"classes": 7}), Dice())
    assert model(torch.rand(3, *shape)).shape == (3, 7)


def test_cnn_is_the_papers() -> None:
    convolutions = [m for m in NETWORKS["cnn"]((1, 28, 28), 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    sizes = [tuple(m.weight.shape) for m in convolutions]
    assert sizes == [(20, 1, 3, 3), (50, 20, 3, 3), (500, 50 * 5 * 5), (10, 500)]
    widths = [m.weight.shape[0] for m in NETWORKS["cnn-small"]((1, 28, 28), 10).modules() if hasattr(m, "weight")]
    assert widths[0] == 10
    assert widths[-1] == 10


@pytest.mark.parametrize(("name", "seen"), [("cnn-plain", 26), ("cnn-padded", 28), ("cnn-released", 28)])
def test_how_much_of_an_image_a_network_sees(name: str, seen: int) -> None:
    """Two valid convolutions and poolings drop the last two rows and columns of 28; a pixel there says nothing."""
    model = build(Plan(name=name, shape=(1, 28, 28), options={"classes": 10}), Dice(0)).eval()
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().sum(), x)
    rows, columns = (slope.abs().sum((0, 1)).sum(axis) > 0 for axis in (1, 0))
    assert rows.tolist() == columns.tolist() == [True] * seen + [False] * (28 - seen)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("size", [(28, 28), (8, 8), (32, 32), (5, 7), (17, 30)])
@pytest.mark.parametrize("channels", [1, 3])
def test_generators_stay_in_the_ball_at_every_size(name: str, size: tuple[int, int], channels: int) -> None:
    generator = build(Plan(name=name, shape=(channels, *size), options={"eps": 0.2}), Dice())
    x = torch.rand(4, channels, *size)
    noise = generator(x)
    assert noise.shape == x.shape
    assert noise.abs().max() <= 0.2
    assert noise.std() > 0.001
    noise.sum().backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_released_cnn_is_the_authors() -> None:
    model = NETWORKS["cnn-released"]((1, 28, 28), 10)
    names = [type(m).__name__ for m in model]
    block = ["Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d"]
    assert names == [*block, *block, "Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert model[0].weight.shape == (20, 1, 5, 5)
    assert model[9].weight.shape == (500, 4 * 4 * 50)


@pytest.mark.parametrize(("name", "side", "inputs"), [("linear", 32, 3 * 32 * 32), ("conv5-coarse", 56, 128)])
def test_what_sees_averages_is_no_larger_for_large_images(name: str, side: int, inputs: int) -> None:
    small, large = (NETWORKS[name]((3, length, length), 5).eval() for length in (side, 224))
    assert [p.shape for p in large.parameters()] == [p.shape for p in small.parameters()]
    assert next(m for m in large.modules() if isinstance(m, nn.Linear)).in_features == inputs
    x = torch.rand(2, 3, 224, 224) * torch.linspace(0, 1, 224)  # dark on the left
    blocks = F.interpolate(F.avg_pool2d(x, 224 // side), scale_factor=224 // side)
    assert torch.allclose(large(x), large(blocks), atol=1e-4)
    assert not torch.allclose(large(x), large(x.flip(3)), atol=1e-4)


@pytest.mark.parametrize("channels", [(4,), (4, 4, 4), (2, 4, 4)])
def test_a_unet_of_any_widths(channels: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, 16, 16)
    assert (
        build(Plan(name="unet", shape=(3, 16, 16), options={"eps": 0.1, "channels": channels}), Dice())(x).shape
        == x.shape
    )


def test_coarse_noise_is_that_of_averages_enlarged() -> None:
    generator = GENERATORS["unet-coarse"]((3, 224, 224), eps=0.2).eval()
    x = torch.rand(2, 3, 224, 224)
    noise = generator(x)
    small = generator(F.avg_pool2d(x, 4))
    assert small.shape == (2, 3, 56, 56)
    assert torch.allclose(noise, F.interpolate(small, scale_factor=4, mode="bilinear"), atol=1e-5)
    assert (noise[..., 1:] - noise[..., :-1]).abs().max() < 0.3 * (small[..., 1:] - small[..., :-1]).abs().max()


def test_same_dice_same_weights() -> None:
    plan = Plan(name="cnn", shape=(1, 12, 12), options={"classes": 3})
    a, b, c = build(plan, Dice(1)), build(plan, Dice(1)), build(plan, Dice(2))
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    other = [torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True)]
    assert all(same)
    assert not all(other)


def test_a_model_survives_the_disk(tmp_path: Path, data: Data) -> None:
    victim = VICTIMS["cnn-small"]
    model = victim(data, Dice(0))
    save_model(tmp_path / "m.safetensors", model, victim.plan(data), classes=list(data.classes))
    loaded, facts = load_model(tmp_path / "m.safetensors")
    assert facts["classes"] == ["a", "b", "c"]
    assert torch.equal(predictions(loaded, data.images), predictions(model, data.images))
    assert not loaded.training


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_model(path)
    path.write_bytes(b"\x80\x04not a model")
    with pytest.raises(InputError, match="not a readable safetensors"):
        load_model(path)
    plan = Plan(name="cnn", shape=(1, 8, 8), options={"classes": 2})
    save_model(path, build(plan, Dice()), plan)
    with pytest.raises(InputError, match="holds model, not a perturbation"):
        load_tensors(path, kind="perturbation")
    save_model(path, build(plan, Dice()), replace(plan, options={"classes": 3}))
    with pytest.raises(InputError, match="does not fit its own plan"):
        load_model(path)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "adabound"])
def test_fit_learns_and_generalises(optimizer: str) -> None:
    lr = 0.05 if optimizer == "sgd" else 0.002
    recipe = Recipe(optimizer=optimizer, lr=lr, epochs=6, batch_size=32, schedule="cosine")
    model = Victim(network="cnn-small", recipe=recipe)(striped(seed=0), Dice(0))
    assert accuracy(model, striped(seed=9)) > 90


def test_fit_is_deterministic_and_seeded(data: Data) -> None:
    runs = [VICTIMS["cnn-small"](data, Dice(seed)).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[2].values(), strict=True))


def test_bfloat16_trains_and_keeps_float32_weights(data: Data) -> None:
    victim = Victim(network="cnn-plain", recipe=Recipe(lr=0.05, momentum=0.9, epochs=8, precision="bfloat16"))
    model = victim(data, Dice(0))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert accuracy(model, data) > 90


def test_auto_precision_is_bfloat16_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capable, meant in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("miscue.train.has_bfloat16", lambda kind, capable=capable: capable and kind == "cuda")
        assert settled("auto", "cuda:1") == meant
        assert settled("auto", "cpu") == "float32"
        assert [settled(name, "cuda") for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slopes_are_read_in_whatever_order_they_lie_in_memory(name: str) -> None:
    """A step along slopes that no backward put in place is that of a plain copy of the weights."""
    weight = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    last = weight.clone(memory_format=torch.channels_last).requires_grad_()
    plain = weight.clone().requires_grad_()
    for parameter in (last, plain):
        optimizer = OPTIMIZERS[name]([parameter], lr=0.1, momentum=0.5, weight_decay=0.0)
        for _ in range(3):
            descend(optimizer, [parameter], [weight.sin()])
    assert last.stride() != plain.stride()
    assert torch.allclose(last, plain, atol=1e-6)
    assert (plain - weight).abs().min() > 0


def test_the_loop_is_the_textbook_step(data: Data) -> None:
    """One step against the update written out by hand."""
    model = build(Plan(name="cnn-plain", shape=data.shape, options={"classes": 3}), Dice(0))
    before = [p.detach().clone() for p in model.parameters()]
    batch = next(iter(batches(data, size=16, epochs=1, dice=Dice(1))))
    slopes = torch.autograd.grad(nn.functional.cross_entropy(model(batch.x), batch.y), list(model.parameters()))
    steps = list(training(model, [batch], optimizer=torch.optim.SGD(model.parameters(), 0.1)))
    assert len(steps) == 1
    for p, old, slope in zip(model.parameters(), before, slopes, strict=True):
        assert torch.allclose(p, old - 0.1 * slope, atol=1e-7)


def test_a_batch_is_drawn_just_before_its_step(data: Data) -> None:
    model = build(Plan(name="cnn-plain", shape=data.shape, options={"classes": 3}), Dice(0))
    seen = []

    def watched() -> object:
        for batch in batches(data, size=80, epochs=1, dice=Dice(1)):
            seen.append(next(model.parameters()).detach().clone())
            yield batch

    after = [
        next(model.parameters()).detach().clone()
        for _ in training(model, watched(), optimizer=torch.optim.SGD(model.parameters(), 0.1))
    ]
    assert len(seen) == 3
    assert torch.equal(seen[1], after[0])
    assert torch.equal(seen[2], after[1])


def test_epochs_report_losses_that_fall(data: Data) -> None:
    model = build(Plan(name="cnn-small", shape=data.shape, options={"classes": 3}), Dice(0))
    epochs = list(fitting(model, data, Recipe(lr=0.05, epochs=5, batch_size=32), Dice(0)))
    assert [e.number for e in epochs] == [1, 2, 3, 4, 5]
    assert epochs[-1].loss < 0.5 * epochs[0].loss


def test_divergence_is_an_error_not_a_nan_model(data: Data) -> None:
    model = build(Plan(name="cnn-plain", shape=data.shape, options={"classes": 3}), Dice(0))
    with pytest.raises(InputError, match=r"training loss is (nan|inf)"):
        fit(model, data, Recipe(lr=1e18, epochs=3), Dice(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "sdg"}, "did you mean sgd"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"precision": "half"}, "unknown precision"),
        ({"lr": 0}, "lr must be positive, got"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
    ],
)
def test_recipes_refuse_nonsense(change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe(**change)


def test_measures_by_hand() -> None:
    predicted, labels = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])
    assert confusion(predicted, labels, 3) == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert hit_rate(predicted, labels, (0, 2, 0)) == 50


def test_class_accuracies_are_those_of_each_class_alone(data: Data) -> None:
    model = VICTIMS["cnn-small"](data, Dice(0))
    labels = torch.cat([data.labels[:50], data.labels[50:].roll(1)])
    half_wrong = replace(data, labels=labels, classes=(*data.classes, "none"))
    alone = [accuracy(model, half_wrong.take(half_wrong.labels == label)) for label in range(3)]
    assert class_accuracies(model, half_wrong).tolist() == pytest.approx([*alone, 0])
    assert 0 < min(alone) < 100


def test_scoring_leaves_the_model_as_it_was(data: Data) -> None:
    model = VICTIMS["cnn-small"](data, Dice(0)).train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    before = json.dumps({k: v.tolist() for k, v in model.state_dict().items()})
    predictions(model, data.images)
    batch_statistics_predictions(model, data.images)
    assert [m.training for m in model.modules()] == modes
    assert json.dumps({k: v.tolist() for k, v in model.state_dict().items()}) == before


def test_batch_statistics_of_one_image_more_than_a_chunk(data: Data) -> None:
    model = VICTIMS["cnn-small"](data, Dice(0))
    assert len(batch_statistics_predictions(model, data.images[:11], chunk=10)) == 11


@pytest.mark.parametrize(("side", "looked", "normalised"), [(8, 200, 320), (224, 55, 107)])
def test_large_images_are_looked_at_a_few_at_a_time(side: int, looked: int, normalised: int) -> None:
    sizes: list[int] = []
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    images = torch.zeros(320, 3, side, side, dtype=torch.uint8)
    assert len(predictions(model, images)) == sum(sizes) == 320
    assert max(sizes) == looked
    sizes.clear()
    assert len(batch_statistics_predictions(model, images)) == sum(sizes) == 320
    assert max(sizes) == normalised


def test_batch_statistics_do_not_depend_on_the_order_of_the_set() -> None:
    """Folders are read class by class; a batch of one class is not what a network was trained on."""
    digits = read("digits")
    model, test = VICTIMS["cnn"](digits.train, Dice(0)), digits.test
    for some in (test, test.take(test.labels.argsort(stable=True))):
        assert percent(batch_statistics_predictions(model, some.images, chunk=60) == some.labels) > 95


def test_batch_statistics_differ_from_eval_mode(data: Data) -> None:
    """Shifted test images: eval mode sees the shift, batch statistics normalise it away."""
    model = VICTIMS["cnn"](data, Dice(0))
    shifted = (data.images.int() // 2 + 100).clamp(0, 255).to(torch.uint8)
    eval_mode = (predictions(model, shifted) == data.labels).float().mean()
    batch_mode = (batch_statistics_predictions(model, shifted) == data.labels).float().mean()
    assert batch_mode > eval_mode


@pytest.mark.parametrize("name", ["linear-svm", "rbf-svm", "random-forest", "KNeighborsClassifier", "RidgeClassifier"])
def test_classifiers_of_scikit_learn_are_victims(name: str) -> None:
    """Fit and scored through the same interface; scores agree with the classifier's own answers."""
    digits = read("digits")
    one = victim(name)
    model = one.untrained(digits.train, Dice(1))
    assert [epoch.number for epoch in one.learning(model, digits.train, Dice(1))] == [1]
    assert accuracy(model, digits.test) > 85
    flat = (digits.test.images.flatten(1).float() / 255).numpy()
    own = torch.as_tensor(model.estimator.predict(flat))
    assert (predictions(model, digits.test.images) == own).float().mean() > 0.995  # ties may go another way


def test_a_class_that_was_never_seen_gets_the_lowest_score(data: Data) -> None:
    two = data.take((data.labels != 1).nonzero()[:, 0])
    for name in ("linear-svm", "random-forest", "NearestCentroid"):
        model = victim(name).untrained(two, Dice(0))
        list(victim(name).learning(model, two, Dice(0)))
        assert not (predictions(model, data.images) == 1).any()
        assert accuracy(model, two) > 90


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linear-swm", "did you mean linear-svm"),
        ("KNeighbours", "KNeighborsClassifier"),
        ("cn", "did you mean cnn"),
        ("cnn+adm", "unknown recipe 'adm'; did you mean adam"),
        ("linear-svm+adam", "is no network"),
    ],
)
def test_unknown_victims(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        victim(name)


def test_networks_with_other_recipes() -> None:
    assert victim("cnn+adam").recipe.optimizer == "adam"
    assert victim("cnn+adabound", epochs=2).epochs == 2
    assert victim("cnn") == VICTIMS["cnn"]


def test_a_classifier_that_needs_arguments_is_refused(data: Data) -> None:
    with pytest.raises(InputError, match="cannot be made without arguments"):
        victim("VotingClassifier").untrained(data, Dice(0))


def test_random_fourier_features_approximate_the_kernel() -> None:
    torch.manual_seed(0)
    head = RandomFourier(20, 40_000).eval()  # running statistics 0 and 1: the norm does nothing
    a, b = torch.randn(5, 20), torch.randn(6, 20)
    expected = torch.exp(-(torch.cdist(a, b) ** 2) / 40)
    assert torch.allclose(head(a) @ head(b).t(), expected, atol=0.03)
    assert torch.allclose(rbf(a, b), expected, atol=1e-5)


def test_nystrom_features_give_the_kernel_at_their_landmarks() -> None:
    torch.manual_seed(0)
    head = Nystrom(nn.Flatten(), (1, 4, 5), 20, 3, landmarks=8)
    x = torch.randn(11, 1, 4, 5)
    head.train()(x[:5])
    head(x[5:])  # the first eight images that it is trained on are the landmarks
    assert torch.equal(head.images, x[:8])
    kept: list[torch.Tensor] = []
    head.linear.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    head.eval()(x[:8])
    flat = head.norm(x[:8].flatten(1))
    assert torch.allclose(kept[0] @ kept[0].t(), rbf(flat, flat), atol=5e-3)


@pytest.mark.parametrize("name", ["cnn-fourier", "cnn-nystrom"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kernel_heads_learn(name: str, precision: str, data: Data) -> None:
    recipe = Recipe(lr=0.05, momentum=0.9, epochs=6, batch_size=32, precision=precision)
    model = Victim(network=name, recipe=recipe)(data, Dice(1))
    assert accuracy(model, striped(90, seed=4)) > 90


def test_moves_and_holes_by_hand() -> None:
    x = torch.arange(2 * 3 * 5 * 6).reshape(2, 3, 5, 6).float()
    seen = set()
    for seed in range(30):
        z = moved(x, 1, torch.Generator().manual_seed(seed))
        for one, other in zip(x, z, strict=True):
            padded = F.pad(one[None], (1, 1, 1, 1), mode="replicate")[0]
            fits = [(i, j) for i in range(3) for j in range(3) if torch.equal(padded[:, i : i + 5, j : j + 6], other)]
            assert len(fits) == 1
            seen.add(fits[0])
    assert len(seen) == 9
    masks = holed(torch.zeros(4000, 1, 20, 30), 1, 6, torch.Generator().manual_seed(0)) == 0.5
    counts = masks.flatten(1).sum(1)
    assert counts.max() == 36
    assert counts.min() >= 9
    covered = masks.double().mean((0, 1))
    assert covered[3:-3, 3:-3].std() < 0.1 * covered[3:-3, 3:-3].mean()
    assert covered[0].mean() > 0.4 * covered[10].mean()
    x = torch.rand(500, 1, 20, 30, generator=torch.Generator().manual_seed(1))
    grey, guessed = (holed(x, 2, 6, torch.Generator().manual_seed(0), fill=fill) for fill in ("grey", "inpaint"))
    assert torch.equal(grey != x, guessed != x)
    assert 36 < float((grey != x).flatten(1).sum(1).double().mean()) < 72


def test_augmented_training_draws_anew_and_repeats(data: Data) -> None:
    recipe = Recipe(lr=0.05, epochs=2, batch_size=32, shift=1, scenes=0.5, holes=2, hole=4)
    stream = list(batches(data, size=32, epochs=2, dice=Dice(1)))
    one, other = (list(augmented(stream, recipe, Dice(2))) for _ in range(2))
    assert all(torch.equal(a.x, b.x) for a, b in zip(one, other, strict=True))
    assert all((a.x == 0.5).any() for a in one)
    assert all(torch.equal(a.y, b.y) and torch.equal(a.index, b.index) for a, b in zip(one, stream, strict=True))
    assert augmented(stream, Recipe(), Dice(2)) is stream
    first, second = (Victim(network="cnn-small", recipe=recipe)(data, Dice(3)) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="must not be negative"):
        Recipe(holes=-1)
    with pytest.raises(InputError, match="did you mean inpaint"):
        Recipe(fill="inpaintt")
    with pytest.raises(InputError, match="share of the images"):
        Recipe(scenes=1.5)
