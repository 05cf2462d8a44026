"""What a crafting run by watching surrogates holds: the generator in its two forms, and a pool of surrogates.

Both know all that a checkpoint needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from miscue.data import Batch
from miscue.marks import Generated
from miscue.models.networks import device_of, joined, placed
from miscue.models.store import Plan, build
from miscue.optimizers import descend
from miscue.perturbation import Perturbation
from miscue.poisons.crafting import Attacker, optimizer_state, optimizer_tensors, packed, unpacked
from miscue.poisons.lookahead import Lookahead, Slopes, Weights
from miscue.team import ALONE

Gradient = Callable[[Lookahead, Weights, Batch], Slopes]


@dataclass(kw_only=True)
class Generators:
    """The two generators of the paper, the optimiser of the second, and the best weights so far."""

    plan: Plan
    frozen: nn.Module  # xi
    copy: nn.Module  # xi'
    adam: torch.optim.Adam
    mean: Weights  # of xi' over the latest steps
    decay: float
    best: Weights
    damage: float = -1.0
    age: int = 0
    trial: int = 0

    def replica(self) -> nn.Module:
        """xi' with running statistics of its own, so that several threads may use it; the parameters are the same."""
        return deepcopy(self.copy, {id(p): p for p in self.copy.parameters()})

    def ascend(self, watched: Sequence[Watched]) -> None:
        """One step of xi' along the mean of the slopes that the surrogates' last steps found, if they found any."""
        if not all(one.slopes.xi for one in watched):
            return
        slopes = (mean_of(one) for one in zip(*(one.slopes.xi for one in watched), strict=True))
        descend(self.adam, self.copy.parameters(), slopes)
        for own, *others in zip(self.copy.buffers(), *(one.look.generator.buffers() for one in watched), strict=True):
            mean = mean_of(others)
            for buffer in (own, *others):
                buffer.copy_(mean)
        latest = self.copy.state_dict()
        real = [name for name, tensor in latest.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.mean[name] for name in real], [latest[name] for name in real], 1 - self.decay)
        for name in latest.keys() - set(real):
            self.mean[name].copy_(latest[name])

    def release(self) -> None:
        """xi <- xi', or rather its running mean."""
        self.frozen.load_state_dict(self.mean)

    def judge(self, damage: float | None) -> None:
        """Count the trial; keep the frozen generator if it did more damage than any before, or none is known yet."""
        self.trial += 1
        if damage is None:
            if self.damage < 0:
                self.best = weights_of(self.frozen)
            return
        self.age += 1
        if damage > self.damage:
            self.best, self.damage, self.age = weights_of(self.frozen), damage, 0

    def state(self) -> dict[str, Tensor]:
        """All that resuming after this trial needs."""
        numbers = torch.tensor([self.damage, self.age, self.trial], dtype=torch.float64)
        return packed(
            generator=self.copy.state_dict(),
            mean=self.mean,
            best=self.best,
            adam=optimizer_tensors(self.adam.state_dict()),
            run={"numbers": numbers},
        )

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`; does nothing where it is empty."""
        if not state:
            return
        device = device_of(self.copy)
        self.mean = {name: tensor.to(device) for name, tensor in unpacked(state, "mean").items()}
        self.release()
        self.copy.load_state_dict(unpacked(state, "generator"))
        self.adam.load_state_dict(optimizer_state(self.adam.state_dict(), unpacked(state, "adam")))
        self.best = unpacked(state, "best")
        self.damage, age, trial = unpacked(state, "run")["numbers"].tolist()
        self.age, self.trial = int(age), int(trial)

    def perturbation(self, eps: float) -> Perturbation:
        """The best generator as a perturbation of its own."""
        generator = joined(deepcopy(self.frozen), ALONE)
        generator.load_state_dict(self.best)
        mark = Generated(generator=generator.eval(), plan=self.plan)
        return Perturbation(mark=mark, eps=eps, device=str(device_of(generator)))


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """Their mean; where there is one only, that itself."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).sum(0) / len(tensors)


def weights_of(model: nn.Module) -> Weights:
    """A copy of a model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def make_generators(plan: Plan, attacker: Attacker, *, lr: float, decay: float) -> Generators:
    """xi drawn from the attacker's dice, and xi' equal to it."""
    frozen = joined(build(plan, attacker.dice.named("generator")), attacker.team)
    placed(frozen, attacker.device).eval()
    copy = deepcopy(frozen).train()
    adam = torch.optim.Adam(copy.parameters(), lr, foreach=True)
    attacker.team.join(adam)
    mean, best = weights_of(frozen), weights_of(frozen)
    return Generators(plan=plan, frozen=frozen, copy=copy, adam=adam, mean=mean, decay=decay, best=best)


@dataclass(kw_only=True)
class Watched:
    """A surrogate under watch, its optimiser, the rest of its walk through its batches, what its last step found."""

    look: Lookahead
    gradient: Gradient
    optimizer: Optimizer
    walk: Iterator[None] = field(init=False)
    slopes: Slopes = field(init=False)

    def ahead(self, theta: Weights, batch: Batch) -> tuple[Tensor, ...]:
        """Look ahead from theta and keep what is found; returns the slope at theta."""
        self.slopes = self.gradient(self.look, theta, batch)
        return self.slopes.theta

    def step(self) -> None:
        """One step of the surrogate's walk."""
        next(self.walk)

    def state(self) -> dict[str, Tensor]:
        """All tensors that going on with it needs."""
        return packed(model=self.look.surrogate.state_dict(), optimizer=optimizer_tensors(self.optimizer.state_dict()))

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`; does nothing where it is empty."""
        if state:
            self.look.surrogate.load_state_dict(unpacked(state, "model"))
            slots = optimizer_state(self.optimizer.state_dict(), unpacked(state, "optimizer"))
            self.optimizer.load_state_dict(slots)


def life(slot: int, trial: int, pool: int) -> tuple[int, int, int]:
    """The life of the surrogate in `slot` of a pool at the start of a phase's trial number `trial`.

    In each trial every surrogate makes 1 / pool of its steps, and the one in slot trial % pool ends its life.

    Returns:
        the trial at whose start it came in, how many trials it stays, and how many of them are over.
    """
    if trial <= slot:
        return 0, slot + 1, trial  # the first ones leave early, so that ages differ
    born = trial - (trial - slot - 1) % pool
    return born, pool, trial - born
