"""The tables of "Learning to Confuse" (DeepConfuse)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from miscue.tables.poisoned import evaluated, relabelled
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
IMAGENET = {"data": "imagenette2class", "preset": "imagenet", "options": {}}
# the colour sets at the scale "paper", crafted in minutes of a GPU where the authors take days
COLOUR: tuple[dict[str, Any], ...] = (
    {"data": "cifar10-jpeg", "preset": "cifar10", "options": {}, "victim": "conv5", "victim_epochs": 30},
    IMAGENET | {"victim": "conv5", "victim_epochs": 30},
)
# what a laptop does of them: on averages of 56 x 56 pixels, and the paper's victim for fewer epochs
SHORT: tuple[dict[str, Any], ...] = (
    IMAGENET | {"victim": "conv5-coarse", "victim_epochs": 12},
    IMAGENET | {"victim": "conv5", "victim_epochs": 8},
)
NOTES = {
    "cifar10-jpeg": "CIFAR-10 after JPEG at quality 75, the paper's is lossless",
    "imagenette2class": "English springer against parachute, the paper's classes are bulbul and jellyfish",
    "conv5-coarse": "the victim sees averages of 56 x 56 pixels",
}
READ_OFF = "published figure read off a plot"

# data -> clean; poisoned; noise alone on training and on test images
TABLE_1: dict[str, tuple[float, float, float, float]] = {
    "mnist": (99.32, 0.25, 95.62, 95.15),
    "cifar10-jpeg": (77.28, 28.77, 78.57, 72.98),
    "imagenette2class": (88.5, 54.2, 88.87, 93.00),
}
TABLE_1["digits"] = TABLE_1["mnist"]
SPREADS = {"mnist": (0.05, 0.04), "cifar10-jpeg": (0.17, 2.80), "imagenette2class": (2.32, 11.19)}  # of the first two
SPREADS["digits"] = SPREADS["mnist"]
BUDGETS = {0.1: 98.5, 0.15: 98.0, 0.2: 69.0, 0.25: 5.0, 0.3: 0.25}
SHARES = {0.8: 87.0, 0.9: 68.0, 1.0: 0.25}
RELABELLED = {0.9: 88.0, 1.0: 10.0}


def bases(scale: str) -> list[dict[str, Any]]:
    """What is crafted on each data set of a scale."""
    return [BASE[scale], *(COLOUR if scale == "paper" else ())]


def untouched(base: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The row of clean training data."""
    epochs = {"victim_epochs": base["victim_epochs"]} if "victim_epochs" in base else {}
    return {"data": base["data"], "poison": None, "victim": base["victim"]} | epochs | more


def clean(scale: str) -> dict[str, Any]:
    """The row of clean training data of the first data set."""
    return untouched(BASE[scale])


def poisoned(scale: str, **options: Any) -> dict[str, Any]:
    """A row of poisoned training data, with other options than usual."""
    return changed(BASE[scale], **options)


def changed(base: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The same for any data set."""
    return base | {"poison": "deepconfuse", "options": base["options"] | options}


def either(measure: str, figure: float) -> dict[str, float]:
    """A published figure, beside ours in eval mode and with the test batch's own statistics, as the authors score."""
    return {measure: figure, f"{measure}_batch_statistics": figure}


def accuracies(scale: str) -> Iterator[Row]:
    """Table 1 and the table of noise alone."""
    short = SHORT if scale == "laptop" else ()
    for base, seeds in [*((base, 5) for base in bases(scale)), *((base, 3) for base in short)]:
        before, after, noise_train, noise_test = TABLE_1[base["data"]]
        notes = [NOTES[name] for name in (base["data"], base["victim"]) if name in NOTES]
        noise = {"noise_accuracy_train": noise_train} | either("noise_accuracy_test", noise_test)
        for settings, published, spread in (
            (untouched(base), either("test_accuracy", before), SPREADS[base["data"]][0]),
            (changed(base), either("test_accuracy", after) | noise, SPREADS[base["data"]][1]),
        ):
            note = "; ".join([*notes, f"published accuracy ± {spread:g}"])
            yield Row(settings=settings, measure=evaluated, published=published, seeds=seeds, note=note)


def budgets(scale: str) -> Iterator[Row]:
    """The sweep over eps, from none on."""
    yield Row(
        settings=clean(scale) | {"eps": 0.0}, measure=evaluated, published=either("test_accuracy", 99.3), note=READ_OFF
    )
    for eps in (0.1, 0.3) if scale == "smoke" else (0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
        published = either("test_accuracy", BUDGETS[eps]) if eps in BUDGETS else {}
        note = READ_OFF if published else ""
        yield Row(settings=poisoned(scale, eps=eps), measure=evaluated, published=published, note=note)


def shares(scale: str) -> Iterator[Row]:
    """Partial poisoning, and as many random labels beside it."""
    for share in (0.5, 1.0) if scale == "smoke" else (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0):
        for settings, measure, known in (
            (poisoned(scale) | {"share": share}, evaluated, SHARES),
            (clean(scale) | {"share": share, "labels": "random"}, relabelled, RELABELLED),
        ):
            published = either("test_accuracy", known[share]) if share in known else {}
            note = READ_OFF if published else ""
            if published and measure is relabelled:
                note += "; labels drawn from all classes: were all of them wrong, 90 % would leave nothing to learn"
            yield Row(settings=settings, measure=measure, published=published, note=note)


def rules(scale: str) -> Iterator[Row]:
    """The label map y + 1, beside clean training data and poison without a map."""
    rule = {"rule": "y+1"}
    yield Row(settings=clean(scale) | rule, measure=evaluated, published=either("test_accuracy", 99.32))
    published = either("hit_rate", 0.0) | either("test_accuracy", 0.25)
    yield Row(settings=poisoned(scale) | rule, measure=evaluated, published=published)
    preset = {} if scale == "smoke" else {"preset": "label-map"}
    settings = poisoned(scale, label_map="y+1") | preset
    published = either("hit_rate", 79.7) | either("test_accuracy", 1.48)
    yield Row(settings=settings, measure=evaluated, published=published)
