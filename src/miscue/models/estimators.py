"""scikit-learn classifiers as models: images in [0, 1] (n, c, h, w) -> scores (n, classes)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miscue.errors import InputError, lookup


class Estimator(nn.Module):
    """A scikit-learn classifier behind the interface of a network. It has no parameters and no gradients.

    Scores are the estimator's decision function, or its probabilities, or 0 and 1 for the class it names, whichever
    comes first; classes it never saw get the lowest.
    """

    def __init__(self, estimator: Any, classes: int):
        super().__init__()
        self.estimator = estimator
        self.classes = classes

    def fit(self, x: Tensor, y: Tensor) -> Estimator:
        """Fit on images (n, c, h, w) in [0, 1] and labels (n,)."""
        self.estimator.fit(x.flatten(1).cpu().numpy(), y.cpu().numpy())
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes), float32."""
        flat = x.detach().flatten(1).cpu().numpy()
        known = np.asarray(self.estimator.classes_)
        if hasattr(self.estimator, "decision_function"):
            found = np.asarray(self.estimator.decision_function(flat))
            found = np.stack([-found, found], axis=1) if found.ndim == 1 else found
        elif hasattr(self.estimator, "predict_proba"):
            found = np.asarray(self.estimator.predict_proba(flat))
        else:
            found = (self.estimator.predict(flat)[:, None] == known).astype(np.float32)
        scores = torch.full((len(x), self.classes), float(found.min(initial=0)) - 1)
        scores[:, torch.as_tensor(known)] = torch.as_tensor(found, dtype=torch.float32)
        return scores


def linear_svm(seed: int) -> Any:
    """A linear SVM: squared hinge loss, one class against the rest."""
    from sklearn.svm import LinearSVC

    return LinearSVC(dual=False, random_state=seed)


def rbf_svm(seed: int, *, gamma: float | str = "scale") -> Any:
    """An SVM with RBF kernel, scikit-learn's own scale of gamma and C = 5."""
    from sklearn.svm import SVC

    return SVC(C=5, gamma=gamma, cache_size=1000)


def random_forest(seed: int, *, trees: int = 300) -> Any:
    """300 trees, as in the DeepConfuse paper."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(trees, random_state=seed, n_jobs=torch.get_num_threads())


ESTIMATORS: dict[str, Callable[[int], Any]] = {
    "linear-svm": linear_svm,
    "rbf-svm": rbf_svm,
    "rbf-svm-0.01": partial(rbf_svm, gamma=0.01),  # as in the DeepConfuse paper
    "random-forest": random_forest,
    "random-forest-10": partial(random_forest, trees=10),  # scikit-learn's own number until 2019
}


def estimator(name: str) -> Callable[[int], Any]:
    """A key of ESTIMATORS, or the name of any classifier of scikit-learn, with its own defaults: seed -> estimator.

    Raises:
        InputError: scikit-learn has no such classifier, or it needs arguments.
    """
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    from sklearn.utils import all_estimators

    make = lookup(dict(all_estimators(type_filter="classifier")), name, "scikit-learn classifier")

    def made(seed: int) -> Any:
        try:
            one = make()
        except TypeError as error:
            raise InputError(f"{name} cannot be made without arguments: {error}") from error
        return one.set_params(random_state=seed) if "random_state" in one.get_params() else one

    return made
