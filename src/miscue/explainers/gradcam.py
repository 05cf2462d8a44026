"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): which places of the last feature maps speak for a class.

    alpha_k = mean over places of d score_y / d A^k          (1)
    map     = ReLU(sum_k alpha_k A^k)                        (2)

enlarged to the image bilinearly. A^k are the outputs of the last convolution, unless another layer is named.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.errors import InputError, lookup
from miscue.models.modes import mode


def gradcam(model: nn.Module, x: Tensor, y: Tensor, *, layer: str = "") -> Tensor:
    """Maps of where `model` sees class `y` in each image, not negative, not normalised.

    Args:
        model: a classifier with a convolution; scored in eval mode and left as it was.
        x: images (n, c, h, w) in [0, 1].
        y: int64 (n,), the class whose score is explained.
        layer: the name of the layer whose outputs (n, k, h', w') are weighed, as `named_modules` has it; the last
            convolution if empty.

    Returns:
        float (n, h, w).

    Raises:
        InputError: no convolution in the model, or no layer of that name.
    """
    target = lookup(dict(model.named_modules()), layer, "layer") if layer else last_convolution(model)
    kept: list[Tensor] = []
    hook = target.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with mode(model, train=False), torch.enable_grad():
            scores = model(x.detach().requires_grad_())
            features = kept[-1]
            (slopes,) = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), features)
    finally:
        hook.remove()
    alpha = slopes.mean((2, 3), keepdim=True)
    maps = F.relu((alpha * features).sum(1, keepdim=True)).detach()
    return F.interpolate(maps, x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def last_convolution(model: nn.Module) -> nn.Module:
    """The convolution that comes last in the order of definition."""
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not found:
        raise InputError("Grad-CAM needs a convolution and this model has none; explain it by its input gradient")
    return found[-1]
