"""Models as files without pickle: safetensors for the numbers, a plan in plain JSON for the shape."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.files import atomic
from miscue.models.bounded import swapped
from miscue.models.clipping import clipped
from miscue.models.detector import DETECTORS
from miscue.models.generators import GENERATORS
from miscue.models.networks import NETWORKS, Shape
from miscue.models.zoo import zoo

FORMAT = "miscue 1"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a network is before it has weights: a name in one of the three tables, the image shape (c, h, w), options.

    Options are plain data: `classes` for a classifier or a detector, `eps` and perhaps `channels` for a generator;
    `bounded`, a slope, where the ReLUs are bounded, and `norm_clip` where the norms of feature maps are clipped. A
    detector takes images of any height and width; its plan has 0 for them. Names of the zoo are known too.
    """

    name: str
    shape: Shape
    options: dict[str, Any] = field(default_factory=dict)


def build(plan: Plan, dice: Dice) -> nn.Module:
    """The network of `plan` on the CPU, its weights drawn from `dice`."""
    make = zoo(plan.name) or lookup({**NETWORKS, **GENERATORS, **DETECTORS}, plan.name, "network")
    with dice.named("weights").rolled():
        return make(tuple(plan.shape), **plan.options)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], *, kind: str, **facts: Any) -> None:
    """Write tensors and JSON facts as one safetensors file, atomically."""
    metadata = {"format": FORMAT, "kind": kind, **{key: json.dumps(value) for key, value in facts.items()}}
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(plain, metadata=metadata))


def load_tensors(path: Path, *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: (tensors, facts).

    Raises:
        InputError: no such file, not a safetensors file, or one of another kind.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    hint = "; a network of another library is given as FILE.py:NAME, what makes it" if kind == "model" else ""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}{hint}") from error
    found = metadata.pop("kind", None)
    if metadata.pop("format", None) != FORMAT or found != kind:
        raise InputError(f"{path} holds {found or 'no miscue data'}, not a {kind}")
    return tensors, {key: json.loads(value) for key, value in metadata.items()}


def save_model(path: Path, model: nn.Module, plan: Plan, **facts: Any) -> None:
    """Save a network with its plan and whatever JSON facts belong to it (classes, recipe, scores)."""
    save_tensors(path, model.state_dict(), kind="model", plan=asdict(plan), **facts)


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network saved by `save_model`, in eval mode on the CPU, and its facts."""
    tensors, facts = load_tensors(path, kind="model")
    return restore(Plan(**facts["plan"]), tensors, path), facts


def restore(plan: Plan, tensors: dict[str, torch.Tensor], path: Path) -> nn.Module:
    """The network of `plan` with the weights `tensors`, in eval mode."""
    slope = plan.options.get("bounded")
    plain = {key: value for key, value in plan.options.items() if key not in ("bounded", "norm_clip")}
    model = build(replace(plan, options=plain), Dice())
    if plan.options.get("norm_clip"):
        clipped(model, torch.ones(()))
    if slope is not None:
        starts = {
            key.removesuffix(".raw"): torch.ones_like(raw) for key, raw in tensors.items() if key.endswith(".raw")
        }
        swapped(model, starts, slope=slope)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its own plan {plan.name}: {str(error).splitlines()[0]}") from error
    return model.eval()
