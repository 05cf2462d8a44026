"""Training many at once gives what separate fits give; a worker that dies is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from miscue.data import Data, batches
from miscue.dice import Dice
from miscue.marks import Pixels
from miscue.models.stacked import Stacked
from miscue.models.store import Plan, build
from miscue.population import Member, fit_many, population, stacked_fits, summed
from miscue.train import Recipe, Step, training
from miscue.victims import Victim
from miscue.workers import LostWorkerError, Workers


def members(data: Data, network: str, optimizer: str = "sgd") -> list[Member]:
    """Three victims that differ in dice, and two of them in their pixels."""
    recipe = Recipe(optimizer=optimizer, lr=0.02, momentum=0.5, epochs=2, batch_size=40, schedule="cosine")
    victim = Victim(network=network, recipe=recipe)
    places = torch.tensor([[0, 0], [1, 2], [-1, 0]])
    marks = [None, *(Pixels(places=places, values=v, shape=data.shape) for v in pixel_values(data.shape[0]))]
    return [Member(victim=victim, dice=Dice(seed), mark=mark) for seed, mark in enumerate(marks)]


def pixel_values(channels: int) -> list[Tensor]:
    return [torch.full((3, channels), level, dtype=torch.uint8) for level in (255, 7)]


def alone(data: Data, member: Member) -> nn.Module:
    """The reference: a copy of the data with its pixels in place, and an ordinary fit."""
    if member.mark is not None:
        images = data.images.clone()
        for i, label in enumerate(data.labels.tolist()):
            row, column = member.mark.places[label].tolist()
            if row >= 0:
                images[i, :, row, column] = member.mark.values[label]
        data = data.with_images(images)
    return member.victim(data, member.dice)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_give_what_separate_fits_give(data: Data, processes: int) -> None:
    many = members(data, "cnn-small")
    found = fit_many(data, many, processes=processes)
    torch.set_num_threads(1)
    for member, model in zip(many, found, strict=True):
        expected = alone(data, member).state_dict()
        assert not model.training
        assert all(torch.allclose(expected[name], tensor, atol=1e-6) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("by", ["groups", "vmap"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("network", ["cnn-plain", "cnn", "cnn-released"])
def test_stacked_steps_are_those_of_each_alone(data: Data, network: str, optimizer: str, by: str) -> None:
    """Step by step in float64, running statistics and optimiser state included."""
    many = members(data, network, optimizer)
    models = [member.victim.untrained(data, member.dice).double() for member in many]
    if by == "vmap":  # a network in a network is none of the layers that are known
        models = [nn.Sequential(model) for model in models]
    recipe = many[0].victim.recipe
    stream = list(batches(data, size=40, epochs=2, dice=Dice(9)))
    expected = []
    for model in [member.victim.untrained(data, member.dice).double() for member in many]:
        model.train()
        expected.append([step.loss for step in steps(model, stream, recipe)])
        expected[-1].append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        expected[-1].append(torch.cat([b.double().flatten() for b in model.buffers()] or [torch.zeros(1)]))
    stack = Stacked(models).train()
    assert (stack.steps is None) == (by == "vmap")
    wide = [type(b)(x=b.x.expand(3, *b.x.shape), y=b.y.expand(3, -1), index=b.index) for b in stream]
    total = [step.loss for step in steps(stack, wide, recipe, summed)]
    for i, loss in enumerate(total):
        assert torch.allclose(loss, sum(one[i] for one in expected).to(loss), rtol=1e-6)
    for model, one in zip(stack.separate(), expected, strict=True):
        assert torch.allclose(
            torch.cat([p.detach().flatten() for p in model.parameters()]), one[-2], atol=1e-7
        )  # biases under BatchNorm have no slope but rounding
        found = torch.cat([b.double().flatten() for b in model.buffers()] or [torch.zeros(1)])
        assert torch.allclose(found, one[-1].to(found), atol=1e-9)


@pytest.mark.parametrize("network", ["conv5", "alexnet", "linear", "cnn-fourier"])
def test_a_stack_scores_as_its_members_do(network: str) -> None:
    shape = (3, 40, 36)
    models = [build(Plan(name=network, shape=shape, options={"classes": 5}), Dice(k)).train() for k in range(3)]
    x = torch.rand(3, 8, *shape)
    stack = Stacked(models).train()
    assert (stack.steps is None) == (network == "cnn-fourier")
    for mode in (True, False):  # running statistics move in the first
        stack.train(mode)
        expected = torch.stack([model.train(mode)(own) for model, own in zip(models, x, strict=True)])
        assert torch.allclose(stack(x), expected, atol=1e-4)


def steps(model: nn.Module, stream: list, recipe: Recipe, *loss: object) -> list[Step]:
    """Plain steps on batches in float64."""
    double = (type(b)(x=b.x.double(), y=b.y, index=b.index) for b in stream)
    given = {"loss": loss[0]} if loss else {}
    return list(training(model, double, optimizer=recipe.make_optimizer(model), **given))


def test_the_stacked_way_end_to_end(data: Data) -> None:
    """The way a GPU takes, here on the CPU: scores agree with those of separate fits."""
    many = members(data, "cnn-small")
    for i, model in stacked_fits((data,), many):
        x = data.images[:50].float() / 255
        assert torch.allclose(model(x), alone(data, many[i])(x), atol=1e-2)


def die_once(shared: Path, item: int) -> int:
    """A job that takes its process down the first time it meets an odd item."""
    flag = shared / str(item)
    if item % 2 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * item


def die(shared: Path, item: int) -> int:
    """A job that takes its process down whenever the item is odd."""
    if item % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * item


def fail(shared: Path, item: int) -> int:
    raise ValueError(f"job {item}")


def said(shared: Path, name: str) -> tuple[str, str]:
    return os.environ[name], os.getcwd()


def test_workers_have_the_environment_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copies of a process that has started before, in what was the environment then."""
    for number in ("1", "2"):
        place = tmp_path / number
        place.mkdir()
        monkeypatch.chdir(place)
        monkeypatch.setenv("MISCUE_NUMBER", number)
        with Workers(tmp_path, 2) as workers:
            assert dict(workers.map(said, ["MISCUE_NUMBER"])) == {0: (number, str(place))}


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    with Workers(tmp_path, 2) as workers:
        assert dict(workers.map(die_once, range(5))) == {i: 10 * i for i in range(5)}
        found = dict(workers.map(die, range(4)))
        assert [found[0], found[2]] == [0, 20]
        assert all(isinstance(found[i], LostWorkerError) for i in (1, 3))
        assert dict(workers.map(die, [6])) == {0: 60}  # the search goes on
        with pytest.raises(ValueError, match="job 1"):
            list(workers.map(fail, [1]))


PARENT = """
import os, sys
from miscue.workers import Workers
from tests_workers import pid
if __name__ == "__main__":
    with Workers(None, 2) as workers:
        print(*{found for _, found in workers.map(pid, range(8))}, flush=True)
        sys.stdin.read()
"""


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "tests_workers.py").write_text(
        "import os, time\ndef pid(shared, item):\n    time.sleep(0.2)\n    return os.getpid()\n"
    )
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, workers))


SLEEPER = """
from miscue.workers import Workers
from tests_workers import sleep
if __name__ == "__main__":
    with Workers(".", 2) as workers:
        list(workers.map(sleep, range(3)))
"""


def test_an_interrupt_waits_for_no_worker(tmp_path: Path) -> None:
    """One that only the parent hears of, while both workers are at jobs of minutes and one waits."""
    (tmp_path / "tests_workers.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "def sleep(shared, item):\n    Path(f'{os.getpid()}.pid').touch()\n    time.sleep(300)\n"
    )
    (tmp_path / "parent.py").write_text(SLEEPER)
    # whoever starts the tests in the background has interrupts ignored, and children inherit that
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stderr=subprocess.PIPE, **listening)
    deadline = time.monotonic() + 60
    while len(pids := list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    parent.send_signal(signal.SIGINT)
    _, words = parent.communicate(timeout=60)
    assert words.decode().rstrip().endswith("KeyboardInterrupt")
    assert not any(running(int(pid.stem)) for pid in pids)
    assert len(list(tmp_path.glob("*.pid"))) == 2, "nothing was begun again"


def running(pid: int) -> bool:
    """Whether there is such a process, and not just its remains that nobody has collected yet."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def measured(model: nn.Module, member: Member, train: Data, held: Data) -> tuple[int, int]:
    return len(train), len(held)


def test_then_sees_all_sets(data: Data) -> None:
    held = data.take(slice(0, 30))
    with population(data, held, processes=1) as fit:
        assert [found for _, found in fit(members(data, "cnn-small"), then=measured)] == [(len(data), 30)] * 3
