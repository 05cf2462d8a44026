"""Test-time attacks, one file each: `(model, x, y, *, ...) -> Adversarial`."""

from collections.abc import Callable

from miscue.evasions.attempt import Adversarial
from miscue.evasions.deepfool import deepfool
from miscue.evasions.fgsm import fgsm
from miscue.evasions.one_pixel import one_pixel, one_pixel_exhaustive
from miscue.evasions.patch import patch
from miscue.evasions.pgd import pgd
from miscue.evasions.physical import physical
from miscue.evasions.scene import scene
from miscue.evasions.stickers import soft_stickers, stickers
from miscue.evasions.universal import universal, universal_gradient
from miscue.evasions.worst_case import worst_case

EVASIONS: dict[str, Callable[..., Adversarial]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "deepfool": deepfool,
    "one-pixel": one_pixel,
    "one-pixel-exhaustive": one_pixel_exhaustive,
    "universal": universal,
    "universal-gradient": universal_gradient,
    "stickers": stickers,
    "soft-stickers": soft_stickers,
    "patch": patch,
    "physical": physical,
    "scene": scene,
}
FOR_ALL_IMAGES = ("universal", "universal-gradient", "patch")
"""Those that make one change for all images."""
BY_QUERIES = ("one-pixel", "one-pixel-exhaustive", "stickers")
"""Those that look at scores alone and need no gradient."""

__all__ = [
    "BY_QUERIES",
    "EVASIONS",
    "FOR_ALL_IMAGES",
    "Adversarial",
    "deepfool",
    "fgsm",
    "one_pixel",
    "one_pixel_exhaustive",
    "patch",
    "pgd",
    "physical",
    "scene",
    "soft_stickers",
    "stickers",
    "universal",
    "universal_gradient",
    "worst_case",
]
