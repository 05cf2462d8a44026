"""What applying a generator costs an image, for 1,000, 10,000 and 60,000 images of MNIST, and the memory beyond them.

    MISCUE_DATA=../shared/data python benchmarks/apply.py [--record]

The cost an image should be flat, and the extra memory should not grow.
"""

from __future__ import annotations

import resource

from common import interleaved, record
from miscue.dice import Dice
from miscue.marks import Generated
from miscue.models.networks import placed
from miscue.models.store import Plan, build
from miscue.perturbation import Perturbation
from miscue.readers import read

ROUNDS = 5
SIZES = (1_000, 10_000, 60_000)


def main() -> None:
    """Time all sizes in turn; the ratio is the cost an image against that of the smallest set."""
    data = read("mnist").train
    images, labels = data.images, data.labels
    plan = Plan(name="encoder-decoder", shape=(1, 28, 28), options={"eps": 0.3})
    perturbation = Perturbation(mark=Generated(generator=placed(build(plan, Dice(0)), "cpu"), plan=plan), eps=0.3)
    cases = {str(n): lambda n=n: perturbation.images(images[:n], labels[:n]) for n in SIZES}
    times = interleaved(cases, rounds=ROUNDS, warm=1)
    for n in SIZES:
        each = [seconds / n for seconds in times[str(n)]]
        ratios = sorted(a * 1000 / b for a, b in zip(each, times["1000"], strict=True))
        row = {"benchmark": "apply a generator", "images": n}
        note = f"{1e6 * min(each):.1f} microseconds an image at best"
        record(row, "ratio", ratios[ROUNDS // 2], (ratios[-1] - ratios[0]) / 2, ROUNDS, note=note)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    held = images.numel() / 2**20
    note = f"whole process; the images are {held:.0f} MiB, and as much again the poisoned copy"
    record({"benchmark": "apply a generator"}, "peak_mib", peak, 0, 1, note=note)


if __name__ == "__main__":
    main()
