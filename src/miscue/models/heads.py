"""Heads with a fixed non-linear transformation: does the geometry of an RBF kernel keep a network from wrong cues?

Both approximate k(a, b) = exp(-gamma |a - b|^2) on a body's features, standardised by BatchNorm without parameters,
with gamma = 1 / (2 * features), so that unrelated features are about exp(-1) alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miscue.models.layers import BatchNorm1d


class RandomFourier(nn.Module):
    """sqrt(2 / D) cos(Omega a + b) (Rahimi, Recht 2007): (n, features) -> (n, D), whose products approximate k."""

    omega: Tensor
    phase: Tensor

    def __init__(self, features: int, outputs: int):
        super().__init__()
        self.norm = BatchNorm1d(features, affine=False)
        self.register_buffer("omega", torch.randn(outputs, features) / math.sqrt(features))
        self.register_buffer("phase", 2 * math.pi * torch.rand(outputs))

    def forward(self, a: Tensor) -> Tensor:
        """The random features."""
        with torch.autocast(a.device.type, enabled=False):  # phases of bfloat16 would be noise
            angles = F.linear(self.norm(a.float()), self.omega, self.phase)
        return math.sqrt(2 / len(self.phase)) * torch.cos(angles)


class Nystrom(nn.Module):
    """L^-1 k(Z, a) with L L^T = k(Z, Z) + 1e-3 (Williams, Seeger 2001): products approximate k, exactly so at Z.

    Z are the features, as the body makes them now, of the first `landmarks` images that the model is trained on.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, body: nn.Module, shape: tuple[int, int, int], features: int, classes: int, landmarks: int):
        super().__init__()
        self.body = body
        self.norm = BatchNorm1d(features, affine=False)
        self.linear = nn.Linear(landmarks, classes)
        self.register_buffer("images", torch.zeros(landmarks, *shape))
        self.register_buffer("filled", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes) of images (n, c, h, w)."""
        missing = len(self.images) - int(self.filled)
        if self.training and missing:
            new = x[:missing].detach()
            self.images[int(self.filled) : int(self.filled) + len(new)] = new
            self.filled += len(new)
        features = self.body(torch.cat([x, self.images]))
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 k(Z, Z) is not positive definite
            a, z = self.norm(features.float()).split([len(x), len(self.images)])
            root = torch.linalg.cholesky(rbf(z, z) + 1e-3 * torch.eye(len(z), device=z.device, dtype=z.dtype))
            scores: Tensor = self.linear(torch.linalg.solve_triangular(root, rbf(z, a), upper=False).t())
        return scores


def rbf(a: Tensor, b: Tensor) -> Tensor:
    """exp(-|a - b|^2 / (2 features)): (n, features), (m, features) -> (n, m)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.t()
    return torch.exp(-squares.clamp(min=0) / (2 * a.shape[1]))
