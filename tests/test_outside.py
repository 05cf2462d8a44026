"""Images of no class: how sure a classifier is of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from miscue.errors import InputError
from miscue.measures.outside import confidence, histogram, told_apart


def test_told_apart_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    inside = (torch.rand(200, generator=generator) * 20).round() / 20 + 0.2
    outside = (torch.rand(150, generator=generator) * 20).round() / 20
    labels = [1] * 200 + [0] * 150
    found = told_apart(inside, outside)
    assert found["auc"] == pytest.approx(100 * metrics.roc_auc_score(labels, torch.cat([inside, outside])))
    threshold = inside.quantile(0.05)
    assert found["fpr_at_95"] == pytest.approx(100 * float((outside >= threshold).float().mean()))
    assert told_apart(inside + 2, outside) == {"auc": 100.0, "fpr_at_95": 0.0}
    with pytest.raises(InputError, match="some of both kinds"):
        told_apart(inside, outside[:0])


def test_confidence_of_scaled_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    model[1].weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    images = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
    for scale in (0.5, 1.0, 4.0):
        expected = torch.tensor([scale, 0.0]).softmax(0).amax()
        assert confidence(model, images, scale=scale).tolist() == pytest.approx([float(expected)] * 3)
    with pytest.raises(InputError, match="scale"):
        confidence(model, images, scale=0)


def test_histogram_shares() -> None:
    assert histogram(torch.tensor([0.05, 0.5, 0.95, 0.96]), bins=10) == pytest.approx([25, 0, 0, 0, 0, 25, 0, 0, 0, 50])
