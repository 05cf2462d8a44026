"""The tables of the single-pixel poisons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from miscue.tables.poisoned import evaluated
from miscue.tables.rows import Row

QUICK = {"generations": 1, "candidates": 4, "first_candidates": 2, "finalists": 2, "images": 120, "held_out": 60}
SETS: dict[str, tuple[str, ...]] = {
    "smoke": ("digits",),
    "laptop": ("mnist", "fashion-mnist"),
    "paper": ("mnist", "fashion-mnist"),
}
ERRORS: dict[tuple[str, str | None], float] = {
    ("mnist", None): 0.8,
    ("mnist", "random-pixel"): 56.8,
    ("mnist", "border-pixel"): 43.0,
    ("mnist", "single-pixel"): 88.6,
    ("fashion-mnist", None): 8.3,
    ("fashion-mnist", "random-pixel"): 52.0,
    ("fashion-mnist", "border-pixel"): 49.6,
    ("fashion-mnist", "single-pixel"): 74.9,
}
# The seed does not say how many trees; scikit-learn's own number was 10 until 2019.
LEARNERS: dict[str, dict[str | None, float]] = {
    "linear-svm": {None: 8.34, "random-pixel": 59.77, "border-pixel": 75.16, "single-pixel": 90.3},
    "random-forest": {None: 5.50, "random-pixel": 12.55, "border-pixel": 15.79, "single-pixel": 14.64},
    "random-forest-10": {None: 5.50, "random-pixel": 12.55, "border-pixel": 15.79, "single-pixel": 14.64},
    "rbf-svm": {None: 1.65, "random-pixel": 2.30, "border-pixel": 15.79, "single-pixel": 2.06},
}
MISPRINT = ("rbf-svm", "border-pixel")
METHODS = (None, "random-pixel", "border-pixel", "one-pixel-shortcut", "single-pixel")


def of(scale: str, data: str, method: str | None, victim: str) -> dict[str, Any]:
    """The settings of a row."""
    row: dict[str, Any] = {"data": data, "poison": method, "victim": victim}
    if method == "single-pixel" and scale == "smoke":
        row |= {"options": QUICK, "surrogate": "cnn-small"}
    return row


def network(scale: str) -> str:
    """The victim of all tables."""
    return "cnn-small-padded+adam" if scale == "smoke" else "cnn-padded+adam"


def networks(scale: str) -> Iterator[Row]:
    """Table 1."""
    for data in SETS[scale]:
        for method in METHODS:
            published = {"test_error": ERRORS[data, method]} if (data, method) in ERRORS else {}
            yield Row(settings=of(scale, data, method, network(scale)), measure=evaluated, published=published)


def learners(scale: str) -> Iterator[Row]:
    """Table 2: learners that are no networks, on MNIST."""
    for learner, errors in LEARNERS.items():
        for method in METHODS:
            published = {"test_error": errors[method]} if method in errors else {}
            settings = of(scale, SETS[scale][0], method, learner)
            note = (
                "the published figure is its neighbour's, too: perhaps a misprint"
                if (learner, method) == MISPRINT
                else ""
            )
            yield Row(settings=settings, measure=evaluated, published=published, seeds=1, note=note)


def heads(scale: str) -> Iterator[Row]:
    """The open question: heads of random Fourier features and of Nystrom's."""
    for head in ("cnn-fourier+adam", "cnn-nystrom+adam"):
        for method in (None, "single-pixel"):
            yield Row(settings=of(scale, SETS[scale][0], method, head), measure=evaluated)


def optimizers(scale: str) -> Iterator[Row]:
    """The figure of optimisers, on colour images too; on a laptop by networks of half the width."""
    body = "cnn-padded" if scale == "paper" else "cnn-small-padded"
    for data in (*SETS[scale], *(("cifar10-jpeg",) if scale != "smoke" else ())):
        for optimizer in ("sgd", "momentum", "adam", "rmsprop", "adabound"):
            for method in (None, "single-pixel"):
                settings = of(scale, data, method, f"{body}+{optimizer}")
                yield Row(settings=settings, measure=evaluated, seeds=5 if scale == "paper" else 3)
