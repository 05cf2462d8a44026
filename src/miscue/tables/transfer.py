"""DeepConfuse's figures of transfer: the same poison, made against one network, under other learners.

The networks of torchvision are trained from scratch; they need the extra `zoo`, and a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from miscue.tables.deepconfuse import NOTES, bases, changed, either, untouched
from miscue.tables.poisoned import evaluated
from miscue.tables.rows import Row

# data -> victim -> published test accuracy after training on clean and on poisoned data, where there is one
VICTIMS: dict[str, dict[str, tuple[float, float] | None]] = {
    "mnist": {
        "cnn-released": None,
        "cnn": (99.32, 0.25),
        "cnn-large": (99.17, 0.20),
        "cnn-small": (99.15, 0.29),
        "random-forest": (97.23, 1.80),
        "rbf-svm-0.01": (98.24, 0.52),
        "linear-svm": None,
    },
    "cifar10-jpeg": {
        "conv5": None,
        "alexnet": None,
        "torchvision:vgg16_bn": (92.6, 22.8),
        "torchvision:vgg19_bn": (92.4, 20.5),
        "torchvision:resnet18": (93.0, 16.3),
        "torchvision:resnet50": (93.6, 22.6),
        "torchvision:densenet121": (95.0, 27.4),
    },
    "imagenette2class": {
        "conv5": None,
        "torchvision:vgg16_bn": (96.0, 52.0),
        "torchvision:vgg19_bn": (97.0, 49.0),
        "torchvision:resnet18": (94.0, 54.0),
        "torchvision:resnet50": (92.0, 65.0),
        "torchvision:densenet121": (98.0, 65.0),
    },
    "digits": dict.fromkeys(("cnn-small", "random-forest-10", "rbf-svm-0.01", "linear-svm")),
}
EPOCHS = {"cifar10-jpeg": 15, "imagenette2class": 60}  # of torchvision's networks
ALIKE = ("rbf-svm-0.01", "linear-svm")  # no choice of theirs is random


def transfer(scale: str) -> Iterator[Row]:
    """Each victim on clean and on poisoned data."""
    for base in bases(scale):
        for name, known in VICTIMS[base["data"]].items():
            own = base | {"victim": name}
            if name.startswith("torchvision:"):
                own["victim_epochs"] = EPOCHS[base["data"]]
            for settings, place in ((untouched(own), 0), (changed(own), 1)):
                yield Row(
                    settings=settings,
                    measure=evaluated,
                    published=either("test_accuracy", known[place]) if known else {},
                    seeds=1 if name in ALIKE else 5,
                    note=NOTES.get(base["data"], ""),
                )
