"""Feature-norm clipping (Yu et al. 2021, "Defending against universal adversarial patches by clipping feature norms").

A patch wins by features far larger than any that natural images have. Before the last feature maps are pooled or
flattened, the vector of all channels at each place is cut down to a length tau:

    f <- f min(1, tau / |f|)

tau is a percentile of what these lengths are on clean images.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from miscue.data import Data, fed
from miscue.errors import InputError
from miscue.models.clipping import clipped, gathers
from miscue.models.modes import frozen
from miscue.models.networks import device_of


def feature_norm(model: nn.Module, data: Data, *, percentile: float = 99.0) -> nn.Module:
    """A copy of a network that clips the norms of its last feature maps.

    Args:
        model: a network whose maps are gathered by a Flatten or an adaptive pooling module.
        data: clean images, to see how long feature vectors are.
        percentile: of the largest length in each image; tau.

    Raises:
        InputError: no such module, or a percentile out of range.
    """
    if not 0 < percentile <= 100:
        raise InputError(f"percentile must lie in (0, 100], got {percentile:g}")
    found = deepcopy(model)
    _, gathering = gathers(found)
    lengths: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        lengths.append(inputs[0].norm(dim=1).flatten(1).amax(1))

    hook = gathering.register_forward_pre_hook(look)
    with frozen(found), torch.no_grad():
        for _, x in fed(data.images, device_of(found), chunk=256):
            found(x)
    hook.remove()
    return clipped(found, torch.cat(lengths).quantile(percentile / 100)).eval()
