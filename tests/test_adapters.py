"""Other libraries' models take images in [0, 1]."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from miscue.data import floats
from miscue.errors import InputError
from miscue.evasions import one_pixel, pgd
from miscue.models.adapters import adapted
from miscue.readers import read


class Plain(nn.Module):
    """Scores are the channels' means of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Wordy(Plain):
    """The same, wrapped up as transformers do it."""

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(x))


def test_normalisation_is_inside() -> None:
    x = torch.rand(4, 3, 5, 5)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    expected = (x.mean((2, 3)) - torch.tensor(mean)) / torch.tensor(std)
    timm_like = Plain()
    timm_like.pretrained_cfg = {"mean": mean, "std": std}
    for model in (adapted(Plain(), mean=mean, std=std), adapted(timm_like), adapted(Wordy(), mean=mean, std=std)):
        assert torch.allclose(model(x), expected, atol=1e-5)
    assert torch.equal(adapted(Plain())(x), x.mean((2, 3)))
    assert adapted(Plain().eval()).training is False


def test_attacks_run_through_it() -> None:
    x = torch.rand(6, 3, 5, 5) * 0.2 + 0.4
    model = adapted(Wordy(), mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    y = model(x).argmax(1)
    found = pgd(model, x, y, eps=0.2, alpha=0.1, steps=5)
    assert bool(found.success.all())
    assert (found.x - x).abs().max() <= 0.2 + 1e-6


def test_a_classifier_of_scikit_learn_is_attacked_by_queries() -> None:
    from sklearn.linear_model import LogisticRegression

    digits = read("digits")
    x, y = floats(digits.train.images), digits.train.labels
    fitted = LogisticRegression(max_iter=200, tol=1e-3).fit(x.flatten(1).numpy(), y.numpy())
    model = adapted(fitted)
    test = floats(digits.test.images[:20])
    assert float((model(test).argmax(1) == digits.test.labels[:20]).double().mean()) > 0.8
    assert np.array_equal(model(test).argmax(1).numpy(), fitted.predict(test.flatten(1).numpy()))
    found = one_pixel(model, test, digits.test.labels[:20], population=40, generations=8, until="named")
    assert found.success.any()


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (Plain(), {"mean": (0.5,)}, "belong together"),
        (Plain(), {"mean": (0.5,), "std": (0.0,)}, "must be positive"),
        (3, {}, "int is neither a network nor"),
    ],
)
def test_bad_models(model: object, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        adapted(model, **options)


def test_classes_must_be_numbers() -> None:
    from sklearn.dummy import DummyClassifier

    fitted = DummyClassifier().fit([[0.0], [1.0]], ["cat", "dog"])
    with pytest.raises(InputError, match="DummyClassifier was fitted to cat, dog"):
        adapted(fitted)
