"""Test-time attacks: one battery for all, closed forms, and the same answers as the peers'."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.balls import onto, within
from miscue.data import floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions import (
    BY_QUERIES,
    EVASIONS,
    FOR_ALL_IMAGES,
    Adversarial,
    deepfool,
    fgsm,
    one_pixel,
    one_pixel_exhaustive,
    patch,
    pgd,
    physical,
    scene,
    soft_stickers,
    stickers,
    universal,
    universal_gradient,
    worst_case,
)
from miscue.evasions import attempt as attempt_module
from miscue.evasions.evolution import children
from miscue.evasions.patch import pasted
from miscue.evasions.physical import chosen, unprintable, views
from miscue.evasions.stickers import inside as within_area
from miscue.models.modes import frozen
from miscue.readers import read
from miscue.train import Recipe
from miscue.victims import Victim

EPS = 0.15
BATTERY: dict[str, Callable[..., Adversarial]] = {
    "fgsm": partial(fgsm, eps=EPS),
    "pgd": partial(pgd, eps=EPS, alpha=0.03, steps=10),
    "pgd, l2": partial(pgd, eps=1.0, alpha=0.2, steps=10, norm="l2"),
    "pgd, restarts": partial(pgd, eps=EPS, alpha=0.03, steps=4, restarts=2),
    "pgd, a square": partial(pgd, eps=1.0, alpha=0.1, steps=15, side=4, restarts=2),
    "pgd, the worst of squares": partial(pgd, eps=1.0, alpha=0.1, steps=15, side=4, tries=5),
    "deepfool": deepfool,
    "deepfool, linf": partial(deepfool, norm="linf"),
    "one-pixel": partial(one_pixel, population=30, generations=5),
    "one-pixel, three": partial(one_pixel, population=30, generations=5, pixels=3, until="named"),
    "one-pixel-exhaustive": one_pixel_exhaustive,
    "universal": partial(universal, eps=EPS, passes=1),
    "universal-gradient": partial(universal_gradient, eps=EPS, passes=3, batch=16),
    "stickers": partial(stickers, population=20, generations=6, area=0.15),
    "soft-stickers": partial(soft_stickers, starts=4, steps=12, area=0.15),
    "patch": partial(patch, steps=30, batch=16, area=0.2),
    "patch, circle": partial(patch, steps=30, batch=16, area=0.2, form="circle", shrink=0.7),
    "physical": partial(physical, steps=25, samples=2, area=0.25),
    "scene": partial(scene, starts=4, steps=6),
    "scene, random": partial(scene, starts=8, steps=0),
}
EVERY = pytest.mark.parametrize("name", BATTERY)
TARGETED = pytest.mark.parametrize("name", [name for name in BATTERY if name != "universal"])
PARTED = pytest.mark.parametrize("name", [name for name in BATTERY if name.partition(",")[0] not in FOR_ALL_IMAGES])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network that reads scikit-learn's digits."""
    torch.set_num_threads(1)
    recipe = Recipe(lr=0.1, momentum=0.9, epochs=12, batch_size=64, schedule="cosine")
    net = Victim(network="cnn-small", recipe=recipe)(read("digits").train, Dice(0))
    for parameter in net.parameters():
        parameter.grad = None
    return net


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = read("digits").test
    return floats(test.images), test.labels


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def test_every_attack_is_in_the_battery() -> None:
    assert {name.partition(",")[0] for name in BATTERY} == set(EVASIONS)


def squarely(changed: Tensor, side: int) -> bool:
    """Whether all that changed in an image lies in a square."""
    for one in (changed > 0).any(1):
        rows, columns = one.any(1).nonzero(), one.any(0).nonzero()
        if len(rows) and max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) >= side:
            return False
    return True


@EVERY
def test_battery(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:24].clone() for part in digits)
    before = x.clone()
    found = BATTERY[name](model, x, y)
    assert torch.equal(x, before)
    assert found.x.shape == x.shape
    assert found.x.dtype == torch.float32
    assert 0 <= float(found.x.min()) <= float(found.x.max()) <= 1
    with torch.no_grad():
        assert torch.equal(found.already, model(x).argmax(1) != y)
        assert torch.equal(found.success, (model(found.x).argmax(1) != y) & ~found.already)
    assert found.success.any()
    assert not (found.flat & found.success).any()
    assert bool((found.queries > 0).all())
    assert found.loss.shape == (found.steps,)
    again = BATTERY[name](model, x, y)
    assert torch.equal(again.x, found.x)
    changed = (found.x - x).abs()
    covered = (changed > 0).any(1).flatten(1).sum(1)
    budgets = {
        "fgsm": lambda: changed.max() <= EPS + 1e-6,
        "pgd": lambda: changed.max() <= EPS + 1e-6,
        "pgd, l2": lambda: changed.flatten(1).norm(dim=1).max() <= 1 + 1e-5,
        "pgd, restarts": lambda: changed.max() <= EPS + 1e-6,
        "pgd, a square": lambda: squarely(changed, 4),
        "one-pixel": lambda: (changed > 0).flatten(1).sum(1).max() <= 1,
        "one-pixel, three": lambda: (changed > 0).flatten(1).sum(1).max() <= 3,
        "one-pixel-exhaustive": lambda: (changed > 0).flatten(1).sum(1).max() <= 1,
        "universal": lambda: changed.max() <= EPS + 1e-6,
        "universal-gradient": lambda: changed.max() <= EPS + 1e-6,
        "stickers": lambda: covered.max() <= 0.15 * 64,
        "soft-stickers": lambda: covered.max() <= 0.15 * 64,
        "patch": lambda: covered.max() <= 0.2 * 64 + 8,  # turned, its edges lie between pixels
        "physical": lambda: covered.max() <= 0.25 * 64,
    }
    assert name not in budgets or bool(budgets[name]())


@EVERY
def test_the_model_is_as_before(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:4] for part in digits)
    model.train()
    first = next(model.parameters())
    first.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        BATTERY[name](model, x, y)
        assert all(module.training for module in model.modules())
        assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(list(model.parameters())) - 1)
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    finally:
        first.requires_grad_(True)
        model.eval()


def test_a_frozen_model_is_as_before_after_an_error(model: nn.Module) -> None:
    model.train()
    with pytest.raises(RuntimeError, match="broken"), frozen(model):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError("broken")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()


@TARGETED
def test_targets(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:24] for part in digits)
    target = (y + 1) % 10
    found = BATTERY[name](model, x, y, target=target)
    with torch.no_grad():
        scores = model(found.x)
        assert torch.equal(found.already, model(x).argmax(1) == target)
        assert torch.equal(found.success, (scores.argmax(1) == target) & ~found.already)
        own, other = (s.softmax(1).gather(1, target[:, None]).mean() for s in (scores, model(x)))
    assert own > other


@PARTED
def test_parts_do_not_change_what_is_done(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:7] for part in digits)
    whole, parts = (BATTERY[name](model, x, y, chunk=chunk) for chunk in (7, 3))
    assert parts.x.shape == whole.x.shape
    if name in ("fgsm", "deepfool", "deepfool, linf", "one-pixel-exhaustive"):  # the others draw by part
        assert torch.allclose(parts.x, whole.x, atol=1e-5)
        assert torch.equal(parts.queries, whole.queries)


@EVERY
def test_bad_input(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:3] for part in digits)
    attack = BATTERY[name]
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\], got 0 to 255; normalise inside"):
        attack(model, x / x.max() * 255, y)
    with pytest.raises(InputError, match="images must lie"):
        attack(model, x * torch.nan, y)
    with pytest.raises(InputError, match=r"y ranges over 10\.\.12, the scores over 10"):
        attack(model, x, torch.tensor([10, 11, 12]))
    with pytest.raises(InputError, match="at least one"):
        attack(model, x[:0], y[:0])
    with pytest.raises(InputError, match="y must be int64"):
        attack(model, x, y[:2])


@pytest.mark.parametrize(
    ("attack", "options", "words"),
    [
        (pgd, {"norm": "l1"}, "unknown norm"),
        (pgd, {"steps": 0}, "must be positive"),
        (pgd, {"side": 9}, "square of 9 pixels does not lie"),
        (deepfool, {"norm": "l0"}, "unknown norm"),
        (one_pixel, {"population": 3}, "at least 4"),
        (one_pixel, {"until": "tired"}, "unknown until"),
        (universal, {"fooling": 2.0}, "fooling must lie"),
        (universal_gradient, {"bound": 0.0}, "must be positive"),
        (stickers, {"area": 0.0}, "area must lie"),
        (stickers, {"white": 3, "black": 2, "area": 0.05}, "no room for 5 stickers"),
        (soft_stickers, {"starts": 0}, "must be positive"),
        (patch, {"form": "star"}, "unknown form"),
        (patch, {"area": 0.001}, "smaller than a pixel"),
        (physical, {"rectangles": 0}, "must be positive"),
        (scene, {"strength": 0.0}, "must be positive"),
    ],
)
def test_bad_options(attack: Callable, options: dict, words: str, model: nn.Module, digits: tuple) -> None:
    with pytest.raises(InputError, match=words):
        attack(model, digits[0][:2], digits[1][:2], **options)


class Twisted(nn.Module):
    """A model whose scores go through a function."""

    def __init__(self, model: nn.Module, twist: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.twist = model, twist

    def forward(self, x: Tensor) -> Tensor:
        return self.twist(self.model(x))


def test_probabilities_are_warned_of(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.warns(UserWarning, match="gives probabilities"):
        fgsm(Twisted(model, lambda scores: scores.softmax(1)), digits[0][:2], digits[1][:2])


def test_scores_that_are_no_numbers(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    broken = Twisted(model, lambda scores: scores * torch.tensor(float("nan")))
    for attack in (fgsm, deepfool, partial(one_pixel, population=8, generations=1), partial(patch, steps=1, area=0.2)):
        with pytest.raises(InputError, match="not finite"):
            attack(broken, digits[0][:2], digits[1][:2])


@TARGETED
def test_a_target_is_another_class(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:3] for part in digits)
    with pytest.raises(InputError, match="targets of 2 images are their own classes"):
        BATTERY[name](model, x, y, target=torch.stack([y[0], (y[1] + 1) % 10, y[2]]))


def test_masked_gradients_are_reported(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """A step function of the scores has no slope anywhere; a search by queries gets past it."""
    x, y = (part[:40] for part in digits)
    masked = Twisted(model, lambda scores: 5 * F.one_hot(scores.argmax(1), 10) + 0 * scores)
    right = masked(x).argmax(1) == y
    for attack in (fgsm, partial(pgd, eps=EPS, random_start=False)):
        found = attack(masked, x, y)
        assert torch.equal(found.flat, right)
        assert not found.success.any()
    assert not fgsm(model, x, y, eps=EPS).flat.any()
    by_queries = one_pixel_exhaustive(masked, x, y)
    assert by_queries.success.any()
    assert not (by_queries.flat & by_queries.success).any()


@pytest.mark.parametrize("name", sorted(set(EVASIONS) - set(BY_QUERIES)))
def test_a_model_without_gradients(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    silent, x, y = Twisted(model, Tensor.detach), digits[0][:2], digits[1][:2]
    with pytest.raises(InputError, match="has no gradient"):
        EVASIONS[name](silent, x, y)


@pytest.mark.parametrize(
    ("attack", "options", "words"),
    [(fgsm, {"eps": -0.1}, "eps must be"), (pgd, {"norm": "l1"}, "norm"), (universal, {"norm": "l0"}, "norm")],
)
def test_options_out_of_range(
    attack: Callable[..., Adversarial], options: dict, words: str, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(InputError, match=words):
        attack(nn.Flatten(), digits[0][:2], digits[1][:2], **options)


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0]))
    net[1].weight.data, net[1].bias.data = weight, bias
    return net


def test_deepfool_of_a_linear_model_is_the_distance_to_the_nearest_boundary() -> None:
    """Closed form: |f_k - f_0| / |w_k - w_0|, the least over k, in either norm."""
    torch.manual_seed(0)
    net = linear(torch.randn(4, 12), torch.zeros(4))
    x = torch.rand(6, 3, 2, 2) * 0.2 + 0.4
    with torch.no_grad():
        scores = net(x)
    y = scores.argmax(1)
    for norm, order in (("l2", 2), ("linf", 1)):
        found = deepfool(net, x, y, norm=norm, overshoot=0.0)
        weights = net[1].weight.detach()
        distance = torch.stack(
            [
                torch.tensor(
                    [
                        float((s[label] - s[k]) / (weights[k] - weights[label]).norm(p=order))
                        for k in range(4)
                        if k != label
                    ]
                ).min()
                for s, label in zip(scores, y.tolist(), strict=True)
            ]
        )
        moved = (found.x - x).flatten(1)
        length = moved.norm(dim=1) if norm == "l2" else moved.abs().amax(1)
        assert torch.allclose(length, distance, atol=5e-4)
        assert bool((found.success | found.already).all())


def test_fgsm_is_pgd_of_one_step(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:10] for part in digits)
    one = pgd(model, x, y, eps=EPS, alpha=EPS, steps=1, random_start=False)
    assert torch.equal(one.x, fgsm(model, x, y, eps=EPS).x)


def test_restarts_never_do_worse(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:60] for part in digits)
    options = {"eps": 0.08, "alpha": 0.02, "steps": 3}
    one, many = (pgd(model, x, y, **options, restarts=n) for n in (1, 4))
    assert bool((one.success <= many.success).all())
    assert many.success.sum() > one.success.sum()
    assert many.queries.tolist() == [4 * (3 + 1)] * 60


def test_what_is_made_under_transformations_survives_them(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """Noise undoes plain PGD more often than what expects it."""
    x, y = (part[:120] for part in digits)

    def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
        return (x + 0.25 * torch.randn(x.shape, generator=generator)).clamp(0, 1)

    options = {"eps": 0.15, "alpha": 0.02, "steps": 20}
    plain = pgd(model, x, y, **options)
    expecting = pgd(model, x, y, **options, transform=noisy, samples=8)
    assert expecting.queries.tolist() == [20 * 8] * 120
    generator = torch.Generator().manual_seed(0)
    clean, plainly, still = (
        sum(100 - accuracy(model, noisy(images, generator), y) for _ in range(5)) / 5
        for images in (x, plain.x, expecting.x)
    )
    assert still > plainly + 3
    assert plainly > clean + 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_balls(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(500, 1, 2, 2)
    drawn = within(like, 0.5, norm, generator).flatten(1)
    size = drawn.abs().amax(1) if norm == "linf" else drawn.norm(dim=1)
    assert size.max() <= 0.5
    assert ((size / 0.5) ** 4).mean() == pytest.approx(0.5, abs=0.06)  # evenly: the share within r is r^4
    far = torch.randn(9, 1, 2, 2, generator=generator) * 3
    near = onto(far, 0.5, norm)
    assert torch.allclose(onto(near, 0.5, norm), near, atol=1e-6)
    inside = torch.full((1, 1, 2, 2), 0.1)
    assert torch.allclose(onto(inside, 0.5, norm), inside)


def test_donors_are_different_and_even() -> None:
    """a + (b - c) / 2 of the numbers 0 to 5: 7 needs the donors 5, 4 and 0, 7.5 would need 5 twice."""
    genes = torch.arange(6.0).reshape(1, 6, 1, 1).expand(4000, 6, 1, 4)
    generator = torch.Generator().manual_seed(0)
    found = children(genes, generator)[:, :, 0, 0].flatten()
    assert set((2 * found).round().int().tolist()) == set(range(-4, 15))
    assert float((found == 7).float().mean()) == pytest.approx(1 / 120, rel=0.2)


def test_exhaustive_is_the_best_by_brute_force(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:3] for part in digits)
    found = one_pixel_exhaustive(model, x, y)
    with torch.no_grad():
        for i in range(3):
            lowest = 1.0
            for row in range(8):
                for column in range(8):
                    for value in (0.0, 1.0):
                        z = x[i : i + 1].clone()
                        z[:, :, row, column] = value
                        lowest = min(lowest, float(model(z).softmax(1)[0, y[i]]))
            assert float(model(found.x[i : i + 1]).softmax(1)[0, y[i]]) == pytest.approx(lowest, abs=1e-5)
    assert found.queries.tolist() == [128] * 3


def test_evolution_comes_near_the_exhaustive_search_and_stops_early(
    model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:40] for part in digits)
    most = one_pixel_exhaustive(model, x, y).success.sum()
    sure = one_pixel(model, x, y, population=60, generations=25)
    named = one_pixel(model, x, y, population=60, generations=25, until="named")
    assert sure.success.sum() >= 0.6 * most
    assert named.success.sum() >= 0.6 * most
    assert named.queries.sum() < sure.queries.sum()
    assert bool((named.queries[named.success] <= 60 * 26).all())


def test_universal_is_one_perturbation_within_the_ball(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:100] for part in digits)
    options = {"eps": 0.25, "norm": "linf", "fooling": 0.5, "passes": 4, "steps": 10, "overshoot": 0.02}
    found = universal(model, x, y, **options)
    v, curve = found.shared, found.loss
    assert v.shape == (1, 8, 8)
    assert torch.equal(found.x, (x + v).clamp(0, 1))
    assert v.abs().max() <= 0.25 + 1e-6
    with torch.no_grad():
        changed = model((x + v).clamp(0, 1)).argmax(1) != model(x).argmax(1)
    assert float(changed.float().mean()) == pytest.approx(float(curve.max()))
    with torch.no_grad():
        signs = [0.25 * torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(k)).sign() for k in range(10)]
        named = torch.stack([model((x + noise).clamp(0, 1)).argmax(1) for noise in signs])
        by_chance = float((named != model(x).argmax(1)).float().mean())
    assert float(curve.max()) > by_chance + 0.05
    quick = universal_gradient(model, x, y, eps=0.25, passes=10, batch=32)
    assert float(quick.loss.max()) > float(curve.max())
    assert torch.equal(quick.x, (x + quick.shared).clamp(0, 1))
    assert quick.shared.abs().max() <= 0.25 + 1e-6
    aim = torch.full_like(y, 3)
    others = y != 3
    drawn = universal_gradient(model, x[others], y[others], target=aim[others], eps=0.4, passes=10, batch=32)
    with torch.no_grad():
        named = model(drawn.x).argmax(1)
    assert float((named == 3).float().mean()) == pytest.approx(float(drawn.loss.max()))
    assert float(drawn.loss.max()) > 0.5


def test_stickers_are_flat_rectangles_of_their_colours(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:20] for part in digits)
    for attack in (partial(stickers, population=12, generations=4), partial(soft_stickers, starts=3, steps=8)):
        grey = 0.3 + 0.4 * x  # so that neither colour is there already
        found = attack(model, grey, y, white=1, black=1, area=0.2)
        for colour in (0.0, 1.0):
            for image in found.x[:, 0]:
                rows, columns = (image == colour).nonzero().unbind(1)
                if len(rows):
                    box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                    other = 1 - colour
                    assert bool(((box == colour) | (box == other)).all())
        assert bool(((found.x == grey) | (found.x == 0) | (found.x == 1)).all())


@pytest.mark.parametrize(("count", "area"), [(2, 0.05), (4, 0.02), (8, 0.05), (3, 0.5)])
def test_stickers_keep_within_their_area(count: int, area: float) -> None:
    """Thin ones, too, of which only the long side can shrink."""
    generator = torch.Generator().manual_seed(0)
    genes = torch.rand(500, count, 4, generator=generator) * torch.tensor([32, 32, 3, 40])
    found = within_area(genes, torch.Size((1, 3, 32, 32)), area)
    assert float(found[..., 2:].prod(-1).sum(-1).max()) <= area * 32 * 32 + 1e-3
    assert float(found[..., 2:].min()) >= 1
    assert float((found[..., :2] + found[..., 2:]).max()) <= 32
    assert torch.allclose(within_area(found, torch.Size((1, 3, 32, 32)), area), found, atol=1e-3)


def test_a_patch_works_where_a_random_one_does_not_and_on_other_images(
    model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[digits[1] != 9][:150] for part in digits)
    target = torch.full_like(y, 9)
    made = patch(model, x[:100], y[:100], target=target[:100], area=0.4, steps=150, batch=32)
    assert made.loss[-20:].mean() > made.loss[:3].mean() + 0.5
    options = {"form": "square", "turn": 22.5, "shrink": 1.0}
    noise = torch.rand(made.shared.shape, generator=torch.Generator().manual_seed(0))
    hits = []
    for p in (made.shared, noise):
        with torch.no_grad():
            seen = pasted(p, x[100:], **options, generator=torch.Generator().manual_seed(1))
            hits.append(float((model(seen).argmax(1) == 9).float().mean()))
    assert hits[0] > hits[1] + 0.4


def test_a_patch_begins_several_times(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:60] for part in digits)
    one, many = (patch(model, x, y, area=0.3, steps=20, batch=10, starts=starts, dice=Dice(3)) for starts in (1, 4))
    assert len(one.loss) == len(many.loss) == 20
    assert int(one.queries.sum()) == 10 * 20
    assert int(many.queries.sum()) == 10 * (20 + 3 * 2) + 60 * 4
    with pytest.raises(InputError, match="starts must be positive, got 0"):
        patch(model, x, y, starts=0)


def test_a_pasted_patch_lies_within_the_image_and_is_itself() -> None:
    p = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5
    x = torch.zeros(50, 3, 20, 30)
    generator = torch.Generator().manual_seed(1)
    straight = pasted(p, x, form="square", turn=0.0, shrink=1.0, generator=generator)
    covered = (straight > 0).any(1).flatten(1).sum(1)
    assert bool(((covered >= 25) & (covered <= 49)).all())
    assert float(straight.flatten(1).sum(1).mean()) == pytest.approx(float(p.sum()), rel=0.05)
    tops = (straight > 0).any(1).any(2).float().argmax(1)
    assert tops.min() == 0
    assert tops.max() >= 12
    upside_down = pasted(p, x, form="square", turn=180.0, shrink=1.0, generator=generator)
    assert int((upside_down > 0).any(1).flatten(1).sum(1).min()) >= 25
    turned = pasted(p, x, form="circle", turn=180.0, shrink=0.5, generator=generator)
    sizes = (turned > 0).any(1).flatten(1).sum(1)
    assert sizes.min() < 12
    assert sizes.max() <= 36


def test_of_several_places_the_worst_is_attacked() -> None:
    def peephole(x: Tensor) -> Tensor:
        """Sees one pixel alone: bright is the second class."""
        seen = x[:, 0, 5, 6]
        return torch.stack([torch.full_like(seen, 0.5), seen], dim=1)

    x, y = torch.zeros(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    kinds = {"eps": 1.0, "alpha": 0.5, "steps": 3, "side": 1, "dice": Dice(0)}
    shares = [float(pgd(peephole, x, y, tries=tries, **kinds).success.double().mean()) for tries in (1, 60, 400)]
    assert shares[0] < 0.1
    assert shares[0] + 0.2 < shares[1] < 0.9
    assert shares[2] > 0.85
    with pytest.raises(InputError, match="tries are of places"):
        pgd(peephole, x, y, tries=2)
    with pytest.raises(InputError, match="tries"):
        pgd(peephole, x, y, side=1, tries=0)


def test_physical_changes_are_squares_that_hold_under_other_views(
    model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:20] for part in digits)
    found = physical(model, x, y, rectangles=1, area=0.25, steps=60, samples=4)
    changed = (found.x != x).any(1)
    for one in changed:
        rows, columns = one.nonzero().unbind(1)
        assert len(rows) == 0 or int(rows.max() - rows.min()) < 4
        assert len(rows) == 0 or int(columns.max() - columns.min()) < 4
    generator = torch.Generator().manual_seed(5)
    errors = [sum(100 - accuracy(model, views(z, generator), y) for _ in range(8)) / 8 for z in (x, found.x)]
    assert errors[1] > errors[0] + 15


def test_printable_colours_cost_nothing_and_masks_do_not_overlap() -> None:
    colours = torch.tensor([0.1, 0.5, 0.9])[:, None, None]
    assert float(unprintable(colours[None].expand(1, 3, 2, 2)).max()) < 1e-5
    assert torch.allclose(unprintable(torch.full((1, 3, 2, 2), 0.3)), torch.tensor(0.2 * 3**0.5), atol=1e-5)
    heat = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    mask = chosen(heat, 3, 0.3)
    assert mask.flatten(1).sum(1).tolist() == [27.0] * 5  # three squares of 3 x 3
    heat = torch.zeros(2, 1, 4, 6)
    heat[0, 0, :2, :2], heat[1, 0, 1:3, 2:4] = 1, 1  # after the second one's middle there is no room
    assert chosen(heat, 6, 1.0).flatten(1).sum(1).tolist() == [24.0, 20.0]


def test_climbing_a_scene_is_better_than_drawing_as_many(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:60] for part in digits)
    climbed = scene(model, x, y, starts=4, steps=11, strength=0.5)
    drawn = scene(model, x, y, starts=16, steps=0, strength=0.5)
    assert climbed.queries.tolist() == drawn.queries.tolist() == [16] * 60
    assert climbed.success.sum() >= drawn.success.sum()
    weak = scene(model, x, y, starts=4, steps=12, strength=0.05)
    assert weak.success.sum() < climbed.success.sum()
    one, none = (scene(model, x, y, starts=4, steps=steps, lr=0.05) for steps in (1, 0))
    assert not torch.equal(one.x, none.x), "the last step counts"


def test_the_worst_of_several(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:40] for part in digits)
    attacks = {"fgsm": partial(fgsm, eps=0.06), "pgd": partial(pgd, eps=0.06, alpha=0.02, steps=8)}
    alone = {name: attack(model, x, y) for name, attack in attacks.items()}
    worst, broken = worst_case(model, x, y, attacks)
    assert torch.equal(broken["fgsm"], alone["fgsm"].success)
    assert torch.equal(worst.success, broken["fgsm"] | broken["pgd"])
    assert worst.success.sum() >= max(found.success.sum() for found in alone.values())
    with torch.no_grad():
        assert torch.equal(worst.success | worst.already, model(worst.x).argmax(1) != y)
    assert worst.queries[broken["fgsm"]].tolist() == [1] * int(broken["fgsm"].sum())
    assert set(worst.queries[~broken["fgsm"] & ~worst.already].tolist()) == {1 + 8}
    assert set(worst.queries[worst.already].tolist()) == {1}
    with pytest.raises(InputError, match="at least one attack"):
        worst_case(model, x, y, {})


def test_a_part_that_memory_has_no_room_for_is_halved(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:10] for part in digits)

    def small(images: Tensor) -> Tensor:
        if len(images) > 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return model(images)

    assert torch.allclose(fgsm(small, x, y, eps=EPS).x, fgsm(model, x, y, eps=EPS).x, atol=1e-5)

    def never(images: Tensor) -> Tensor:
        if images.requires_grad:
            raise RuntimeError("not enough memory")
        return model(images)

    with pytest.raises(RuntimeError, match="not enough memory"):
        fgsm(never, x, y, chunk=4)


def test_parts_are_chosen_by_memory(
    model: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(images: Tensor) -> Tensor:
        seen.append(len(images))
        return model(images)

    fgsm(watched, *(part[:100] for part in digits))
    assert max(seen) == 100
    seen.clear()
    monkeypatch.setattr(attempt_module, "ROOM", 2**19)
    fgsm(watched, *(part[:100] for part in digits))
    assert 1 < max(seen) < 40


LINF = {"eps": 0.1, "alpha": 0.02, "steps": 10}
L2 = {"eps": 0.8, "alpha": 0.2, "steps": 10}


class TestPeers:
    """The same model, budget and steps: robust accuracy within a point of foolbox's and ART's."""

    def ours(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {
            "fgsm": fgsm(model, x, y, eps=0.1).x,
            "pgd": pgd(model, x, y, **LINF, random_start=False).x,
            "pgd l2": pgd(model, x, y, **L2, norm="l2", random_start=False).x,
            "deepfool": deepfool(model, x, y).x,
        }

    def compared(self, model: nn.Module, x: Tensor, y: Tensor, theirs: dict[str, Tensor], *, lengths: float) -> None:
        ours = self.ours(model, x, y)
        for name, found in ours.items():
            assert accuracy(model, found, y) == pytest.approx(accuracy(model, theirs[name], y), abs=1), name
        for budget in (0.3, 0.5, 0.8):
            shares = [
                100 * float(((z["deepfool"] - x).flatten(1).norm(dim=1) > budget).float().mean())
                for z in (ours, theirs)
            ]
            assert shares[0] == pytest.approx(shares[1], abs=lengths), budget

    def test_foolbox(self, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        foolbox = pytest.importorskip("foolbox")
        x, y = digits
        theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attacks = {
            "fgsm": (foolbox.attacks.LinfFastGradientAttack(random_start=False), 0.1),
            "pgd": (foolbox.attacks.LinfPGD(steps=10, abs_stepsize=0.02, random_start=False), 0.1),
            "pgd l2": (foolbox.attacks.L2PGD(steps=10, abs_stepsize=0.2, random_start=False), 0.8),
            "deepfool": (foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10), None),
        }
        found = {name: attack(theirs, x, y, epsilons=eps)[1] for name, (attack, eps) in attacks.items()}
        self.compared(model, x, y, found, lengths=1)

    def test_art(self, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evasion = pytest.importorskip("art.attacks.evasion")
            estimators = pytest.importorskip("art.estimators.classification")
            x, y = digits
            theirs = estimators.PyTorchClassifier(
                model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0.0, 1.0)
            )
            options = {"batch_size": 512, "verbose": False}
            attacks = {
                "fgsm": evasion.FastGradientMethod(theirs, eps=0.1, batch_size=512),
                "pgd": evasion.ProjectedGradientDescentPyTorch(
                    theirs, norm=np.inf, eps=0.1, eps_step=0.02, max_iter=10, **options
                ),
                "pgd l2": evasion.ProjectedGradientDescentPyTorch(
                    theirs, norm=2, eps=0.8, eps_step=0.2, max_iter=10, **options
                ),
                "deepfool": evasion.DeepFool(theirs, max_iter=50, epsilon=0.02, nb_grads=10, **options),
            }
            hot = np.eye(10, dtype=np.float32)[y.numpy()]
            found = {name: torch.as_tensor(attack.generate(x.numpy(), hot)) for name, attack in attacks.items()}
            model.eval()
        self.compared(model, x, y, found, lengths=3)  # it overshoots once, at the end, and clips at every step
