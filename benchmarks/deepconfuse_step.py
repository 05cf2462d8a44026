"""What a DeepConfuse step costs in steps of its own victim, and the memory it takes.

    MISCUE_DATA=../shared/data python benchmarks/deepconfuse_step.py [--record] [--only WORDS]

A victim step is forward, backward and update of the surrogate on one batch of 64. The floor of a step of Algorithm 2,
in victim steps V and generator forward passes G: the surrogate's own step V; the pseudo-update's gradient V; the loss
beyond it V; the mixed derivative 2/3 V (forward and image gradient at one more point, as `difference` does it) or
4/3 V (tangent forward and its adjoint, what `exact` needs at least); two generator forward passes and a backward, 4 G.
"online" saves the surrogate's own step and one G; unrolled over several steps it needs V for each, V for the loss
beyond (2 V in eval mode, where poisoned images go along; a quarter of it where it is taken on two of the eight parts)
and about 2 V for the way back through all of them. A step of the warm start needs 5/3 V and 3 G. All but one row is of
one thread. In that row two surrogates share two threads: the wall time of one batch against a victim step on one
thread, which in processor time is about twice as much.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from itertools import islice

import torch

from common import interleaved, ratio, record
from miscue.data import batches
from miscue.dice import Dice
from miscue.memory import keep_freed_memory
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.poisons import PRESETS, Attacker, deepconfuse
from miscue.readers import read
from miscue.train import Recipe, training

ROUNDS, INNER = 15, 8


def main() -> None:
    """Time `INNER` steps of each kind in turn, `ROUNDS` times; with --only, of those whose name has these words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    only = parser.parse_known_args()[0].only
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    data = read("mnist").train.take(slice(0, 20_000))
    fast = PRESETS["deepconfuse"]["fast"]
    for surrogate in ("cnn", "cnn-released", "cnn-large"):
        attacker = Attacker(surrogate=surrogate, recipe=Recipe(lr=0.01, batch_size=64), dice=Dice(0))
        options = fast.options | {"warm_up_surrogates": "", "trials": 1, "steps": 100_000}

        def walk(attacker: Attacker = attacker, options: dict = options, **kind: object) -> Callable[[], None]:
            pool, unroll = int(kind.get("pool", 1)), int(kind.get("unroll", 1))
            steps = deepconfuse.steps(data, attacker, **options | {"pool": pool} | kind)

            def some() -> None:
                torch.set_num_threads(pool)
                list(islice(steps, INNER // pool // unroll)).clear()
                torch.set_num_threads(1)

            return some

        plan = Plan(name=surrogate, shape=data.shape, options={"classes": 10})
        model = placed(build(plan, Dice(0)), "cpu").train()
        stream = batches(data, size=64, epochs=10_000, dice=Dice(1), channels_last=True)
        plain = training(model, stream, optimizer=torch.optim.SGD(model.parameters(), 0.01))
        cases = {"victim": lambda plain=plain: list(islice(plain, INNER)).clear()}
        kinds = {
            f"{name}, {gradient}": {"warm_up": 0, "gradient": gradient, "online_trials": int(name == "online")}
            for name in ("2", "online")
            for gradient in ("difference", "exact")
        } | {"warm start": {"warm_up": 1, "online_trials": 0, "trials": 1}}
        kinds |= {"online, exact, two on two threads": {"warm_up": 0, "online_trials": 1, "pool": 2}}
        unrolled = {"warm_up": 0, "online_trials": 1, "unroll": 8}
        kinds |= {
            "online, unrolled over 8, look ahead in training mode": unrolled,
            "online, unrolled over 8, look ahead in eval mode": unrolled | {"lookahead": "eval"},
            "online, unrolled over 8, look ahead in eval mode on the last 2": unrolled
            | {"lookahead": "eval", "beyond": 2},
        }
        kinds = {name: kind for name, kind in kinds.items() if only in name}
        cases |= {name: walk(**kind) for name, kind in kinds.items()}
        times = interleaved(cases, rounds=ROUNDS)
        for name in kinds:
            row = {"benchmark": "deepconfuse step", "surrogate": surrogate, "algorithm": name, "batch": 64}
            row |= {
                "generator": options.get("generator", "encoder-decoder"),
                "threads": int(kinds[name].get("pool", 1)),
            }
            mean, spread = ratio(times, name, "victim")
            note = f"a victim step took {1000 * min(times['victim']) / INNER:.1f} ms at best"
            if "pool" in kinds[name]:
                note += "; wall time on two threads against a victim step on one, not processor time"
            record(row, "ratio", mean, spread, ROUNDS, note=note)
    if only:
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    record({"benchmark": "deepconfuse step"}, "peak_mib", peak, 0, 1, note="whole process, 20,000 images of MNIST")


if __name__ == "__main__":
    main()
