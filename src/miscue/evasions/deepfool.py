"""DeepFool (Moosavi-Dezfooli, Fawzi, Frossard 2016, arXiv 1511.04599): to the nearest boundary of a linearised model.

With f_k the scores, c the class that is named for x, w_k = d f_k - d f_c and d_k = f_k - f_c at x_i, one step is, by
Algorithm 2 for L2 and its generalisation to the dual norm q for L-infinity (q = 1),

    l     = argmin_k |d_k| / |w_k|_q
    r_i   = |d_l| / |w_l|_2^2 w_l    (L2)        r_i = |d_l| / |w_l|_1 sign w_l    (L-infinity)
    x_i+1 = clip(x_0 + (1 + overshoot) sum r, 0, 1)

until another class is named. c is y: the class of the unattacked image, or else nothing is left to do. Only the
`candidates` classes of largest score at x_0 are looked at. A target leaves one candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.balls import NORMS
from miscue.dice import Dice
from miscue.errors import lookup, not_negative, positive
from miscue.evasions.attempt import Adversarial, Found, Goal, attempted
from miscue.models.modes import Model


def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    norm: str = "l2",
    steps: int = 50,
    candidates: int = 10,
    overshoot: float = 0.02,
    chunk: int = 0,
) -> Adversarial:
    """The least change, by linear steps, for which another class is named. Without a budget.

    Args:
        model: from images in [0, 1] to scores, differentiable.
        x: float (n, c, h, w) in [0, 1].
        y: int64 (n,), the true classes.
        target: int64 (n,), the classes to be mistaken for; the nearest if None.
        norm: "l2" or "linf".
        steps: at most so many.
        candidates: classes whose boundaries are looked at.
        overshoot: how much further than to the boundary.
        chunk: images at a time; 0 for what memory allows.
    """
    lookup(dict.fromkeys(NORMS), norm, "norm")
    positive(steps=steps, candidates=candidates)
    not_negative(overshoot=overshoot)

    def attack(model: Model, x: Tensor, goal: Goal, dice: Dice) -> Found:
        return to_boundary(model, x, goal, norm=norm, steps=steps, candidates=candidates, overshoot=overshoot)

    return attempted(attack, model, x, y, target=target, dice=Dice(), chunk=chunk, gradient=True)


def to_boundary(
    model: Model, x: Tensor, goal: Goal, *, norm: str, steps: int, candidates: int, overshoot: float
) -> Found:
    """The steps themselves, for a frozen model and images whose goal is not reached yet, or is."""
    z, total = x.clone(), torch.zeros_like(x)
    queries = torch.zeros_like(goal.y)
    curve = []
    others = clean = None
    nearness = torch.zeros_like(x[:, 0, 0, 0])
    going = torch.arange(len(x), device=x.device)
    for _ in range(steps):
        with torch.enable_grad():
            seen = z[going].requires_grad_()
            scores = model(seen)
            nearness = nearness.index_copy(0, going, goal.of(going).nearness(scores.detach()))
            curve.append(nearness)
            queries[going] += 1
            left = ~goal.of(going).reached(scores.detach())
            if others is None:
                clean = scores.detach()
                others = rivals(clean, goal, candidates)
            if not bool(left.any()):
                break
            margins = scores.gather(1, others[going]) - scores.gather(1, goal.y[going, None])  # d_k
            slopes = torch.stack([gradient(margins[:, k], seen) for k in range(margins.shape[1])])  # w_k
        going, r = going[left], shortest(margins.detach()[left].t(), slopes[:, left], norm)
        total[going] += r
        z[going] = (x[going] + (1 + overshoot) * total[going]).clamp(0, 1)
    return Found(x=z, queries=queries, loss=torch.stack(curve), clean=clean)


def gradient(values: Tensor, x: Tensor) -> Tensor:
    """d values / d x, image by image; the graph is kept for the next."""
    (found,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
    return found


def rivals(scores: Tensor, goal: Goal, candidates: int) -> Tensor:
    """The classes (n, k) whose boundaries are looked at: the target, or those of largest score but y."""
    if goal.target is not None:
        return goal.target[:, None]
    k = min(candidates, scores.shape[1] - 1)
    return scores.scatter(1, goal.y[:, None], -torch.inf).topk(k, dim=1).indices


def shortest(margins: Tensor, slopes: Tensor, norm: str) -> Tensor:
    """The step (images, c, h, w) to the nearest boundary, for margins (k, images) with slopes (k, images, c, h, w)."""
    flat = slopes.flatten(2)
    lengths = (flat.norm(dim=2) if norm == "l2" else flat.abs().sum(2)).clamp(min=1e-12)
    nearest = (margins.abs() / lengths).argmin(0)
    every = torch.arange(len(nearest), device=nearest.device)
    distance, w, length = margins[nearest, every].abs(), slopes[nearest, every], lengths[nearest, every]
    direction = w / length[:, None, None, None] if norm == "l2" else w.sign()
    # a little further, as in the authors' code, so that a point on the boundary itself is moved too
    return (distance / length + 1e-4)[:, None, None, None] * direction
