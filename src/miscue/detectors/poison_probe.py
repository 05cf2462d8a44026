"""Is a training set poisoned? Four signs, the first of the images themselves, the others of what learns from them.

    marks   pixels that stand alone in more of one class's images than of the other classes', at the same place
    simple  what a linear classifier reads right of held-out images, over what a network does
    fall    the points that the network loses on held-out images by a change that leaves what they show
    gap     the points that it loses on images to be trusted, where there are some

A poison that makes data unlearnable is a cue which is easier than the object. So even a linear classifier finds it (Yu
et al. 2022, arXiv 2111.00898), it may not outlast what an object does outlast (Liu et al. 2023, arXiv 2301.13838), and
where it is missing the network does not know what to say. Held out are images of the set itself, cue and all; what a
sign may be on clean data was looked at on sets of several kinds (`USUAL`), and a set may still be another. Only `gap`
is proof, if what is trusted is of the same kind as the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from miscue.cleaners import bit_depth, jpeg, median, pixel_outliers
from miscue.cleaners.median import parted
from miscue.cleaners.pixel_outliers import alone
from miscue.data import Data, eight_bit, floats
from miscue.dice import Dice
from miscue.distortions import gaussian
from miscue.errors import InputError
from miscue.measures.accuracy import accuracy
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.train import Recipe, fitting

USUAL = {"marks": 40.0, "simple": 98.0, "fall": 30.0, "gap": 15.0}
"""What the signs do not go beyond on clean sets, in percent and in points: `miscue reproduce audits`."""
STANDS_OUT = 0.2  # by how much a pixel differs from all its neighbours, on the scale from 0 to 1
LEARNED = 50.0  # percent read right; of a network that reads less, a linear classifier's share says nothing of cues
FEWEST = 128  # images
HELD_OUT = 5  # every so many-th image is
LARGE = 64  # pixels of a side from which the network is one that halves its maps five times
LINEAR = Recipe(optimizer="adam", lr=1e-3, epochs=10, batch_size=64, schedule="cosine")
NETWORK = Recipe(optimizer="adam", lr=3e-3, epochs=6, batch_size=64, schedule="cosine", precision="auto")
STEPS = 300  # of a training, at least: of few images there are more passes


def softened(data: Data, *, strength: float = 0.7) -> Data:
    """Images blurred a little, by a Gaussian of `strength` pixels."""
    parts = [eight_bit(gaussian(floats(part), strength)) for part in parted(data.images)]
    return data.with_images(torch.cat(parts))


CHANGES: dict[str, Callable[[Data], Data]] = {
    "jpeg": jpeg,
    "bit-depth": bit_depth,
    "median": median,
    "pixel-outliers": pixel_outliers,
    "blur": softened,
}
"""What leaves of an image what it shows. Without its colours it may be another sign, so grey is none of them."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was found of a set.

    marks: float (classes, h, w), the share of a class's images in which the pixel stands alone, less that of others.
    held_out, linear: accuracy in percent of the network and of a linear classifier on images of the set held out.
    guessing: what naming the largest class each time gets right of those, and three standard deviations more.
    after: the network's accuracy after each change. trusted: its accuracy on images to be trusted, None without any.
    """

    marks: Tensor
    held_out: float
    linear: float
    guessing: float
    after: dict[str, float]
    trusted: float | None

    @property
    def signs(self) -> dict[str, float]:
        """The signs in percent or points, in the order of USUAL; no gap where nothing is trusted.

        Of a network that has learned no more than to guess there are the marks alone.
        """
        found = {"marks": 100 * max(0.0, float(self.marks.max()))}
        if self.held_out <= self.guessing:
            return found
        found |= {
            "simple": 100 * self.linear / max(self.held_out, LEARNED),
            "fall": self.held_out - min(self.after.values()),
        }
        return found if self.trusted is None else found | {"gap": self.held_out - self.trusted}


def beyond(signs: dict[str, float]) -> list[str]:
    """The signs that are beyond what clean sets show."""
    return [name for name, value in signs.items() if value > USUAL[name]]


@dataclass(frozen=True, kw_only=True)
class Look:
    """`done` of `total` looks; the last carries what was found."""

    done: int
    total: int
    found: Probed | None = None


def probe(data: Data, dice: Dice, *, trusted: Data | None = None, device: str = "cpu") -> Iterator[Look]:
    """Look for the four signs in a training set; yields as it goes.

    Args:
        data: images and labels as they were received; some ten thousand tell enough.
        dice: for the two classifiers that are trained on four fifths of them.
        trusted: clean images of the same classes, if there are any.
        device: where to train.

    Raises:
        InputError: fewer images than can be learned from, or trusted ones of another size or with other classes' names.
    """
    if trusted is not None and (trusted.shape != data.shape or trusted.classes != data.classes):
        said = (
            f"{one.shape} of {len(one.classes)} classes, {', '.join(one.classes[:3])} ..." for one in (trusted, data)
        )
        raise InputError("the trusted images are {}, the others {}".format(*said))
    if len(data) < FEWEST:
        raise InputError(f"{len(data)} images are too few to learn from; a probe takes {FEWEST} or more")
    rest = torch.arange(len(data)) % HELD_OUT != HELD_OUT - 1
    train, held = (data.take(some.nonzero()[:, 0]) for some in (rest, ~rest))
    linear, deep = (replace(one, epochs=max(one.epochs, passes(train, one))) for one in (LINEAR, NETWORK))
    total = 1 + linear.epochs + deep.epochs + len(CHANGES)
    marks = lone_pixels(data)
    yield Look(done=1, total=total)
    body = "conv5" if min(data.shape[1:]) >= LARGE else "cnn-padded"
    read, done = {}, 1
    for name, recipe in (("linear", linear), (body, deep)):
        plan = Plan(name=name, shape=data.shape, options={"classes": len(data.classes)})
        model = placed(build(plan, dice.named(name)), device)
        for epoch in fitting(model, train.near(device), recipe, dice.named(name, "training")):
            yield Look(done=done + epoch.number, total=total)
        done += recipe.epochs
        read[name] = accuracy(model, held)
    after = {}
    for name, change in CHANGES.items():
        after[name] = accuracy(model, change(held))
        done += 1
        if done < total:
            yield Look(done=done, total=total)
    found = Probed(
        marks=marks,
        held_out=read[body],
        linear=read["linear"],
        guessing=guessing(held),
        after=after,
        trusted=None if trusted is None else accuracy(model, trusted),
    )
    yield Look(done=total, total=total, found=found)


def passes(train: Data, recipe: Recipe) -> int:
    """How many make up `STEPS`."""
    return math.ceil(STEPS * recipe.batch_size / len(train))


def guessing(data: Data) -> float:
    """The most that naming the largest class each time may be expected to get right, in percent."""
    share = float(data.labels.bincount().max()) / len(data)
    return 100 * min(1.0, share + 3 * math.sqrt(share * (1 - share) / len(data)))


def lone_pixels(data: Data) -> Tensor:
    """How much more often each pixel stands alone in images of one class than of the others: float (classes, h, w)."""
    counts = torch.zeros(len(data.classes), *data.shape[1:])
    start = 0
    for part in parted(data.images):
        labels = data.labels[start : start + len(part)].cpu()
        counts.index_add_(0, labels, alone(part, STANDS_OUT).float().cpu())
        start += len(part)
    own = data.labels.cpu().bincount(minlength=len(data.classes)).float()[:, None, None]
    return counts / own.clamp(min=1) - (counts.sum(0) - counts) / (own.sum() - own).clamp(min=1)
