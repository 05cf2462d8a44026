"""DeepConfuse: training-time adversarial data from an auto-encoder (Feng, Cai, Zhou 2019, arXiv 1905.09027).

A generator g_xi adds noise within eps to the training images so that a classifier trained on them fails on clean ones:

    max_xi  L(f_theta*(x), y)   with   theta* = argmin_theta L(f_theta(clip(x + g_xi(x))), y)               (4)

The argmin is relaxed to single steps of a surrogate's training (5); looking one such step ahead gives

    theta' = theta - alpha * grad_theta L(f_theta(x + g_xi(x)), y)      the pseudo-update
    xi    <- xi + alpha_g * grad_xi L(f_theta'(x), y)                   ascent through theta', second order

`algorithm` chooses between Algorithm 1 (store the trajectory, then ascend along it), Algorithm 2 (ascend a copy xi'
while the surrogate trains on data poisoned by the frozen xi), and "online", which is ours: nothing is frozen, the
surrogate trains on what xi' makes at that step, so that one gradient serves its own step and the pseudo-update. With a
label map eta the ascent becomes descent on L(f_theta'(x), eta(y)) (6).

Where we differ from the text: clipping passes gradients straight through, and, each an option, the pseudo-update's rate
alpha is separate from the surrogate's own training rate; a trial may be shorter than a pass over the data;
`objective="unlikelihood"` descends on -log(1 - p_y) instead of ascending on -log p_y; `gradient="difference"` replaces
the exact mixed derivative by a finite difference of first-order gradients. The defaults are the paper's settings for
MNIST. The frozen generator runs in eval mode: the surrogate trains on exactly what would be released, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from miscue.balls import levels
from miscue.data import Batch, Data, batches, hold_out
from miscue.errors import InputError, lookup
from miscue.labels import checked_map
from miscue.losses import unlikelihood
from miscue.measures.accuracy import hit_rate, percent, predictions
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.perturbation import Perturbation
from miscue.poisons.crafting import (
    Attacker,
    Checkpoint,
    Poison,
    Preset,
    Progress,
    optimizer_state,
    optimizer_tensors,
    packed,
    unpacked,
)
from miscue.train import Recipe, training

Weights = dict[str, Tensor]
Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Lookahead:
    """One look ahead: the networks and numbers of the pseudo-update and of the loss beyond it.

    objective: (scores of f_theta'(x), y) -> scalar that the generator *descends*.
    reach: how far `difference` moves theta, as a share of its norm.
    counts: whether the poisoned batch moves the surrogate's running statistics, as its own training step does.
    """

    surrogate: nn.Module
    generator: nn.Module
    alpha: float
    objective: Objective
    reach: float
    counts: bool


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """Two gradients: of the surrogate's loss on the poisoned batch at theta, and of the objective for the generator."""

    theta: tuple[Tensor, ...]
    xi: tuple[Tensor, ...]


def exact(look: Lookahead, theta: Weights, batch: Batch) -> Slopes:
    """The objective's gradient beyond the pseudo-update by double differentiation."""
    scratch = buffers_of(look.surrogate)
    poisoned = clipped(batch.x + look.generator(batch.x))
    inner = F.cross_entropy(
        functional_call(look.surrogate, (theta, {} if look.counts else scratch), (poisoned,)), batch.y
    )
    slope = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
    ahead = {name: w - look.alpha * s for (name, w), s in zip(theta.items(), slope, strict=True)}
    outer = look.objective(functional_call(look.surrogate, (ahead, scratch), (batch.x,)), batch.y)
    return Slopes(theta=slope, xi=torch.autograd.grad(outer, list(look.generator.parameters())))


def difference(look: Lookahead, theta: Weights, batch: Batch) -> Slopes:
    """The same gradient from first-order passes only.

    With v = grad of the objective at theta', the chain rule gives d objective / d x~ = -alpha * d/dx~ <grad_theta L, v>
    at the poisoned images x~. The derivative along v is a difference of two image gradients, at theta and at
    theta - h v, where h v is `reach` times as long as theta. In the limit this is the derivative. In between, a single
    unit of ReLU or pooling that switches is blown up by 1 / h, so that `reach` 1e-4 is far worse than 1e-8 or 1e-2;
    from about 1e-2 on the difference averages over many such kinks.
    """
    scratch = buffers_of(look.surrogate)
    poisoned = clipped(batch.x + look.generator(batch.x))
    leaf = poisoned.detach().requires_grad_()

    def image_loss(weights: Weights, buffers: Weights) -> Tensor:
        return F.cross_entropy(functional_call(look.surrogate, (weights, buffers), (leaf,)), batch.y)

    first = image_loss(theta, {} if look.counts else scratch)
    *slope, here = torch.autograd.grad(first, [*theta.values(), leaf])
    ahead = {
        name: (w - look.alpha * s).detach().requires_grad_() for (name, w), s in zip(theta.items(), slope, strict=True)
    }
    outer = look.objective(functional_call(look.surrogate, (ahead, scratch), (batch.x,)), batch.y)
    v = torch.autograd.grad(outer, list(ahead.values()))
    h = look.reach * norm(theta.values()) / norm(v).clamp(min=1e-12)
    beside = {name: (w - h * u).detach() for (name, w), u in zip(theta.items(), v, strict=True)}
    (there,) = torch.autograd.grad(image_loss(beside, scratch), leaf)
    along = -look.alpha * (here - there) / h
    return Slopes(theta=tuple(slope), xi=torch.autograd.grad(poisoned, list(look.generator.parameters()), along))


def clipped(x: Tensor) -> Tensor:
    """clip(x, 0, 1), whose gradient passes straight through: noise that the border of [0, 1] cuts off can come back."""
    return x + (x.clamp(0, 1) - x).detach()


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


Ascend = Callable[[Weights, Batch], tuple[Tensor, ...]]
"""(theta, batch) -> the slope of the surrogate's loss on the batch as xi' poisons it, once xi' has made its step."""


def poisoned(frozen: nn.Module, batch: Batch) -> Batch:
    """The batch as the surrogate sees it, under the frozen generator xi."""
    with torch.no_grad():
        return replace(batch, x=(batch.x + frozen(batch.x)).clamp(0, 1))


def algorithm_1(
    surrogate: nn.Module, frozen: nn.Module, stream: Iterable[Batch], recipe: Recipe, ascend: Ascend
) -> Iterator[None]:
    """One trial of Algorithm 1: train the surrogate and store its trajectory, then ascend along it."""
    trajectory: list[tuple[Weights, Batch]] = []

    def recorded() -> Iterator[Batch]:
        for batch in stream:
            theta = {name: w.detach().clone().requires_grad_() for name, w in surrogate.named_parameters()}
            trajectory.append((theta, batch))
            yield poisoned(frozen, batch)

    for _ in training(surrogate, recorded(), optimizer=recipe.make_optimizer(surrogate)):
        pass
    for theta, batch in trajectory:
        ascend(theta, batch)
        yield


def algorithm_2(
    surrogate: nn.Module, frozen: nn.Module, stream: Iterable[Batch], recipe: Recipe, ascend: Ascend
) -> Iterator[None]:
    """One trial of Algorithm 2: ascend xi' at theta_i just before the surrogate's step i; nothing is stored."""

    def watched() -> Iterator[Batch]:
        for batch in stream:
            ascend(dict(surrogate.named_parameters()), batch)
            yield poisoned(frozen, batch)

    for _ in training(surrogate, watched(), optimizer=recipe.make_optimizer(surrogate)):
        yield


def online(
    surrogate: nn.Module, frozen: nn.Module, stream: Iterable[Batch], recipe: Recipe, ascend: Ascend
) -> Iterator[None]:
    """One trial in which the surrogate's own step goes down the slope of the pseudo-update; `frozen` is not used."""
    optimizer = recipe.make_optimizer(surrogate)
    for batch in stream:
        slopes = ascend(dict(surrogate.named_parameters()), batch)
        for parameter, slope in zip(surrogate.parameters(), slopes, strict=True):
            parameter.grad = slope.detach()
        optimizer.step()
        yield


def rehearsal(
    surrogate: nn.Module, frozen: nn.Module, stream: Iterable[Batch], recipe: Recipe, ascend: Ascend
) -> Iterator[None]:
    """One trial without ascent, which shows what the frozen generator does."""
    for _ in training(surrogate, (poisoned(frozen, b) for b in stream), optimizer=recipe.make_optimizer(surrogate)):
        yield


ALGORITHMS = {"1": algorithm_1, "2": algorithm_2, "online": online}


@dataclass(kw_only=True)
class Generators:
    """The two generators of the paper, the optimiser of the second, and the best weights so far."""

    plan: Plan
    frozen: nn.Module  # xi
    copy: nn.Module  # xi'
    adam: torch.optim.Adam
    best: Weights
    damage: float = -1.0
    age: int = 0
    trial: int = 0

    def judge(self, damage: float) -> None:
        """Keep the frozen generator if it did more damage than any before."""
        self.age += 1
        if damage > self.damage:
            self.best, self.damage, self.age = weights_of(self.frozen), damage, 0

    def state(self) -> dict[str, Tensor]:
        """All that resuming after this trial needs."""
        numbers = torch.tensor([self.damage, self.age, self.trial], dtype=torch.float64)
        return packed(
            generator=self.copy.state_dict(),
            best=self.best,
            adam=optimizer_tensors(self.adam.state_dict()),
            run={"numbers": numbers},
        )

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self.frozen.load_state_dict(unpacked(state, "generator"))
        self.copy.load_state_dict(unpacked(state, "generator"))
        self.adam.load_state_dict(optimizer_state(self.adam.state_dict(), unpacked(state, "adam")))
        self.best = unpacked(state, "best")
        self.damage, age, trial = unpacked(state, "run")["numbers"].tolist()
        self.age, self.trial = int(age), int(trial)

    def perturbation(self, eps: float) -> Perturbation:
        """The best generator as a perturbation of its own."""
        generator = deepcopy(self.frozen)
        generator.load_state_dict(self.best)
        return Perturbation(generator=generator.eval(), plan=self.plan, eps=eps)


def weights_of(model: nn.Module) -> Weights:
    """A copy of a model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def make_generators(plan: Plan, attacker: Attacker, *, lr: float) -> Generators:
    """xi drawn from the attacker's dice, and xi' equal to it."""
    frozen = build(plan, attacker.dice.named("generator"))
    placed(frozen, attacker.device).eval()
    copy = deepcopy(frozen).train()
    adam = torch.optim.Adam(copy.parameters(), lr)
    return Generators(plan=plan, frozen=frozen, copy=copy, adam=adam, best=weights_of(frozen))


@Poison
def deepconfuse(
    data: Data,
    attacker: Attacker,
    *,
    eps: float = 0.3,
    trials: int = 500,
    steps: int = 0,
    generator: str = "encoder-decoder",
    generator_lr: float = 1e-4,
    alpha: float = 0.01,
    label_map: tuple[int, ...] | None = None,
    objective: str = "cross-entropy",
    gradient: str = "exact",
    reach: float = 0.02,
    algorithm: str = "2",
    held_out: float = 0.1,
    patience: int = 0,
    resume: dict[str, Tensor] | None = None,
) -> Iterator[Progress]:
    """Craft a generator of training-time noise by watching surrogates learn.

    Args:
        data: the clean training images. Test data has no place here.
        attacker: the surrogate's network, its recipe (rate, batch size, passes a trial), dice, device.
        eps: L-infinity budget on the [0, 1] scale.
        trials: surrogates watched, one after another, each from fresh weights.
        steps: surrogate steps a trial; 0 means the recipe's passes over the data.
        generator: a key of GENERATORS.
        generator_lr: Adam's rate for the generator.
        alpha: rate of the pseudo-update.
        label_map: the class that clean images of each class are to be read as; none for any wrong class.
        objective: "cross-entropy" (ascent) or "unlikelihood" (descent on -log(1 - p)); unused with a label map.
        gradient: "exact", or "difference" (first order only, faster).
        reach: how far "difference" looks along the objective's slope, as a share of the surrogate's norm.
        algorithm: "1" stores each trial's trajectory and ascends along it, "2" ascends alongside, "online" lets the
            surrogate train on what the ascending generator makes, at three quarters of the cost.
        held_out: share of the training data kept aside to measure the damage after each trial.
        patience: stop after this many trials without new damage on held-out data; 0 never stops early.
        resume: the state of a checkpoint of a run with the same data, attacker and options.

    Yields:
        one Progress a step. Each trial ends in a checkpoint whose perturbation did the most damage so far, judged by
        what the trial's surrogate, trained under the frozen generator, makes of held-out clean training images. One
        more trial without ascent measures what the last one made.

    Raises:
        InputError: an unknown name, a number out of range, a label map that is none.
    """
    levels(eps)
    if trials < 1 or steps < 0 or patience < 0 or not min(generator_lr, alpha, reach) > 0:
        raise InputError("trials, generator_lr, alpha and reach must be positive, steps and patience not negative")
    gradient_at = lookup(GRADIENTS, gradient, "gradient")
    watch = lookup(ALGORITHMS, algorithm, "algorithm")
    drive = lookup(OBJECTIVES, objective, "objective")
    if label_map is not None:
        drive = towards(checked_map(label_map, len(data.classes)), attacker.device)

    train, kept = (part.to(attacker.device) for part in hold_out(data, held_out, attacker.dice))
    recipe = attacker.recipe
    per_pass = max(1, len(train) // recipe.batch_size)
    per_trial = steps or recipe.epochs * per_pass
    total = (trials + 1) * per_trial
    plan = Plan(name=generator, shape=data.shape, options={"eps": eps})
    pair = make_generators(plan, attacker, lr=generator_lr)
    if resume is not None:
        pair.load(resume)

    while pair.trial <= trials:
        dice = attacker.dice.named("trial", pair.trial)
        network = Plan(name=attacker.surrogate, shape=data.shape, options={"classes": len(data.classes)})
        surrogate = placed(build(network, dice), attacker.device).train()
        look = Lookahead(
            surrogate=surrogate,
            generator=pair.copy,
            alpha=alpha,
            objective=drive,
            reach=reach,
            counts=watch is online,
        )

        def ascend(theta: Weights, batch: Batch, look: Lookahead = look) -> tuple[Tensor, ...]:
            slopes = gradient_at(look, theta, batch)
            for parameter, slope in zip(pair.copy.parameters(), slopes.xi, strict=True):
                parameter.grad = slope
            pair.adam.step()
            return slopes.theta

        passes = -(-per_trial // per_pass)
        stream = batches(train, size=recipe.batch_size, epochs=passes, dice=dice, channels_last=True)
        walk = watch if pair.trial < trials else rehearsal
        for step, _ in enumerate(walk(surrogate, pair.frozen, islice(stream, per_trial), recipe, ascend)):
            yield Progress(done=pair.trial * per_trial + step + 1, total=total)
        measures = damage(surrogate, kept, label_map)
        if watch is online:
            pair.frozen.load_state_dict(pair.copy.state_dict())  # it was xi' that the surrogate learned from
        pair.judge(measures["damage"])
        pair.frozen.load_state_dict(pair.copy.state_dict())  # xi <- xi'
        pair.trial += 1
        checkpoint = Checkpoint(perturbation=pair.perturbation(eps), measures=measures, state=pair.state())
        yield Progress(done=pair.trial * per_trial, total=total, checkpoint=checkpoint)
        if patience and pair.age >= patience:
            return


def damage(surrogate: nn.Module, kept: Data, label_map: Sequence[int] | None) -> dict[str, float]:
    """What a surrogate trained on poisoned images makes of clean held-out training images, in percent.

    "damage" is the hit rate of the label map where there is one, else the error.
    """
    predicted = predictions(surrogate.eval(), kept.images)
    labels = kept.labels.cpu()
    accuracy = percent(predicted == labels)
    if label_map is None:
        return {"held_out_accuracy": accuracy, "damage": 100 - accuracy}
    hits = hit_rate(predicted, labels, label_map)
    return {"held_out_accuracy": accuracy, "held_out_hit_rate": hits, "damage": hits}


PRESETS: dict[str, Preset] = {
    "paper": Preset(summary="the paper's settings for MNIST"),
    "fast": Preset(
        summary="shorter trials and a larger pseudo-update; the search for it is not finished",
        surrogate="cnn-released",
        recipe=Recipe(lr=0.01, epochs=1, batch_size=64),
        options={"trials": 18, "steps": 300, "generator_lr": 1e-3, "alpha": 0.1},
    ),
    "digits": Preset(
        summary="for scikit-learn's 8 x 8 digits, about a minute on two cores",
        surrogate="cnn-released",
        recipe=Recipe(lr=0.02, epochs=1, batch_size=32),
        options={"trials": 14, "steps": 100, "generator_lr": 1e-3, "alpha": 0.1},
    ),
}
