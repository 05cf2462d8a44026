"""Which figures each table has, as data: what of its rows is drawn, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a table.

    kind: how it is drawn, a key of `report.kinds.KINDS`. title, said: its heading and what to know before looking.
    value: the measure, or the entry of a cell's "figures", that it shows.
    over: the setting along the horizontal axis, where there is one; across: what that axis is called.
    apart: the settings that tell the lines of a drawing apart. panels: those that tell the drawings apart.
    words: what values of settings are called, and a setting's name where it is not given.
    """

    kind: str
    title: str
    said: str = ""
    value: str = "test_accuracy"
    over: str = ""
    across: str = ""
    apart: tuple[str, ...] = ()
    panels: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)


BAND = "Lines are means over the seeds, bands reach from the lowest to the highest."
DOTS = "A dot is the mean, a fine line one seed."
RINGS = "Rings are the published figures."
OTHERWISE = "They were scored with the test batch's own statistics, the lines are of eval mode."
BODIES = ("cnn-padded", "cnn-small-padded")
OPTIMIZERS = ("sgd", "momentum", "adam", "rmsprop", "adabound")
POISON = {"poison": "clean images", "deepconfuse": "poisoned images", "random": "random labels"}

FIGURES: dict[str, tuple[Figure, ...]] = {
    "deepconfuse": (
        Figure(
            kind="curves",
            title="Learning curves",
            said=f"Accuracy after each epoch, the gap between both shaded. {BAND}",
            value="curve",
            panels=("data", "poison"),
            words=POISON,
        ),
    ),
    "samples": (
        Figure(
            kind="samples",
            title="Images beside their noise",
            said="In the noise mid-grey is no change, black and white are the most that the budget allows.",
            value="samples",
            panels=("data", "poison"),
        ),
    ),
    "deepconfuse-eps": (
        Figure(
            kind="lines",
            title="Test accuracy by the strength of the noise",
            said=f"{BAND} {RINGS} {OTHERWISE}",
            over="eps",
            across="ε, of 1",
            apart=("data",),
        ),
    ),
    "deepconfuse-share": (
        Figure(
            kind="lines",
            title="Test accuracy by the share of the training images that are changed",
            said=f"{BAND} {RINGS} {OTHERWISE}",
            over="share",
            across="share, of 1",
            apart=("labels",),
            words={"labels": "poisoned images", "random": "random labels"},
        ),
    ),
    "deepconfuse-label-map": (
        Figure(
            kind="confusion",
            title="What clean test images are taken for",
            said="Rows are true classes, columns what was predicted, over all seeds; outlined cells are those of the "
            "label map.",
            value="confusion",
            panels=("poison", "label_map"),
            words=POISON | {"y+1": "with the label map y + 1"},
        ),
    ),
    "deepconfuse-transfer": (
        Figure(
            kind="transfer",
            title="Test accuracy of other learners",
            said=f"{DOTS} {RINGS}",
            panels=("data",),
        ),
    ),
    "deepconfuse-features": (
        Figure(
            kind="points",
            title="The last hidden layer",
            said="The plane of the two principal components of the images trained on, clean images projected into it. "
            "A colour is a class, its number the middle of its points.",
            value="features",
            panels=("poison",),
            words=POISON,
        ),
    ),
    "deepconfuse-weights": (
        Figure(
            kind="weights",
            title="What a linear SVM looks for",
            said="Its weights for each class: what speaks for the class and what against it, each picture by its own "
            "largest weight.",
            value="weights",
            panels=("poison",),
            words=POISON,
        ),
    ),
    "single-pixel": (
        Figure(
            kind="learning",
            title="Test accuracy while learning",
            said=BAND,
            value="curve",
            apart=("poison",),
            panels=("data",),
            words={"poison": "clean images"},
        ),
    ),
    "single-pixel-optimizers": (
        Figure(
            kind="learning",
            title="Test accuracy while learning, by optimiser",
            said=BAND,
            value="curve",
            apart=("victim",),
            panels=("data", "poison"),
            words={"poison": "clean images"} | {f"{body}+{name}": name for body in BODIES for name in OPTIMIZERS},
        ),
    ),
    "attacks": (
        Figure(
            kind="dots",
            title="What an attack leaves of the accuracy",
            said=f"Each image counts as right only if the attack on it fails. {DOTS}",
            value="robust_accuracy",
            apart=("attack", "eps"),
            panels=("data",),
        ),
        Figure(
            kind="dots",
            title="One perturbation for all images",
            said=f"The share of test images whose class it changes. {DOTS}",
            value="fooling_rate",
            apart=("attack", "eps"),
            panels=("data",),
        ),
    ),
    "one-pixel": (
        Figure(
            kind="dots",
            title="Images that one pixel turns",
            said=f"Of the images that are read right. {DOTS}",
            value="success",
            apart=("attack", "until"),
            panels=("data",),
            words={"named": "until another class is named"},
        ),
    ),
    "patches": (
        Figure(
            kind="dots",
            title="Images that one patch turns, at random places",
            said=f"Test images; the patch is made from training images. {DOTS}",
            value="success",
            apart=("training", "form", "area", "target"),
            panels=("data",),
        ),
    ),
    "hard-samples": (
        Figure(
            kind="dots",
            title="What finds them",
            said=f"The area under the ROC curve; 50 is chance. {DOTS}",
            value="auc",
            apart=("by",),
            panels=("finds",),
        ),
    ),
    "defences": (
        Figure(
            kind="dots",
            title="Accuracy under a square made on the defended network",
            said=DOTS,
            value="robust_accuracy",
            apart=("defence", "training"),
        ),
        Figure(
            kind="dots",
            title="Images that a universal patch made on the defended network turns",
            said=DOTS,
            value="success",
            apart=("defence", "training"),
        ),
        Figure(
            kind="dots", title="Accuracy on clean images", said=DOTS, value="accuracy", apart=("defence", "training")
        ),
    ),
    "cleaners": (
        Figure(
            kind="dots",
            title="Test accuracy after a cleaner",
            said=DOTS,
            apart=("cleaner",),
            panels=("poison",),
            words={"poison": "clean images", "cleaner": "as it is"},
        ),
    ),
    "audits": (
        Figure(
            kind="dots",
            title="Accuracy lost on trusted images",
            said=DOTS,
            value="gap",
            apart=("poison", "share"),
            panels=("data",),
            words={"poison": "clean"},
        ),
    ),
    "certificates": (
        Figure(
            kind="dots",
            title="Certified against every patch of that size",
            said=DOTS,
            value="certified_accuracy",
            apart=("training", "patch"),
        ),
    ),
    "stickers": (
        Figure(
            kind="lines",
            title="Success by area",
            said=BAND,
            value="success",
            over="area",
            across="area, of 1",
            apart=("white", "black"),
            panels=("attack",),
        ),
    ),
    "distortions": (
        Figure(
            kind="kept",
            title="What is left of an attack",
            said="Of the images on which an attack succeeds, those on which it still does after a distortion. " + BAND,
            value="kept",
            across="strength",
            apart=("attack", "eps", "expecting"),
        ),
    ),
    "explanations": (
        Figure(
            kind="maps",
            title="Where networks look",
            said="Test images in grey under their maps, each by its own largest value. Of attacked images the map is "
            "that of the class which the network names; where the class is given away at the edge, that of a network "
            "of clean images is beside that of one which learned the cue.",
            value="maps",
            panels=("explainer", "fill", "attack", "cue"),
        ),
    ),
    "detection": (
        Figure(
            kind="roc",
            title="Detection, by what is looked at",
            said="True positives by false ones; dashed is chance. " + BAND,
            value="roc",
            panels=("training", "attack"),
        ),
    ),
    "outcomes": (
        Figure(
            kind="outcomes",
            title="Which of two networks is fooled, in percent of attacks",
            said="Attacks made on one network and tried on another; published figures in brackets.",
        ),
    ),
    "outsiders": (
        Figure(
            kind="histograms",
            title="How sure the network is",
            said="The shares of images by their largest class probability, mean over the seeds.",
            value="confidences",
            panels=("shown",),
        ),
    ),
    "activations": (
        Figure(
            kind="history",
            title="Activations while learning",
            said="Of each layer the largest activation (solid) and what 99.9 % stay below (dotted), after each epoch; "
            "at the end the norms of the weights.",
            value="history",
            panels=("data",),
        ),
    ),
}
