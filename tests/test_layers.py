"""The quick layers compute what the library's do, to any order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F

from miscue.models.generators import Last
from miscue.models.layers import Conv2d


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


@pytest.mark.parametrize("padding", [0, 1])
def test_conv2d_of_one_channel_against_finite_differences(padding: int) -> None:
    torch.manual_seed(0)
    quick = Conv2d(1, 3, 3, padding=padding).double()
    x = torch.rand(2, 1, 6, 5, dtype=torch.float64, requires_grad=True)

    def scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(quick, {"weight": weight, "bias": bias}, (x,)).tanh()

    inputs = (x, quick.weight, quick.bias)
    assert gradcheck(scores, inputs)
    assert gradgradcheck(scores, inputs)


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
