"""Long work as folders: crafting and evaluating with checkpoints, records and exact resume. Yields as it goes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miscue.data import Data
from miscue.errors import InputError
from miscue.evaluation import Arena, Contest, cell, summary, whole_cell
from miscue.files import atomic, locked, write_json
from miscue.models.store import load_tensors, save_tensors
from miscue.perturbation import Perturbation
from miscue.poisons import Attacker, Poison
from miscue.victims import AnyVictim
from miscue.workers import LostWorkerError, Workers
from miscue.writers import versions

PERTURBATION = "perturbation.safetensors"


@dataclass(frozen=True, kw_only=True)
class Tick:
    """`done` of `total` units of work; `fact` is a finished piece (a trial, a cell) as plain data."""

    done: int
    total: int
    fact: dict[str, Any] | None = None


def fingerprint(data: Data) -> str:
    """sha256 over shape, images and labels."""
    digest = hashlib.sha256(repr(tuple(data.images.shape)).encode())
    digest.update(data.images.cpu().contiguous().numpy().data)
    digest.update(data.labels.cpu().contiguous().numpy().data)
    return digest.hexdigest()


CELL = ("cell", "spec")
RECORD = ("table", "row", "measure", "published", "mean", "std", "n", "scale")
"""What a line has at least that tells of a cell of a table, and one of a record."""


def lines(path: Path, needs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file, without those cut by a kill or short of what they need.

    Empty where there is no file.
    """
    return [row for row in parsed(path, needs) if row is not None]


def torn(path: Path, needs: Sequence[str] = ()) -> list[int]:
    """The numbers, from 1, of the lines that `lines` leaves out."""
    return [number for number, row in enumerate(parsed(path, needs), start=1) if row is None]


def parsed(path: Path, needs: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Every line of a JSON-lines file, None for one that is cut or damaged."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        yield row if isinstance(row, dict) and all(name in row for name in needs) else None


def rewrite(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace a JSON-lines file, atomically."""
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line and have it on the disk before going on; half a line before it stays a line of its own."""
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * cut + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def differences(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    """The keys in which two trees of plain data differ, dotted."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    elif json.dumps(a) != json.dumps(b):
        yield f"{prefix} ({json.dumps(b)} there, {json.dumps(a)} asked for)"


def refuse_other(asked: dict[str, Any], found: dict[str, Any], where: Path) -> None:
    """Raise an InputError where a folder holds the work of other settings than those asked for."""
    unlike = list(differences(json.loads(json.dumps(asked)), found))
    if unlike:
        raise InputError(f"{where} is of another setting: {', '.join(unlike[:4])}; add --overwrite to start anew")


def craft(poison: Poison[...], data: Data, attacker: Attacker, options: dict[str, Any], folder: Path) -> Iterator[Tick]:
    """Craft into `folder`, going on from its checkpoint if there is one.

    `folder` gets craft.jsonl (one line a trial: minutes of crafting and the measures); while the work goes on, a
    checkpoint and the best perturbation so far; perturbation.safetensors at the end. Where that is there already, there
    is nothing to do.

    Raises:
        InputError: what is there is of another setting or damaged, or another run is at work there.
    """
    what = {name: value for name, value in options.items() if name != "processes"}  # how many is no part of it
    asked = {"poison": poison.__name__, "data": fingerprint(data), "options": what}  # type: ignore[attr-defined]
    who = {name: value for name, value in asdict(replace(attacker, device="any")).items() if name != "team"}
    asked |= {"attacker": {**who, "recipe": asdict(attacker.recipe)}}
    names = ("checkpoint.safetensors", "best.safetensors", "craft.jsonl", PERTURBATION)
    checkpoint, best, log, end = (folder / name for name in names)
    if end.exists():
        refuse_other(asked, Perturbation.load(end).settings, end)
        checkpoint.unlink(missing_ok=True)
        return
    state, known = None, lines(log)
    if checkpoint.exists():
        state, facts = load_tensors(checkpoint, kind="checkpoint")
        refuse_other(asked, facts["settings"], checkpoint)
        known = known[: facts["trials"]]
    else:
        known = []
    before = known[-1]["minutes"] if known else 0.0
    started, first = time.monotonic(), True
    with ExitStack() as held:
        for progress in poison.steps(data, attacker, **options, resume=state):
            if first:  # what is refused leaves nothing behind
                held.enter_context(locked(folder / "run.lock", wait=False))
                rewrite(log, known)
                first = False
            reached, fact = progress.checkpoint, None
            if reached is not None:
                fact = {"trial": len(known) + 1, "minutes": before + (time.monotonic() - started) / 60}
                known.append(fact | reached.measures)
                append(log, known[-1])
                replace(reached.perturbation, settings=asked).save(best)  # before the checkpoint, which may be the last
                save_tensors(checkpoint, reached.state, kind="checkpoint", settings=asked, trials=len(known))
            yield Tick(done=progress.done, total=progress.total, fact=known[-1] if fact else None)
    best.replace(end)
    checkpoint.unlink()


def evaluate(
    folder: Path,
    settings: dict[str, Any],
    arenas: Sequence[Arena],
    victims: Mapping[str, AnyVictim],
    *,
    repeats: int,
    seed: int,
    label_map: Sequence[int] | None,
    device: str,
    jobs: int = 1,
) -> Iterator[Tick]:
    """Fill the run folder: one cell for each victim, condition and seed that is not there yet, then the records.

    With more than one job, cells are worked on by so many single-threaded processes side by side.

    run.json holds the settings, cells.jsonl a line a trained victim, records.jsonl the means.

    Raises:
        InputError: the folder holds a run of other settings, or another run is at work in it.
    """
    with locked(folder / "run.lock", wait=False):
        about, log = folder / "run.json", folder / "cells.jsonl"
        if about.exists():
            found = json.loads(about.read_text(encoding="utf-8"))
            refuse_other(identity(settings), identity(found), folder)
            settings = settings | {key: found[key] for key in found if key not in ASKED}
        write_json(about, settings)
        cells = lines(log)
        rewrite(log, cells)
        have = {(one["victim"], one["condition"], one["seed"]) for one in cells}
        todo = [
            Contest(arena=arena, name=name, victim=victims[name], seed=one, label_map=label_map, device=device)
            for one in range(seed, seed + repeats)
            for name in victims
            for arena in arenas
            if (name, arena.condition, one) not in have
        ]
        for tick in worked(todo, jobs):
            if tick.fact is not None:
                append(log, tick.fact)
                cells.append(tick.fact)
            yield tick
        rewrite(folder / "records.jsonl", records(cells, settings))


def worked(todo: Sequence[Contest], jobs: int) -> Iterator[Tick]:
    """Work on all contests, by epochs one after another or whole ones side by side."""
    total = sum(one.epochs for one in todo)
    done = 0
    if jobs == 1:
        for one in todo:
            for progress in cell(one):
                yield Tick(done=done + progress.done, total=total, fact=progress.cell)
            done += one.epochs
        return
    with Workers(todo, jobs) as workers:
        for number, fact in workers.map(whole_cell, range(len(todo))):
            if isinstance(fact, LostWorkerError):
                raise InputError(f"{fact}; is there memory enough for {jobs} jobs?")
            done += todo[number].epochs
            yield Tick(done=done, total=total, fact=fact)


ASKED = ("repeats", "conditions")  # what may be asked for anew of a run that is there
IDENTITY = ("kind", "clean_sha256", "poisoned_sha256", "victims", "label_map", "eps", "test")


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's settings that must agree for its cells to be used again."""
    return {key: settings.get(key) for key in IDENTITY}


def records(cells: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's measures as record lines (fields as in results/)."""
    facts = {
        "scale": "laptop",
        "data": settings["clean"],
        "device": settings["device"],
        "commit": settings["commit"],
        "command": settings["command"],
        "note": None,
    }
    poison = settings.get("manifest") or {}
    row = {"data": settings["clean"], "method": poison.get("method"), "eps": settings["eps"]}
    victims = settings.get("victims") or {}
    found = []
    for one in summary(cells):
        own = row | one.pop("row")
        recipe = victims.get(own["victim"], {}).get("recipe")
        if recipe:
            own["precision"] = recipe["precision"]
        found.append({"table": "evaluate", "row": own, "measure": one.pop("measure"), "published": None} | one | facts)
    return found


def written(
    path: Path, rows: Sequence[tuple[dict[str, Any], Mapping[str, float]]], settings: dict[str, Any], n: int
) -> None:
    """Write the (row, measures) of a run of one piece as record lines, fields as in results/; the table is its kind."""
    facts = {"published": None, "std": None, "n": n, "scale": "laptop", "seconds": None, "note": None}
    facts |= {name: settings[name] for name in ("data", "device", "commit", "command")}
    rewrite(
        path,
        [
            {"table": settings["kind"], "row": row, "measure": measure, "mean": value} | facts
            for row, measures in rows
            for measure, value in measures.items()
        ],
    )


def provenance(command: Sequence[str], device: str) -> dict[str, Any]:
    """When, with what and on what: created, command, versions, device, commit (None outside a checkout)."""
    return {
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(command),
        "versions": versions(),
        "device": device_name(device),
        "commit": commit(),
    }


def device_name(device: str) -> str:
    """The device in words, e.g. "cpu, 2 threads" or a GPU's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{device} {platform.machine()}, {torch.get_num_threads()} threads"


def commit(here: Path = Path(__file__).parent) -> str | None:
    """The checkout's commit, with "+" where the sources differ from it; None where `here` is not in a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def save_samples(path: Path, clean: Data, poisoned: Data, eps: float, *, per_class: int = 2) -> None:
    """The first images of each class, clean and poisoned, for the report's pictures."""
    index = torch.cat([(clean.labels == label).nonzero()[:per_class, 0] for label in range(len(clean.classes))])
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            clean=clean.images[index].numpy(),
            poisoned=poisoned.images[index].numpy(),
            labels=clean.labels[index].numpy(),
            eps=eps,
        )
