"""How hard an image is for a model: how soon its class flips.

`kappa` is the number of signed gradient steps until another class is named (the seed's slides; cf. GAIRAT, Zhang et al.
2021, arXiv 2010.01736), from the image itself, so that nothing is left to chance. It is a whole number; `smallest_eps`
and `distance` say the same without steps. Small is hard, and 0 where the model errs already. Beside them what the field
compares with: margin, loss, and how often an image was forgotten in training (Toneva et al. 2019, arXiv 1812.05159).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from miscue.data import Data, fed
from miscue.errors import InputError, positive
from miscue.evasions.attempt import Goal, steepest
from miscue.evasions.deepfool import deepfool
from miscue.measures.statistics import ranks
from miscue.models.modes import Model, frozen
from miscue.models.networks import device_of

TOGETHER = 512


def kappa(model: Model, x: Tensor, y: Tensor, *, eps: float = 16 / 255, alpha: float = 1 / 255) -> Tensor:
    """The first step after which another class than y is named.

    Args:
        model: from images in [0, 1] to scores, differentiable.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        eps: L-infinity radius that the steps stay within.
        alpha: length of a step; there are eps / alpha of them.

    Returns:
        float (n,): 0 where another class is named already, the number of all steps plus 1 where none flips it.
    """
    if not 0 < alpha <= eps:
        raise InputError(f"alpha must lie in (0, eps], got {alpha:g} and {eps:g}")
    steps = round(eps / alpha)
    found = torch.full((len(x),), float(steps + 1), device=x.device)
    goal, z, going = Goal(y=y), x.clone(), torch.arange(len(x), device=x.device)
    with frozen(model):
        for step in range(steps):
            some = goal.of(going)
            direction, scores = steepest(model, z[going], some)
            flipped = some.reached(scores)
            found[going[flipped]] = step
            going, direction = going[~flipped], direction[~flipped]
            if not len(going):
                return found
            moved = z[going] + alpha * direction.sign()
            z[going] = (x[going] + (moved - x[going]).clamp(-eps, eps)).clamp(0, 1)
        with torch.no_grad():
            found[going[goal.of(going).reached(model(z[going]))]] = steps
    return found


def smallest_eps(
    model: Model, x: Tensor, y: Tensor, *, most: float = 16 / 255, steps: int = 10, halvings: int = 6
) -> Tensor:
    """The smallest L-infinity radius within which `steps` signed gradient steps flip the class, bracketed.

    Each image has a bracket of its own, halved `halvings` times; its upper end is given, at which the class is known to
    flip. 0 where another class than y is named already, 2 `most` where none flips within `most`.

    Args:
        model: from images in [0, 1] to scores, differentiable.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        most: the largest radius that is tried.
        steps: each of 2.5 / steps of the radius.
        halvings: of the bracket; the answer is good to most / 2^halvings.
    """
    positive(most=most, steps=steps, halvings=halvings)
    low, high = torch.zeros(len(x), device=x.device), torch.full((len(x),), most, device=x.device)
    with frozen(model):
        with torch.no_grad():
            wrong = Goal(y=y).reached(model(x))
        flips = ascended(model, x, y, high, steps)
        for _ in range(halvings):
            middle = (low + high) / 2
            reached = ascended(model, x, y, middle, steps)
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return torch.where(flips, high, 2 * most).masked_fill(wrong, 0.0)


def ascended(model: Model, x: Tensor, y: Tensor, eps: Tensor, steps: int) -> Tensor:
    """Whether signed steps within radii eps (n,) make a frozen model name another class at any of them: bool (n,)."""
    goal, radius = Goal(y=y), eps[:, None, None, None]
    z, reached = x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for step in range(steps):
        direction, scores = steepest(model, z, goal)
        if step:
            reached |= goal.reached(scores)
        moved = z + 2.5 / steps * radius * direction.sign()
        z = torch.minimum(torch.maximum(moved, x - radius), x + radius).clamp(0, 1)
    with torch.no_grad():
        return reached | goal.reached(model(z))


def distance(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """The L2 length of DeepFool's change: float (n,), 0 where another class than y is named already."""
    return (deepfool(model, x, y).x - x).flatten(1).norm(dim=1)


def margin(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Score of y less the largest of the others: float (n,)."""
    with frozen(model), torch.no_grad():
        scores = model(x)
    own = scores.gather(1, y[:, None])[:, 0]
    return own - scores.scatter(1, y[:, None], -torch.inf).amax(1)


def certainty(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """log p_y, the loss with its sign turned, so that small is hard here too: float (n,)."""
    with frozen(model), torch.no_grad():
        return model(x).log_softmax(1).gather(1, y[:, None])[:, 0]


HARDNESS: dict[str, Callable[[Model, Tensor, Tensor], Tensor]] = {
    "kappa": kappa,
    "smallest-eps": smallest_eps,
    "distance": distance,
    "margin": margin,
    "certainty": certainty,
}
"""`(model, x, y) -> float (n,)`, small where an image is hard."""


def ease(measure: str, model: nn.Module, data: Data) -> Tensor:
    """A measure of HARDNESS for all images of a set: float (n,) on the CPU. Ties of kappa are broken by the margin."""
    device, found = device_of(model), []
    for part, x in fed(data.images, device, chunk=TOGETHER):
        y = data.labels[part].to(device)
        values = HARDNESS[measure](model, x, y)
        if measure == "kappa":  # a margin maps to (0, 1): whole steps stay in order
            values = values + margin(model, x, y).sigmoid() * 0.999
        found.append(values.cpu())
    return torch.cat(found)


def forgotten(right: Tensor) -> Tensor:
    """How often an image was right and then wrong: int64 (n,); epochs where it was never right.

    right: bool (epochs, n), whether it was classified right after each epoch.
    """
    events = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), events, len(right))


def emphasised(values: Tensor, emphasis: float) -> Tensor:
    """How often each image is to be drawn in training: float (n,), 1 for the easiest, `emphasis` for the hardest.

    Weights go by rank, so that no scale of a measure and no outlier matters; equal values share the mean of theirs.

    values: (n,), small where an image is hard.

    Raises:
        InputError: fewer than two images, or an emphasis below 1.
    """
    if emphasis < 1 or len(values) < 2:
        raise InputError(
            f"emphasis must be at least 1 and there must be two images, got {emphasis:g} and {len(values)}"
        )
    return (1 + (emphasis - 1) * (1 - (ranks(values) - 1) / (len(values) - 1))).float()
