"""What is left of an attack when the images are distorted afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.data import portion
from miscue.dice import Dice
from miscue.distortions import Distortion
from miscue.errors import InputError
from miscue.models.modes import Model, frozen


@torch.no_grad()
def robust_to(
    distortion: Distortion,
    model: Model,
    x: Tensor,
    attacked: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    draws: int = 5,
    dice: Dice | None = None,
    chunk: int = 256,
) -> list[dict[str, float]]:
    """How often the attack succeeds after a distortion, over its strengths.

    Args:
        distortion: an entry of DISTORTIONS.
        model: from images in [0, 1] to scores.
        x: the clean images, float (n, c, h, w) in [0, 1].
        attacked: the attacked ones.
        y: int64 (n,), the true classes.
        target: int64 (n,), what they should be taken for; anything but y if None.
        draws: of the distortion for each image, if it draws; clean and attacked images meet the same ones.
        dice: for the draws.
        chunk: images at a time, or fewer large ones.

    Returns:
        for each strength, in percent: "accuracy" of the clean images, "success" of the attack over all images, and
        "kept": success over those images, right when clean, on which the attack succeeds without a distortion.
    """
    if not len(x) or x.shape != attacked.shape:
        raise InputError(f"clean and attacked images must match, got {tuple(x.shape)} and {tuple(attacked.shape)}")
    named, chunk = dice or Dice(), portion(x, chunk)
    with frozen(model):
        before = torch.cat([model(part).argmax(1) for part in x.split(chunk)])
        after = torch.cat([model(part).argmax(1) for part in attacked.split(chunk)])
        won = (before == y) & (after != y if target is None else after == target)
        found = []
        for strength in distortion.strengths:
            right, hits = torch.zeros(len(x)), torch.zeros(len(x))
            times = draws if distortion.drawn and strength else 1
            for draw in range(times):
                for start in range(0, len(x), chunk):
                    part = slice(start, start + chunk)
                    one, other = (named.named("draw", draw, start).generator() for _ in range(2))
                    clean = model(distortion(x[part], strength, one)).argmax(1)
                    moved = model(distortion(attacked[part], strength, other)).argmax(1)
                    right[part] += (clean == y[part]).cpu()
                    hits[part] += (moved != y[part] if target is None else moved == target[part]).cpu()
            shares = {"accuracy": right, "success": hits, "kept": hits[won.cpu()]}
            means = {
                name: 100 * float(share.mean()) / times if len(share) else float("nan")
                for name, share in shares.items()
            }
            found.append({"strength": float(strength), **means})
    return found
