"""Training-time attacks, one file each: `(Data, Attacker) -> Perturbation`."""

from miscue.poisons import deepconfuse as _deepconfuse
from miscue.poisons.crafting import Attacker, Checkpoint, Poison, Preset, Progress, finish
from miscue.poisons.deepconfuse import deepconfuse

POISONS: dict[str, Poison[...]] = {"deepconfuse": deepconfuse}
PRESETS: dict[str, dict[str, Preset]] = {"deepconfuse": _deepconfuse.PRESETS}

__all__ = [
    "POISONS",
    "PRESETS",
    "Attacker",
    "Checkpoint",
    "Poison",
    "Preset",
    "Progress",
    "deepconfuse",
    "finish",
]
