"""How well a detector finds objects: COCO's average precision, worked out by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miscue.errors import InputError
from miscue.scenes import Boxes

EVERY_AREA = [0.0, 1e10]


def average_precision(found: Sequence[Boxes], targets: Sequence[Boxes], classes: int) -> dict[str, float]:
    """In percent, over the classes that have objects.

    Args:
        found: the detections in each image.
        targets: what is there.
        classes: how many; labels are 1, 2, ...

    Returns:
        "map": the mean over overlaps of 0.50, 0.55, ..., 0.95 (IoU) from which a detection counts; "map_50": at 0.50
        alone. Of each class only the 100 best detections in an image count.

    Raises:
        InputError: no objects at all, or faster-coco-eval is not installed.
    """
    measurable(targets)
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(
        {
            "images": [{"id": number} for number in range(1, len(targets) + 1)],
            "categories": [{"id": label, "name": str(label)} for label in range(1, classes + 1)],
            "annotations": numbered(targets),
        }
    )
    evaluation = COCOeval_faster(truth, truth.loadRes(numbered(found)), "bbox", extra_calc=False)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [EVERY_AREA], ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = torch.as_tensor(evaluation.eval["precision"])[..., 0, 0]  # (overlaps, recalls, classes), -1: no objects
    there = precision.amin((0, 1)) >= 0
    return {
        "map": 100 * float(precision[:, :, there].mean()),
        "map_50": 100 * float(precision[0][:, there].mean()),
    }


def measurable(targets: Sequence[Boxes]) -> None:
    """Raise an InputError where `average_precision` could not be had: to be asked before long work."""
    if not any(len(target["labels"]) for target in targets):
        raise InputError("no image has an object, so that average precision is undefined")
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        raise InputError("average precision needs faster-coco-eval: pip install 'miscue[detection]'") from None


def numbered(boxes: Sequence[Boxes]) -> list[dict[str, Any]]:
    """COCO's annotations or results, image by image from 1."""
    found: list[dict[str, Any]] = []
    for number, one in enumerate(boxes, start=1):
        for i, (corners, label) in enumerate(zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True)):
            left, top, right, bottom = corners
            entry = {"image_id": number, "category_id": label, "bbox": [left, top, right - left, bottom - top]}
            entry |= {"id": len(found) + 1, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
            found.append(entry | ({"score": float(one["scores"][i])} if "scores" in one else {}))
    return found


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (k, 4) and (l, 4): (k, l)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    area, other = ((some[:, 2:] - some[:, :2]).prod(1) for some in (boxes, others))
    return shared / (area[:, None] + other[None] - shared).clamp(min=1e-12)


def recovered(found: Boxes, target: Boxes, *, overlap: float = 0.5) -> Tensor:
    """Whether each object of `target` is among the detections, by its class and an overlap of so much: bool (k,)."""
    same = target["labels"][:, None] == found["labels"][None]
    return (same & (overlaps(target["boxes"], found["boxes"]) >= overlap)).any(1)
