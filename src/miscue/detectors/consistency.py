"""Stickers are found by covering: a clean image hardly cares, an attacked one goes back to its class.

    S1 = max over windows of p(c0) - p_w(c0)              how far the named class falls
    S2 = share of windows whose class is not c0           how many disagree
    S3 = max over windows that disagree of their confidence  how sure one of them is (Minority Reports, McCoyd 2020)
    S4 = max over windows of -log p_w(c0) * |x - x_w|^2   how surprising the class is without what itself surprises

with c0 the class named for the whole image x, p its probability, x_w the image with window w covered, and p_w what is
then said of it. Which of the first three tells depends on the sticker: confident patches fall far, timid ones leave
many windows that disagree; and clean signs fall far too where their digit is covered. But what is clean can be guessed
from what lies around it, better than a sticker can. So with covers that are in-painted S4 tells stickers of both kinds
from what is clean, and it is the score that `Detector` alarms by, where it is beyond what all but a stated share of
clean images reach. The window of S4 shows where the sticker is; what is named under it, besides c0, is recovered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miscue.covers import FILLS
from miscue.data import portion
from miscue.errors import InputError, lookup
from miscue.explainers.occlusion import TOGETHER, averaged, masked_scores, window_masks, windows
from miscue.models.modes import Model, frozen
from miscue.models.store import load_tensors, save_tensors

SCORES = ("s1", "s2", "s3", "s4")
LEAST = 1e-3  # added to probabilities before their logarithm


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What a model says of images, whole and with each window covered.

    whole: probabilities (n, classes). covered: probabilities (n, windows, classes).
    changes: float (n, windows), the sum over covered pixels of their squared change, mean over the channels.
    named: int64 (n,), c0. scores: float (n, 4), S1 to S4.
    """

    whole: Tensor
    covered: Tensor
    changes: Tensor

    @property
    def named(self) -> Tensor:
        """The class named for the whole image."""
        return self.whole.argmax(1)

    @property
    def still(self) -> Tensor:
        """p_w(c0), float (n, windows)."""
        return self.covered.gather(2, self.named[:, None, None].expand(-1, self.covered.shape[1], 1))[..., 0]

    @property
    def differs(self) -> Tensor:
        """Whether another class than c0 is named with a window covered: bool (n, windows)."""
        return self.covered.argmax(2) != self.named[:, None]

    @property
    def surprises(self) -> Tensor:
        """-log p_w(c0) |x - x_w|^2, float (n, windows)."""
        return (self.still + LEAST).log().clamp(max=0).neg() * self.changes

    @property
    def scores(self) -> Tensor:
        """S1, S2, S3, S4."""
        falls, sure = self.whole.amax(1) - self.still.amin(1), self.covered.amax(2) * self.differs
        disagree = self.differs.double().mean(1).to(sure)
        return torch.stack([falls, disagree, sure.amax(1), self.surprises.amax(1)], dim=1)

    def recovered(self) -> Tensor:
        """The most probable class besides c0 under the window of the largest surprise: int64 (n,).

        c0 itself where no window changes the class.
        """
        every = torch.arange(len(self.whole), device=self.whole.device)
        behind = self.covered[every, self.surprises.argmax(1)].scatter(1, self.named[:, None], -1).argmax(1)
        return torch.where(self.differs.any(1), behind, self.named)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a guarded model says of images.

    named: int64 (n,); confidence: float (n,); alarm: bool (n,); score: float (n,), S4, in nats times squares
    of white. recovered: int64 (n,), the class to go on with: c0 without an alarm.
    maps: float (n, h, w), the mean surprise over the windows that cover a pixel.
    """

    named: Tensor
    confidence: Tensor
    alarm: Tensor
    score: Tensor
    recovered: Tensor
    maps: Tensor


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A detector of stickers around any classifier.

    window: side of the covering square; as large as the sticker plus stride - 1, so that one covers all of it.
    stride: pixels from one window to the next. fill: what a covered pixel becomes, a key of FILLS.
    threshold: of the score; None before calibration.
    """

    window: int = 9
    stride: int = 3
    fill: str = "inpaint"
    threshold: float | None = None

    def looks(self, model: Model, x: Tensor) -> Looks:
        """What `model` says of images x (n, c, h, w) in [0, 1], whole and covered."""
        fill, masks = lookup(FILLS, self.fill, "fill"), window_masks(x, self.window, self.stride)
        count = math.prod(windows(side, self.window, self.stride) for side in x.shape[2:])
        with frozen(model), torch.inference_mode():
            whole = torch.cat([model(part).softmax(1) for part in x.split(portion(x, TOGETHER))])
            covered = whole.new_empty(len(x), count, whole.shape[1])
            changes = whole.new_empty(len(x), count)
            for images, chosen, scores, shown in masked_scores(model, x, fill, masks, count):
                covered[images, chosen] = scores.softmax(2)
                own = x[images, None].movedim(2, -1)
                changes[images, chosen] = (shown - own).square().mean(-1).sum((2, 3))
        return Looks(whole=whole.clone(), covered=covered.clone(), changes=changes.clone())

    def calibrated(self, model: Model, x: Tensor, *, false_positives: float = 0.05) -> Detector:
        """The same detector with a threshold that this share of the clean images x is beyond.

        Raises:
            InputError: a share outside (0, 1), or too few images to tell it.
        """
        if not 0 < false_positives < 1 or false_positives * len(x) < 1:
            raise InputError(f"{len(x)} clean images cannot show a false-positive rate of {false_positives:g}")
        return replace(self, threshold=float(self.looks(model, x).scores[:, -1].quantile(1 - false_positives)))

    def save(self, path: Path, **facts: Any) -> None:
        """Save a calibrated detector, and whatever JSON facts belong to it, without pickle."""
        numbers = {"window": self.window, "stride": self.stride, "fill": self.fill}
        threshold = torch.tensor(self.beyond, dtype=torch.float64)
        save_tensors(path, {"threshold": threshold}, kind="detector", **numbers, **facts)

    @staticmethod
    def load(path: Path) -> tuple[Detector, dict[str, Any]]:
        """What `save` wrote: (the detector, the facts).

        Raises:
            InputError: no such file, another kind of file, or a detector by scores that are no longer used.
        """
        tensors, facts = load_tensors(path, kind="detector")
        if "threshold" not in tensors:
            raise InputError(f"{path} was calibrated for another score than today's; calibrate it again")
        numbers = {key: facts.pop(key) for key in ("window", "stride", "fill")}
        return Detector(threshold=float(tensors["threshold"]), **numbers), facts

    @property
    def beyond(self) -> float:
        """The threshold.

        Raises:
            InputError: the detector is not calibrated.
        """
        if self.threshold is None:
            raise InputError("the detector is not calibrated; show it clean images first")
        return self.threshold

    def __call__(self, model: Model, x: Tensor) -> Verdict:
        """Class, confidence, alarm and recovered class for images x (n, c, h, w) in [0, 1]."""
        self.beyond  # noqa: B018  an error before the work where it is not calibrated
        return self.judged(self.looks(model, x), x.shape[2:])

    def judged(self, looks: Looks, size: torch.Size) -> Verdict:
        """The same from what the model said of images of `size` (h, w)."""
        score = looks.scores[:, -1]
        alarm = score > self.beyond
        rows, columns = (windows(side, self.window, self.stride) for side in size)
        return Verdict(
            named=looks.named,
            confidence=looks.whole.amax(1),
            alarm=alarm,
            score=score,
            recovered=torch.where(alarm, looks.recovered(), looks.named),
            maps=averaged(looks.surprises.view(-1, 1, rows, columns), size, self.window, self.stride),
        )
