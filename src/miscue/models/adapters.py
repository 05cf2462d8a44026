"""Other libraries' models as ours: images (n, c, h, w) in [0, 1] -> scores (n, classes), normalisation inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miscue.errors import InputError
from miscue.models.estimators import Estimator


class Adapted(nn.Module):
    """A network behind its own normalisation; of an output with `logits`, as transformers have it, only those."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes)."""
        found = self.network((x - self.mean) / self.std)
        scores: Tensor = getattr(found, "logits", found)
        return scores


def adapted(model: Any, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> nn.Module:
    """Any classifier as a module from images in [0, 1] to scores.

    Args:
        model: a network of timm (mean and std are read from its configuration), of torchvision or transformers (give
            them those of its weights or its image processor), any other module, or a fitted classifier of scikit-learn.
        mean: what the network expects to be taken off each channel.
        std: what it expects each channel to be divided by; where neither is given and none is known, images go in as
            they are.

    Raises:
        InputError: only one of mean and std, a std of 0, something that is no classifier, classes that are no numbers.
    """
    if (mean is None) != (std is None):
        raise InputError("mean and std belong together; only one was given")
    if not isinstance(model, nn.Module):
        classes = getattr(model, "classes_", None)
        if classes is None or not hasattr(model, "predict"):
            raise InputError(f"{type(model).__name__} is neither a network nor a fitted classifier of scikit-learn")
        if not all(isinstance(label, int | np.integer) and label >= 0 for label in classes):
            names = ", ".join(map(str, classes))
            raise InputError(f"classes must be numbers from 0 on, {type(model).__name__} was fitted to {names}")
        return Estimator(model, int(max(classes)) + 1).eval()
    if mean is None or std is None:
        known = getattr(model, "pretrained_cfg", None) or {}
        mean, std = known.get("mean", (0.0,)), known.get("std", (1.0,))
    if not all(value > 0 for value in std):
        raise InputError(f"std must be positive, got {list(std)}")
    return Adapted(model, mean, std).train(model.training)
