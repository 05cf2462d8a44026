"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): which places of the last feature maps speak for a class.

    alpha_k = mean over places of d score_y / d A^k          (1)
    map     = ReLU(sum_k alpha_k A^k)                        (2)

enlarged to the image bilinearly. A^k are the outputs of the last convolution, unless another layer is named. A vision
transformer's tokens are put back into their rows; there it is the input of the last attention that is looked at, as the
class token alone leaves it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.errors import InputError, lookup
from miscue.models.modes import differentiable, mode


def gradcam(model: nn.Module, x: Tensor, y: Tensor, *, layer: str = "") -> Tensor:
    """Maps of where `model` sees class `y` in each image, not negative, not normalised.

    Args:
        model: a classifier with a convolution; scored in eval mode and left as it was.
        x: images (n, c, h, w) in [0, 1].
        y: int64 (n,), the class whose score is explained.
        layer: the name of the layer whose outputs (n, k, h', w'), or tokens (n, t, k), are weighed, as `named_modules`
            has it; found as above if empty.

    Returns:
        float (n, h, w).

    Raises:
        InputError: neither a convolution nor an attention in the model, no layer of that name, or one whose outputs
            are no maps.
    """
    target = lookup(dict(model.named_modules()), layer, "layer") if layer else looked_at(model)
    kept: list[Tensor] = []
    hook = target.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with mode(model, train=False), torch.enable_grad():
            scores = differentiable(model(x.detach().requires_grad_()))
            (slopes,) = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), kept[-1])
    finally:
        hook.remove()
    # a network may pass images of its own along, as a Nystrom head does its landmarks; they come last
    features, slopes = (in_rows(some[: len(x)], x) for some in (kept[-1], slopes))
    alpha = slopes.mean((2, 3), keepdim=True)
    maps = F.relu((alpha * features).sum(1, keepdim=True)).detach()
    return F.interpolate(maps, x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


BEFORE_ATTENTION = ("norm1", "layernorm_before", "ln_1")  # what timm, transformers and torchvision call it


def looked_at(model: nn.Module) -> nn.Module:
    """What normalises the input of the last attention, or the convolution that comes last in the order of definition.

    Raises:
        InputError: neither is there.
    """
    attentive = [module for name, module in model.named_modules() if name.rpartition(".")[2] in BEFORE_ATTENTION]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if attentive and isinstance(attentive[-1], nn.LayerNorm):
        return attentive[-1]
    if not convolutions:
        raise InputError("Grad-CAM needs a convolution and this model has none; explain it by its input gradient")
    return convolutions[-1]


def in_rows(features: Tensor, x: Tensor) -> Tensor:
    """Maps (n, k, h', w') as they are; tokens (n, t, k) in rows, those of no place before them left out.

    Raises:
        InputError: the tokens fill no rectangle with the proportions of images x.
    """
    if features.ndim == 4:
        return features
    _, _, height, width = x.shape
    if features.ndim == 3:
        rows = math.isqrt(features.shape[1] * height // width)
        columns = rows * width // height
        if rows * columns:
            return features[:, -rows * columns :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    raise InputError(f"Grad-CAM needs feature maps or tokens, got {tuple(features.shape)}; name another layer")
