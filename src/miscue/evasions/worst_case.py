"""The worst of several attacks, image by image: what an ensemble of them leaves standing (Croce, Hein 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from miscue.errors import InputError
from miscue.evasions.attempt import Adversarial
from miscue.models.modes import Model

Evasion = Callable[[Model, Tensor, Tensor], Adversarial]
"""An attack with its options bound."""


def worst_case(
    model: Model, x: Tensor, y: Tensor, attacks: Mapping[str, Evasion]
) -> tuple[Adversarial, dict[str, Tensor]]:
    """Try the attacks in turn, each on the images that none before it has broken.

    Args:
        model: from images in [0, 1] to scores.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        attacks: the cheapest first, by name.

    Returns:
        for each image the first attack's result that succeeds, or else the last one's, with the queries of all that
        were tried; and for each attack which images, bool (n,), it broke.
    """
    if not attacks:
        raise InputError("worst_case needs at least one attack")
    attacked, queries = x.clone(), torch.zeros_like(y)
    success, already, flat = (torch.zeros_like(y, dtype=torch.bool) for _ in range(3))
    broken: dict[str, Tensor] = {}
    losses, steps = [], 0
    for name, attack in attacks.items():
        left = (~success & ~already).nonzero()[:, 0]
        broken[name] = torch.zeros_like(success)
        if not len(left):
            continue
        found = attack(model, x[left], y[left])
        attacked[left] = found.x
        queries[left] += found.queries
        success[left] = broken[name][left] = found.success
        already[left], flat[left] = found.already, found.flat
        losses.append(found.loss)
        steps += found.steps
    whole = Adversarial(
        x=attacked, success=success, already=already, flat=flat, queries=queries, steps=steps, loss=torch.cat(losses)
    )
    return whole, broken
