"""A team: processes that work on the same batches, each on its share of them, and go on as one.

Each works out the slopes of its share's mean loss. The team's mean of these is the slope of the whole batch, and since
that mean can be differentiated like anything else, so are those of what was made of it, a look ahead, say. A process
whose share went through BatchNorm owes the others' slopes, too: see `layers.BatchNorm2d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function
from torch.optim import Optimizer

from miscue.errors import InputError


@dataclass(frozen=True)
class Team:
    """The place of this process in its team. Beyond one process they have met by `torch.distributed`."""

    rank: int = 0
    size: int = 1

    def share(self, batch: Tensor) -> Tensor:
        """This process's share of a batch: each `size`-th entry, so that it has its share of each part, too.

        Raises:
            InputError: the shares would differ in size, and the mean of their means would not be that of the batch.
        """
        if len(batch) % self.size:
            raise InputError(f"a batch of {len(batch)} images cannot be shared evenly by {self.size} processes")
        return batch[self.rank :: self.size]

    def averaged(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The team's means of some tensors, differentiable any number of times."""
        return tuple(tensors) if self.size == 1 else Averaged.apply(self.size, *tensors)

    def total(self, tensor: Tensor) -> Tensor:
        """The team's sum of a tensor."""
        if self.size == 1:
            return tensor
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def join(self, optimizer: Optimizer) -> None:
        """Have an optimiser go down the team's mean slopes."""
        if self.size > 1:
            optimizer.register_step_pre_hook(self._agree)

    @torch.no_grad()
    def _agree(self, optimizer: Optimizer, *_: Any) -> None:
        slopes = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for slope, mean in zip(slopes, self.averaged(slopes), strict=True):
            slope.copy_(mean)


ALONE = Team()


class Averaged(Function):
    """The means of tensors over a team.

    A process works out the slopes of the sum of all processes' numbers for what is its own. That of a mean is the mean
    of the slopes that it has in each of them.
    """

    @staticmethod
    def forward(ctx: Any, size: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.size = size
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / size).split([tensor.numel() for tensor in tensors])
        return tuple(part.reshape(tensor.shape).clone() for part, tensor in zip(parts, tensors, strict=True))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, *Averaged.apply(ctx.size, *slopes)
