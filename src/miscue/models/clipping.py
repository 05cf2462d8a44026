"""Feature maps whose vectors are cut down to a length before they are gathered: see `defences.feature_norm`."""

from __future__ import annotations

from torch import Tensor, nn

from miscue.errors import InputError

GATHERING = (nn.Flatten, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class NormClip(nn.Module):
    """Feature maps (n, k, h, w) whose vector at each place is no longer than `limit`, then `after`."""

    limit: Tensor

    def __init__(self, after: nn.Module, limit: Tensor):
        super().__init__()
        self.after = after
        self.register_buffer("limit", limit)

    def forward(self, x: Tensor) -> Tensor:
        """What `after` makes of the clipped maps."""
        length = x.norm(dim=1, keepdim=True).clamp(min=1e-12)
        found: Tensor = self.after(x * (self.limit / length).clamp(max=1))
        return found


def gathers(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that gathers the last feature maps, by name: the first such one after the last convolution."""
    found: tuple[str, nn.Module] | None = None
    convolved = False
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found, convolved = None, True
        elif isinstance(module, GATHERING) and convolved and found is None:
            found = name, module
    if found is None:
        raise InputError(
            "the model has no Flatten or adaptive pooling module after its last convolution, before which features "
            "could be clipped"
        )
    return found


def clipped(model: nn.Module, limit: Tensor) -> nn.Module:
    """Put a `NormClip` around what gathers the feature maps, in place."""
    if any(isinstance(module, NormClip) for module in model.modules()):
        raise InputError("the norms of the model's features are clipped already")
    name, gathering = gathers(model)
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = NormClip(gathering, limit)
    return model
