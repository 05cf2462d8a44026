"""A Gaussian blur as two products with matrices, over one by convolution (as torchvision does it) and scipy's.

    python benchmarks/blur.py [--record]

Images of three channels, one thread; in-painted covers blur by a twelfth of the image's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from common import interleaved, ratio, record
from miscue.distortions import blur

ROUNDS = 15


def convolved(x: Tensor, strength: float) -> Tensor:
    """By a convolution along each side, channel by channel."""
    reach, channels = math.ceil(3 * strength), x.shape[1]
    kernel = torch.softmax(-(torch.arange(-reach, reach + 1) ** 2) / (2 * strength**2), dim=0)
    x = F.pad(x, (reach,) * 4, mode="reflect")
    x = F.conv2d(x, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(x, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)


def main() -> None:
    """Each size and strength: ratios of the time of the others to ours."""
    torch.set_num_threads(1)
    for side, count, strength in ((32, 256, 2.667), (32, 256, 1.0), (224, 8, 18.667), (224, 8, 1.0)):
        x = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
        cases: dict[str, Callable[[], object]] = {
            "ours": partial(blur, x, strength, torch.Generator()),
            "convolution": partial(convolved, x, strength),
            "scipy": partial(gaussian_filter, x.numpy(), (0, 0, strength, strength), mode="mirror", truncate=3.0),
        }
        times = interleaved(cases, rounds=ROUNDS)
        note = f"ours took {1e6 * min(times['ours']) / count:.0f} microseconds an image at best"
        for who in ("convolution", "scipy"):
            mean, spread = ratio(times, who, "ours")
            row = {"benchmark": "blur", "who": who, "over": "miscue", "side": side, "strength": strength, "threads": 1}
            record(row, "ratio", mean, spread, ROUNDS, note=note, data="noise")


if __name__ == "__main__":
    main()
