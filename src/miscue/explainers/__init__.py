"""Explanations, one file each: `(model, x, y) -> maps (n, h, w)`, large where the model looks."""

from collections.abc import Callable

from torch import Tensor

from miscue.explainers.gradcam import gradcam
from miscue.explainers.gradient import gradient
from miscue.explainers.occlusion import occlusion

EXPLAINERS: dict[str, Callable[..., Tensor]] = {"gradient": gradient, "gradcam": gradcam, "occlusion": occlusion}

__all__ = ["EXPLAINERS", "gradcam", "gradient", "occlusion"]
