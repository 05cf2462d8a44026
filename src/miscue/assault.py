"""Attack a model on a data set, and judge what comes of it by the 8-bit images that are saved.

An attack works on floating-point images; what is handed on is rounded. So budgets and success are measured again on the
rounded images, and both successes are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from miscue.balls import changed_pixels, linf, released
from miscue.data import Data, eight_bit, fed, floats
from miscue.evasions import Adversarial
from miscue.models.modes import frozen
from miscue.models.networks import device_of

Bound = Callable[[nn.Module, Tensor, Tensor, Tensor | None, int], Adversarial]
"""(model, x, y, target or None, number of the first image) -> Adversarial: an attack with its options bound."""


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Images before and after an attack, as they are saved.

    clean, images: uint8 (n, c, h, w).
    labels: int64 (n,); targets: int64 (n,), or -1 where there is none.
    before, after: int64 (n,), what the model takes the clean and the saved image for; sure_before, sure_after: float
        (n,), its probability for that class.
    found: bool (n,), whether the attack succeeded before rounding; success: bool (n,), whether it does as saved.
    queries: int64 (n,); flat: bool (n,), whether what the attack raises never changed.
    """

    clean: Tensor
    images: Tensor
    labels: Tensor
    targets: Tensor
    before: Tensor
    after: Tensor
    sure_before: Tensor
    sure_after: Tensor
    found: Tensor
    success: Tensor
    queries: Tensor
    flat: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def joined(parts: Sequence[Attacked]) -> Attacked:
    """The parts as one."""
    return Attacked(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Attacked)}
    )


def assault(
    model: nn.Module, data: Data, attack: Bound, *, targets: Sequence[int] | None, eps: float | None, start: int
) -> tuple[Attacked, Tensor]:
    """Attack the images of `data`.

    Args:
        model: from images in [0, 1] to scores.
        data: the images and their true classes.
        attack: with its options bound.
        targets: for each class what its images are to be taken for, or None for anything else.
        eps: the L-infinity budget that rounding must keep, where there is one.
        start: the number of the first of them in the whole set, for the dice.

    Returns:
        what came of it, and the attack's loss curve.
    """
    data, device = data.to("cpu"), device_of(model)
    labels = data.labels.to(device)
    target = None if targets is None else torch.tensor(targets, device=device)[labels]
    x = floats(data.images.to(device), channels_last=True)
    found = attack(model, x, labels, target, start)
    images = eight_bit(found.x).cpu() if eps is None else released(found.x.cpu(), data.images, eps)
    before, sure_before = named(model, data.images)
    after, sure_after = named(model, images)
    wanted = torch.full_like(data.labels, -1) if target is None else target.cpu()
    attacked = Attacked(
        clean=data.images,
        images=images,
        labels=data.labels,
        targets=wanted,
        before=before,
        after=after,
        sure_before=sure_before,
        sure_after=sure_after,
        found=(found.success | found.already).cpu(),
        success=after != data.labels if target is None else after == wanted,
        queries=found.queries.cpu(),
        flat=found.flat.cpu(),
    )
    return attacked, found.loss.cpu()


@torch.no_grad()
def named(model: nn.Module, images: Tensor, *, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """The class named for each uint8 image, int64 (n,), and its probability, float (n,)."""
    with frozen(model):
        tops = [model(x).softmax(1).max(1) for _, x in fed(images, device_of(model), chunk=chunk)]
    return torch.cat([top.indices for top in tops]).cpu(), torch.cat([top.values for top in tops]).cpu()


def measures(attacked: Attacked) -> dict[str, float]:
    """The outcome in numbers; shares in percent.

    accuracy, robust_accuracy: right before and after. success: of the attack over the images that were right before;
    success_found: the same before rounding. queries: mean over the images; queries_per_success: those of images
    that were right before over the successes. linf, l2, pixels: the mean change over the successes, on the [0, 1]
    scale; budget_measured: the largest.
    flat: share of the images for which what the attack raises never changed; a sign of masked gradients.
    """
    right = attacked.before == attacked.labels
    won = right & attacked.success
    moved = (attacked.images.float() - attacked.clean.float())[won] / 255
    found = {
        "accuracy": 100 * float(right.double().mean()),
        "robust_accuracy": 100 * float((attacked.after == attacked.labels).double().mean()),
        "success": 100 * float(attacked.success[right].double().mean()) if bool(right.any()) else 0.0,
        "success_found": 100 * float(attacked.found[right].double().mean()) if bool(right.any()) else 0.0,
        "flat": 100 * float(attacked.flat.double().mean()),
        "queries": float(attacked.queries.double().mean()),
        "budget_measured": linf(attacked.images, attacked.clean),
        "changed_pixels": float(changed_pixels(attacked.images, attacked.clean)),
    }
    if bool(won.any()):
        found["queries_per_success"] = float(attacked.queries[right].sum()) / int(won.sum())
        found["linf"] = float(moved.flatten(1).abs().amax(1).mean())
        found["l2"] = float(moved.flatten(1).norm(dim=1).mean())
        found["pixels"] = float((moved != 0).any(1).flatten(1).sum(1).double().mean())
    return found


def arrays(attacked: Attacked) -> dict[str, Any]:
    """What is saved beside the pictures, as numpy arrays."""
    return {field.name: getattr(attacked, field.name).numpy() for field in fields(Attacked)}
