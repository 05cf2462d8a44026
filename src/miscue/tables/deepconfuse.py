"""The tables of "Learning to Confuse" (DeepConfuse)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from miscue.tables.poisoned import evaluated, flipped
from miscue.tables.rows import Row

# scale -> data, preset, options, victim
BASE: dict[str, dict[str, Any]] = {
    "smoke": {
        "data": "digits",
        "preset": "digits",
        "options": {"trials": 2, "steps": 20, "warm_up": 1},
        "victim": "cnn",
    },
    "laptop": {"data": "mnist", "preset": "fast", "options": {"eps": 0.3}, "victim": "cnn-released"},
    "paper": {"data": "mnist", "preset": "paper", "options": {"eps": 0.3}, "victim": "cnn-released"},
}


def clean(scale: str) -> dict[str, Any]:
    """The row of clean training data."""
    return {"data": BASE[scale]["data"], "poison": None, "victim": BASE[scale]["victim"]}


def poisoned(scale: str, **options: Any) -> dict[str, Any]:
    """A row of poisoned training data, with other options than usual."""
    base = BASE[scale]
    return base | {"poison": "deepconfuse", "options": base["options"] | options}


def accuracies(scale: str) -> Iterator[Row]:
    """Table 1 and the table of noise alone, MNIST."""
    yield Row(settings=clean(scale), measure=evaluated, published={"test_accuracy": 99.32})
    published = {"test_accuracy": 0.25, "noise_accuracy_train": 95.62, "noise_accuracy_test": 95.15}
    yield Row(settings=poisoned(scale), measure=evaluated, published=published)


def budgets(scale: str) -> Iterator[Row]:
    """The sweep over eps."""
    for eps in (0.1, 0.3) if scale == "smoke" else (0.1, 0.15, 0.2, 0.25, 0.3):
        yield Row(settings=poisoned(scale, eps=eps), measure=evaluated)


def shares(scale: str) -> Iterator[Row]:
    """Partial poisoning, and as many random wrong labels beside it."""
    for share in (0.5, 1.0) if scale == "smoke" else (0.2, 0.4, 0.6, 0.8, 0.95, 1.0):
        yield Row(settings=poisoned(scale) | {"share": share}, measure=evaluated)
        yield Row(settings=clean(scale) | {"share": share, "labels": "random"}, measure=flipped)


def rules(scale: str) -> Iterator[Row]:
    """The label map y + 1."""
    preset = {} if scale == "smoke" else {"preset": "label-map"}
    settings = poisoned(scale, label_map="y+1") | preset
    yield Row(settings=settings, measure=evaluated, published={"hit_rate": 79.7, "test_accuracy": 1.48})
