"""The gradient of a class's score (Simonyan, Vedaldi, Zisserman 2014, arXiv 1312.6034).

    map = max over channels of |d score_y / d x|

of the score before softmax.
"""

from __future__ import annotations

from torch import Tensor

from miscue.explainers.slopes import score_slopes
from miscue.models.modes import Model


def gradient(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Maps of how much a small change of each pixel changes the score of class `y`, not negative.

    Args:
        model: from images in [0, 1] to scores, differentiable; scored in eval mode and left as it was.
        x: images (n, c, h, w) in [0, 1].
        y: int64 (n,), the class whose score is explained.

    Returns:
        float (n, h, w).
    """
    return score_slopes(model, x, y).abs().amax(1)
