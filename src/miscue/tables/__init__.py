"""The seeds' tables: which rows there are, how a cell of each is measured, and what was published."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from miscue.tables import deepconfuse, single_pixel
from miscue.tables.rows import SCALES, Measures, Row, Workshop


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: what it is called, and its rows at a scale."""

    title: str
    rows: Callable[[str], Iterator[Row]]


TABLES: dict[str, Table] = {
    "deepconfuse": Table(title="DeepConfuse: accuracy after training on poisoned data", rows=deepconfuse.accuracies),
    "deepconfuse-eps": Table(title="DeepConfuse: how strong the noise must be", rows=deepconfuse.budgets),
    "deepconfuse-share": Table(title="DeepConfuse: how much of the data must be poisoned", rows=deepconfuse.shares),
    "deepconfuse-label-map": Table(title="DeepConfuse: errors by a rule", rows=deepconfuse.rules),
    "single-pixel": Table(title="Single pixels: test error of networks", rows=single_pixel.networks),
    "single-pixel-learners": Table(title="Single pixels: test error of other learners", rows=single_pixel.learners),
    "single-pixel-heads": Table(title="Single pixels: does a robust feature map help?", rows=single_pixel.heads),
    "single-pixel-optimizers": Table(title="Single pixels: which optimisers fall for it", rows=single_pixel.optimizers),
}

__all__ = ["SCALES", "TABLES", "Measures", "Row", "Table", "Workshop"]
