"""DeepConfuse: the two algorithms, the two gradients, resuming, and that it does what it is for."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from conftest import striped
from miscue.balls import linf
from miscue.data import Batch, Data, floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.measures.accuracy import accuracy, percent, predictions
from miscue.models.store import Plan, build
from miscue.poisons import PRESETS, Attacker, deepconfuse
from miscue.poisons.lookahead import OBJECTIVES, Lookahead, Slopes, difference, exact, likeness, towards, unrolled
from miscue.poisons.watching import life, make_generators
from miscue.train import Recipe
from miscue.victims import Victim

QUICK = Attacker(surrogate="cnn-small", recipe=Recipe(lr=0.05, batch_size=24), dice=Dice(3))
OTHERWISE = {"likeness": torch.tensor([2, 0, 1]), "counts": False}
OPTIONS = {"trials": 2, "steps": 5, "alpha": 0.3, "generator_lr": 1e-3}


def last(steps: object) -> dict[str, Tensor]:
    """The state of the last checkpoint of a walk."""
    return [p.checkpoint.state for p in steps if p.checkpoint][-1]


@pytest.mark.parametrize("steps", [1, 6])
def test_algorithms_1_and_2_agree(data: Data, steps: int) -> None:
    """With one step a trial they are the same by definition; in fact xi' sees the same theta_i for any number."""
    one, two = (
        last(deepconfuse.steps(data, QUICK, **OPTIONS | {"steps": steps, "algorithm": name})) for name in ("1", "2")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def lookahead(objective: object, generator: str = "encoder-decoder") -> tuple[Lookahead, dict[str, Tensor], Batch]:
    data = striped(12, size=9)
    surrogate = build(Plan(name="cnn-plain", shape=data.shape, options={"classes": 3}), Dice(1)).double()
    noise = build(Plan(name=generator, shape=data.shape, options={"eps": 0.1, "channels": (4, 4)}), Dice(2)).double()
    x = 0.2 + 0.6 * floats(data.images).double()  # away from the borders, where clipping has a kink
    batch = Batch(x=x, y=data.labels, index=torch.arange(12))
    look = Lookahead(
        surrogate=surrogate,
        generator=noise,
        alpha=0.5,
        objective=objective,
        likeness=torch.tensor([2, 0, 1]),
        reach=1e-4,
        counts=False,
    )
    return look, dict(surrogate.named_parameters()), batch


def beyond(look: Lookahead, theta: dict[str, Tensor], batch: Batch) -> Tensor:
    """The objective at theta', by the formula and nothing else."""
    poisoned = (batch.x + look.generator(batch.x)).clamp(0, 1)
    inner = F.cross_entropy(functional_call(look.surrogate, theta, (poisoned,)), batch.y)
    slopes = torch.autograd.grad(inner, list(theta.values()))
    ahead = {k: w - look.alpha * s for (k, w), s in zip(theta.items(), slopes, strict=True)}
    return look.objective(functional_call(look.surrogate, ahead, (batch.x,)), batch.y).detach()


@pytest.mark.parametrize("objective", [*OBJECTIVES, "label map"])
@pytest.mark.parametrize("gradient", [exact, difference])
def test_pseudo_update_gradient_against_finite_differences(objective: str, gradient: object) -> None:
    drive = towards((1, 2, 0), "cpu") if objective == "label map" else OBJECTIVES[objective]
    look, theta, batch = lookahead(drive)
    slopes = gradient(replace(look, reach=1e-8), theta, batch).xi
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in look.generator.parameters()]
        h = 1e-8  # small enough that no kink of ReLU or pooling lies between
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                for p, d in zip(look.generator.parameters(), way, strict=True):
                    p.add_(d, alpha=sign * h)
            values.append(beyond(look, theta, batch))
        with torch.no_grad():
            for p, d in zip(look.generator.parameters(), way, strict=True):
                p.add_(d, alpha=h)
        measured = (values[0] - values[1]) / (2 * h)
        claimed = sum((s * d).sum() for s, d in zip(slopes, way, strict=True))
        assert torch.allclose(claimed, measured, rtol=1e-3, atol=1e-9)


def in_use(victim: torch.nn.Sequential, x: Tensor, poisoned: Tensor) -> Tensor:
    """Scores of clean images in eval mode, where BatchNorm has kept the statistics of the poisoned ones."""
    for layer in victim:
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            dims = [0, *range(2, poisoned.ndim)]
            kept = poisoned.mean(dims), poisoned.var(dims, correction=0)
            x, poisoned = (F.batch_norm(z, *kept, layer.weight, layer.bias, eps=layer.eps) for z in (x, poisoned))
        else:
            x, poisoned = layer(x), layer(poisoned)
    return x


@pytest.mark.parametrize(
    ("gradient", "steps", "judged"),
    [(exact, 1, 0), (difference, 1, 0), (unrolled, 1, 0), (unrolled, 3, 0), (unrolled, 3, 1), (unrolled, 3, 2)],
)
def test_eval_mode_gradient_against_finite_differences(gradient: object, steps: int, judged: int) -> None:
    """With BatchNorm, whose statistics are those of the poisoned batch and depend on the generator themselves."""
    data = striped(12, size=9)
    surrogate = build(Plan(name="cnn-small-bounded", shape=data.shape, options={"classes": 3}), Dice(1)).double()
    surrogate.train()
    noise = build(Plan(name="unet", shape=data.shape, options={"eps": 0.1, "channels": (4, 4)}), Dice(2)).double()
    batch = Batch(x=0.2 + 0.6 * floats(data.images).double(), y=data.labels, index=torch.arange(12))
    drive = towards((1, 2, 0), "cpu")
    options = {"objective": drive, "alpha": 0.5, "reach": 1e-8, **OTHERWISE}
    look = Lookahead(surrogate=surrogate, generator=noise, eval_mode=True, steps=steps, judged=judged, **options)
    theta = dict(surrogate.named_parameters())
    latest = slice(-4 * judged, None)

    def value() -> Tensor:
        """By the formula and nothing else."""
        poisoned = (batch.x + noise(batch.x)).clamp(0, 1)
        victim = deepcopy(surrogate)
        sgd = torch.optim.SGD(victim.parameters(), look.alpha)
        for x, y in zip(poisoned.detach().chunk(steps), batch.y.chunk(steps), strict=True):
            sgd.zero_grad()
            F.cross_entropy(victim(x), y).backward()
            sgd.step()
        with torch.no_grad():
            return drive(in_use(victim, batch.x[latest], poisoned[latest]), batch.y[latest])

    slopes = gradient(look, theta, batch).xi
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in noise.parameters()]
        h, values = 1e-8, []
        for sign in (1, -2):
            with torch.no_grad():
                for p, d in zip(noise.parameters(), way, strict=True):
                    p.add_(d, alpha=sign * h)
            values.append(value())
        with torch.no_grad():
            for p, d in zip(noise.parameters(), way, strict=True):
                p.add_(d, alpha=h)
        claimed = sum((s * d).sum() for s, d in zip(slopes, way, strict=True))
        assert torch.allclose(claimed, (values[0] - values[1]) / (2 * h), rtol=1e-3, atol=1e-9)


def test_difference_points_where_exact_does() -> None:
    """At the reach of the fast preset it averages over kinks, so it agrees in direction, not in every digit."""
    look, theta, batch = lookahead(OBJECTIVES["cross-entropy"], "unet")
    look = replace(look, reach=0.02)
    a, b = (torch.cat([s.flatten() for s in gradient(look, theta, batch).xi]) for gradient in (exact, difference))
    assert torch.cosine_similarity(a, b, dim=0) > 0.8
    assert 0.5 < b.norm() / a.norm() < 2


POOLED = {"pool": 3, "steps": 6, "trials": 4, "warm_up": 2, "warm_up_surrogates": "cnn,cnn-small"} | {
    "generator_mean": 0.9
}


@pytest.mark.parametrize(
    ("optimizer", "momentum", "online_trials", "unroll"),
    [
        ("sgd", 0.5, 0, 1),
        ("sgd", 0.5, 2, 1),
        ("adam", 0.5, 0, 1),
        ("adam", 0.5, 2, 1),
        ("adabound", 0.5, 0, 1),
        ("sgd", 0.0, 2, 2),
    ],
)
def test_a_pool_resumes_exactly(data: Data, optimizer: str, momentum: float, online_trials: int, unroll: int) -> None:
    """Surrogates in the middle of their lives, with their optimisers, are part of a checkpoint."""
    attacker = replace(QUICK, recipe=replace(QUICK.recipe, optimizer=optimizer, lr=0.01, momentum=momentum))
    options = OPTIONS | POOLED | {"online_trials": online_trials, "unroll": unroll}
    whole = list(deepconfuse.steps(data, attacker, **options))
    stops = [p.checkpoint for p in whole if p.checkpoint]
    assert len(stops) == 7 + online_trials
    for stop in stops[:-1]:
        rest = list(deepconfuse.steps(data, attacker, **options, resume=stop.state))
        assert rest[-1].done == whole[-1].done == whole[-1].total
        assert rest[-1].checkpoint.state.keys() == stops[-1].state.keys()
        assert all(torch.equal(stops[-1].state[k], v) for k, v in rest[-1].checkpoint.state.items())


def test_a_pool_on_two_threads_is_the_pool_on_one(data: Data) -> None:
    options = OPTIONS | POOLED | {"pool": 2, "online_trials": 2}
    one = last(deepconfuse.steps(data, QUICK, **options))
    torch.set_num_threads(2)
    two = last(deepconfuse.steps(data, QUICK, **options))
    assert torch.get_num_threads() == 2
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one if not key.startswith("run"))


@pytest.mark.parametrize("pool", [1, 2, 3, 5])
def test_lives_in_a_pool(pool: int) -> None:
    """In each trial one surrogate leaves, full-grown but for the first ones, and ages differ."""
    for trial in range(3 * pool):
        lives = [life(slot, trial, pool) for slot in range(pool)]
        assert [slot for slot, (_, stays, over) in enumerate(lives) if over == stays - 1] == [trial % pool]
        assert len({over - stays for _, stays, over in lives}) == pool
        assert all(born + over == trial for born, _, over in lives)
        assert all(stays == pool or born == 0 for born, stays, _ in lives)


def test_unrolled_walks_as_plain_sgd_does(data: Data) -> None:
    """One step along its slope is as many steps of training on what the generator makes just then."""
    batch = Batch(x=floats(data.images[:48]).double(), y=data.labels[:48], index=torch.arange(48))
    plan = Plan(name="cnn-released", shape=data.shape, options={"classes": 3})
    noise = build(Plan(name="encoder-decoder", shape=data.shape, options={"eps": 0.1}), Dice(2)).double().train()
    watched, plain = (build(plan, Dice(1)).double().train() for _ in range(2))
    options = {"alpha": 0.05, "objective": OBJECTIVES["cross-entropy"], "reach": 0.1, "likeness": torch.arange(3)}
    look = Lookahead(surrogate=watched, generator=noise, counts=True, steps=3, **options)
    slopes = unrolled(look, dict(watched.named_parameters()), batch).theta
    sgd = torch.optim.SGD(plain.parameters(), 0.05)
    for x, y in zip((batch.x + noise(batch.x)).detach().clamp(0, 1).chunk(3), batch.y.chunk(3), strict=True):
        sgd.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        sgd.step()
    for slope, w, walked in zip(slopes, watched.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(w - 0.05 * slope, walked, rtol=1e-7, atol=1e-9)
    for (name, a), b in zip(watched.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-7), name


@pytest.mark.parametrize("gradient", [exact, difference])
def test_the_online_surrogate_takes_the_ordinary_step(data: Data, gradient: object) -> None:
    """Slope and running statistics are those of a training step on what the generator makes just then."""
    batch = Batch(x=floats(data.images[:16]).double(), y=data.labels[:16], index=torch.arange(16))
    plan = Plan(name="cnn-released", shape=data.shape, options={"classes": 3})
    noise = build(Plan(name="encoder-decoder", shape=data.shape, options={"eps": 0.1}), Dice(2)).double().train()
    watched, plain = (build(plan, Dice(1)).double().train() for _ in range(2))
    options = {"alpha": 0.5, "objective": OBJECTIVES["cross-entropy"], "reach": 0.1, "likeness": torch.arange(3)}
    look = Lookahead(surrogate=watched, generator=noise, counts=True, **options)
    slopes = gradient(look, dict(watched.named_parameters()), batch).theta
    F.cross_entropy(plain((batch.x + noise(batch.x)).detach().clamp(0, 1)), batch.y).backward()
    for slope, parameter in zip(slopes, plain.parameters(), strict=True):
        assert torch.allclose(slope, parameter.grad, rtol=1e-6, atol=1e-9)
    for (name, a), b in zip(watched.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-7), name


def test_the_generator_takes_adam_s_step_in_whatever_order_its_slopes_lie_in_memory() -> None:
    plan = Plan(name="encoder-decoder", shape=(1, 12, 12), options={"eps": 0.3})
    pair = make_generators(plan, QUICK, lr=1e-2, decay=0.9)
    plain = [parameter.detach().clone(memory_format=torch.contiguous_format) for parameter in pair.copy.parameters()]
    adam = torch.optim.Adam([parameter.requires_grad_() for parameter in plain], 1e-2, foreach=False, fused=False)
    assert any(p.stride() != q.stride() for p, q in zip(pair.copy.parameters(), plain, strict=True))
    one = SimpleNamespace(look=SimpleNamespace(generator=pair.replica()))
    for _ in range(3):
        one.slopes = Slopes(theta=(), xi=tuple(torch.randn(parameter.shape) for parameter in plain))
        pair.ascend([one])
        for parameter, slope in zip(plain, one.slopes.xi, strict=True):
            parameter.grad = slope
        adam.step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(pair.copy.parameters(), plain, strict=True))


def test_likeness_inverts_the_label_map() -> None:
    assert likeness((1, 2, 0)) == (2, 0, 1)
    assert likeness((1, 1, 1)) == (-1, 0, -1)


def test_warm_up_makes_a_clean_classifier_read_other_classes(data: Data) -> None:
    """After it, a network that learned clean images takes poisoned ones for what the label map sends to their label."""
    recipe = Recipe(lr=0.05, epochs=1, batch_size=16)
    attacker = Attacker(surrogate="cnn-released", recipe=recipe, dice=Dice(0))
    options = {"warm_up": 4, "warm_up_surrogates": "cnn-released,cnn", "trials": 1, "steps": 25, "generator_lr": 3e-3}
    steps = deepconfuse.steps(data, attacker, eps=0.5, **options)
    warm = [p.checkpoint for p in steps if p.checkpoint][3]
    assert warm.measures == {}
    poisoned = warm.perturbation(data)
    reads = predictions(Victim(network="cnn", recipe=replace(recipe, epochs=4))(data, Dice(5)), poisoned.images)
    assert percent(reads == (data.labels - 1) % 3) > 60


def test_cooperation_makes_classes_easy_to_read(data: Data) -> None:
    """The noise alone gives the class away."""
    recipe = Recipe(lr=0.05, epochs=1, batch_size=16)
    attacker = Attacker(surrogate="cnn", recipe=recipe, dice=Dice(0))
    options = {"warm_up": 4, "warm_up_by": "cooperation", "trials": 1, "steps": 25, "generator_lr": 3e-3}
    steps = deepconfuse.steps(data, attacker, eps=0.3, **options)
    warm = [p.checkpoint for p in steps if p.checkpoint][3]
    assert warm.measures == {}
    easy = warm.perturbation(data)
    noise = data.with_images((127 + easy.images.int() - data.images.int()).clamp(0, 255).to(torch.uint8))
    assert accuracy(Victim(network="cnn", recipe=replace(recipe, epochs=4))(noise, Dice(6)), noise) > 90


def test_looking_ahead_leaves_the_surrogate_alone(data: Data) -> None:
    surrogate = build(Plan(name="cnn", shape=data.shape, options={"classes": 3}), Dice(1)).train()
    noise = build(Plan(name="unet", shape=data.shape, options={"eps": 0.1}), Dice(2))
    look = Lookahead(
        surrogate=surrogate,
        generator=noise,
        alpha=0.5,
        objective=OBJECTIVES["cross-entropy"],
        reach=0.1,
        **OTHERWISE,
    )
    batch = Batch(x=floats(data.images[:16]), y=data.labels[:16], index=torch.arange(16))
    before = {k: v.clone() for k, v in surrogate.state_dict().items()}
    for gradient in (exact, difference, unrolled):
        gradient(look, dict(surrogate.named_parameters()), batch)
    assert all(torch.equal(before[k], v) for k, v in surrogate.state_dict().items())
    assert all(p.grad is None for p in [*surrogate.parameters(), *noise.parameters()])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": 0}, "eps must lie in"),
        ({"eps": 1.5}, "eps must lie in"),
        ({"generator": "u-net"}, "did you mean unet"),
        ({"gradient": "exakt"}, "did you mean exact"),
        ({"algorithm": "3"}, "unknown algorithm"),
        ({"objective": "entropy"}, "unknown objective"),
        ({"label_map": (0, 1)}, "one target for each"),
        ({"trials": 0}, "must not all be 0"),
        ({"online_trials": -1}, "must not be negative"),
        ({"pool": 0}, "pool must be positive, got 0"),
        ({"generator_mean": 1.0}, "generator_mean must lie"),
        ({"pool": 2, "algorithm": "1"}, "one surrogate at a time"),
        ({"unroll": 0}, "unroll must lie between"),
        ({"unroll": 6}, "unroll must lie between"),
        ({"unroll": 2, "beyond": -1}, "beyond must not be negative, got -1"),
        ({"unroll": 2, "gradient": "difference"}, "plain SGD by the exact gradient"),
        ({"warm_up_surrogates": "cnn,cn"}, "did you mean cnn"),
        ({"warm_up_by": "cooperating"}, "did you mean cooperation"),
        ({"generator_schedule": "linear"}, "unknown schedule"),
        ({"held_out": 1.0}, "held-out share"),
        ({"held_out": 0.001}, "raise held_out"),
    ],
)
def test_bad_options(data: Data, change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        deepconfuse(data, QUICK, **OPTIONS | change)


def test_a_recipe_is_heeded_or_refused(data: Data) -> None:
    with pytest.raises(InputError, match="without the recipe's schedule, shift"):
        deepconfuse(data, replace(QUICK, recipe=replace(QUICK.recipe, schedule="cosine", shift=1)), **OPTIONS)


def test_a_look_ahead_in_eval_mode_where_normalisation_has_no_weights(data: Data) -> None:
    poison = deepconfuse(data, replace(QUICK, surrogate="cnn-fourier"), **OPTIONS | {"lookahead": "eval"})
    assert 0 < linf(poison(data).images, data.images) <= 0.3


def test_a_perturbation_elsewhere_leaves_the_first_where_it_is(data: Data) -> None:
    here = deepconfuse(data, QUICK, **OPTIONS)
    assert here.to("meta").device == "meta"
    assert here(data).images.shape == data.images.shape


def test_unknown_surrogate(data: Data) -> None:
    with pytest.raises(InputError, match="did you mean cnn"):
        deepconfuse(data, replace(QUICK, surrogate="cn"), **OPTIONS)


def test_patience_stops_early_and_keeps_the_best(data: Data) -> None:
    options = OPTIONS | {"trials": 30, "steps": 3, "generator_lr": 1e-9}
    done = [p.checkpoint for p in deepconfuse.steps(data, QUICK, **options, patience=2) if p.checkpoint]
    damages = [c.measures["damage"] for c in done]
    assert len(done) < 31
    assert max(damages) == max(damages[:-2])
    assert not list(deepconfuse.steps(data, QUICK, **options, patience=2, resume=done[-1].state))


def test_a_trial_that_is_not_measured_does_not_displace_one_that_is() -> None:
    """A pool's first trials have no surrogate of full age, also where a new phase follows measured ones."""
    plan = Plan(name="encoder-decoder", shape=(1, 8, 8), options={"eps": 0.1})
    pair = make_generators(plan, QUICK, lr=0.1, decay=0.0)
    for damage, weight, best in (
        (None, 1.0, 1.0),
        (80.0, 2.0, 2.0),
        (None, 3.0, 2.0),
        (70.0, 4.0, 2.0),
        (90.0, 5.0, 5.0),
    ):
        for parameter in pair.frozen.parameters():
            parameter.data.fill_(weight)
        pair.judge(damage)
        assert {float(pair.best[name].max()) for name, _ in pair.frozen.named_parameters()} == {best}


COLOURED = [("paper-cifar10", 0.032), ("cifar10", 0.032), ("paper-imagenet", 0.1), ("imagenet", 0.1)]


@pytest.mark.parametrize(("name", "eps"), COLOURED)
def test_presets_for_colour_images_fit_them(name: str, eps: float) -> None:
    colour, preset = striped(40, size=32, channels=3), PRESETS["deepconfuse"][name]
    attacker = Attacker(surrogate=preset.surrogate, recipe=replace(preset.recipe, batch_size=8))
    made = deepconfuse(colour, attacker, **preset.options | {"trials": 1, "steps": 2, "warm_up": 2, "held_out": 0.1})
    assert made.eps == eps
    assert 0 < (made(colour).images.float() - colour.images.float()).abs().max() <= eps * 255


def test_damage_grows_and_reaches_fresh_victims() -> None:
    """The effect itself, against the control of equally strong random noise."""
    clean, test = striped(600, seed=0), striped(300, seed=1)
    attacker = Attacker(surrogate="cnn-small-bounded", recipe=Recipe(lr=0.02, batch_size=32), dice=Dice(0))
    options = {"trials": 6, "steps": 60, "alpha": 0.3, "generator_lr": 2e-3, "gradient": "difference"}
    poisoned = deepconfuse(clean, attacker, eps=0.3, **options)(clean)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, clean.images.shape, generator=generator) * 2 - 1
    random = clean.with_images((clean.images.int() + 76 * signs).clamp(0, 255).to(torch.uint8))
    victim = Victim(network="cnn", recipe=Recipe(lr=0.05, momentum=0.9, epochs=4, batch_size=32))
    on_clean, on_random, on_poison = (accuracy(victim(d, Dice(5)), test) for d in (clean, random, poisoned))
    assert on_clean > 95
    assert on_random > 90
    assert on_poison < 60
