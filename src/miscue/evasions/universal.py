"""Universal perturbations: one change for all images.

Moosavi-Dezfooli et al. 2017, arXiv 1610.08401, Algorithm 1:

    for each x that is not fooled yet:   v <- P_xi(v + r),  r = DeepFool(x + v), in L2

until the share of images whose *prediction* v changes is at least 1 - delta. Shafahi et al. 2020, arXiv 1811.11304:

    for each minibatch:   v <- P_xi(v + alpha * d),  d the steepest direction of  mean_x min(loss(x + v), beta)

beta keeps images that are fooled already from having all the say. P_xi projects onto the L-infinity or L2 ball. Labels
have no part in either: an image is fooled when the model names another class than without v. The rate of fooled images
may fall again, so the v of the best pass is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.balls import NORMS, onto, within
from miscue.dice import Dice
from miscue.errors import lookup, positive, share_of_one
from miscue.evasions.attempt import Adversarial, Goal, check, outcome, scored, slope
from miscue.evasions.deepfool import to_boundary
from miscue.evasions.pgd import ascent
from miscue.models.modes import Model, frozen


def universal(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 10 / 255,
    norm: str = "linf",
    fooling: float = 0.8,
    passes: int = 5,
    steps: int = 10,
    overshoot: float = 0.02,
    dice: Dice | None = None,
) -> Adversarial:
    """One perturbation by DeepFool, image by image, that changes what the model says of most images.

    Args:
        model: from images in [0, 1] to scores, differentiable.
        x: float (n, c, h, w) in [0, 1], the images it is made from.
        y: int64 (n,), the true classes, by which success is scored.
        eps: xi, the radius of the ball.
        norm: of the ball, "linf" or "l2".
        fooling: 1 - delta, the share of changed predictions to stop at.
        passes: over the images, at most.
        steps: of DeepFool for each image.
        overshoot: of DeepFool.
        dice: for the order of the images.

    Returns:
        the images with it; `shared` is v, and `loss` the share of changed predictions after each pass.
    """
    lookup(dict.fromkeys(NORMS), norm, "norm")
    share_of_one(fooling=fooling)
    positive(eps=eps, passes=passes)
    order = (dice or Dice()).named("order")
    with frozen(model):
        check(model, x, y, None, gradient=True)
        v = best = torch.zeros_like(x[:1])
        queries, curve = torch.ones_like(y), []
        clean = scored(model, x)
        before = clean.argmax(1)
        for number in range(passes):
            for i in torch.randperm(len(x), generator=order.named(number).generator()).tolist():
                moved, goal = (x[i : i + 1] + v).clamp(0, 1), Goal(y=before[i : i + 1])
                found = to_boundary(model, moved, goal, norm="l2", steps=steps, candidates=10, overshoot=overshoot)
                queries[i] += int(found.queries)
                v = onto(v + found.x - moved, eps, norm)
            changed = scored(model, (x + v).clamp(0, 1)).argmax(1) != before
            queries += 1
            curve.append(float(changed.float().mean()))
            best = v if curve[-1] == max(curve) else best
            if curve[-1] >= fooling:
                break
    return told(model, x, Goal(y=y), best, clean, queries, curve)


def universal_gradient(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    eps: float = 10 / 255,
    norm: str = "linf",
    passes: int = 10,
    batch: int = 128,
    alpha: float = 0.25,
    bound: float = 9.0,
    dice: Dice | None = None,
) -> Adversarial:
    """One perturbation by gradient steps on minibatches: stronger, and in a small part of the time.

    Args:
        model: from images in [0, 1] to scores, differentiable.
        x: float (n, c, h, w) in [0, 1], the images it is made from.
        y: int64 (n,), the true classes, by which success is scored.
        target: int64 (n,), the classes to be mistaken for; any but the one that is named without it if None.
        eps: xi, the radius of the ball.
        norm: of the ball, "linf" or "l2".
        passes: over the images.
        batch: images a step.
        alpha: the first step's length as a share of eps; it falls to 0 along a line.
        bound: beta, the most that an image's cross-entropy counts; without effect on a target's, which is to fall.
        dice: for the start and the order of the images.

    Returns:
        the images with it; `shared` is v, and `loss` the share of changed predictions, or of targets, after each pass.
    """
    lookup(dict.fromkeys(NORMS), norm, "norm")
    positive(eps=eps, passes=passes, batch=batch, alpha=alpha, bound=bound)
    named = dice or Dice()
    with frozen(model):
        check(model, x, y, target, gradient=True)
        clean = scored(model, x)
        goal, best, curve = Goal(y=clean.argmax(1), target=target), torch.zeros_like(x[:1]), []
        v = within(best, eps, norm, named.named("start").generator())
        for number in range(passes):
            order = torch.randperm(len(x), generator=named.named("order", number).generator()).to(x.device)
            parts = order.split(batch)
            for step, index in enumerate(parts):

                def rises(v: Tensor, index: Tensor = index) -> Tensor:
                    return goal.of(index).nearness(model((x[index] + v).clamp(0, 1))).clamp(max=bound).mean()

                left = 1 - (number + step / len(parts)) / passes
                v = onto(v + alpha * eps * left * ascent(slope(rises, v)[0], norm), eps, norm)
            curve.append(float(goal.reached(scored(model, (x + v).clamp(0, 1))).float().mean()))
            best = v if curve[-1] == max(curve) else best
    queries = torch.full_like(y, 2 * passes + 1)
    return told(model, x, Goal(y=y, target=target), best, clean, queries, curve)


def told(
    model: Model, x: Tensor, goal: Goal, v: Tensor, clean: Tensor, queries: Tensor, curve: list[float]
) -> Adversarial:
    """What a perturbation v (1, c, h, w) does to images of such scores without it."""
    attacked = (x + v).clamp(0, 1)
    with frozen(model):
        success, already = outcome(goal, clean, scored(model, attacked))
    return Adversarial(
        x=attacked,
        success=success,
        already=already,
        flat=torch.zeros_like(success),
        queries=queries,
        steps=len(curve),
        loss=torch.tensor(curve, device=x.device),
        shared=v[0],
    )
