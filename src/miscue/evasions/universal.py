"""Universal perturbation (Moosavi-Dezfooli et al. 2017, arXiv 1610.08401): one change for all images.

    for each x that is not fooled yet:   v <- P_xi(v + r),  r = DeepFool(x + v), in L2     (Algorithm 1)

until the share of images whose *prediction* v changes is at least 1 - delta. P_xi projects onto the L-infinity or L2
ball. As published, labels have no part in it: an image is fooled when the model names another class than without v. The
rate of fooled images may fall again, so the v of the best pass is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miscue.balls import onto
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions.attempt import Adversarial, Goal, check, outcome, scored
from miscue.evasions.deepfool import to_boundary
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
    """One perturbation that changes what the model says of most images.

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
    if not (0 < fooling <= 1 and eps > 0 and passes >= 1):
        raise InputError("fooling must lie in (0, 1], eps and passes must be positive")
    order = (dice or Dice()).named("order")
    with frozen(model):
        check(model, x, y, None)
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
        attacked = (x + best).clamp(0, 1)
        success, already = outcome(Goal(y=y), clean, scored(model, attacked))
    return Adversarial(
        x=attacked,
        success=success,
        already=already,
        flat=torch.zeros_like(success),
        queries=queries,
        steps=len(curve),
        loss=torch.tensor(curve, device=x.device),
        shared=best[0],
    )
