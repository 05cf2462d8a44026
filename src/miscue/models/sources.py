"""Where a trained model comes from: a file of ours, or a function of the user's that makes one of any library."""

from __future__ import annotations

import hashlib
import importlib.util
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miscue.errors import InputError
from miscue.models.adapters import adapted
from miscue.models.store import load_model


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model and what is known of it.

    model: from images (n, c, h, w) in [0, 1] to scores, in eval mode on the CPU.
    name: of its network. classes: how many it tells apart, None if unknown. shape: (c, h, w) that it takes, None if
    unknown. sha256: of its weights, or of the file that makes it where it has none. history: what was inside it after
    each epoch, where its training was watched.
    """

    model: nn.Module
    name: str
    classes: int | None
    shape: tuple[int, int, int] | None
    sha256: str
    history: list[dict[str, Any]] = field(default_factory=list)


def sourced(text: str) -> Source:
    """The model named by `text`: the path of a model saved by miscue, or FILE.py:NAME.

    NAME is a function without arguments, or the model itself: a network of PyTorch, timm, torchvision or transformers,
    or a fitted classifier of scikit-learn, as `adapted` takes it.

    Raises:
        InputError: no such file or name, or no model.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        path = Path(text)
        model, facts = load_model(path)
        plan = facts["plan"]
        return Source(
            model=model,
            name=plan["name"],
            classes=plan["options"].get("classes"),
            shape=tuple(plan["shape"]),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            history=facts.get("history", []),
        )
    found = adapted(made_by(Path(file), name))
    return Source(model=found.eval(), name=name, classes=None, shape=None, sha256=digest(found, Path(file)))


def made_by(path: Path, name: str) -> Any:
    """What a Python file calls `name`, or what that makes where it is a function or a class."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(f"miscue_user_{path.stem}", path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise InputError(f"{path} has nothing called {name}")
        found = getattr(module, name)
        ready = isinstance(found, nn.Module) or hasattr(found, "classes_")
        return found if ready or not callable(found) else found()
    except (InputError, OSError):
        raise
    except Exception as error:
        own = [at.lineno for at in traceback.extract_tb(error.__traceback__) if Path(at.filename) == path.resolve()]
        place = f"{path}, line {own[-1]}," if own else f"{name} of {path}"
        raise InputError(f"{place} fails: {type(error).__name__}: {error}; --debug shows more") from error


def digest(model: nn.Module, path: Path) -> str:
    """sha256 of the weights, or of the file where there are none."""
    weights = model.state_dict()
    found = hashlib.sha256()
    for key, value in weights.items():
        found.update(key.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest() if weights else hashlib.sha256(path.read_bytes()).hexdigest()
