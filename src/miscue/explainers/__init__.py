"""Explanations, one file each: `(model, x, y) -> maps (n, h, w)`, large where the model looks."""

from collections.abc import Callable

from torch import Tensor

from miscue.explainers.gradcam import gradcam

EXPLAINERS: dict[str, Callable[..., Tensor]] = {"gradcam": gradcam}

__all__ = ["EXPLAINERS", "gradcam"]
