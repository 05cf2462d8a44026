"""How good explanations are: maps (n, h, w) judged by the model, by a known place, and against a random network.

Deletion and insertion: Petsiuk et al. 2018, arXiv 1806.07421. Pointing game: Zhang et al. 2016, arXiv 1608.00507. Model
randomisation: Adebayo et al. 2018, arXiv 1810.03292. Right for the right reasons: the question of Ross et al. 2017,
arXiv 1703.03717, as a share of the map.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from miscue.dice import Dice
from miscue.errors import positive
from miscue.measures.statistics import rank_correlation
from miscue.models.modes import Model, frozen
from miscue.models.networks import device_of

Explainer = Callable[[nn.Module, Tensor, Tensor], Tensor]


def deletion(model: Model, x: Tensor, y: Tensor, maps: Tensor, *, base: Tensor, steps: int = 16) -> Tensor:
    """The mean probability of class y while pixels become those of `base`, the map's largest first: float (n,).

    Small is good: what the map names is what the model needs.

    Args:
        model: from images in [0, 1] to scores.
        x: images (n, c, h, w) in [0, 1].
        y: int64 (n,), the class that was explained.
        maps: float (n, h, w).
        base: (n, c, h, w), what a deleted pixel becomes.
        steps: from none to all of them, at even distances; the ends count half.
    """
    return along(model, x, base, y, maps, steps)


def insertion(model: Model, x: Tensor, y: Tensor, maps: Tensor, *, base: Tensor, steps: int = 16) -> Tensor:
    """The same while the pixels of x appear in `base`, the map's largest first. Large is good."""
    return along(model, base, x, y, maps, steps)


def along(model: Model, start: Tensor, end: Tensor, y: Tensor, maps: Tensor, steps: int) -> Tensor:
    """The mean probability of y (n,) on the way from `start` to `end`, by the trapezoidal rule."""
    positive(steps=steps)
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(maps)[:, None]
    sure = []
    with frozen(model), torch.no_grad():
        for step in range(steps + 1):
            seen = torch.where(rank < step / steps * maps[0].numel(), end, start)
            sure.append(model(seen).softmax(1).gather(1, y[:, None])[:, 0])
    return torch.trapezoid(torch.stack(sure), dx=1 / steps, dim=0)


def pointed(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    """Whether each map's largest value lies in its mask, or within so many pixels of it: bool (n,).

    maps: (n, h, w); of equal values the first, row by row, counts. masks: bool (n, h, w).
    """
    grown = masks.float()[:, None]
    if tolerance:
        grown = nn.functional.max_pool2d(grown, 2 * tolerance + 1, stride=1, padding=tolerance)
    return grown.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0] > 0


def share_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's positive mass that lies in its mask, in percent: float (n,), NaN where there is none.

    With the object's mask it says how far a network is right for the right reasons; the share of the image that the
    mask covers is what a map without any preference has.

    maps: (n, h, w); masks: bool (n, h, w).
    """
    mass = maps.clamp(min=0)
    return 100 * (mass * masks).sum((1, 2)) / mass.sum((1, 2))


def randomised(model: nn.Module, dice: Dice) -> list[tuple[str, nn.Module]]:
    """Copies of a model whose layers lose what they learned, one more in each copy, from the last to the first.

    Only layers that can draw fresh weights themselves (`reset_parameters`) count.

    Returns:
        (name of the latest such layer, copy), in eval mode.
    """
    found, latest = [], deepcopy(model)
    for name, layer in reversed(list(model.named_modules())):
        if not hasattr(layer, "reset_parameters"):
            continue
        latest = deepcopy(latest)
        fresh = latest.get_submodule(name)
        with dice.named("reset", name).rolled():  # the CPU's stream
            fresh.cpu().reset_parameters()  # type: ignore[operator]
        fresh.to(device_of(model))
        found.append((name, latest.eval()))
    return found


def sanity(explainer: Explainer, model: nn.Module, x: Tensor, y: Tensor, *, dice: Dice) -> dict[str, float]:
    """How much explanations are still like the trained model's while its layers are randomised, last to first.

    An explanation that does not change shows the image, not the model.

    Returns:
        layer name -> mean rank correlation of the maps with those of the trained model, -1 to 1.
    """
    trained = explainer(model, x, y)
    return {
        name: float(rank_correlation(trained, explainer(copy, x, y)).mean()) for name, copy in randomised(model, dice)
    }
