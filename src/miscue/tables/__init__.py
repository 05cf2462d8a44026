"""The seeds' tables: which rows there are, how a cell of each is measured, and what was published."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from miscue.tables import (
    attacks,
    audits,
    deepconfuse,
    defences,
    detection,
    inside,
    outcomes,
    photos,
    samples,
    single_pixel,
    transfer,
    understanding,
)
from miscue.tables.drawn import FIGURES, Figure
from miscue.tables.rows import SCALES, Measures, Row, Workshop


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    title: what it is called. said: what to know before comparing. rows: at a scale.
    verdicts: sentences made from its records, where it has some.
    """

    title: str
    rows: Callable[[str], Iterator[Row]]
    said: str = ""
    verdicts: Callable[[list[dict[str, Any]]], list[str]] = lambda records: []


TEN_RUNS = "The published figures are means of 10 runs. Here are fewer, as a network takes minutes to hours of a core."

TABLES: dict[str, Table] = {
    "deepconfuse": Table(
        title="DeepConfuse: accuracy after training on poisoned data", rows=deepconfuse.accuracies, said=TEN_RUNS
    ),
    "samples": Table(title="What poison looks like: images beside their noise", rows=samples.samples),
    "deepconfuse-eps": Table(
        title="DeepConfuse: how strong the noise must be", rows=deepconfuse.budgets, said=TEN_RUNS
    ),
    "deepconfuse-share": Table(
        title="DeepConfuse: how much of the data must be poisoned", rows=deepconfuse.shares, said=TEN_RUNS
    ),
    "deepconfuse-label-map": Table(title="DeepConfuse: errors by a rule", rows=deepconfuse.rules, said=TEN_RUNS),
    "deepconfuse-transfer": Table(
        title="DeepConfuse: other learners under the same poison", rows=transfer.transfer, said=TEN_RUNS
    ),
    "deepconfuse-features": Table(title="DeepConfuse: deep features, by PCA", rows=inside.deep_features),
    "deepconfuse-weights": Table(title="DeepConfuse: a linear SVM's weights", rows=inside.linear_weights),
    "single-pixel": Table(title="Single pixels: test error of networks", rows=single_pixel.networks),
    "single-pixel-learners": Table(title="Single pixels: test error of other learners", rows=single_pixel.learners),
    "single-pixel-heads": Table(title="Single pixels: does a robust feature map help?", rows=single_pixel.heads),
    "single-pixel-optimizers": Table(title="Single pixels: which optimisers fall for it", rows=single_pixel.optimizers),
    "attacks": Table(title="Test-time attacks without or within a ball", rows=attacks.strength),
    "one-pixel": Table(title="One pixel, by evolution and exhaustively", rows=attacks.one_pixel),
    "stickers": Table(title="Stickers, by area and number", rows=attacks.stickers),
    "patches": Table(title="One patch for all images", rows=attacks.patches),
    "distortions": Table(title="What is left of an attack after a distortion", rows=attacks.distortions),
    "dpatch": Table(title="A patch that blinds a detector", rows=photos.dpatches),
    "explanations": Table(
        title="Explanations: the pointing game, and the right reasons", rows=understanding.explanations
    ),
    "hard-samples": Table(title="Hard samples: which measure finds errors", rows=understanding.hard_samples),
    "detection": Table(title="Stickers found by covering", rows=detection.detection),
    "activations": Table(title="Activations during training", rows=inside.activations),
    "outcomes": Table(
        title="Bounded activations: which network is fooled", rows=outcomes.outcomes, verdicts=outcomes.verdicts
    ),
    "bounds": Table(title="Bounded activations: what they cost", rows=outcomes.bounds),
    "defences": Table(title="Defences against attacks that know them", rows=defences.defences),
    "cleaners": Table(title="Cleaners against poisons", rows=defences.cleaners),
    "audits": Table(title="Audits: signs of poison in training data", rows=audits.audits),
    "outsiders": Table(title="Images of no class", rows=defences.outsiders),
    "certificates": Table(title="PatchCleanser: certified accuracy", rows=detection.certificates),
}

__all__ = ["FIGURES", "SCALES", "TABLES", "Figure", "Measures", "Row", "Table", "Workshop"]
