"""Stickers are found by covering: a clean image hardly cares, an attacked one goes back to its class.

    S1 = max over windows of p(c0) - p_w(c0)              how far the named class falls
    S2 = share of windows whose class is not c0           how many disagree
    S3 = max over windows that disagree of their confidence  how sure one of them is (Minority Reports, McCoyd 2020)

with c0 the class named for the whole image, p its probability, and p_w that with window w covered. Which of them tells
depends on the sticker: confident patches fall far, timid ones leave many windows that disagree. `Detector` takes for
each score the share of clean images that lie below it, and alarms where the largest of the three is beyond what all but
a stated share of clean images reach. The class that the most windows agree on besides c0 is what it recovers, and the
window that changes most shows where the sticker is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miscue.errors import InputError, lookup
from miscue.explainers.occlusion import FILLS, TOGETHER, averaged, covered_scores, windows
from miscue.models.modes import Model, frozen
from miscue.models.store import load_tensors, save_tensors

SCORES = ("s1", "s2", "s3")


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What a model says of images, whole and with each window covered.

    whole: probabilities (n, classes). covered: probabilities (n, windows, classes).
    named: int64 (n,), c0. scores: float (n, 3), S1, S2 and S3.
    """

    whole: Tensor
    covered: Tensor

    @property
    def named(self) -> Tensor:
        """The class named for the whole image."""
        return self.whole.argmax(1)

    @property
    def falls(self) -> Tensor:
        """p(c0) - p_w(c0), float (n, windows)."""
        own = self.covered.gather(2, self.named[:, None, None].expand(-1, self.covered.shape[1], 1))[..., 0]
        return self.whole.amax(1, keepdim=True) - own

    @property
    def differs(self) -> Tensor:
        """Whether another class than c0 is named with a window covered: bool (n, windows)."""
        return self.covered.argmax(2) != self.named[:, None]

    @property
    def scores(self) -> Tensor:
        """S1, S2, S3."""
        sure = self.covered.amax(2) * self.differs
        return torch.stack([self.falls.amax(1), self.differs.double().mean(1).to(sure), sure.amax(1)], dim=1)

    def recovered(self) -> Tensor:
        """The class whose probability, summed over the windows that disagree with c0, is largest: int64 (n,)."""
        votes = (self.covered * self.differs[:, :, None]).sum(1)
        votes.scatter_(1, self.named[:, None], -1)
        return torch.where(self.differs.any(1), votes.argmax(1), self.named)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a guarded model says of images.

    named: int64 (n,); confidence: float (n,); alarm: bool (n,); score: float (n,), from 0 to 1 on clean images.
    recovered: int64 (n,), the class to go on with: c0 without an alarm.
    maps: float (n, h, w), the mean fall of p(c0) over the windows that cover a pixel.
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
    clean: float (m, 3), the scores of clean images in order, each column by itself; None before calibration.
    threshold: of the combined score.
    """

    window: int = 9
    stride: int = 3
    fill: str = "mean"
    clean: Tensor | None = None
    threshold: float = 1.0

    def looks(self, model: Model, x: Tensor) -> Looks:
        """What `model` says of images x (n, c, h, w) in [0, 1], whole and covered."""
        with frozen(model), torch.inference_mode():
            whole = torch.cat([model(part).softmax(1) for part in x.split(TOGETHER)])
            places = [windows(side, self.window, self.stride) for side in x.shape[2:]]
            covered = whole.new_empty(len(x), places[0] * places[1], whole.shape[1])
            fill = lookup(FILLS, self.fill, "fill")(x)
            for images, chosen, scores in covered_scores(model, x, fill, window=self.window, stride=self.stride):
                covered[images, chosen] = scores.softmax(2)
        return Looks(whole=whole.clone(), covered=covered.clone())

    def calibrated(self, model: Model, x: Tensor, *, false_positives: float = 0.05) -> Detector:
        """The same detector with a threshold that this share of the clean images x is beyond.

        Raises:
            InputError: a share outside (0, 1), or too few images to tell it.
        """
        if not 0 < false_positives < 1 or false_positives * len(x) < 1:
            raise InputError(f"{len(x)} clean images cannot show a false-positive rate of {false_positives:g}")
        scores = self.looks(model, x).scores
        known = replace(self, clean=scores.sort(dim=0).values)
        return replace(known, threshold=float(known.combined(scores).quantile(1 - false_positives)))

    def combined(self, scores: Tensor) -> Tensor:
        """The largest of the shares of clean images below each score: float (n,) for scores (n, 3).

        Raises:
            InputError: the detector is not calibrated.
        """
        if self.clean is None:
            raise InputError("the detector is not calibrated; show it clean images first")
        clean = self.clean.to(scores.device)
        shares = [
            (torch.searchsorted(column, score, right=False) + torch.searchsorted(column, score, right=True)) / 2
            for column, score in zip(clean.t().contiguous(), scores.t().contiguous(), strict=True)
        ]
        # beyond all clean images the excess itself goes on counting
        excess = (scores - clean[-1]).clamp(min=0).amax(1)
        return torch.stack(shares).amax(0) / len(clean) + excess

    def save(self, path: Path, **facts: Any) -> None:
        """Save a calibrated detector, and whatever JSON facts belong to it, without pickle."""
        self.combined(torch.zeros(1, len(SCORES)))  # an error where it is not calibrated
        assert self.clean is not None
        numbers = {"window": self.window, "stride": self.stride, "fill": self.fill, "threshold": self.threshold}
        save_tensors(path, {"clean": self.clean}, kind="detector", **numbers, **facts)

    @staticmethod
    def load(path: Path) -> tuple[Detector, dict[str, Any]]:
        """What `save` wrote: (the detector, the facts)."""
        tensors, facts = load_tensors(path, kind="detector")
        numbers = {key: facts.pop(key) for key in ("window", "stride", "fill", "threshold")}
        return Detector(clean=tensors["clean"], **numbers), facts

    def __call__(self, model: Model, x: Tensor) -> Verdict:
        """Class, confidence, alarm and recovered class for images x (n, c, h, w) in [0, 1]."""
        looks = self.looks(model, x)
        score = self.combined(looks.scores)
        alarm = score > self.threshold
        rows, columns = (windows(side, self.window, self.stride) for side in x.shape[2:])
        return Verdict(
            named=looks.named,
            confidence=looks.whole.amax(1),
            alarm=alarm,
            score=score,
            recovered=torch.where(alarm, looks.recovered(), looks.named),
            maps=averaged(looks.falls.view(-1, 1, rows, columns), x.shape[2:], self.window, self.stride),
        )
