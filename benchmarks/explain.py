"""Occlusion maps against Captum's, the same work in one run.

    python benchmarks/explain.py [--record] [--images 64] [--rounds 5]

Images of 32 x 32, window 5, stride 1, so 784 forward passes an image; network conv5 with channels last, for both.
Captum's best setting is the quickest of several numbers of windows together; its default is one at a time. Ratios are
Captum's time over ours; for the first-order map the exact one's over its own, with the rank correlation of the two.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from captum.attr import Occlusion

from common import interleaved, ratio, record
from miscue.dice import Dice
from miscue.explainers import occlusion
from miscue.measures.attribution import rank_correlation
from miscue.memory import keep_freed_memory
from miscue.models.modes import frozen
from miscue.models.store import Plan, build

TOGETHER = (4, 8, 16, 64)


def main() -> None:
    """Time ours and Captum's in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(asked.threads)
    model = build(Plan(name="conv5", shape=(3, 32, 32), options={"classes": 43}), Dice(0)).eval()
    model = model.to(memory_format=torch.channels_last)
    x = torch.rand(asked.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = model(x).argmax(1)

    def theirs(images: torch.Tensor, labels: torch.Tensor, together: int) -> torch.Tensor:
        with frozen(model):
            found: torch.Tensor = Occlusion(model).attribute(
                images,
                (3, 5, 5),
                strides=(3, 1, 1),
                baselines=0.5,
                target=labels,
                perturbations_per_eval=together,
            )
        return found[:, 0]

    ours = partial(occlusion, model, window=5, stride=1)
    assert torch.allclose(ours(x[:2], y[:2]), theirs(x[:2], y[:2], 4), atol=1e-5)
    cases = {"ours": lambda: ours(x, y)} | {f"captum, {n} together": (lambda n=n: theirs(x, y, n)) for n in TOGETHER}
    times = interleaved(cases, rounds=asked.rounds, warm=0)
    best = min((name for name in cases if name != "ours"), key=lambda name: sum(times[name]))
    row = {"benchmark": "occlusion", "network": "conv5", "threads": asked.threads}
    middle, spread = ratio(times, best, "ours")
    note = f"ours took {min(times['ours']):.1f} s at best"
    many = row | {"images": asked.images, "over": "ours", "who": best}
    record(many, "ratio", middle, spread, asked.rounds, note=note)
    alone = {"ours": lambda: ours(x[:1], y[:1]), "captum, default": lambda: theirs(x[:1], y[:1], 1)}
    times = interleaved(alone, rounds=3 * asked.rounds, warm=1)
    middle, spread = ratio(times, "captum, default", "ours")
    note = f"ours took {1e3 * min(times['ours']):.0f} ms at best"
    record(row | {"images": 1, "over": "ours", "who": "captum, default"}, "ratio", middle, spread, 15, note=note)
    orders = {"exact": lambda: ours(x, y), "first order": lambda: ours(x, y, first_order=True)}
    times = interleaved(orders, rounds=asked.rounds, warm=1)
    middle, spread = ratio(times, "exact", "first order")
    same = rank_correlation(ours(x, y), ours(x, y, first_order=True))
    note = f"rank correlation of the maps {float(same.mean()):.2f} on noise, untrained"
    record(row | {"images": asked.images, "over": "first order", "who": "exact"}, "ratio", middle, spread, 5, note=note)


if __name__ == "__main__":
    main()
