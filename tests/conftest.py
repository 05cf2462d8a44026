"""Small data sets that a network can learn in a second, shared by the tests."""

from __future__ import annotations

import pytest
import torch

from miscue.data import Data


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run side by side; one thread each is the fastest and makes repeats bitwise equal."""
    torch.set_num_threads(1)


def striped(n: int = 240, *, size: int = 12, channels: int = 1, classes: int = 3, seed: int = 0) -> Data:
    """Images whose class is the place of a bright stripe, under noise: real enough to learn and to generalise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 90, (n, channels, size, size), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        row = 1 + label * (size - 2) // classes
        images[i, :, row : row + 2] += 120
    return Data(images=images, labels=labels, classes=tuple("abcdefghij"[:classes]))


@pytest.fixture
def data() -> Data:
    """240 grey 12 x 12 images of 3 classes."""
    return striped()
