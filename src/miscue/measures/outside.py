"""What a classifier does with images of none of its classes: how sure it is, and whether that tells them apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miscue.data import fed
from miscue.errors import positive
from miscue.measures.statistics import auroc
from miscue.models.modes import frozen
from miscue.models.networks import device_of

SCALES = (0.25, 0.5, 2.0, 4.0)  # of brightness, beside 1


def confidence(model: nn.Module, images: Tensor, *, scale: float = 1.0, chunk: int = 256) -> Tensor:
    """The largest class probability for uint8 images times `scale`, without cutting off at white: float (n,).

    Raises:
        InputError: a scale that is not positive.
    """
    positive(scale=scale)
    with frozen(model), torch.no_grad():
        sure = [model(scale * x).softmax(1).amax(1) for _, x in fed(images, device_of(model), chunk=chunk)]
        return torch.cat(sure).cpu()


def told_apart(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """How well a score that is to be larger for known images tells unknown ones apart, in percent.

    Returns:
        "auc": how often a known image has the larger score; "fpr_at_95": the share of unknown images that pass where
        95 % of the known ones do.
    """
    known = torch.arange(len(inside) + len(outside)) < len(inside)
    area = auroc(torch.cat([inside, outside]), known)
    threshold = inside.double().quantile(0.05)
    return {
        "auc": area,
        "fpr_at_95": 100 * float((outside.double() >= threshold).double().mean()),
    }


def histogram(scores: Tensor, *, bins: int = 20) -> list[float]:
    """The shares of scores in equal parts of [0, 1], in percent."""
    return (100 * torch.histc(scores.float(), bins, 0, 1) / max(len(scores), 1)).tolist()


def surprise(model: nn.Module, known: Tensor, other: Tensor) -> tuple[dict[str, float], list[list[float]]]:
    """What a model makes of uint8 images of its classes and of others.

    Returns:
        numbers: "auc" and "fpr_at_95" of its confidence, as `told_apart` gives them; "confidence_inside" and
        "confidence_outside", the means, and the same for brighter and darker images, ", times 2" and so on.
        the histograms of its confidence, of known images and of others.
    """
    sets = {"inside": known, "outside": other}
    sure = {name: confidence(model, images) for name, images in sets.items()}
    found = told_apart(*sure.values()) | {f"confidence_{name}": 100 * float(some.mean()) for name, some in sure.items()}
    for scale in SCALES:
        for name, images in sets.items():
            scaled = confidence(model, images, scale=scale)
            found[f"confidence_{name}, times {scale:g}"] = 100 * float(scaled.mean())
    return found, [histogram(some) for some in sure.values()]
