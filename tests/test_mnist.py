"""Real MNIST at full size; needs MISCUE_DATA and minutes. Run with: pytest -m slow"""

from __future__ import annotations

from dataclasses import replace

import pytest

from miscue.balls import linf
from miscue.datasets import locate
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evaluation import arenas, measure
from miscue.poisons import PRESETS, Attacker, deepconfuse
from miscue.readers import read
from miscue.victims import VICTIMS


@pytest.mark.slow
def test_a_short_craft_ruins_the_attackers_own_network_on_mnist() -> None:
    try:
        locate("mnist")
    except InputError as error:
        pytest.skip(str(error))
    mnist = read("mnist")
    fast = PRESETS["deepconfuse"]["fast"]
    attacker = Attacker(surrogate=fast.surrogate, recipe=fast.recipe, dice=Dice(0))
    perturbation = deepconfuse(mnist.train, attacker, **fast.options | {"trials": 5})
    poisoned = perturbation(mnist.train)
    assert 0 < linf(poisoned.images, mnist.train.images) <= 0.3
    victim = VICTIMS["cnn-released"]
    victim = replace(victim, recipe=replace(victim.recipe, epochs=1))
    scores = [
        measure(victim(arena.train, Dice(1)), arena, label_map=None)["test_accuracy"]
        for arena in arenas(mnist.train, poisoned, mnist.test, perturbation)
    ]
    assert scores[0] > 98
    assert scores[1] < 50
