"""The quick layers compute what the library's do, to any order."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F

from miscue.models import modes
from miscue.models.functions import Borrow, only, twice
from miscue.models.generators import Down, Last, Up
from miscue.models.layers import AvgPool2d, BatchNorm2d, Conv2d, Flatten, MaxPool2d, ReLU
from miscue.models.modes import frozen


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_conv2d_is_the_library_s(channels: int, padding: int) -> None:
    torch.manual_seed(0)
    quick = Conv2d(channels, 4, 3, padding=padding)
    library = nn.Conv2d(channels, 4, 3, padding=padding)
    library.load_state_dict(quick.state_dict())
    x = torch.rand(5, channels, 9, 7, requires_grad=True)
    a, b = quick(x), library(x)
    assert torch.allclose(a, b, atol=1e-6)
    way = torch.rand_like(a)
    ours = torch.autograd.grad(a, [x, *quick.parameters()], way)
    theirs = torch.autograd.grad(b, [x, *library.parameters()], way)
    assert all(torch.allclose(s, t, rtol=1e-4, atol=1e-5) for s, t in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_conv2d_of_images_without_a_slope_is_the_library_s(bias: bool) -> None:
    torch.manual_seed(0)
    quick = Conv2d(1, 4, (3, 5), padding=(1, 2), bias=bias)
    library = nn.Conv2d(1, 4, (3, 5), padding=(1, 2), bias=bias)
    library.load_state_dict(quick.state_dict())
    x = torch.rand(5, 1, 9, 7)
    a, b = quick(x), library(x)
    assert a.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(a, b, atol=1e-6)
    way = torch.rand_like(a)
    ours, theirs = (torch.autograd.grad(y, list(net.parameters()), way) for net, y in ((quick, a), (library, b)))
    assert all(torch.allclose(s, t, rtol=1e-4, atol=1e-5) for s, t in zip(ours, theirs, strict=True))


def test_flatten_is_the_library_s_and_its_slope_has_channels_last() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    slopes: list[Tensor] = []
    seen = x * 1
    seen.register_hook(slopes.append)
    y = Flatten()(seen)
    assert torch.equal(y, nn.Flatten()(x))
    way = torch.rand_like(y)
    (slope,) = torch.autograd.grad(y, x, way)
    assert torch.equal(slope, way.reshape(x.shape))
    assert slopes[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
def test_conv2d_against_finite_differences(channels: int, padding: int) -> None:
    torch.manual_seed(0)
    quick = Conv2d(channels, 3, 3, padding=padding).double()
    x = torch.rand(2, channels, 6, 5, dtype=torch.float64, requires_grad=True)

    def scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with twice():
            return functional_call(quick, {"weight": weight, "bias": bias}, (x,)).tanh()

    inputs = (x, quick.weight, quick.bias)
    assert gradcheck(scores, inputs)
    assert gradgradcheck(scores, inputs)


def test_only_what_is_asked_for_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Conv2d(1, 2, 3), nn.Tanh(), Conv2d(2, 2, 3))  # the second image is no leaf
    x = torch.rand(2, 1, 7, 7, requires_grad=True)
    weights = list(net.parameters())

    def loss() -> Tensor:
        with twice():
            return net(x).tanh().sum()

    def slopes() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(), weights, create_graph=True)

    for which, wanted in (("weights", weights), ("images", [x])):
        whole = torch.autograd.grad(loss(), wanted), torch.autograd.grad(slopes(), wanted, weights)
        with only(which):
            part = torch.autograd.grad(loss(), wanted)
        with only("weights"):
            slope = slopes()
        with only(which):
            further = torch.autograd.grad(slope, wanted, weights)
        assert all(torch.equal(a, b) for a, b in zip(whole[0], part, strict=True)), which
        assert all(torch.equal(a, b) for a, b in zip(whole[1], further, strict=True)), which


QUICK = {
    "relu": (ReLU(), nn.ReLU()),
    "average": (AvgPool2d(2), nn.AvgPool2d(2)),
    "average, overlapping": (AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1)),
    "largest": (MaxPool2d(2), nn.MaxPool2d(2)),
    "largest, overlapping": (MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)),
}


@pytest.mark.parametrize("kind", QUICK)
def test_what_only_chooses_is_the_library_s_to_the_second_derivative(kind: str) -> None:
    torch.manual_seed(0)
    quick, library = QUICK[kind]
    x = torch.randn(3, 2, 7, 6, requires_grad=True)
    found = []
    for layer, block in ((quick, twice), (library, nullcontext)):
        with block():
            y = layer(x.sin())
        way = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
        (first,) = torch.autograd.grad(y, x, way, create_graph=True)
        (second,) = torch.autograd.grad((first * first).sum(), x)
        found.append((y, first, second))
    assert type(quick(x).grad_fn) is type(library(x).grad_fn), "where no second derivative follows it is the library's"
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    assert found[0][2].abs().sum() > 0


@pytest.mark.parametrize("shape", [(3, 4, 8, 6), (2, 3, 7, 9), (4, 6, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_of_squares_is_the_library_s_without_a_way_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x.view(-1)[3] = torch.nan
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    quick, usual = MaxPool2d(2)(x), nn.MaxPool2d(2)(x)
    assert torch.equal(quick.nan_to_num(9), usual.nan_to_num(9))
    assert x.ndim != 4 or quick.is_contiguous(memory_format=torch.channels_last)
    assert [MaxPool2d(*words).halves for words in ((2,), (2, 1), (3,), (2, 2, 1))] == [True, False, False, False]
    assert not MaxPool2d(2, ceil_mode=True).halves


@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm_is_the_library_s(channels_last: bool) -> None:
    torch.manual_seed(0)
    quick, library = BatchNorm2d(3), nn.BatchNorm2d(3)
    nn.init.uniform_(quick.weight)
    nn.init.uniform_(quick.bias)
    library.load_state_dict(quick.state_dict())
    x = (4 * torch.rand(5, 3, 4, 6) + 2).requires_grad_()
    seen = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with twice():
        a = quick(seen)
    b = library(seen)
    assert type(a.grad_fn) is not type(b.grad_fn)
    assert torch.allclose(a, b, atol=1e-5)
    way, second = torch.rand_like(a), torch.rand_like(x)
    ours, theirs = (
        torch.autograd.grad(y, [x, *model.parameters()], way, create_graph=True)
        for y, model in ((a, quick), (b, library))
    )
    ours += torch.autograd.grad(ours[0], [x, quick.weight], second)
    theirs += torch.autograd.grad(theirs[0], [x, library.weight], second)
    assert all(torch.allclose(s, t, rtol=1e-4, atol=1e-5) for s, t in zip(ours, theirs, strict=True))
    for name, buffer in library.state_dict().items():
        assert torch.allclose(quick.state_dict()[name], buffer, atol=1e-6), name
    assert torch.equal(quick(seen), library(seen)), "where no second derivative follows it is the library's own"
    assert torch.allclose(quick.eval()(x), library.eval()(x), atol=1e-5)


def test_batch_norm_against_finite_differences() -> None:
    torch.manual_seed(0)
    quick = BatchNorm2d(2).double()
    x = torch.rand(3, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in quick.named_buffers()}
        with twice():
            return functional_call(quick, {"weight": weight, "bias": bias} | buffers, (x,)).tanh()

    inputs = (x, quick.weight, quick.bias)
    assert gradcheck(scores, inputs)
    assert gradgradcheck(scores, inputs)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 3)])
def test_borrow_is_batch_norm_by_the_statistics_of_the_rest(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (2 * torch.rand(shape, dtype=torch.float64) + 1).requires_grad_()
    weight, bias = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        others, own = x[2:], (1, -1, *[1] * (x.ndim - 2))
        dims = [0, *range(2, x.ndim)]
        mean, variance = others.mean(dims, keepdim=True), others.var(dims, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * weight.reshape(own) + bias.reshape(own)

    def borrowed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return Borrow.apply(x, weight, bias, 2, 1e-5)[0]

    inputs = x, weight, bias
    assert torch.allclose(borrowed(*inputs), formula(*inputs))
    way = torch.rand_like(x)
    ours, theirs = (torch.autograd.grad(one(*inputs), inputs, way) for one in (borrowed, formula))
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))
    assert gradcheck(borrowed, inputs)


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (3, 3)])
def test_the_narrowest_layers_are_convolutions(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    down, up = Down(4, 6), Up(6, 4)
    x = torch.rand(5, 4, *size)
    library = F.relu(down.norm(F.conv2d(x, down.conv.weight, stride=2, padding=1)))
    fresh = Down(4, 6)
    fresh.load_state_dict(down.state_dict())
    assert torch.allclose(fresh(x), library, atol=1e-5)
    whole = F.conv_transpose2d(library, up.conv.weight, up.conv.bias, stride=2, padding=1, output_padding=1)
    assert torch.allclose(up(library, torch.Size(size)), whole[..., : size[0], : size[1]], atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 9), (9, 9)])
def test_last_is_a_transposed_convolution(channels: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    last = Last(5, channels)
    x = torch.rand(2, 5, 4, 4)
    # the four 2x2 kernels of a channel, interlaced and turned round, are the 4x4 kernel
    kernels = last.conv.weight.reshape(channels, 2, 2, 5, 2, 2).flip(4, 5)
    weight = kernels.permute(3, 0, 4, 1, 5, 2).reshape(5, channels, 4, 4)
    library = F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=[side - 8 for side in size])
    biases = last.conv.bias.reshape(channels, 2, 2)
    rows, columns = ((torch.arange(side) + 1) % 2 for side in size)
    assert torch.allclose(last(x, torch.Size(size)), library + biases[:, rows[:, None], columns], atol=1e-6)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_a_line_where_nothing_learns(kept: bool, affine: bool) -> None:
    """In `frozen` it says what the library's says, has its slopes, and is the library's again afterwards."""
    torch.manual_seed(0)
    plain = [nn.BatchNorm2d(3, affine=affine, track_running_stats=kept), BatchNorm2d(3, affine=affine)]
    model = nn.Sequential(nn.Conv2d(2, 3, 3), *plain, nn.Flatten(), nn.BatchNorm1d(27, affine=affine)).double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    x = torch.randn(4, 2, 5, 5).double().requires_grad_()
    wanted = model.eval()(x)
    (slope,) = torch.autograd.grad(wanted.square().sum(), x)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), frozen(model), frozen(model):
        lines = [module for module in (*model, model) if "forward" in vars(module)]
        assert lines.pop() is model
        assert len(lines) == (3 if kept else 2)
        found = model(x)
        (quick,) = torch.autograd.grad(found.square().sum(), x)
        assert torch.allclose(found, wanted)
        assert torch.allclose(quick, slope)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.float()[2](x.bfloat16()[:, :1].expand(-1, 3, -1, -1)).dtype == torch.bfloat16
        raise ZeroDivisionError
    assert {name: vars(module).keys() for name, module in model.named_modules()} == {
        name: kept.keys() for name, kept in before.items()
    }


def test_a_batch_norm_is_folded_into_the_layer_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes out, and its slopes, are the same; a layer that is looked at, or called alone, is as it was."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3)
    inner = nn.Sequential(Conv2d(3, 4, 3, stride=2, bias=False), BatchNorm2d(4))
    last = nn.Linear(4, 5), nn.BatchNorm1d(5)
    model = nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), inner, nn.Flatten(), *last)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    model = model.double().eval()
    x = torch.randn(4, 2, 6, 6).double().requires_grad_()
    wanted, alone = model(x), conv(x)
    (slope,) = torch.autograd.grad(wanted.square().sum(), x)
    called: list[modes.Line] = []

    def noted(line: modes.Line, x: Tensor) -> Tensor:
        called.append(line)
        return line.usual(x)

    monkeypatch.setattr(modes.Line, "__call__", noted)
    with frozen(model):
        found = model(x)
        (quick,) = torch.autograd.grad(found.square().sum(), x)
        assert not called
        assert torch.allclose(found, wanted)
        assert torch.allclose(quick, slope)
        assert torch.equal(conv(x), alone)
        seen: list[Tensor] = []
        hook = conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
        assert torch.allclose(model(x), wanted)
        hook.remove()
        assert torch.equal(seen[0], alone)
        assert len(called) == 1
        with torch.autocast("cpu", torch.bfloat16):
            model.float()(x.float())
        assert len(called) == 4
    assert not any("forward" in vars(module) for module in model.modules())


def test_channels_elsewhere_are_not_folded() -> None:
    """After a Linear of sequences (n, l, c), BatchNorm1d's channels are the places, not the outputs."""
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).eval()
    model[1].running_mean.normal_()
    x = torch.randn(2, 5, 3)
    with frozen(model):
        assert torch.allclose(model(x), model[1](model[0](x)))
    shared = nn.Conv2d(3, 3, 1)
    twice = nn.Sequential(shared, shared, nn.BatchNorm2d(3)).eval()
    z = torch.randn(2, 3, 4, 4)
    wanted = twice(z)
    with frozen(twice):
        assert torch.allclose(twice(z), wanted, atol=1e-6)


def test_a_compiled_model_is_left_alone() -> None:
    inside = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    with frozen(torch.compile(inside, backend="eager")):
        assert "forward" not in vars(inside[1])
    with frozen(inside):
        assert "forward" in vars(inside[1])


def test_a_batch_norm_of_another_library_is_left_alone() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    model = nn.Sequential(Activated(3)).eval()
    x = torch.randn(2, 3, 4, 4)
    with frozen(model):
        assert "forward" not in vars(model[0])
        assert bool((model(x) >= 0).all())


def test_a_model_is_as_before_when_freezing_it_fails() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    model[1].running_var = torch.ones(3)
    with pytest.raises(RuntimeError), frozen(model):
        pass
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all("forward" not in vars(module) for module in model.modules())
