"""Several processes that share each batch make what one makes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import miscue, striped, within
from miscue import data as nouns
from miscue.data import floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.measures import accuracy
from miscue.models.layers import BatchNorm1d, BatchNorm2d
from miscue.models.networks import joined
from miscue.models.store import Plan, build, load_tensors, save_tensors
from miscue.poisons import Attacker, deepconfuse
from miscue.poisons.lookahead import normalised
from miscue.poisons.shared import lost, meet
from miscue.readers import read
from miscue.run import lines
from miscue.team import Team
from miscue.train import Recipe
from miscue.workers import starting

ATTACKER = Attacker(surrogate="cnn-small-bounded", recipe=Recipe(lr=0.05, batch_size=24), dice=Dice(3))
OPTIONS: dict[str, Any] = {"trials": 1, "steps": 5, "alpha": 0.3, "generator_lr": 1e-3}
ONLINE = {"trials": 0, "online_trials": 2, "warm_up": 1, "pool": 2}
KINDS: dict[str, dict[str, Any]] = {
    "algorithm 2": {"trials": 2},
    "algorithm 1": {"algorithm": "1"},
    "difference": {"gradient": "difference", "reach": 1e-7},
    "label map, in eval mode": {"label_map": (1, 2, 0), "lookahead": "eval"},
    "warm start, online": ONLINE | {"generator_mean": 0.9},
    "cooperation": ONLINE | {"warm_up_by": "cooperation"},
    "unrolled": ONLINE | {"unroll": 2, "beyond": 1, "lookahead": "eval", "pool": 1, "steps": 8},
    "U-Net": {"generator": "unet"},
}


def exactly(images: Tensor, *, channels_last: bool = False) -> Tensor:
    """`floats` to double precision: in single precision, rounding alone tells one process from two after some steps."""
    return floats(images, channels_last=channels_last).double()


def in_double_precision(kind: torch.dtype, made: Any) -> None:
    """Have networks and batches made in it."""
    torch.set_default_dtype(kind)
    nouns.floats = accuracy.floats = made


def crafted(team: Team) -> dict[str, dict[str, Tensor]]:
    """The last checkpoint of each kind."""
    found = {}
    for name, options in KINDS.items():
        steps = deepconfuse.steps(striped(), replace(ATTACKER, team=team), **OPTIONS | options)
        checkpoints = [progress.checkpoint for progress in steps if progress.checkpoint]
        measures = {f"measure {key}": torch.tensor(value) for key, value in checkpoints[-1].measures.items()}
        found[name] = checkpoints[-1].state | measures
    return found


def normed(team: Team) -> dict[str, Tensor]:
    """What BatchNorm makes of a share, its slopes and those of the slopes; the same with borrowed statistics, once."""
    torch.manual_seed(0)
    found = {}
    for name, layer, shape in (("1d", BatchNorm1d(5), (12, 5)), ("2d", BatchNorm2d(5), (12, 5, 4, 3))):
        joined(nn.Sequential(layer), team)
        nn.init.normal_(layer.weight)
        x, way = (team.share(torch.randn(shape)) for _ in range(2))
        x.requires_grad_()
        for kind in ("own", "lent"):
            y = layer(x) if kind == "own" else normalised(layer, 6 // team.size, x)
            for_x, *rest = torch.autograd.grad((y.tanh() * way).mean(), [x, *layer.parameters()], create_graph=True)
            rest = team.averaged(rest)
            found |= {f"{name} {kind} y": y, f"{name} {kind} x": for_x / team.size}
            found |= {f"{name} {kind} weight": rest[0], f"{name} {kind} bias": rest[1]}
            if kind == "own":
                (again,) = torch.autograd.grad((for_x * way).sum() + rest[0].square().sum(), x)
                found[f"{name} {kind} again"] = again / team.size
        found |= {f"{name} kept {key}": value for key, value in layer.named_buffers()}
    return {key: value.detach().clone() for key, value in found.items()}


def member(rank: int, size: int, place: str) -> None:
    """A process of a team: craft, and save what came of it."""
    torch.set_num_threads(1)
    in_double_precision(torch.float64, exactly)
    team = Team(rank, size)
    meet(team, place, "cpu")
    for name, state in {**crafted(team), "norm": normed(team)}.items():
        save_tensors(Path(place) / f"{name} {rank}", state, kind="state")
    torch.distributed.destroy_process_group()


def by_one() -> dict[str, dict[str, Tensor]]:
    """What one process makes, here."""
    in_double_precision(torch.float64, exactly)
    try:
        return crafted(Team()) | {"norm": normed(Team())}
    finally:
        in_double_precision(torch.float32, floats)


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    """All that training holds is the same: generators, their optimiser, the surrogates, what was measured.

    BatchNorm of a team is that of the whole batch.
    """
    members = [starting().Process(target=member, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in members:
        process.start()
    made = by_one()
    for process in members:
        process.join()
        assert process.exitcode == 0
    for kind, rank in itertools.product(KINDS, (0, 1)):
        one, (two, _) = made[kind], load_tensors(tmp_path / f"{kind} {rank}", kind="state")
        assert one.keys() == two.keys()
        worst = {key: float((one[key].double() - two[key].double()).abs().max()) for key in one}
        assert max(worst.values()) < 1e-7, (kind, sorted(worst.items(), key=lambda pair: -pair[1])[:5])
        assert min(float(one[f"adam/{number}.exp_avg"].abs().max()) for number in (0, 3, 6)) > 1e-8, kind
    for rank in (0, 1):
        two, _ = load_tensors(tmp_path / f"norm {rank}", kind="state")
        assert two.keys() == made["norm"].keys()
        for key, whole in made["norm"].items():
            own = whole[rank::2] if key.endswith((" y", " x", "again")) else whole
            assert torch.allclose(two[key], own, rtol=1e-9, atol=1e-12), key


# --- the command


CRAFT = ["--trials", "2", "--steps", "4", "--batch-size", "16", "--surrogate", "cnn-small", "--threads", "2"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, data = tmp_path_factory.mktemp("data") / "set.npz", striped(120)
    np.savez(path, x_train=data.images[:, 0].numpy(), y_train=data.labels.numpy())
    return path


def test_the_command_by_two_processes(npz: Path, tmp_path: Path) -> None:
    within("poison", "deepconfuse", npz, tmp_path / "one", *CRAFT)
    done = miscue("poison", "deepconfuse", npz, tmp_path / "two", *CRAFT, "--processes", "2", "--json")
    row = json.loads(done.stdout)
    assert row["options"]["processes"] == 2
    assert "Traceback" not in done.stderr
    clean, one, two = (read(place).train.images.double() for place in (npz, tmp_path / "one", tmp_path / "two"))
    assert float((one - two).abs().mean()) < 0.1 * float((one - clean).abs().mean())  # single precision, few steps


def test_errors_of_a_team_are_one_line(npz: Path, tmp_path: Path) -> None:
    for words, match in (
        (["--batch-size", "15", "--processes", "2"], "a batch of 15 images cannot be shared evenly by 2"),
        (["--eps", "7", "--processes", "2"], "eps must lie in"),
        (["--processes", "0"], "processes must be a positive number"),
    ):
        done = within("poison", "deepconfuse", npz, tmp_path / "out", *CRAFT, *words, check=False)
        assert done.exit_code == 2
        assert match in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(InputError, match="cnn-nystrom keeps training images"):
        joined(build(Plan(name="cnn-nystrom", shape=(1, 12, 12), options={"classes": 3}), Dice()), Team(0, 2))


def members_of(parent: int) -> list[int]:
    """The processes that a command has started for its work: copies of one that has only imported."""
    servers = [pid for pid in children(parent) if "forkserver" in Path(f"/proc/{pid}/cmdline").read_text("utf-8")]
    return [pid for server in servers for pid in children(server)]


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text("utf-8").split()]


def test_a_killed_process_is_named_before_those_that_fell_with_it() -> None:
    gone = RuntimeError("process 1 of 2 failed: Connection closed by peer")
    assert "process 2 of 2 was killed (SIGKILL)" in str(lost([-signal.SIGABRT, -signal.SIGKILL], [gone, None]))
    assert "process 1 of 1 was killed (SIGABRT)" in str(lost([-signal.SIGABRT], [None]))
    assert "ended early" in str(lost([1, 1], [None]))


def test_what_ended_a_team_is_told_before_what_that_led_to() -> None:
    gone, full = (
        RuntimeError("process 1 failed: Connection closed by peer"),
        RuntimeError("process 2 failed: no memory"),
    )
    assert lost([0, 0], [gone, full]) is full
    wrong = InputError("eps must lie in (0, 1]")
    assert lost([-signal.SIGABRT, 0, 0], [gone, full, wrong]) is wrong


@pytest.mark.skipif(sys.platform != "linux", reason="where to look for a process's children")
def test_a_killed_process_is_said_and_the_run_goes_on(npz: Path, tmp_path: Path) -> None:
    """Three times: a process of the team is killed; the command itself is; one process goes on alone."""
    words = [*CRAFT, "--trials", "4000"]
    log, done = tmp_path / "out.craft" / "craft.jsonl", 0
    for killed, processes in (("a member", "2"), ("the command", "2"), ("the command", "1")):
        command = ["-m", "miscue", "poison", "deepconfuse", str(npz), str(tmp_path / "out"), *words]
        command = [sys.executable, *command, "--processes", processes]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(lines(log)) < done + 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        members = members_of(process.pid)
        assert len(members) == (2 if processes == "2" else 0)
        os.kill(members[1] if killed == "a member" else process.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert not (tmp_path / "out").exists()
        if killed == "a member":
            assert process.returncode == 2
            assert "process 2 of 2 was killed (SIGKILL)" in said
            assert "Traceback" not in said
        while any(map(alive, members)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, members))
        assert len(lines(log)) >= done + 3
        assert [line["trial"] for line in lines(log)] == list(range(1, len(lines(log)) + 1))
        done = len(lines(log))


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is more than an entry that waits to be read."""
    try:
        return " (" in (text := Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")) and ") Z" not in text
    except OSError:
        return False
