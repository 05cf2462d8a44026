"""How much of a pixel poison an RBF-SVM learns, by the width of its kernel.

    MISCUE_DATA=DIR python benchmarks/rbf_width.py [--record] [--data mnist] [--images 10000] [--gammas 0.01,0.03,0.1]

The kernel is exp(-gamma |x - x'|^2). A white pixel adds at most 1 to the squared distance: a narrow kernel (a large
gamma) sees what is near an image alone, and two images that differ elsewhere are far apart whatever the pixel says.
"""

from __future__ import annotations

import argparse
import time

from sklearn.svm import SVC

from common import RESULTS, line
from miscue.data import Data, floats
from miscue.dice import Dice
from miscue.poisons import POISONS, Attacker
from miscue.readers import read
from miscue.run import append

METHODS = (None, "one-pixel-shortcut", "random-pixel")


def error(gamma: float, train: Data, test: Data) -> float:
    """The test error of an SVM with C = 5, in percent."""
    model = SVC(C=5.0, gamma=gamma, cache_size=1000).fit(floats(train.images).flatten(1).numpy(), train.labels.numpy())
    return 100 * float((model.predict(floats(test.images).flatten(1).numpy()) != test.labels.numpy()).mean())


def main() -> None:
    """Fit each width on clean images and under each poison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--gammas", default="0.01,0.03,0.1")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    splits = read(asked.data)
    assert splits.test is not None
    train = splits.train.spread(asked.images)
    for method in METHODS:
        poisoned = train if method is None else POISONS[method](splits.train, Attacker(dice=Dice(0)))(train)
        for gamma in map(float, asked.gammas.split(",")):
            started = time.monotonic()
            found = error(gamma, poisoned, splits.test)
            print(f"{method or 'clean':20} gamma {gamma:<6g} {found:6.2f} %", flush=True)
            if asked.record:
                made = line(
                    "single-pixel-learners",
                    {"method": method, "victim": f"RBF-SVM, C 5, gamma {gamma:g}", "images": len(train)},
                    "test_error",
                    [found],
                    data=asked.data,
                    seconds=time.monotonic() - started,
                    command="python benchmarks/rbf_width.py",
                    note="the width of the kernel",
                )
                append(RESULTS / "single-pixel-learners.jsonl", made)


if __name__ == "__main__":
    main()
