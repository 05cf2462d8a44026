"""What makes a model harder to fool: `model -> model`, or a loss it is trained by. One file each."""

from collections.abc import Callable

from miscue.defences.adversarial import Adversarial
from miscue.defences.bounded import bound, tuning
from miscue.defences.feature_norm import feature_norm
from miscue.defences.masked import Masked
from miscue.defences.occluded import Occluded
from miscue.losses import Loss

LOSSES: dict[str, Callable[..., Loss]] = {"adversarial": Adversarial, "occluded": Occluded, "masked": Masked}
"""Losses that a network can be trained by instead of the plain one; keyword arguments are their settings."""

__all__ = ["LOSSES", "Adversarial", "Masked", "Occluded", "bound", "feature_norm", "tuning"]
