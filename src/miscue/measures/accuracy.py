"""How right a model is: accuracy, hits of a label map, confusion. Models are scored in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from miscue.data import Data, floats, portion
from miscue.dice import Dice
from miscue.models.modes import mode
from miscue.models.networks import device_of

ENOUGH = 128
"""Images that give a batch's statistics, at least, however large they are."""


def drawn_parts(images: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """Which images go together where a batch's own statistics matter: parts of at most `chunk`, drawn at random.

    Folders are read class by class; parts of one class each would be normalised by that class alone. Parts are of equal
    size, since a last one of a single image would have no spread.
    """
    size = min(chunk, max(ENOUGH, portion(images, chunk)))
    order = torch.randperm(len(images), generator=Dice().named("parts").generator())
    return order.tensor_split(max(1, -(-len(images) // size)))


@torch.no_grad()
def predictions(model: nn.Module, images: Tensor, *, chunk: int = 200) -> Tensor:
    """Predicted classes, int64 (n,) on the CPU, in eval mode; `images` uint8, or float inputs as they are."""
    parts = images.split(portion(images, chunk))
    with mode(model, train=False):
        return torch.cat([predict(model, part) for part in parts]).cpu()


@torch.no_grad()
def batch_statistics_predictions(model: nn.Module, images: Tensor, *, chunk: int = 1000) -> Tensor:
    """Predictions whose BatchNorm layers use each test batch's own statistics, as in the authors' code.

    Not a score of the model as it would be used: it learns about the test distribution from the test images. It stands
    beside the eval-mode score where a published figure needs it. The model's running statistics are left alone.
    """
    twin, found = deepcopy(model), torch.empty(len(images), dtype=torch.int64)
    with mode(twin, train=True):
        for part in drawn_parts(images, chunk):
            found[part] = predict(twin, images[part]).cpu()
    return found


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The classes of largest score for one chunk, int64 (n,) where the model is."""
    images = images.to(device_of(model))
    x = floats(images, channels_last=True) if images.dtype == torch.uint8 else images
    return model(x).argmax(1)


def percent(hits: Tensor) -> float:
    """Share of true entries, 0 to 100."""
    return 100 * hits.double().mean().item()


def accuracy(model: nn.Module, data: Data) -> float:
    """Share of images whose label is predicted, 0 to 100, in eval mode."""
    return percent(predictions(model, data.images) == data.labels.cpu())


def class_accuracies(model: nn.Module, data: Data) -> Tensor:
    """The accuracy of each class, float64 (classes,), 0 to 100, in eval mode; 0 where the class has no image."""
    labels = data.labels.cpu()
    hits = predictions(model, data.images) == labels
    counts = torch.bincount(labels, minlength=len(data.classes))
    return 100 * torch.bincount(labels, hits.double(), minlength=len(counts)) / counts.clamp(min=1)


def hit_rate(predicted: Tensor, labels: Tensor, label_map: Sequence[int]) -> float:
    """Share of images predicted as the class their label is mapped to, 0 to 100."""
    return percent(predicted == torch.tensor(label_map)[labels])


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """Counts, rows true classes, columns predicted ones."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).tolist()
