"""DPatch (Liu et al. 2018, arXiv 1806.02299): a patch in a photo that blinds an object detector to everything in it.

    untargeted   P = argmax E L(A(x, P), y, B)        L the detector's own training loss, y and B the true objects
    targeted     P = argmin E L(A(x, P), y_t, B_t)    y_t a class of the attacker's, B_t the place of the patch
    crowd        P = argmin E L(A(x, P), Y, G)        Y all classes at each place of a grid G over the patch; ours

Maximising a loss without bound may end in a few false objects of absurd certainty, which take little from the rest. A
crowd takes the room that a detector has for its surest detections, and is told that nothing else is there. A pastes the
patch at one place. The paper uses plain gradient steps; here it is Adam, as for the other patch. A detector's losses
are to be had in training mode only; layers that would keep statistics or draw at random stay in eval mode meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from miscue.data import floats
from miscue.dice import Dice
from miscue.errors import InputError, lookup, positive
from miscue.evasions.patch import drawn_batches
from miscue.measures.detection import average_precision, recovered
from miscue.models.modes import frozen, losing
from miscue.models.networks import device_of
from miscue.scenes import Boxes, Scenes

PLACES = ("corner", "random")
AIMS = ("loss", "crowd")
GRID = 5  # places of a crowd along each side of the patch
Detector = nn.Module
"""torchvision's protocol: `(images, targets) -> losses` in training mode, `(images) -> boxes, labels, scores`."""


@dataclass(frozen=True, kw_only=True)
class Patched:
    """Photos with the patch, and how it came about.

    images: float (c, h, w) each; places: int64 (n, 2), row and column of the patch's upper left corner in each.
    found: the detections in them.
    success: bool (n,); without a target, that none of the objects is found (right class, overlap 0.5), with one, that
        the surest detection is of that class.
    loss: float (steps,), what the attack raised: the detector's loss, or less that of the target.
    patch: float (c, size, size).
    """

    images: tuple[Tensor, ...]
    places: Tensor
    found: tuple[Boxes, ...]
    success: Tensor
    loss: Tensor
    patch: Tensor


def dpatch(detector: Detector, images: Sequence[Tensor], targets: Sequence[Boxes], **options: Any) -> Patched:
    """Make the patch and put it on the photos: all of `dpatch_steps`, with its options."""
    steps = dpatch_steps(detector, images, targets, **options)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            patched: Patched = end.value
            return patched


def dpatch_steps(
    detector: Detector,
    images: Sequence[Tensor],
    targets: Sequence[Boxes],
    *,
    target: int | None = None,
    aim: str = "loss",
    size: int = 40,
    place: str = "corner",
    steps: int = 400,
    batch: int = 4,
    lr: float = 0.03,
    dice: Dice | None = None,
) -> Generator[Tensor, None, Patched]:
    """One patch that keeps a detector from finding what is in the photos, step by step.

    Args:
        detector: of torchvision, or any with its protocol.
        images: float (c, h, w) in [0, 1] each, of any sizes, the photos it is made from.
        targets: their boxes and labels.
        target: label of the class that all attention is to go to; none in particular if None.
        aim: without a target, "loss" (as published: maximise it) or "crowd" (objects of all classes all over it).
        size: side of the square patch in pixels.
        place: "corner" (upper left, as in the paper), or "random" (drawn for each photo and step).
        steps: of Adam.
        batch: photos a step.
        lr: Adam's rate.
        dice: for the patch's start, photos and places.

    Yields:
        what rises, a scalar, after each step.

    Returns:
        the photos with the patch, each at its place. `stuck` puts it on others.

    Raises:
        InputError: a number out of range, a photo outside [0, 1] or smaller than the patch.
    """
    lookup(dict.fromkeys(PLACES), place, "place")
    lookup(dict.fromkeys(AIMS), aim, "aim")
    positive(size=size, steps=steps, batch=batch, lr=lr, **({} if target is None else {"target": target}))
    check(images, targets, size)
    labels = torch.cat([one["labels"] for one in targets]).unique() if target is None else torch.tensor([target])
    side = GRID if target is None else 1
    rising = target is None and aim == "loss"
    named = dice or Dice()
    start = torch.rand(images[0].shape[0], size, size, generator=named.named("start").generator())
    p = start.to(images[0]).requires_grad_()
    adam, curve = torch.optim.Adam([p], lr), []
    generator = named.named("places").generator()
    for index in drawn_batches(len(images), batch, steps, named):
        some = [images[i] for i in index.tolist()]
        places = drawn_places(some, size, place, generator)
        aims = [on(targets[i], p) for i in index.tolist()] if rising else crowd(p, places, labels, side)
        with losing(detector), torch.enable_grad():
            loss: Any = sum(detector(stuck(p, some, places), aims).values())
            rises = loss if rising else -loss
            (p.grad,) = torch.autograd.grad(-rises, p)
        adam.step()
        p.data.clamp_(0, 1)
        curve.append(rises.detach())
        yield curve[-1]
    patch = p.detach()
    places = drawn_places(images, size, place, named.named("scored").generator())
    shown = stuck(patch, images, places)
    found = detected(detector, shown)
    return Patched(
        images=tuple(shown),
        places=places,
        found=tuple(found),
        success=torch.tensor([won(one, on(true, places), target) for one, true in zip(found, targets, strict=True)]),
        loss=torch.stack(curve),
        patch=patch,
    )


def check(images: Sequence[Tensor], targets: Sequence[Boxes], size: int) -> None:
    """Raise an InputError where the attack cannot begin."""
    if not images or len(images) != len(targets):
        raise InputError(f"{len(images)} photos and {len(targets)} lists of boxes; at least one of each is needed")
    for number, image in enumerate(images):
        if image.ndim != 3 or not image.is_floating_point() or not 0 <= float(image.min()) <= float(image.max()) <= 1:
            raise InputError(f"photo {number} must be float (c, h, w) in [0, 1]; normalise inside the detector")
        if min(image.shape[1:]) < size:
            raise InputError(f"photo {number} of {tuple(image.shape[1:])} is smaller than the patch of {size} pixels")


def drawn_places(images: Sequence[Tensor], size: int, place: str, generator: torch.Generator) -> Tensor:
    """Row and column of the patch in each photo: int64 (n, 2)."""
    room = torch.tensor([[image.shape[1] - size + 1, image.shape[2] - size + 1] for image in images])
    if place == "corner":
        return torch.zeros_like(room)
    return (room * torch.rand(len(images), 2, generator=generator)).long()


def stuck(patch: Tensor, images: Sequence[Tensor], places: Tensor) -> list[Tensor]:
    """The photos with the patch (c, size, size) at row and column `places` (n, 2) of each; differentiable in it."""
    size = patch.shape[1]
    covered = []
    for image, (row, column) in zip(images, places.tolist(), strict=True):
        one = image.clone()
        one[:, row : row + size, column : column + size] = patch
        covered.append(one)
    return covered


def crowd(patch: Tensor, places: Tensor, labels: Tensor, side: int) -> list[Boxes]:
    """An object of each label at each of side x side places over the patch, in each photo."""
    step = patch.shape[1] / side
    offsets = step * torch.cartesian_prod(torch.arange(side), torch.arange(side)).repeat_interleave(len(labels), 0)
    found = []
    for place in places:
        low = place.flip(0) + offsets
        boxes = torch.cat([low, low + step], dim=1).to(patch)
        found.append({"boxes": boxes, "labels": labels.repeat(side**2).to(patch.device)})
    return found


def on(target: Boxes, image: Tensor) -> Boxes:
    """Boxes on the device of an image."""
    return {name: value.to(image.device) for name, value in target.items()}


def detected(detector: Detector, images: Sequence[Tensor], *, batch: int = 8) -> list[Boxes]:
    """The detections in many photos, on the CPU."""
    found: list[Boxes] = []
    with frozen(detector), torch.no_grad():
        for start in range(0, len(images), batch):
            found += detector(list(images[start : start + batch]))
    return [{name: value.cpu() for name, value in one.items()} for one in found]


def precise(detector: Detector, scenes: Scenes) -> tuple[list[Boxes], dict[str, float]]:
    """What is found in photos, and its average precision in percent."""
    found = detected(detector, [floats(image).to(device_of(detector)) for image in scenes.images])
    return found, average_precision(found, scenes.targets, len(scenes.classes))


def blinded(
    detector: Detector, scenes: Scenes, patch: Tensor, places: Tensor, *, target: int | None, dice: Dice
) -> tuple[dict[str, float], dict[str, list[Boxes]]]:
    """How a detector fares on photos with a patch, uint8 (c, size, size), at `places`.

    Returns:
        map, map_50: of the photos as they are, in percent; with "_noise", of photos with a patch of random pixels at
        the same places, with "_patched" of those with the patch. success: share of the photos in which none of the
        objects, or the target before all, is found. Then what is found, by "", "_noise" and "_patched".
    """
    noise = torch.randint(0, 256, patch.shape, generator=dice.named("noise").generator(), dtype=torch.uint8)
    row: dict[str, float] = {}
    found: dict[str, list[Boxes]] = {}
    for name, one in (("", None), ("_noise", noise), ("_patched", patch)):
        shown = scenes if one is None else replace(scenes, images=tuple(stuck(one, scenes.images, places)))
        found[name], precision = precise(detector, shown)
        row |= {f"{measure}{name}": value for measure, value in precision.items()}
    hits = [won(one, true, target) for one, true in zip(found["_patched"], scenes.targets, strict=True)]
    return row | {"success": 100 * sum(hits) / len(hits)}, found


def won(found: Boxes, target: Boxes, label: int | None) -> bool:
    """Whether the attack succeeded on a photo."""
    if label is None:
        return not bool(recovered(found, target).any())
    return bool(len(found["labels"])) and int(found["labels"][found["scores"].argmax()]) == label
