"""One look ahead: how the loss beyond a pseudo-update of theta, or beyond several, depends on the poisoned images.

    theta' = theta - alpha * grad_theta L(f_theta(x + g_xi(x)), y)          the pseudo-update
    L(f_theta'(x), y)                                                        the loss beyond it, on clean images

Its gradient for the generator's xi is of second order. `exact` differentiates twice; `difference` comes to the same in
the limit by first-order passes; `unrolled` looks ahead over several steps at once, as the surrogate will walk them.
Clipping to [0, 1] passes gradients straight through.

Where the surrogate has BatchNorm, the loss beyond has two readings. In training mode, as in the authors' code, the
clean batch is normalised by its own statistics. A victim in eval mode normalises clean images by what it kept of
*poisoned* ones; `eval_mode` looks ahead to that, and the statistics, which depend on xi too, pass on their gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from miscue.data import Batch
from miscue.losses import unlikelihood
from miscue.models.functions import Borrow, only, twice
from miscue.models.layers import BatchNorm1d, BatchNorm2d, together
from miscue.team import ALONE, Team

Weights = dict[str, Tensor]
Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Lookahead:
    """One look ahead: the networks and numbers of the pseudo-update and of the loss beyond it.

    objective: (scores of f_theta'(x), y) -> scalar that the generator *descends*.
    likeness: int64 (classes,), for `imitation`: the class whose images those labelled y are to look like, -1 for none.
    reach: how far `difference` moves theta, as a share of its norm.
    counts: whether the poisoned batch moves the surrogate's running statistics, as its own training step does.
    eval_mode: whether clean images are normalised as a victim in eval mode does it, by the statistics of poisoned ones.
    steps: how many pseudo-updates `unrolled` makes.
    judged: on how many of its batch's parts, the latest ones, it takes the loss beyond them; 0 for all.
    team: the processes that look ahead on the same batch, each on its share: what the surrogate learns is their mean.
    """

    surrogate: nn.Module
    generator: nn.Module
    alpha: float
    objective: Objective
    likeness: Tensor
    reach: float
    counts: bool
    eval_mode: bool = False
    steps: int = 1
    judged: int = 0
    team: Team = ALONE

    def beyond(self, ahead: Weights, x: Tensor, poisoned: Tensor, y: Tensor) -> Tensor:
        """The objective at theta' = `ahead` on clean images x."""
        scratch = buffers_of(self.surrogate)
        if not self.eval_mode:
            return self.objective(functional_call(self.surrogate, (ahead, scratch), (x,)), y)
        with normalised_by_the_rest(self.surrogate, len(x)):
            scores = functional_call(self.surrogate, (ahead, scratch), (torch.cat([x, poisoned]),))
        return self.objective(scores[: len(x)], y)


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """Two gradients: of the surrogate's loss on the poisoned batch at theta, and of the objective for the generator."""

    theta: tuple[Tensor, ...]
    xi: tuple[Tensor, ...]


def exact(look: Lookahead, theta: Weights, batch: Batch) -> Slopes:
    """The objective's gradient beyond the pseudo-update by double differentiation.

    With v = grad of the objective at theta', the chain rule gives d objective / d x~ = -alpha * d/dx~ <grad_theta L, v>
    at the poisoned images x~.
    """
    poisoned = poisoned_by(look, batch)
    leaf = leaf_of(poisoned)
    with twice():
        inner = image_loss(look, theta, {} if look.counts else buffers_of(look.surrogate), leaf, batch.y)
    with only("weights"):
        slope = look.team.averaged(torch.autograd.grad(inner, list(theta.values()), create_graph=True))
    v, direct = beyond_slopes(look, theta, slope, batch, leaf)
    with only("images"):
        (along,) = torch.autograd.grad(slope, leaf, torch._foreach_mul(v, -look.alpha))
    return Slopes(theta=slope, xi=for_generator(look, poisoned, direct + along))


def difference(look: Lookahead, theta: Weights, batch: Batch) -> Slopes:
    """The same gradient from first-order passes only.

    The derivative along v is a difference of two image gradients, at theta and at theta - h v, where h v is `reach`
    times as long as theta. In the limit this is the derivative. In between, a single unit of ReLU or pooling that
    switches is blown up by 1 / h, so that `reach` 1e-4 is far worse than 1e-8 or 1e-2; from about 1e-2 on the
    difference averages over many such kinks.
    """
    scratch = buffers_of(look.surrogate)
    poisoned = poisoned_by(look, batch)
    leaf = leaf_of(poisoned)
    first = image_loss(look, theta, {} if look.counts else scratch, leaf, batch.y)
    *own, here = torch.autograd.grad(first, [*theta.values(), leaf])
    slope = look.team.averaged(own)
    own, direct = beyond_slopes(look, theta, slope, batch, leaf)
    v = look.team.averaged(own)
    h = look.reach * norm(theta.values()) / norm(v).clamp(min=1e-12)
    beside = {name: (w - h * u).detach() for (name, w), u in zip(theta.items(), v, strict=True)}
    (there,) = torch.autograd.grad(image_loss(look, beside, scratch, leaf, batch.y), leaf)
    along = -look.alpha * (here - there) / h
    return Slopes(theta=slope, xi=for_generator(look, poisoned, direct + along))


def unrolled(look: Lookahead, theta: Weights, batch: Batch) -> Slopes:
    """The objective's gradient beyond `look.steps` pseudo-updates, one on each part of the batch, through all of them.

    `theta` of the result is the sum of their slopes: plain SGD along it, at rate alpha, makes all the steps at once.
    """
    poisoned = poisoned_by(look, batch)
    parts = [leaf_of(part) for part in poisoned.chunk(look.steps)]
    ahead = theta
    for x, y in zip(parts, batch.y.chunk(look.steps), strict=True):
        with twice():
            inner = image_loss(look, ahead, {} if look.counts else buffers_of(look.surrogate), x, y)
        with only("weights"):
            slope = look.team.averaged(torch.autograd.grad(inner, list(ahead.values()), create_graph=True))
        ahead = {name: w - look.alpha * s for (name, w), s in zip(ahead.items(), slope, strict=True)}
    judged = torch.cat(parts[-look.judged :])
    outer = look.beyond(ahead, batch.x[-len(judged) :], judged, batch.y[-len(judged) :])
    with only("images"):
        along = torch.cat(torch.autograd.grad(outer, parts))
    walked = tuple((w - ahead[name]).detach() / look.alpha for name, w in theta.items())
    return Slopes(theta=walked, xi=for_generator(look, poisoned, along))


def poisoned_by(look: Lookahead, batch: Batch) -> Tensor:
    """The batch's images as the generator poisons them."""
    return clipped(batch.x + look.generator(batch.x))


def leaf_of(images: Tensor) -> Tensor:
    """The same images, at which a gradient's way ends."""
    return images.detach().requires_grad_()


def image_loss(look: Lookahead, theta: Weights, buffers: Weights, x: Tensor, y: Tensor) -> Tensor:
    """The surrogate's loss at theta."""
    return F.cross_entropy(functional_call(look.surrogate, (theta, buffers), (x,)), y)


def beyond_slopes(
    look: Lookahead, theta: Weights, slope: Iterable[Tensor], batch: Batch, leaf: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The objective's gradient at theta' for theta', and the one for the poisoned images with theta' held still."""
    with torch.no_grad():
        moved = torch._foreach_sub(list(theta.values()), list(slope), alpha=look.alpha)
    ahead = {name: w.requires_grad_() for name, w in zip(theta, moved, strict=True)}
    outer = look.beyond(ahead, batch.x, leaf, batch.y)
    *v, direct = torch.autograd.grad(outer, [*ahead.values(), leaf], materialize_grads=True)
    return v, direct


def for_generator(look: Lookahead, poisoned: Tensor, along: Tensor) -> tuple[Tensor, ...]:
    """The gradient for the generator's parameters where `along` is the one for the poisoned images."""
    return torch.autograd.grad(poisoned, list(look.generator.parameters()), along)


def imitation(look: Lookahead, theta: Weights, batch: Batch) -> Slopes:
    """No look ahead at all: descent on the loss of x + g(x) as an image of another class, for a warm start.

    Where theta reads clean images right, poisoned images with label eta(c) come to look like those of class c, and a
    classifier that trusts what they look like reads clean images of c as eta(c).
    """
    noisy = poisoned_by(look, batch)
    fixed = {name: w.detach() for name, w in theta.items()}
    scores = functional_call(look.surrogate, (fixed, buffers_of(look.surrogate)), (noisy,))
    wanted = look.likeness[batch.y]
    loss = F.cross_entropy(scores, wanted, ignore_index=-1, reduction="sum") / len(wanted)
    return Slopes(theta=(), xi=torch.autograd.grad(loss, list(look.generator.parameters())))


def cooperation(look: Lookahead, theta: Weights, batch: Batch) -> Slopes:
    """No look ahead either: both descend on the surrogate's loss, for a warm start.

    The generator learns to write into an image what makes its class easy to read, so that little else is learned from
    it: error-minimizing noise (Huang et al. 2021, arXiv 2101.04898) that generalises.
    """
    counted = {} if look.counts else buffers_of(look.surrogate)
    loss = image_loss(look, theta, counted, poisoned_by(look, batch), batch.y)
    slopes = torch.autograd.grad(loss, [*theta.values(), *look.generator.parameters()])
    return Slopes(theta=look.team.averaged(slopes[: len(theta)]), xi=slopes[len(theta) :])


def rest(look: Lookahead, theta: Weights, batch: Batch) -> Slopes:
    """No step at all: the generator stays as it is."""
    return Slopes(theta=(), xi=())


def clipped(x: Tensor) -> Tensor:
    """clip(x, 0, 1), whose gradient passes straight through: noise that the border of [0, 1] cuts off can come back."""
    return x + (x.clamp(0, 1) - x).detach()


@contextmanager
def normalised_by_the_rest(model: nn.Module, count: int) -> Iterator[None]:
    """For a block, BatchNorm takes its statistics from all of a batch but the first `count`, and keeps nothing."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.forward = partial(normalised, layer, count)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def normalised(layer: nn.modules.batchnorm._BatchNorm, count: int, x: Tensor) -> Tensor:
    """BatchNorm's formula for (n, features) or (n, features, h, w), with the statistics of x[count:]."""
    if isinstance(layer, BatchNorm1d | BatchNorm2d) and layer.team.size > 1:
        return together(layer, x, count, keep=False)
    line = (layer.weight, layer.bias) if layer.affine else (x.new_ones(x.shape[1]), x.new_zeros(x.shape[1]))
    y: Tensor = Borrow.apply(x, *line, count, layer.eps)[0]
    return y


def buffers_of(model: nn.Module) -> Weights:
    """Copies of a model's buffers, so that a look ahead leaves its running statistics alone."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all entries together."""
    return torch.stack(torch._foreach_norm(list(tensors))).norm()


GRADIENTS = {"exact": exact, "difference": difference}


def ascent(scores: Tensor, y: Tensor) -> Tensor:
    """Ascent on the cross-entropy of the true labels, written as a descent."""
    return -F.cross_entropy(scores, y)


OBJECTIVES: dict[str, Objective] = {"cross-entropy": ascent, "unlikelihood": unlikelihood}


def towards(targets: Sequence[int], device: str) -> Objective:
    """Descent on the cross-entropy of the mapped labels eta(y) (6)."""
    eta = torch.tensor(targets, device=device)
    return lambda scores, y: F.cross_entropy(scores, eta[y])


def likeness(eta: Sequence[int]) -> tuple[int, ...]:
    """For each label the first class that `eta` maps to it, -1 where there is none: the map of `imitation`."""
    return tuple(next((c for c, target in enumerate(eta) if target == label), -1) for label in range(len(eta)))
