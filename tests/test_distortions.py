"""Distortions are what they say, and what is left of an attack after them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from miscue.distortions import DISTORTIONS, warped
from miscue.errors import InputError
from miscue.formation import BOUNDS, render, staged
from miscue.measures.robustness import robust_to

EVERY = pytest.mark.parametrize("name", DISTORTIONS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x() -> Tensor:
    """Smooth colour images."""
    coarse = torch.rand(4, 3, 5, 6, generator=generator(1))
    return nn.functional.interpolate(coarse, (20, 24), mode="bicubic").clamp(0, 1)


@EVERY
def test_battery(name: str, x: Tensor) -> None:
    distortion, before = DISTORTIONS[name], x.clone()
    assert distortion.strengths[0] == 0
    assert torch.equal(distortion(x, 0, generator()), x)
    sizes = []
    for strength in distortion.strengths[1:]:
        y = distortion(x, strength, generator())
        assert torch.equal(x, before)
        assert y.shape == x.shape
        assert 0 <= float(y.min()) <= float(y.max()) <= 1
        assert torch.equal(y, distortion(x, strength, generator()))
        sizes.append(float((y - x).abs().mean()))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 3 * max(sizes[0] / 3, 0.003)
    grey = distortion(x[:, :1], distortion.strengths[1], generator())
    assert grey.shape == x[:, :1].shape
    with pytest.raises(InputError, match="not be negative"):
        distortion(x, -1, generator())


@EVERY
def test_all_but_jpeg_have_gradients(name: str, x: Tensor) -> None:
    seen = x.clone().requires_grad_()
    y = DISTORTIONS[name](seen, DISTORTIONS[name].strengths[1], generator())
    assert y.requires_grad == (name != "jpeg")
    if name != "jpeg":
        (slope,) = torch.autograd.grad(y.sum(), seen)
        assert float(slope.abs().sum()) > 0


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    x = torch.rand(1, 1, 9, 9, generator=generator())
    turned = DISTORTIONS["rotation"](x, 90, generator())
    both = [x.rot90(1, (2, 3)), x.rot90(-1, (2, 3))]
    assert any(torch.allclose(turned, one, atol=1e-4) for one in both)


def test_a_turn_of_an_oblong_image_keeps_shapes() -> None:
    """A disc stays one: pixels are square, whatever the sides."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(80), indexing="ij")
    disc = ((rows - 19.5) ** 2 + (columns - 39.5) ** 2 < 144).float()[None, None]
    turned = DISTORTIONS["rotation"](disc, 45, generator())
    assert float((turned - disc).abs().mean()) < 0.01


def test_distances_are_those_stated(x: Tensor) -> None:
    wide = x * 0.2 + 0.4
    brighter = DISTORTIONS["brightness"](wide, 0.1, generator())
    assert torch.allclose((brighter - wide).abs(), torch.full_like(x, 0.1), atol=1e-5)
    contrasted = DISTORTIONS["contrast"](wide, 1.0, generator())
    ratio = contrasted.std((1, 2, 3)) / wide.std((1, 2, 3))
    assert all(min(abs(r - 2), abs(r - 0.5)) < 1e-3 for r in ratio.tolist())
    noisy = DISTORTIONS["noise"](torch.full((4, 3, 50, 50), 0.5), 0.1, generator())
    assert float((noisy - 0.5).std()) == pytest.approx(0.1, rel=0.03)
    point = torch.zeros(1, 1, 31, 31)
    point[0, 0, 15, 15] = 1
    spread = DISTORTIONS["blur"](point, 2.0, generator())[0, 0]
    places = torch.arange(31) - 15
    assert float((spread.sum(0) * places**2).sum()) == pytest.approx(4, rel=0.05)
    larger = DISTORTIONS["scale"](
        disc := (point * 0 + (places[:, None] ** 2 + places**2 < 25).float()), 0.5, generator()
    )
    factor = math.sqrt(float(larger.sum() / disc.sum()))
    assert min(abs(factor - 1.5), abs(factor - 1 / 1.5)) < 0.08


@pytest.mark.parametrize("strength", [0.4, 2.0, 9.0])
def test_blur_is_scipy_s(strength: float) -> None:
    x = torch.rand(2, 3, 40, 33, generator=generator())
    theirs = gaussian_filter(x.numpy(), (0, 0, strength, strength), mode="mirror", truncate=3.0)
    assert torch.allclose(DISTORTIONS["blur"](x, strength, generator()), torch.from_numpy(theirs), atol=2e-4)


def test_the_same_homography_is_no_change(x: Tensor) -> None:
    assert torch.allclose(warped(x, torch.eye(3).repeat(4, 1, 1)), x, atol=1e-5)


def test_jpeg_is_pillow_s_and_knows_its_channels(x: Tensor) -> None:
    grey = x[:, :1]  # colour is stored at half the size
    fine, coarse = (DISTORTIONS["jpeg"](grey, strength, generator()) for strength in (2, 95))
    assert (fine - grey).abs().mean() < 0.01
    assert (coarse - grey).abs().mean() > 0.03
    with pytest.raises(InputError, match="1 or 3 channels, not of 2"):
        DISTORTIONS["jpeg"](x[:, :2], 10, generator())


@pytest.mark.parametrize("axis", [2, 3])
def test_a_turn_is_one_in_wide_images_too(axis: int) -> None:
    """A bar along either axis of an image of 40 x 120 comes to lie at the same angle to it."""
    x = torch.zeros(1, 1, 40, 120)
    x[:, :, 18:22, 45:75] = 1 if axis == 3 else 0
    if axis == 2:
        x[:, :, 5:35, 58:62] = 1
    phi = torch.zeros(1, len(BOUNDS))
    phi[0, list(BOUNDS).index("turn")] = math.atanh(0.8)
    rows, columns = (render(x, phi)[0, 0] > 0.5).nonzero().double().unbind(1)
    along, across = (columns, rows) if axis == 3 else (rows, columns)
    along, across = along - along.mean(), across - across.mean()
    slope = float((along * across).sum() / along.square().sum())
    assert abs(math.degrees(math.atan(slope))) == pytest.approx(12, abs=1)


def test_a_scene_of_zeros_is_the_image_and_others_differ(x: Tensor) -> None:
    still = render(x.clamp(0.01, 0.99), torch.zeros(4, len(BOUNDS)))
    assert torch.allclose(still, x.clamp(0.01, 0.99), atol=1e-4)
    for k, name in enumerate(BOUNDS):
        phi = torch.zeros(4, len(BOUNDS))
        phi[:, k] = 1.0
        phi[:, list(BOUNDS).index("highlight")] += name.startswith("highlight ")
        assert float((render(x, phi) - x).abs().mean()) > 1e-3, name
        grown = phi.clone().requires_grad_()
        (slope,) = torch.autograd.grad(render(x, grown).sum(), grown)
        assert bool((slope[:, k] != 0).any()), name


def test_what_is_left_of_an_attack() -> None:
    """A model that asks whether the first pixel is bright: noise flips what lies near its threshold."""

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], dim=1)

    clean, attacked = torch.full((60, 1, 2, 2), 0.2), torch.full((60, 1, 2, 2), 0.55)
    y = torch.zeros(60, dtype=torch.long)
    rows = robust_to(DISTORTIONS["noise"], Bright(), clean, attacked, y, draws=3)
    assert [row["strength"] for row in rows] == list(DISTORTIONS["noise"].strengths)
    assert rows[0] == {"strength": 0, "accuracy": 100, "success": 100, "kept": 100}
    assert rows[-1]["accuracy"] > 90
    assert 50 < rows[-1]["kept"] < 85
    kept = [row["kept"] for row in rows]
    assert kept == sorted(kept, reverse=True)
    with pytest.raises(InputError, match="must match"):
        robust_to(DISTORTIONS["noise"], Bright(), clean, attacked[:3], y)


def test_a_share_of_the_images_is_staged() -> None:
    x = torch.rand(400, 3, 8, 8)
    shown = staged(x, 0.25, generator())
    changed = (shown != x).flatten(1).any(1)
    assert 60 < int(changed.sum()) < 140
    assert torch.equal(shown, staged(x, 0.25, generator()))
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    assert bool((staged(x, 1.0, generator()) != x).flatten(1).any(1).all())
    assert torch.equal(staged(x, 0.0, generator()), x)
