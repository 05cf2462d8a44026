"""What every training-time attack is given and yields: the threat model as a value, crafting as steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec

import torch
from torch import Tensor

from miscue.dice import Dice
from miscue.perturbation import Perturbation
from miscue.team import ALONE, Team
from miscue.train import Recipe

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """What a training-time attacker has: a surrogate (a key of NETWORKS), how it is trained, dice, device.

    team: the processes that share the work of this one run, if there are several.
    """

    surrogate: str = "cnn"
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.01, epochs=1, batch_size=64))
    dice: Dice = field(default_factory=Dice)
    device: str = "cpu"
    team: Team = ALONE


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named setting of a method: the surrogate, its recipe, and the options that depart from the defaults.

    A label map among the options is a rule such as "y+1", as on the command line: it fits any number of classes.
    """

    summary: str
    surrogate: str = Attacker.surrogate
    recipe: Recipe = field(default_factory=lambda: Attacker().recipe)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A place from which crafting goes on exactly as if it had never stopped.

    perturbation: the best so far by held-out training data; measures: numbers of the trial just done;
    state: all that resuming needs, as tensors.
    """

    perturbation: Perturbation
    measures: dict[str, float]
    state: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of crafting: `done` of at most `total`, and a checkpoint where one fell due."""

    done: int
    total: int
    checkpoint: Checkpoint | None = None


class Poison(Generic[P]):
    """A crafting iterator with two ways to use it: call it for the perturbation, or walk through `steps`."""

    def __init__(self, steps: Callable[P, Iterator[Progress]]):
        self.steps = steps
        functools.update_wrapper(self, steps)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Perturbation:
        """Craft to the end."""
        return finish(self.steps(*args, **kwargs))


def finish(steps: Iterator[Progress]) -> Perturbation:
    """Walk through all steps and return the last checkpoint's perturbation."""
    last: Checkpoint | None = None
    for progress in steps:
        last = progress.checkpoint or last
    assert last is not None, "crafting ended without a checkpoint"
    return last.perturbation


def at_once(perturbation: Perturbation, measures: dict[str, float] | None = None) -> Progress:
    """The one step of a method that has nothing to search."""
    return Progress(
        done=1, total=1, checkpoint=Checkpoint(perturbation=perturbation, measures=measures or {}, state={})
    )


def packed(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Several state dicts as one: {"part": {"key": t}} -> {"part/key": t}, each tensor a copy."""
    return {f"{part}/{key}": value.detach().clone() for part, state in parts.items() for key, value in state.items()}


def unpacked(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The state dict that `packed` stored under `part`."""
    return {key.split("/", 1)[1]: value for key, value in state.items() if key.split("/", 1)[0] == part}


def optimizer_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """What an optimiser's state dict has learned: tensors by "index.name", and the steps that some count by group."""
    tensors = {f"{i}.{name}": value for i, slots in state["state"].items() for name, value in slots.items()}
    counted = {i: group["step"] for i, group in enumerate(state["param_groups"]) if "step" in group}
    return tensors | {f"group {i}.step": torch.tensor(step) for i, step in counted.items()}


def optimizer_state(template: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of `optimizer_tensors`; settings come from `template`, a fresh optimiser's state dict."""
    slots: dict[int, dict[str, Tensor]] = {}
    groups = [dict(group) for group in template["param_groups"]]
    for key, value in tensors.items():
        index, name = key.split(".")
        if index.startswith("group "):
            groups[int(index.removeprefix("group "))][name] = int(value)
        else:
            slots.setdefault(int(index), {})[name] = value
    return {"state": slots, "param_groups": groups}
