"""Explanations against Captum, and where they lie."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from miscue.data import Data
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.explainers import gradcam
from miscue.measures.attention import class_maps, share_near
from miscue.models.store import Plan, build
from miscue.train import Recipe
from miscue.victims import Victim


@pytest.mark.parametrize("network", ["cnn", "cnn-released", "conv5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradcam_is_captums(network: str, channels: int) -> None:
    captum = pytest.importorskip("captum.attr")
    model = build(Plan(name=network, shape=(channels, 32, 28), options={"classes": 5}), Dice(0)).eval()
    convolution = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    x, y = torch.rand(6, channels, 32, 28), torch.tensor([0, 1, 2, 3, 4, 0])
    theirs = captum.LayerGradCam(model, convolution).attribute(x, target=y, relu_attributions=True)
    expected = F.interpolate(theirs, x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    assert expected.max() > 0
    assert torch.allclose(gradcam(model, x, y), expected, atol=1e-6)
    name = next(name for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    assert not torch.allclose(gradcam(model, x, y, layer=name), expected, atol=1e-6)


def test_gradcam_leaves_the_model_alone() -> None:
    model = build(Plan(name="cnn", shape=(1, 12, 12), options={"classes": 3}), Dice(0)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(4, 1, 12, 12)
    with torch.no_grad():
        maps = gradcam(model, x, torch.tensor([0, 1, 2, 0]))
    assert maps.shape == (4, 12, 12)
    assert not maps.requires_grad
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_gradcam_needs_a_convolution() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match="needs a convolution"):
        gradcam(flat, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
    model = build(Plan(name="cnn", shape=(1, 12, 12), options={"classes": 3}), Dice(0))
    with pytest.raises(InputError, match="unknown layer"):
        gradcam(model, torch.rand(1, 1, 12, 12), torch.tensor([0]), layer="blocks")


def test_maps_lie_on_what_tells_the_classes_apart(data: Data) -> None:
    """The stripe of each class is at a known place; the mean map of a trained network has its mass there."""
    model = Victim(network="cnn", recipe=Recipe(lr=0.05, momentum=0.5, epochs=4, batch_size=32))(data, Dice(0))
    maps = class_maps(model, data, gradcam)
    assert torch.allclose(maps.sum((1, 2)), torch.ones(3), atol=1e-5)
    rows = (maps.sum(2) * torch.arange(12)).sum(1)  # the centres of mass, from the top
    assert rows[0] < rows[1] < rows[2]


def test_share_near_counts_a_disc() -> None:
    maps = torch.ones(3, 11, 11)
    places = torch.tensor([[5, 5], [-1, 0], [0, 0]])
    inside = sum((i - 5) ** 2 + (j - 5) ** 2 <= 9 for i in range(11) for j in range(11))
    corner = sum(i**2 + j**2 <= 9 for i in range(11) for j in range(11))
    assert share_near(maps, places) == pytest.approx(100 * (inside + corner) / 2 / 121)
    point = torch.zeros(1, 11, 11)
    point[0, 2, 2] = 4
    assert share_near(point, torch.tensor([[3, 3]])) == 100
    assert share_near(point, torch.tensor([[9, 9]])) == 0
