"""What a network makes of images before its last layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miscue.measures.accuracy import predictions


@torch.no_grad()
def hidden(model: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer is given: float (n, features); `images` uint8, or float inputs as they are."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    kept: list[Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        predictions(model, images)
    finally:
        hook.remove()
    return torch.cat(kept)
