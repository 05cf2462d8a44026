"""Test-time attacks, one file each: `(model, x, y, *, ...) -> Adversarial`."""

from miscue.evasions.attempt import Adversarial
from miscue.evasions.deepfool import deepfool
from miscue.evasions.fgsm import fgsm
from miscue.evasions.one_pixel import one_pixel, one_pixel_exhaustive
from miscue.evasions.pgd import pgd
from miscue.evasions.universal import universal
from miscue.evasions.worst_case import worst_case

EVASIONS = {
    "fgsm": fgsm,
    "pgd": pgd,
    "deepfool": deepfool,
    "one-pixel": one_pixel,
    "one-pixel-exhaustive": one_pixel_exhaustive,
    "universal": universal,
}

__all__ = [
    "EVASIONS",
    "Adversarial",
    "deepfool",
    "fgsm",
    "one_pixel",
    "one_pixel_exhaustive",
    "pgd",
    "universal",
    "worst_case",
]
