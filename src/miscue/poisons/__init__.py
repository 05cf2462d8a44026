"""Training-time attacks, one file each: `(Data, Attacker) -> Perturbation`."""

from miscue.poisons import deepconfuse as _deepconfuse
from miscue.poisons import single_pixel as _single_pixel
from miscue.poisons.border_pixel import border_pixel
from miscue.poisons.crafting import Attacker, Checkpoint, Poison, Preset, Progress, finish
from miscue.poisons.deepconfuse import deepconfuse
from miscue.poisons.one_pixel_shortcut import one_pixel_shortcut
from miscue.poisons.random_pixel import random_pixel
from miscue.poisons.single_pixel import single_pixel

POISONS: dict[str, Poison[...]] = {
    "deepconfuse": deepconfuse,
    "single-pixel": single_pixel,
    "one-pixel-shortcut": one_pixel_shortcut,
    "border-pixel": border_pixel,
    "random-pixel": random_pixel,
}
NOTHING_TO_SET = {"paper": Preset(summary="nothing to set")}
PRESETS: dict[str, dict[str, Preset]] = {
    "deepconfuse": _deepconfuse.PRESETS,
    "single-pixel": _single_pixel.PRESETS,
    "one-pixel-shortcut": NOTHING_TO_SET,
    "border-pixel": NOTHING_TO_SET,
    "random-pixel": NOTHING_TO_SET,
}

__all__ = [
    "POISONS",
    "PRESETS",
    "Attacker",
    "Checkpoint",
    "Poison",
    "Preset",
    "Progress",
    "border_pixel",
    "deepconfuse",
    "finish",
    "one_pixel_shortcut",
    "random_pixel",
    "single_pixel",
]
