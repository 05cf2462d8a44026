"""Explanations against Captum, and where they lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.covers import ALIKE, covered
from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.explainers import EXPLAINERS, gradcam, gradient, occlusion
from miscue.measures.activations import maxima
from miscue.measures.attention import class_maps, share_near
from miscue.measures.attribution import (
    deletion,
    insertion,
    pointed,
    sanity,
    share_inside,
)
from miscue.measures.statistics import rank_correlation
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


def test_gradcam_of_a_network_with_images_of_its_own() -> None:
    model = build(Plan(name="cnn-nystrom", shape=(1, 12, 12), options={"classes": 3}), Dice(0))
    x = torch.rand(120, 1, 12, 12)
    model.train()(x)
    model.eval()
    maps = gradcam(model, x[:5], torch.tensor([0, 1, 2, 0, 1]))
    assert maps.shape == (5, 12, 12)
    assert torch.allclose(gradcam(model, x[:2], torch.tensor([0, 1])), maps[:2], atol=1e-5)
    assert maxima(model, floats_to_bytes(x[:7]))["body.2"].shape[0] == 7


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


def floats_to_bytes(x: Tensor) -> Tensor:
    return (255 * x).round().byte()


def network(name: str = "conv5", channels: int = 3, size: tuple[int, int] = (32, 28)) -> nn.Module:
    """A fresh network in float64, so that other orders of adding up do not count."""
    return build(Plan(name=name, shape=(channels, *size), options={"classes": 5}), Dice(0)).eval().double()


def some_images(n: int = 3, channels: int = 3, size: tuple[int, int] = (32, 28)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, channels, *size, generator=generator).double(), torch.arange(n) % 5


@pytest.mark.parametrize("name", ["cnn", "conv5", "cnn-padded"])
def test_gradient_is_captums_saliency(name: str) -> None:
    captum = pytest.importorskip("captum.attr")
    model, (x, y) = network(name), some_images()
    expected = captum.Saliency(model).attribute(x.clone().requires_grad_(), target=y).amax(1)
    assert torch.allclose(gradient(model, x, y), expected, atol=1e-12)


@pytest.mark.parametrize(("window", "stride"), [(5, 1), (5, 3), (4, 4), (7, 2), (28, 1)])
def test_occlusion_is_captums(window: int, stride: int) -> None:
    captum = pytest.importorskip("captum.attr")
    model, (x, y) = network(), some_images()
    theirs = captum.Occlusion(model).attribute(
        x, (3, window, window), strides=(3, stride, stride), baselines=0.5, target=y, perturbations_per_eval=16
    )
    ours = occlusion(model, x, y, window=window, stride=stride)
    assert ours.shape == (3, 32, 28)
    assert torch.allclose(ours, theirs[:, 0].double(), atol=1e-6)
    alone = torch.cat([occlusion(model, x[i : i + 1], y[i : i + 1], window=window, stride=stride) for i in range(3)])
    assert torch.allclose(alone, ours, atol=1e-10)


@pytest.mark.parametrize("fill", ["grey", "inpaint"])
def test_weighed_occlusion_window_by_window(fill: str) -> None:
    model, (x, y) = network("cnn-small", size=(10, 9)), some_images(size=(10, 9))
    found = occlusion(model, x, y, window=4, stride=3, fill=fill, fall="log-probability", weighed=True)
    sums, counts = torch.zeros(len(x), 10, 9).double(), torch.zeros(10, 9)
    with torch.no_grad():
        model.eval()
        own = torch.arange(len(x)), y
        whole = model(x).log_softmax(1)[own]
        for top in range(0, 9, 3):
            for left in range(0, 8, 3):
                mask = torch.zeros(1, 10, 9, dtype=torch.bool)
                mask[:, top : top + 4, left : left + 4] = True
                shown = covered(x, mask.expand(len(x), -1, -1), fill)
                fell = (whole - model(shown).log_softmax(1)[own]) * (shown - x).square().flatten(1).mean(1)
                sums += fell[:, None, None] * mask
                counts += mask[0]
    assert torch.allclose(found, (sums / counts).to(found), atol=1e-8)


def test_first_order_occlusion_is_exact_for_a_linear_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 10, 5)).double()
    x, y = some_images(size=(12, 10))
    for fill in ALIKE:
        for window, stride in ((3, 1), (4, 3)):
            options = {"window": window, "stride": stride, "fill": fill}
            exact, quick = (occlusion(model, x, y, **options, first_order=order) for order in (False, True))
            assert torch.allclose(exact, quick, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"window": 29}, "window of 29 pixels does not lie"), ({"window": 0}, "does not lie"),
     ({"window": 3, "stride": 4}, "stride must lie"), ({"fill": "gray"}, "did you mean grey"),
     ({"fill": "inpaint", "first_order": True}, "inpaint differs from window to window"),
     ({"fall": "logit"}, "fall"), ({"weighed": True, "first_order": True}, "not weighed")],
)  # fmt: skip
def test_occlusion_refuses(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        occlusion(network(), *some_images(), **options)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_explanations_leave_the_model_and_the_images_alone(name: str) -> None:
    model, (x, y) = network(), some_images()
    model.train()
    before, state = x.clone(), {key: value.clone() for key, value in model.state_dict().items()}
    maps = EXPLAINERS[name](model, x, y)
    assert maps.shape == (3, 32, 28)
    assert not maps.requires_grad
    assert torch.equal(x, before)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


class Token(nn.Module):
    """One block of a vision transformer: patches of 8 x 8, a class token, one attention, as timm names it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norm1 = nn.LayerNorm(16)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], dim=1)
        seen = self.norm1(tokens)
        return self.head((tokens + self.attn(seen, seen, seen, need_weights=False)[0])[:, 0])


def test_gradcam_puts_tokens_back_into_rows() -> None:
    torch.manual_seed(0)
    model, (x, y) = Token().double(), some_images(size=(32, 64))
    kept = []
    model.norm1.register_forward_hook(lambda module, inputs, output: kept.append(output))
    scores = model(x)
    (slopes,) = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), kept[0])
    weighed = (slopes[:, 1:].mean(1, keepdim=True) * kept[0][:, 1:]).sum(2).relu().view(3, 1, 4, 8)
    expected = F.interpolate(weighed, (32, 64), mode="bilinear")[:, 0]
    assert torch.allclose(gradcam(model, x, y), expected, atol=1e-10)
    with pytest.raises(InputError, match="name another layer"):
        gradcam(model, x, y, layer="head")


def lit() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model that looks at one corner of 4 x 4 pixels only, images, their classes, the corner."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 2)).double()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    corner = torch.zeros(10, 10, dtype=torch.bool)
    corner[:4, :4] = True
    model[1].weight.data[1] = corner.flatten().double()
    model[1].bias.data[0] = 4.0
    x = torch.rand(6, 1, 10, 10, generator=torch.Generator().manual_seed(0)).double() * 0.4 + 0.6
    return model, x, torch.ones(6, dtype=torch.int64), corner.expand(6, 10, 10)


def test_maps_are_judged() -> None:
    model, x, y, masks = lit()
    good, bad = masks.double(), (~masks).double()
    base = torch.zeros_like(x)
    assert (deletion(model, x, y, good, base=base) < deletion(model, x, y, bad, base=base) - 0.3).all()
    assert (insertion(model, x, y, good, base=base) > insertion(model, x, y, bad, base=base) + 0.3).all()
    assert pointed(good, masks).all()
    assert not pointed(bad, masks).any()
    assert pointed(bad, masks, tolerance=1).all()  # the first pixel beside the corner
    assert share_inside(good, masks).tolist() == [100.0] * 6
    assert share_inside(torch.ones_like(good), masks)[0] == pytest.approx(16)
    assert share_inside(good - 2 * bad, masks)[0] == 100
    assert share_inside(-good, masks).isnan().all()
    found = occlusion(model, x, y, window=3)
    assert pointed(found, masks).all()
    assert share_inside(found, masks)[0] > 60


def test_deletion_by_hand() -> None:
    """Two pixels, the first of which decides."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).double()
    model[1].weight.data = torch.tensor([[0.0, 0.0], [2.0, 0.0]]).double()
    x, y = torch.ones(1, 1, 1, 2).double(), torch.tensor([1])
    high, low = (float(torch.tensor([0.0, value]).double().softmax(0)[1]) for value in (2.0, 0.0))
    maps = torch.tensor([[[2.0, 1.0]]])
    assert float(deletion(model, x, y, maps, base=0 * x, steps=2)) == pytest.approx((high + low) / 4 + low / 2)
    assert float(insertion(model, x, y, maps, base=0 * x, steps=2)) == pytest.approx((low + high) / 4 + high / 2)
    with pytest.raises(InputError, match="steps"):
        deletion(model, x, y, maps, base=x, steps=0)


def test_ranks_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 6, (4, 5, 7), generator=generator).float() for _ in range(2))
    expected = [stats.spearmanr(p.flatten(), q.flatten()).statistic for p, q in zip(a, b, strict=True)]
    assert rank_correlation(a, b).tolist() == pytest.approx(expected, abs=1e-5)


def test_randomised_layers_change_the_gradient_but_not_an_edge_detector(data: Data) -> None:
    model = Victim(network="cnn", recipe=Recipe(lr=0.05, momentum=0.5, epochs=3, batch_size=32))(data, Dice(0))
    x, y = floats(data.images[:24]), data.labels[:24]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = sanity(gradient, model, x, y, dice=Dice(1))
    layers = [name for name, layer in model.named_modules() if hasattr(layer, "reset_parameters")]
    assert list(found) == layers[::-1]
    assert list(found.values())[-1] < 0.5
    blind = sanity(lambda model, x, y: x.mean(1), model, x, y, dice=Dice(1))
    assert list(blind.values()) == pytest.approx([1.0] * len(layers))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
