"""Occlusion maps against Captum's, the same work in one run.

    python benchmarks/explain.py [--record] [--images 64] [--rounds 5]

Images of 32 x 32, window 5, stride 1, so 784 forward passes an image; network conv5 with channels last, for both.
Captum's best setting is the quickest of several numbers of windows together; its default is one at a time. Ratios are
Captum's time over ours; for the first-order map the exact one's over its own, with the rank correlation of the two.
Then what a detector of stickers takes for an image and a window, for images of several sizes.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
from captum.attr import Occlusion

from common import interleaved, ratio, record
from miscue.detectors.consistency import Detector
from miscue.dice import Dice
from miscue.explainers import occlusion
from miscue.explainers.occlusion import windows
from miscue.measures.attribution import rank_correlation
from miscue.memory import keep_freed_memory
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
    model = model.to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.rand(asked.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = model(x).argmax(1)

    def theirs(images: torch.Tensor, labels: torch.Tensor, together: int) -> torch.Tensor:
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
    for side in (32, 64, 128):
        detecting(side, asked.rounds, asked.threads)


def detecting(side: int, rounds: int, threads: int) -> None:
    """What a detector of stickers, window 7 and stride 2, takes for images of a side."""
    plan = Plan(name="conv5", shape=(3, side, side), options={"classes": 43})
    model = build(plan, Dice(0)).eval().to(memory_format=torch.channels_last)
    count = max(1, 32 * 32**4 // side**4)
    x = torch.rand(count, 3, side, side).contiguous(memory_format=torch.channels_last)
    detector = Detector(window=7, stride=2)
    taken = interleaved({"looks": lambda: detector.looks(model, x)}, rounds=rounds, warm=1)["looks"]
    each = [1e3 * seconds / count for seconds in taken]
    looked = windows(side, 7, 2) ** 2
    row = {"benchmark": "detector", "network": "conv5", "threads": threads, "side": side, "windows": looked}
    middle, spread = statistics.median(each), statistics.stdev(each)
    note = f"{1e3 * middle / looked:.0f} microseconds a window"
    record(row, "milliseconds an image", middle, spread, rounds, note=note)


if __name__ == "__main__":
    main()
