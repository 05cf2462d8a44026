"""The table of audits: which signs of poison a set shows, clean and under each poison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from miscue.data import mix
from miscue.detectors.poison_probe import probe
from miscue.dice import Dice
from miscue.tables.deepconfuse import BASE
from miscue.tables.poisoned import crafted, device, known
from miscue.tables.rows import Measures, Row, Workshop
from miscue.tables.single_pixel import QUICK

SETS = ("mnist", "fashion-mnist", "cifar10-jpeg", "gtsrb")


def audited(row: dict[str, Any], seed: int, workshop: Workshop) -> Measures:
    """The signs of a set, and what is read right of the images held out."""
    splits = known(row["data"])
    assert splits.test is not None
    data = crafted(row, workshop)(splits.train) if row["poison"] else splits.train
    if row.get("share", 1.0) < 1:
        data, _ = mix(splits.train, data, row["share"], Dice(seed).named("share"))
    some, trusted = data.spread(row["images"]), splits.test.spread(row["images"])
    *_, last = probe(some, Dice(seed).named("audit"), trusted=trusted, device=device())
    assert last.found is not None
    return last.found.signs | {
        "held_out_accuracy": last.found.held_out,
        "linear_accuracy": last.found.linear,
    }


def audits(scale: str) -> Iterator[Row]:
    """Each set clean, with pixels, with noise, and poisoned in part."""
    small, base = scale == "smoke", BASE[scale]
    noise = {"poison": "deepconfuse", "preset": base["preset"], "options": base["options"]}
    pixel: dict[str, Any] = {"poison": "single-pixel"}
    pixel |= {"options": QUICK, "surrogate": "cnn-small"} if small else {}
    shortcut = {"poison": "one-pixel-shortcut"}
    for data in (base["data"],) if small else SETS:
        poisons: list[dict[str, Any]] = [{"poison": None}, {"poison": "border-pixel"}, shortcut]
        if data == base["data"]:
            parts = [poison | {"share": share} for poison in (noise, shortcut) for share in (0.5, 0.2)]
            poisons += [pixel, noise, *([] if small else parts)]
        for poison in poisons:
            settings = {"data": data, "images": 1000 if small else 10_000} | poison
            yield Row(settings=settings, measure=audited, seeds=3)
