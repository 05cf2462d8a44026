"""What crafting yields: a callable Data -> Data with its budget, saved and loaded without pickle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miscue.balls import released
from miscue.data import Data, floats, portion
from miscue.errors import lookup
from miscue.marks import MARKS, Mark
from miscue.models.store import load_tensors, save_tensors


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """A mark with its budget.

    mark: what is put on images.
    eps: the L-infinity budget on the [0, 1] scale, kept after rounding to 8 bits.
    device: where the mark lies.
    settings: method, options and seed as plain data.
    """

    mark: Mark
    eps: float
    device: str = "cpu"
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, data: Data) -> Data:
        """A poisoned copy: same labels, names and order; no pixel moved by more than eps.

        Raises:
            InputError: the mark was made for images of another shape or other classes.
        """
        self.mark.check(data.shape, len(data.classes))
        return data.with_images(self.images(data.images, data.labels))

    @torch.no_grad()
    def images(self, images: Tensor, labels: Tensor, *, chunk: int = 512) -> Tensor:
        """Poison uint8 images (n, c, h, w), at most `chunk` at a time: extra memory does not grow with n."""
        out, chunk = torch.empty_like(images), portion(images, chunk)
        for start in range(0, len(images), chunk):
            part = slice(start, start + chunk)
            clean = images[part].to(self.device)
            marked = self.mark(floats(clean, channels_last=True), labels[part].to(self.device))
            out[part] = released(marked, clean, self.eps)
        return out

    def to(self, device: str | torch.device) -> Perturbation:
        """The same perturbation, working on `device`."""
        return replace(self, mark=self.mark.to(device), device=str(device))

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically."""
        tensors, facts = self.mark.packed()
        (name,) = (name for name, kind in MARKS.items() if isinstance(self.mark, kind))
        save_tensors(Path(path), tensors, kind="perturbation", mark=name, eps=self.eps, settings=self.settings, **facts)

    @staticmethod
    def load(path: str | Path) -> Perturbation:
        """Read what `save` wrote; InputError where the file is missing, damaged or of another kind."""
        path = Path(path)
        tensors, facts = load_tensors(path, kind="perturbation")
        mark = lookup(MARKS, facts.get("mark", ""), "mark").unpacked(tensors, facts, path)
        return Perturbation(mark=mark, eps=facts["eps"], settings=facts["settings"])
