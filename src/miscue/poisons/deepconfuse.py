"""DeepConfuse: training-time adversarial data from an auto-encoder (Feng, Cai, Zhou 2019, arXiv 1905.09027).

A generator g_xi adds noise within eps to the training images so that a classifier trained on them fails on clean ones:

    max_xi  L(f_theta*(x), y)   with   theta* = argmin_theta L(f_theta(clip(x + g_xi(x))), y)               (4)

The argmin is relaxed to single steps of a surrogate's training (5); looking one such step ahead gives

    theta' = theta - alpha * grad_theta L(f_theta(x + g_xi(x)), y)      the pseudo-update
    xi    <- xi + alpha_g * grad_xi L(f_theta'(x), y)                   ascent through theta', second order

`algorithm` chooses between Algorithm 1 (store the trajectory, then ascend along it) and Algorithm 2 (ascend a copy xi'
while the surrogate trains on data poisoned by the frozen xi). With a label map eta the ascent becomes descent on
L(f_theta'(x), eta(y)) (6).

Where we differ from the text: clipping passes gradients straight through, and, each an option, the pseudo-update's rate
alpha is separate from the surrogate's own training rate; a trial may be shorter than a pass over the data; several
surrogates of different ages may be watched side by side, each step following the mean of their gradients; the generator
may start warm and its rate fall; in online trials nothing is frozen, the surrogate trains on what xi' makes at that
step; there the look ahead may be unrolled over several steps of the surrogate, which shows how one leads to the next;
the mean of the latest weights may be released; the look ahead may be a victim's in eval mode, as a label map needs it;
`objective="unlikelihood"` descends on -log(1 - p_y); `gradient="difference"` replaces the exact mixed derivative by a
finite difference of first-order gradients. The defaults are the paper's settings for MNIST. The frozen generator runs
in eval mode: the surrogate trains on exactly what would be released, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from miscue.balls import levels
from miscue.data import Batch, Data, batches, parted
from miscue.errors import InputError, lookup, not_negative, positive
from miscue.labels import checked_map
from miscue.lanes import lanes, one_by_one
from miscue.measures.accuracy import predictions
from miscue.models.networks import NETWORKS, device_of, joined, placed
from miscue.models.store import Plan, build
from miscue.optimizers import descend
from miscue.poisons.crafting import Attacker, Checkpoint, Poison, Preset, Progress, packed, unpacked
from miscue.poisons.lookahead import (
    GRADIENTS,
    OBJECTIVES,
    Lookahead,
    Weights,
    cooperation,
    imitation,
    likeness,
    rest,
    towards,
    unrolled,
)
from miscue.poisons.shared import shared
from miscue.poisons.watching import Generators, Gradient, Watched, life, make_generators
from miscue.team import Team
from miscue.train import SCHEDULES, Recipe, Shown, share, training

Ahead = Callable[[Weights, Batch], tuple[Tensor, ...]]
"""(theta, batch) -> the slope of the surrogate's loss on the batch as xi' poisons it, once xi' knows its own."""


def poisoned(frozen: nn.Module, batch: Batch) -> Batch:
    """The batch under the frozen generator xi."""
    with torch.no_grad():
        return replace(batch, x=(batch.x + frozen(batch.x)).clamp(0, 1))


def algorithm_1(
    surrogate: nn.Module, stream: Iterable[Batch], optimizer: Optimizer, shown: Shown, ahead: Ahead
) -> Iterator[None]:
    """One trial of Algorithm 1: train the surrogate and store its trajectory, then ascend along it."""
    trajectory: list[tuple[Weights, Batch]] = []

    def recorded() -> Iterator[Batch]:
        for batch in stream:
            theta = {name: w.detach().clone().requires_grad_() for name, w in surrogate.named_parameters()}
            trajectory.append((theta, batch))
            yield shown(batch)

    for _ in training(surrogate, recorded(), optimizer=optimizer):
        pass
    for theta, batch in trajectory:
        ahead(theta, batch)
        yield


def algorithm_2(
    surrogate: nn.Module, stream: Iterable[Batch], optimizer: Optimizer, shown: Shown, ahead: Ahead
) -> Iterator[None]:
    """One trial of Algorithm 2: ascend xi' at theta_i just before the surrogate's step i; nothing is stored."""

    def watched() -> Iterator[Batch]:
        for batch in stream:
            ahead(dict(surrogate.named_parameters()), batch)
            yield shown(batch)

    for _ in training(surrogate, watched(), optimizer=optimizer):
        yield


def online(
    surrogate: nn.Module, stream: Iterable[Batch], optimizer: Optimizer, shown: Shown, ahead: Ahead
) -> Iterator[None]:
    """One trial in which the surrogate's own step goes down the slope of the pseudo-update; nothing is frozen."""
    for batch in stream:
        descend(optimizer, surrogate.parameters(), ahead(dict(surrogate.named_parameters()), batch))
        yield


ALGORITHMS = {"1": algorithm_1, "2": algorithm_2}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A kind of trial.

    walk: how it goes; gradient: the one that xi' follows; clean: whether the surrogate learns clean images;
    unroll: steps of the surrogate that one step of the walk takes in.
    """

    walk: Callable[..., Iterator[None]]
    gradient: Gradient
    clean: bool = False
    unroll: int = 1


WARM_UPS = {
    "imitation": Phase(walk=algorithm_2, gradient=imitation, clean=True),
    "cooperation": Phase(walk=online, gradient=cooperation),
}
REHEARSAL = Phase(walk=algorithm_2, gradient=rest)  # shows what the last generator does


@Poison
@shared
def deepconfuse(
    data: Data,
    attacker: Attacker,
    *,
    eps: float = 0.3,
    trials: int = 500,
    steps: int = 0,
    pool: int = 1,
    generator: str = "encoder-decoder",
    generator_lr: float = 1e-4,
    generator_schedule: str = "constant",
    generator_mean: float = 0.0,
    alpha: float = 0.01,
    warm_up: int = 0,
    warm_up_by: str = "imitation",
    warm_up_surrogates: str = "",
    online_trials: int = 0,
    unroll: int = 1,
    beyond: int = 0,
    label_map: tuple[int, ...] | None = None,
    objective: str = "cross-entropy",
    gradient: str = "exact",
    reach: float = 0.02,
    lookahead: str = "training",
    algorithm: str = "2",
    held_out: float = 0.1,
    patience: int = 0,
    processes: int = 1,
    resume: dict[str, Tensor] | None = None,
) -> Iterator[Progress]:
    """Craft a generator of training-time noise by watching surrogates learn.

    Args:
        data: the clean training images. Test data has no place here.
        attacker: the surrogate's network, its recipe (rate, batch size, passes a trial), dice, device.
        eps: L-infinity budget on the [0, 1] scale.
        trials: surrogates watched, one after another, each from fresh weights.
        steps: surrogate steps a trial; 0 means the recipe's passes over the data.
        pool: surrogates watched side by side, on as many threads as there are, each as long as `steps` but at
            different ages; whenever one leaves, a trial ends and a fresh one comes in.
        generator: "encoder-decoder", "unet", "unet-wide" (twice the channels), or "unet-coarse", for large images (on
            averages of at most 56 x 56 pixels, its noise enlarged): the keys of GENERATORS.
        generator_lr: Adam's rate for the generator.
        generator_schedule: "constant", or "cosine" (the generator's rate falls to 0 over the trials).
        generator_mean: decay a step, below 1, of the running mean of the generator's weights, which is what is frozen
            and released; 0 takes the weights as they are.
        alpha: rate of the pseudo-update.
        warm_up: trials before others that make the generator start warm.
        warm_up_by: "imitation": it learns to make a surrogate that learns clean images take the images of each class
            for those of the class that the label map sends there (y - 1 where there is none); or "cooperation": it
            makes the images' own classes easy to read for a surrogate that learns from them.
        warm_up_surrogates: networks that take turns in them, with commas between; the attacker's if there is none.
        online_trials: trials after the warm start and before `trials` in which nothing is frozen: the surrogate trains
            on what the ascending generator makes.
        unroll: steps that a look ahead in online trials takes in. From 2 on they are the surrogate's own, at its own
            rate instead of alpha, and the generator takes one step for all of them.
        beyond: on the images of how many of these steps, the latest ones, the loss beyond them is taken; 0 for all.
        label_map: the class that clean images of each class are to be read as; none for any wrong class.
        objective: "cross-entropy" (ascent) or "unlikelihood" (descent on -log(1 - p)); unused with a label map.
        gradient: "exact", or "difference" (first order only, faster).
        reach: how far "difference" looks along the objective's slope, as a share of the surrogate's norm.
        lookahead: the mode of BatchNorm in the loss beyond the pseudo-update: "training" normalises clean images by
            their own batch, as the authors' code does, "eval" by the poisoned batch, as a victim in use will.
        algorithm: "1" stores each trial's trajectory and ascends along it, "2" ascends alongside.
        held_out: share of the training data kept aside to measure the damage after each trial.
        patience: stop after this many trials without new damage on held-out data; 0 never stops early.
        processes: that share each batch, on a GPU each where there are so many; what they make is what one makes, but
            for rounding. The batch size must be a multiple of it.
        resume: the state of a checkpoint of a run with the same data, attacker and options.

    Yields:
        one Progress a step. Each trial ends in a checkpoint whose perturbation did the most damage so far, judged by
        what the trial's surrogate, trained under the frozen generator, makes of held-out clean training images. One
        more trial without ascent measures what the last one made.

    Raises:
        InputError: an unknown name, a number out of range, a label map that is none.
    """
    if not levels(eps):
        raise InputError(f"eps {eps:g} is less than one grey level, 1/255 = 0.0039: no image could change")
    not_negative(trials=trials, steps=steps, warm_up=warm_up, online_trials=online_trials)
    not_negative(beyond=beyond, patience=patience)
    positive(pool=pool, generator_lr=generator_lr, alpha=alpha, reach=reach)
    if not trials + warm_up + online_trials:
        raise InputError("trials, warm_up and online_trials must not all be 0")
    if not 0 <= generator_mean < 1:
        raise InputError(f"generator_mean must lie in [0, 1), got {generator_mean:g}")
    if algorithm == "1" and pool > 1:
        raise InputError("algorithm 1 watches one surrogate at a time; choose 2 for a pool")
    lookup(dict.fromkeys(SCHEDULES), generator_schedule, "schedule")
    warm = lookup(WARM_UPS, warm_up_by, "warm start")
    lookup(dict.fromkeys(("training", "eval")), lookahead, "mode of the look ahead")
    follow = lookup(GRADIENTS, gradient, "gradient")
    main = Phase(walk=lookup(ALGORITHMS, algorithm, "algorithm"), gradient=follow)
    recipe = attacker.recipe
    unfrozen = Phase(walk=online, gradient=follow if unroll == 1 else unrolled, unroll=unroll)
    if unroll > 1 and (
        gradient != "exact" or (recipe.optimizer, recipe.momentum, recipe.weight_decay) != ("sgd", 0, 0)
    ):
        raise InputError("unroll looks ahead over steps of plain SGD by the exact gradient; choose those")
    unheeded = recipe.unusual.keys() & {"schedule", "precision", "shift", "scenes", "holes"}
    if unheeded:
        raise InputError(f"surrogates are watched without the recipe's {', '.join(sorted(unheeded))}; leave it out")
    drive = lookup(OBJECTIVES, objective, "objective")
    networks = [name.strip() for name in (warm_up_surrogates or attacker.surrogate).split(",")]
    for name in (attacker.surrogate, *networks):
        lookup(NETWORKS, name, "network")
    classes = len(data.classes)
    eta = tuple((y + 1) % classes for y in range(classes)) if label_map is None else checked_map(label_map, classes)
    if label_map is not None:
        drive = towards(eta, attacker.device)

    learned, kept = parted(data, held_out, attacker.dice)
    if not len(kept):
        raise InputError(f"a share of {held_out:g} is not one image of any class; raise held_out")
    data, team = data.near(attacker.device), attacker.team
    on_cpu = torch.device(attacker.device).type == "cpu"  # a GPU's library plans its convolutions anew in each thread
    walked = lanes if team.size == 1 and on_cpu else one_by_one  # a team meets in one place at a time
    per_pass = max(1, len(learned) // recipe.batch_size)
    course = Course(
        phases=(*[warm] * warm_up, *[unfrozen] * online_trials, *[main] * trials, REHEARSAL),
        steps=max(1, (steps or recipe.epochs * per_pass) // pool),
        pool=pool,
    )
    if not 1 <= unroll <= course.steps:
        raise InputError(f"unroll must lie between 1 and a surrogate's steps in a trial, {course.steps}, got {unroll}")
    plan = Plan(name=generator, shape=data.shape, options={"eps": eps})
    pair = make_generators(plan, attacker, lr=generator_lr, decay=generator_mean)
    pair.load(resume or {})
    look = partial(
        Lookahead,
        objective=drive,
        likeness=torch.tensor(likeness(eta), device=attacker.device),
        reach=reach,
        eval_mode=lookahead == "eval",
        judged=beyond,
        team=team,
    )

    def enter(slot: int, trial: int) -> Watched:
        own = networks if course.phases[trial] is warm else [attacker.surrogate]
        return entered(slot, course, trial, own, pair, look, data, learned, attacker, alpha=alpha)

    watched: dict[int, Watched] = {}
    for trial, phase in enumerate(course.phases[pair.trial :], start=pair.trial):
        if patience and pair.age >= patience:
            return
        slots = range(course.size(trial))
        for slot in slots:
            if slot not in watched:
                watched[slot] = enter(slot, trial)
                watched[slot].load(unpacked(resume or {}, f"watched {slot}"))
        resume = None
        pair.adam.param_groups[0]["lr"] = generator_lr * share(generator_schedule, trial / len(course.phases))
        side_by_side = [watched[slot] for slot in slots]
        for turn in range(1, course.turns(trial) + 1):
            walked(Watched.step, side_by_side)
            pair.ascend(side_by_side)
            yield Progress(done=course.done(trial) + turn * len(slots) * phase.unroll, total=course.total)
        if phase.walk is online:
            pair.release()  # it was xi' that the surrogate learned from
        leaving = watched.pop(course.age(trial) % len(slots)).look.surrogate
        if course.ends(trial):
            watched.clear()
        grown = course.age(trial) >= len(slots) - 1
        measures = damage(leaving, data, kept, label_map, team) if grown and phase is not warm else {}
        pair.judge(measures.get("damage"))
        pair.release()
        state = pair.state() | packed(**{f"watched {slot}": one.state() for slot, one in watched.items()})
        checkpoint = Checkpoint(perturbation=pair.perturbation(eps), measures=measures, state=state)
        yield Progress(done=course.done(trial + 1), total=course.total, checkpoint=checkpoint)


@dataclass(frozen=True, kw_only=True)
class Course:
    """The trials of a run.

    phases: the kind of each trial; trials of a kind follow one another. steps: of one surrogate in a trial.
    pool: surrogates side by side.
    """

    phases: tuple[Phase, ...]
    steps: int
    pool: int

    @property
    def total(self) -> int:
        """Steps of all trials."""
        return self.done(len(self.phases))

    def done(self, trial: int) -> int:
        """Steps of all surrogates before a trial."""
        return trial * self.steps * self.pool

    def age(self, trial: int) -> int:
        """How many trials of its kind are over."""
        return trial - self.phases.index(self.phases[trial])

    def size(self, trial: int) -> int:
        """Surrogates side by side in a trial."""
        return 1 if self.phases[trial] is REHEARSAL else self.pool

    def turns(self, trial: int) -> int:
        """Steps of each of their walks in it."""
        return self.steps * self.pool // self.size(trial) // self.phases[trial].unroll

    def ends(self, trial: int) -> bool:
        """Whether it is the last of its kind."""
        return self.phases[trial + 1 : trial + 2] != self.phases[trial : trial + 1]


def entered(
    slot: int,
    course: Course,
    trial: int,
    networks: Sequence[str],
    pair: Generators,
    look: Callable[..., Lookahead],
    data: Data,
    learned: Tensor,
    attacker: Attacker,
    *,
    alpha: float,
) -> Watched:
    """The surrogate in `slot` as it is at the start of a trial, except that it is untrained.

    networks: that take turns; learned: index of the images that it learns from.
    """
    phase, recipe, team = course.phases[trial], attacker.recipe, attacker.team
    born, stays, over = life(slot, course.age(trial), course.size(trial))
    dice = attacker.dice.named("trial", trial - course.age(trial) + born, slot)
    network = networks[(slot + born // course.pool) % len(networks)]
    plan = Plan(name=network, shape=data.shape, options={"classes": len(data.classes)})
    surrogate = placed(joined(build(plan, dice), team), attacker.device).train()
    optimizer = recipe.make_optimizer(surrogate)
    if phase.walk is not online:  # there the slopes are the team's already
        team.join(optimizer)
    each, images = course.turns(trial), recipe.batch_size * phase.unroll
    stream = batches(
        data,
        size=images,
        epochs=-(-stays * each // max(1, len(learned) // images)),
        dice=dice,
        channels_last=True,
        among=learned,
        device=attacker.device,
        team=team,
    )
    one = Watched(
        look=look(
            surrogate=surrogate,
            generator=pair.replica(),
            alpha=recipe.lr if phase.unroll > 1 else alpha,
            counts=phase.walk is online,
            steps=phase.unroll,
        ),
        gradient=phase.gradient,
        optimizer=optimizer,
    )
    shown = clean if phase.clean else partial(poisoned, pair.frozen)
    one.walk = phase.walk(surrogate, islice(stream, over * each, stays * each), optimizer, shown, one.ahead)
    return one


def clean(batch: Batch) -> Batch:
    """The batch as it is."""
    return batch


def damage(
    surrogate: nn.Module, data: Data, kept: Tensor, label_map: Sequence[int] | None, team: Team, *, chunk: int = 200
) -> dict[str, float]:
    """What a surrogate trained on poisoned images makes of clean held-out ones, those with index `kept`, in percent.

    "damage" is the hit rate of the label map where there is one, else the error. Each process of a team looks at its
    share of them.
    """
    index = kept[team.rank :: team.size].to(data.images.device)
    predicted = torch.cat([predictions(surrogate.eval(), data.images[part]) for part in index.split(chunk)])
    labels = data.labels[index].cpu()
    wanted = labels if label_map is None else torch.tensor(label_map)[labels]
    counts = torch.stack([(predicted == labels).sum(), (predicted == wanted).sum()]).double()
    accuracy, hits = (100 * (team.total(counts.to(device_of(surrogate))) / len(kept))).tolist()
    if label_map is None:
        return {"held_out_accuracy": accuracy, "damage": 100 - accuracy}
    return {"held_out_accuracy": accuracy, "held_out_hit_rate": hits, "damage": hits}


FAST = Preset(
    summary="a warm start, then short online trials with a larger pseudo-update, two surrogates at once; for MNIST",
    surrogate="cnn-released",
    recipe=Recipe(lr=0.01, epochs=1, batch_size=64),
    options={
        "trials": 0,
        "steps": 300,
        "pool": 2,
        "generator_lr": 1e-3,
        "generator_schedule": "cosine",
        "generator_mean": 0.99,
        "alpha": 0.3,
        "warm_up": 6,
        "warm_up_surrogates": "cnn-released,cnn",
        "online_trials": 32,
    },
)

PRESETS: dict[str, Preset] = {
    "paper": Preset(summary="the paper's settings for MNIST"),
    "paper-cifar10": Preset(
        summary="the paper's settings for CIFAR-10; for days of a GPU",
        surrogate="conv5",
        recipe=Recipe(lr=0.01, epochs=20, batch_size=64),
        options={"eps": 0.032, "generator": "unet"},
    ),
    "cifar10": Preset(
        summary="for CIFAR-10: a warm start by cooperation alone, with surrogates that live shortly; minutes on a GPU",
        surrogate="conv5",
        recipe=Recipe(lr=0.03, epochs=1, batch_size=128),
        options={
            "eps": 0.032,
            "trials": 0,
            "steps": 200,
            "generator": "unet-wide",
            "generator_lr": 2e-3,
            "generator_schedule": "cosine",
            "generator_mean": 0.99,
            "warm_up": 64,
            "warm_up_by": "cooperation",
            "warm_up_surrogates": "linear,conv5",
            "held_out": 0.02,
        },
    ),
    "paper-imagenet": Preset(
        summary="the paper's settings for two classes of ImageNet; for a GPU",
        surrogate="conv5",
        recipe=Recipe(lr=0.1, epochs=5, batch_size=32),
        options={"eps": 0.1, "alpha": 0.1},
    ),
    "imagenet": Preset(
        summary="for two classes of ImageNet: a warm start by imitation alone, on averages of 56 x 56 pixels",
        surrogate="conv5-coarse",
        recipe=Recipe(lr=0.02, epochs=1, batch_size=32),
        options={
            "eps": 0.1,
            "trials": 0,
            "steps": 180,
            "generator": "unet-coarse",
            "generator_lr": 2e-3,
            "generator_schedule": "cosine",
            "generator_mean": 0.98,
            "warm_up": 8,
            "held_out": 0.05,
        },
    ),
    "fast": FAST,
    "label-map": replace(
        FAST,
        summary="label map y+1: a longer warm start, faster surrogates, a look ahead over 8 steps in eval mode",
        recipe=replace(FAST.recipe, lr=0.1),
        options=FAST.options
        | {"label_map": "y+1", "lookahead": "eval", "unroll": 8, "beyond": 2}
        | {"generator_lr": 3e-3, "warm_up": 32, "online_trials": 24},
    ),
    "digits": Preset(
        summary="for scikit-learn's 8 x 8 digits, about a minute on two cores",
        surrogate="cnn-released",
        recipe=Recipe(lr=0.02, epochs=1, batch_size=32),
        options={"warm_up": 4, "trials": 10, "steps": 100, "generator_lr": 1e-3, "alpha": 0.1},
    ),
}
