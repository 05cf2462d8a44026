"""What every test-time attack is asked and yields, and what they share: `(model, x, y) -> Adversarial`.

Input is checked once, the model is in eval mode and frozen meanwhile, images go through in parts that fit in memory,
and success is scored here on what was found, not claimed by the attack.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from miscue.data import portion
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.models.modes import Model, differentiable, frozen

ROOM = 2**30  # bytes that an attack's forward pass may keep
MOST = 512  # images at a time; a processor gains nothing from more


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Attacked images and how they came about.

    x: float (n, c, h, w) in [0, 1].
    success: bool (n,), whether the goal is reached, scored anew on `x`, where it was not without the attack.
    already: bool (n,), whether it was reached before: an image that was misclassified is no success.
    flat: bool (n,), whether what the attack raises never changed and nothing came of it. Where that is so for a
        network's gradients, they are masked.
    queries: int64 (n,), images that the model was shown on behalf of each.
    steps: of the attack, the most that any image took.
    loss: float (steps,), the mean over the images of what the attack raised, by step.
    shared: float (c, h', w'), the perturbation or the patch where it is one for all images.
    """

    x: Tensor
    success: Tensor
    already: Tensor
    flat: Tensor
    queries: Tensor
    steps: int
    loss: Tensor
    shared: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an attack says of a part of the images.

    x: float (n, c, h, w); queries: int64 (n,); loss: float (steps, n), what it raised, before each step.
    clean: float (n, classes), the scores of the images as they were, where the attack came across them.
    """

    x: Tensor
    queries: Tensor
    loss: Tensor
    clean: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What an attack wants: that `y` (n,) is not the class that is named, or, where given, that `target` (n,) is."""

    y: Tensor
    target: Tensor | None = None

    def reached(self, scores: Tensor) -> Tensor:
        """bool (n,) for scores (n, classes)."""
        named = scores.argmax(1)
        return named != self.y if self.target is None else named == self.target

    def nearness(self, scores: Tensor) -> Tensor:
        """Cross-entropy of y, or less that of the target: float (n,), what an attack by gradients raises."""
        if self.target is None:
            return F.cross_entropy(scores, self.y, reduction="none")
        return -F.cross_entropy(scores, self.target, reduction="none")

    def of(self, index: Tensor | slice) -> Goal:
        """The goal for the images at `index`."""
        return replace(self, y=self.y[index], target=None if self.target is None else self.target[index])


Attack = Callable[[Model, Tensor, Goal, Dice], Found]
"""(frozen model, x, goal, dice) -> Found, for a part of the images."""


def attempted(
    attack: Attack,
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None,
    dice: Dice,
    chunk: int = 0,
    copies: int = 1,
    gradient: bool = False,
) -> Adversarial:
    """Run `attack` on images x (n, c, h, w) of classes y (n,), part by part, and score what it found.

    Args:
        attack: what to do with a part.
        model: any callable from images in [0, 1] to scores; a module is as before afterwards.
        x: float images in [0, 1].
        y: int64 classes.
        target: int64 classes that the images are to be taken for, or None for any but y.
        dice: each part has a stream of its own.
        chunk: images in a part; 0 for as many as a bound on memory allows, halved where it runs out all the same.
        copies: of each image that the model is shown in one go.
        gradient: whether the attack asks the model for one.

    Raises:
        InputError: images outside [0, 1], classes that the scores do not have, or of another number; no gradient where
            one is asked for.
    """
    parts: list[Found] = []
    outcomes: list[tuple[Tensor, Tensor, Tensor]] = []
    with frozen(model):
        kept = check(model, x, y, target, gradient=gradient)
        goal = Goal(y=y, target=target)
        size = chunk or max(1, min(MOST, ROOM // max(kept, 1)) // copies)
        for index, found in in_parts(attack, model, x, goal, dice, size):
            with torch.no_grad():
                clean = model(x[index]) if found.clean is None else found.clean
                outcomes.append((*outcome(goal.of(index), clean, model(found.x)), idle(found, x[index])))
            parts.append(found)
    success, already, flat = (torch.cat(some) for some in zip(*outcomes, strict=True))
    steps = max((len(part.loss) for part in parts), default=0)
    return Adversarial(
        x=torch.cat([part.x for part in parts]),
        success=success,
        already=already,
        flat=flat & ~success & ~already,
        queries=torch.cat([part.queries for part in parts]),
        steps=steps,
        loss=torch.cat([lasting(part.loss, steps) for part in parts], dim=1).mean(1),
    )


def outcome(goal: Goal, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """(success, already), bool (n,) each, from the scores (n, classes) of images before and after an attack.

    Raises:
        InputError: scores that are no numbers.
    """
    if not bool(before.isfinite().all() & after.isfinite().all()):
        raise InputError("the model's scores are not finite for some images, so that nothing can be said of them")
    already = goal.reached(before)
    return goal.reached(after) & ~already, already


def idle(found: Found, x: Tensor) -> Tensor:
    """bool (n,), whether what an attack raised never changed; after a single step, whether the images x did not."""
    if len(found.loss) > 1:
        return (found.loss == found.loss[0]).all(0)
    return (found.x == x).flatten(1).all(1)


def check(model: Model, x: Tensor, y: Tensor, target: Tensor | None, *, gradient: bool = False) -> int:
    """Raise an InputError where an attack cannot begin; else how many bytes a backward pass needs of one image."""
    if x.ndim != 4 or not x.is_floating_point() or not len(x):
        raise InputError(f"images must be float (n, c, h, w), at least one, got {x.dtype} {tuple(x.shape)}")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"images must lie in [0, 1], got {low:g} to {high:g}; normalise inside the model")
    scores, kept = weighed(model, x[:1])
    scores = (differentiable(scores) if gradient else scores).detach()
    classes = scores.shape[1]
    if bool((scores >= 0).all()) and abs(float(scores.sum()) - 1) < 1e-4:
        text = "the model gives probabilities; attacks by gradients are weak on those, take its scores before softmax"
        warnings.warn(text, stacklevel=4)
    for name, labels in (("y", y), ("target", target)):
        if labels is None:
            continue
        if labels.dtype != torch.int64 or labels.shape != x.shape[:1]:
            raise InputError(f"{name} must be int64 ({len(x)},), got {labels.dtype} {tuple(labels.shape)}")
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise InputError(f"{name} ranges over {int(labels.min())}..{int(labels.max())}, the scores over {classes}")
    if target is not None and bool((target == y).any()):
        raise InputError(f"the targets of {int((target == y).sum())} images are their own classes")
    return kept


def scored(model: Model, x: Tensor, *, chunk: int = 256) -> Tensor:
    """The scores (n, classes) of many images, without gradients."""
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(portion(x, chunk))])


def weighed(model: Model, x: Tensor) -> tuple[Tensor, int]:
    """The scores of one image (1, c, h, w), and how many bytes a backward pass to it needs kept."""
    kept = 0

    def weigh(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size() if tensor.shape[:1] == (1,) else 0
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        scores = model(x.detach().requires_grad_())
    return scores, kept


def in_parts(
    attack: Attack, model: Model, x: Tensor, goal: Goal, dice: Dice, size: int
) -> Iterator[tuple[slice, Found]]:
    """(which images, what was found) part by part; a part that memory has no room for is halved."""
    start = 0
    while start < len(x):
        index = slice(start, start + size)
        try:
            found = attack(model, x[index], goal.of(index), dice.named("part", start))
        except RuntimeError as error:
            if size == 1 or not out_of_memory(error):
                raise
            size = -(-size // 2)
            continue
        yield index, found
        start += size


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that memory ran out, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def lasting(loss: Tensor, steps: int) -> Tensor:
    """A loss (steps', n) prolonged to so many steps by its last value."""
    return torch.cat([loss, loss[-1:].expand(steps - len(loss), -1)])


def slope(rises: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient (n, c, h, w) at x of what is to rise, a number for each image, and that number (n,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = differentiable(rises(x))
        (found,) = torch.autograd.grad(value.sum(), x)
    return found, value.detach()


def steepest(model: Model, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """The gradient (n, c, h, w) of the goal's nearness at images x, and the model's scores of them (n, classes)."""
    said: list[Tensor] = []

    def rises(x: Tensor) -> Tensor:
        said.append(scores := model(x))
        return goal.nearness(scores)

    direction, _ = slope(rises, x)
    return direction, said[0].detach()
