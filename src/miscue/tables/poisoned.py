"""Cells of the tables of poisons: craft once, train a fresh victim, measure it on clean test images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from miscue.data import Data, Splits, mix
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evaluation import MEASURES, Arena, Contest, arenas, whole_cell
from miscue.labels import label_map
from miscue.perturbation import Perturbation
from miscue.poisons import POISONS, PRESETS, Attacker
from miscue.readers import read
from miscue.run import craft
from miscue.tables.rows import Drawn, Workshop
from miscue.train import Recipe
from miscue.victims import Victim, victim


@lru_cache(maxsize=2)
def known(name: str) -> Splits:
    """A data set, read once in a process."""
    splits = read(name)
    if splits.test is None:
        raise InputError(f"{name} has no test set to measure on")
    return splits


def made_by(row: dict[str, Any]) -> tuple[dict[str, Any], str, Recipe, dict[str, Any]]:
    """A poison's options, surrogate and recipe, the preset's where a row has none, and what all of it comes to."""
    poison, preset = POISONS[row["poison"]], PRESETS[row["poison"]][row.get("preset") or "paper"]
    options, surrogate = preset.options | dict(row.get("options") or {}), row.get("surrogate") or preset.surrogate
    recipe = preset.recipe if row.get("epochs") is None else replace(preset.recipe, epochs=row["epochs"])
    usual = {name: option.default for name, option in signature(poison).parameters.items()}
    unusual = {name: value for name, value in options.items() if value != usual.get(name)}
    asked = {"data": row["data"], "poison": row["poison"], "options": unusual, "surrogate": surrogate}
    asked["recipe"] = recipe.unusual
    return options, surrogate, recipe, asked


def crafted(row: dict[str, Any], workshop: Workshop) -> Perturbation:
    """The perturbation of a row: "data", "poison", "preset", and "options", "surrogate" and "epochs" where given."""
    options, surrogate, recipe, asked = made_by(row)
    poison, train = POISONS[row["poison"]], known(row["data"]).train
    if isinstance(options.get("label_map"), str):
        options["label_map"] = label_map(options["label_map"], len(train.classes))
    attacker = Attacker(surrogate=surrogate, recipe=recipe, dice=Dice(0), device=device())

    def make(place: Path) -> None:
        for _ in craft(poison, train, attacker, options, place):
            pass

    return Perturbation.load(workshop.made("poison", asked, make) / "perturbation.safetensors").to(device())


def device() -> str:
    """CUDA where it is present."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def evaluated(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """All measures of a fresh victim, its learning curve and what it takes test images for.

    Rows of several tables that ask for the same victim share it.

    row: "data" and "victim"; "poison" and what `crafted` takes for a poisoned training set, None for the clean one;
    "share" of poisoned images (1), "victim_epochs" (the victim's own number); "rule", the label map whose hits are
    counted, where it is not the poison's own.
    """
    victim(row["victim"])  # an error before the craft, not after it
    share = float(row.get("share", 1.0))
    asked = {name: row.get(name) for name in ("data", "victim", "victim_epochs")} | {"share": share, "seed": seed}
    asked["poison"] = made_by(row)[-1] if row.get("poison") else None

    def make(place: Path) -> None:
        splits = known(row["data"])
        assert splits.test is not None
        perturbation = crafted(row, workshop) if row.get("poison") else None
        poisoned = splits.train if perturbation is None else perturbation(splits.train)
        if share < 1:
            poisoned, _ = mix(splits.train, poisoned, share, Dice(seed).named("share"))
        clean, other = arenas(splits.train, poisoned, splits.test, perturbation)
        found = contested(row, clean if perturbation is None else other, seed)
        (place / "measured.json").write_text(json.dumps(found), encoding="utf-8")

    found = json.loads((workshop.made("victim", asked, make) / "measured.json").read_text(encoding="utf-8"))
    rule = row.get("rule") or (row.get("options") or {}).get("label_map")
    if rule is None and row.get("poison"):
        rule = PRESETS[row["poison"]][row.get("preset") or "paper"].options.get("label_map")
    return found if rule is None else by_rule(found, rule)


def contested(row: dict[str, Any], arena: Arena, seed: int) -> Drawn:
    """A victim in an arena."""
    contest = Contest(
        arena=arena,
        name=row["victim"],
        victim=victim(row["victim"], row.get("victim_epochs")),
        seed=seed,
        label_map=None,
        device=device() if isinstance(victim(row["victim"]), Victim) else "cpu",
    )
    cell = whole_cell([contest], 0)
    found = {name: float(cell[name]) for name in MEASURES if cell.get(name) is not None}
    curve = [
        {key: round(point[key], 3) for key in ("epoch", "train_accuracy", "test_accuracy")} for point in cell["curve"]
    ]
    confusion = {"counts": cell["confusion"], "counts_batch_statistics": cell["confusion_batch_statistics"]}
    confusion |= {"classes": list(arena.test.classes), "targets": None}
    return found | {"test_error": 100 - found["test_accuracy"]} | {"curve": curve, "confusion": confusion}


def by_rule(found: Drawn, rule: str | Sequence[int]) -> Drawn:
    """The same with the hits of a label map, which the confusion matrices hold."""
    matrices = found["confusion"]
    classes = len(matrices["classes"])
    targets = list(label_map(rule, classes) if isinstance(rule, str) else rule)
    rates = {}
    for mode in ("", "_batch_statistics"):
        if counts := matrices.get(f"counts{mode}"):  # cells of earlier versions have those of eval mode only
            hits = sum(line[target] for line, target in zip(counts, targets, strict=True))
            rates[f"hit_rate{mode}"] = 100 * hits / sum(map(sum, counts))
    return found | rates | {"confusion": matrices | {"targets": targets}}


def relabelled(row: dict[str, Any], seed: int, workshop: Workshop) -> Drawn:
    """The control of partial poisoning: instead of poison a share of labels drawn from all classes, the right one too.

    Labels that are always wrong would say nothing of the class at a share of 1 - 1 / classes already.
    """
    splits = known(row["data"])
    assert splits.test is not None
    train, dice = splits.train, Dice(seed).named("relabelled")
    chosen = torch.rand(len(train), generator=dice.named("which").generator()) < row["share"]
    drawn = torch.randint(len(train.classes), train.labels.shape, generator=dice.named("labels").generator())
    data: Data = replace(train, labels=torch.where(chosen, drawn, train.labels))
    clean, _ = arenas(data, data, splits.test, None)
    return contested(row, clean, seed)
