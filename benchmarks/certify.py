"""How long 1,000 images take to be certified by PatchCleanser, if all of them stand, so that all pairs are looked at.

    python benchmarks/certify.py [--record] [--images 50] [--rounds 3] [--threads 2]

Images of 32 x 32, patches of 5 x 5, 36 masks, 630 pairs of them; conv5, whose scores are made to name one class.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch

from common import interleaved, record
from miscue.detectors.patchcleanser import Masks, certified
from miscue.dice import Dice
from miscue.memory import keep_freed_memory
from miscue.models.store import Plan, build


def main() -> None:
    """Time some images with each fill, and reckon with 1,000."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(asked.threads)
    model = build(Plan(name="conv5", shape=(3, 32, 32), options={"classes": 43}), Dice(0)).eval()
    model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        list(model.parameters())[-1][0] = 1e3  # the bias of the first class
    x = torch.rand(asked.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x, y = x.contiguous(memory_format=torch.channels_last), torch.zeros(asked.images, dtype=torch.int64)
    for fill in ("grey", "inpaint"):
        masks = Masks.against(5, (32, 32), per_side=6, fill=fill)
        assert bool(certified(model, x[:2], y[:2], masks).all())
        times = interleaved({fill: partial(certified, model, x, y, masks)}, rounds=asked.rounds, warm=0)[fill]
        each = [1000 * seconds / asked.images / 60 for seconds in times]
        row = {"benchmark": "certify", "network": "conv5", "threads": asked.threads, "fill": fill}
        note = f"{60 * statistics.median(each):.0f} milliseconds an image"
        record(row, "minutes for 1,000 images", statistics.median(each), statistics.stdev(each), asked.rounds,
               note=note, data="noise")  # fmt: skip


if __name__ == "__main__":
    main()
