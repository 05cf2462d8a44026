"""What crafting yields: a callable Data -> Data with its budget, saved and loaded without pickle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from miscue.balls import released
from miscue.data import Data, floats
from miscue.errors import InputError
from miscue.models.networks import device_of, placed
from miscue.models.store import Plan, load_tensors, restore, save_tensors


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """A trained noise generator with its budget.

    generator: x (n, c, h, w) in [0, 1] -> noise in [-eps, eps]; plan: how to rebuild it.
    eps: the L-infinity budget on the [0, 1] scale, kept after rounding to 8 bits.
    settings: method, options and seed as plain data.
    """

    generator: nn.Module
    plan: Plan
    eps: float
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, data: Data) -> Data:
        """A poisoned copy: same labels, names and order; no pixel moved by more than eps."""
        return data.with_images(self.images(data.images))

    @torch.no_grad()
    def images(self, images: Tensor, *, chunk: int = 512) -> Tensor:
        """Poison uint8 images (n, c, h, w), `chunk` at a time: extra memory does not grow with n.

        Raises:
            InputError: the images' channels differ from those the generator was made for.
        """
        if images.shape[1] != self.plan.shape[0]:
            raise InputError(
                f"this perturbation is for {self.plan.shape[0]} channels, the images have {images.shape[1]}"
            )
        self.generator.eval()
        device = device_of(self.generator)
        out = torch.empty_like(images)
        for start in range(0, len(images), chunk):
            clean = images[start : start + chunk].to(device)
            x = floats(clean, channels_last=True)
            out[start : start + chunk] = released(x + self.generator(x), clean, self.eps)
        return out

    def save(self, path: Path) -> None:
        """Write to one safetensors file, atomically."""
        tensors = self.generator.state_dict()
        save_tensors(path, tensors, kind="perturbation", plan=asdict(self.plan), eps=self.eps, settings=self.settings)

    @staticmethod
    def load(path: Path) -> Perturbation:
        """Read what `save` wrote; InputError where the file is missing, damaged or of another kind."""
        tensors, facts = load_tensors(path, kind="perturbation")
        plan = Plan(**facts["plan"])
        generator = placed(restore(plan, tensors, path), "cpu")
        return Perturbation(generator=generator, plan=plan, eps=facts["eps"], settings=facts["settings"])
