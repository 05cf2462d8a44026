"""One crafting run by several processes on this machine, which share each batch."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import distributed as dist

from miscue.data import Data
from miscue.errors import InputError
from miscue.memory import keep_freed_memory
from miscue.poisons.crafting import Attacker, Progress
from miscue.room import Room, mapping
from miscue.team import Team
from miscue.workers import settle, starting

P = ParamSpec("P")
PATIENCE = 5.0  # seconds in which those whom a lost process takes with it end, too


def shared(steps: Callable[P, Iterator[Progress]]) -> Callable[P, Iterator[Progress]]:
    """Crafting steps that, where their option `processes` is above 1, are walked through by so many processes.

    steps: a function of a module, there under its name as a `Poison`, whose attacker may have a team.
    """

    @functools.wraps(steps)
    def walk(*args: P.args, **options: P.kwargs) -> Iterator[Progress]:
        processes = options.pop("processes", 1)
        if not isinstance(processes, int) or processes < 1:
            raise InputError(f"processes must be a positive number, got {processes}")
        if processes == 1:
            return steps(*args, **options)
        data, attacker = args
        assert isinstance(data, Data)
        assert isinstance(attacker, Attacker)
        Team(0, processes).share(torch.empty(attacker.recipe.batch_size))  # refused here rather than in each of them
        return among((steps.__module__, steps.__qualname__), data, attacker, options, processes)

    return walk


def among(
    name: tuple[str, str], data: Data, attacker: Attacker, options: Mapping[str, Any], processes: int
) -> Iterator[Progress]:
    """Walk through the steps of the `Poison` of that module and name with so many processes; yields what they yield.

    Raises:
        InputError: there is no way for them to meet, one was lost, or the steps raised it.
    """
    if not dist.is_available():
        raise InputError("this build of torch has no torch.distributed; --processes 1 needs none")
    context = starting()
    with tempfile.TemporaryDirectory() as place:
        if mapping(data.images) is None:  # so that there is one copy of them, however many the processes
            images = data.images.cpu()
            room = Room(folder=Path(place), memory=0)
            data = data.with_images(room.filled("images", tuple(images.shape), "", lambda start: [images[start:]]))
        words = pickle.dumps((name, replace(data, labels=data.labels.cpu(), files=()), attacker, dict(options)))
        lines, members = [], []
        try:
            for rank in range(processes):
                here, there = context.Pipe()
                threads = max(1, torch.get_num_threads() // processes)
                given = (dict(os.environ), Team(rank, processes), place, there, threads)
                member = context.Process(target=work, args=given, daemon=True)
                member.start()
                there.close()
                here.send_bytes(words)
                lines.append(here)
                members.append(member)
            yield from heard(lines, members)
        finally:
            for member in members:
                member.kill()
                member.join()
            for line in lines:
                line.close()


def heard(lines: list[connection.Connection], members: Sequence[BaseProcess]) -> Iterator[Progress]:
    """What the first of the processes yields, until it is done."""
    while True:
        ready = connection.wait(lines)
        for line in lines:
            if line not in ready:
                continue
            try:
                said = pickle.loads(line.recv_bytes())
            except (EOFError, ConnectionError):
                said = None
            if said is True:  # done; the others will be, too
                if line is lines[0]:
                    return
                lines = [other for other in lines if other is not line]
            elif isinstance(said, Progress):
                yield said
            else:
                for member in members:
                    member.join(PATIENCE / len(members))
                raise lost([member.exitcode or 0 for member in members], [said, *complaints(lines)])


def complaints(lines: Sequence[connection.Connection]) -> Iterator[Exception]:
    """What processes that have ended said of it, as far as nobody has heard it yet."""
    for line in lines:
        try:
            while line.poll():
                said = pickle.loads(line.recv_bytes())
                if isinstance(said, Exception):
                    yield said
        except (EOFError, ConnectionError):
            pass


def lost(codes: Sequence[int], said: Sequence[Exception | None]) -> Exception:
    """Why the walk ended early, of the processes' exit codes and of what some of them said.

    First comes one that SIGKILL ended, as the others may have ended, in any way, because it was gone; then a wrong
    input, then what does not speak of a connection, which the others lose when one of them ends.
    """
    ended = [(number, -code) for number, code in enumerate(codes, start=1) if code < 0]
    reasons = [one for one in said if one is not None]
    if reasons and signal.SIGKILL not in (how for _, how in ended):
        return min(reasons, key=lambda one: (not isinstance(one, InputError), "connection" in str(one).lower()))
    if ended:
        number, how = min(ended, key=lambda one: one[1] != signal.SIGKILL)
        return InputError(
            f"process {number} of {len(codes)} was killed ({signal.Signals(how).name}); is there memory enough for "
            "all of them? The same command goes on from the last checkpoint, also with other --processes"
        )
    return InputError(f"one of {len(codes)} processes ended early; the same command goes on")


def work(environment: dict[str, str], team: Team, place: str, line: connection.Connection, threads: int) -> None:
    """A process of the team: meet the others, walk through the steps, and say what comes of it (the first alone)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    settle(environment)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is for what the command says
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        name, data, attacker, options = pickle.loads(line.recv_bytes())
        device = meet(team, place, attacker.device)
        poison = getattr(import_module(name[0]), name[1])
        for progress in poison.steps(data, replace(attacker, device=device, team=team), **options):
            if not team.rank:
                line.send_bytes(pickle.dumps(progress))
        said: InputError | RuntimeError | bool = True
    except InputError as error:
        said = error
    except Exception:
        said = RuntimeError(f"process {team.rank + 1} of {team.size} failed\n{traceback.format_exc()}")
    line.send_bytes(pickle.dumps(said))
    if said is True:
        dist.destroy_process_group()


def meet(team: Team, place: str, device: str) -> str:
    """Have the processes find each other by a file in `place`; the device of this one.

    GPUs are dealt out where `device` names none; where there are fewer than processes they are shared.
    """
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    count = torch.cuda.device_count() if device == "cuda" else 0
    dist.init_process_group(
        "nccl" if count >= team.size else "gloo",
        init_method=(Path(place) / "meeting").resolve().as_uri(),
        rank=team.rank,
        world_size=team.size,
        timeout=timedelta(days=1),  # a process that is lost is noticed by the one that started them
    )
    if not count:
        return device
    device = f"cuda:{team.rank % count}"
    torch.cuda.set_device(device)
    return device
