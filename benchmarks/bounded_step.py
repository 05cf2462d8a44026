"""What bounded activations cost in training: a step with them over one with ReLU, in one run.

    python benchmarks/bounded_step.py [--record]

Network conv5 on images of 32 x 32, batch 128, SGD with momentum, one thread; a bound for each channel and one for each
layer, truly bounded and leaky.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch

from common import interleaved, ratio, record
from miscue.data import Data, batches
from miscue.defences.bounded import bound
from miscue.dice import Dice
from miscue.memory import keep_freed_memory
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.train import training

ROUNDS, INNER = 15, 6


def main() -> None:
    """Time `INNER` steps of each kind in turn, `ROUNDS` times."""
    torch.set_num_threads(1)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2048, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(2048) % 43
    data = Data(images=images, labels=labels, classes=tuple(map(str, range(43))))
    plan = Plan(name="conv5", shape=data.shape, options={"classes": 43})
    plain = placed(build(plan, Dice(0)), "cpu")

    def walk(model: torch.nn.Module) -> Callable[[], None]:
        stream = batches(data, size=128, epochs=10_000, dice=Dice(1), channels_last=True)
        steps = training(model.train(), stream, optimizer=torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))
        return lambda: list(islice(steps, INNER)).clear()

    kinds = {
        f"{per}, slope {slope:g}": bound(plain, data.spread(256), per=per, slope=slope)
        for per in ("channel", "layer")
        for slope in (0.0, 0.1)
    }
    cases = {"relu": walk(plain)} | {name: walk(placed(model, "cpu")) for name, model in kinds.items()}
    times = interleaved(cases, rounds=ROUNDS)
    for name in kinds:
        mean, spread = ratio(times, name, "relu")
        row = {"benchmark": "bounded step", "network": "conv5", "kind": name, "batch": 128, "threads": 1}
        note = f"a step with ReLU took {1000 * min(times['relu']) / INNER:.1f} ms at best"
        record(row, "ratio", mean, spread, ROUNDS, note=note)


if __name__ == "__main__":
    main()
