"""`miscue demo`: the main job on the embedded digits, ending with a page to look at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from miscue.cli import console
from miscue.cli.evaluate import evaluate_sets
from miscue.cli.options import DEBUG, DEVICE, JSON, SEED, THREADS, device, folder_beside
from miscue.cli.poison import poison_data
from miscue.poisons import POISONS
from miscue.readers import read
from miscue.run import lines


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the demo's results; what an earlier demo left is replaced.")
    ] = Path("miscue-demo"),
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 1,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Poison scikit-learn's digits so that networks trained on them fail, and show it. About two minutes."""
    with console.guarded(debug=debug):
        copy, run = out / "digits", out / "digits.run"
        for left in (copy, run, folder_beside(copy)):
            shutil.rmtree(left, ignore_errors=True)
        console.say("1/2  crafting noise for the training images of scikit-learn's digits (8 x 8 pixels, eps 0.3)")
        poison_data(
            "deepconfuse",
            POISONS["deepconfuse"],
            {},
            data="digits",
            out=copy,
            preset="digits",
            share=1.0,
            layout=None,
            resize=None,
            overwrite=True,
            json_=False,
            device_=device_,
            threads=threads,
            seed=seed,
            surrogate=None,
            lr=None,
            batch_size=None,
            epochs=None,
        )
        console.say("2/2  training fresh networks on the originals and on the poisoned copy")
        evaluate_sets(
            read("digits"),
            read(str(copy)),
            run,
            clean_name="digits",
            poisoned_name=str(copy),
            victims="cnn-released",
            repeats=3,
            epochs=20,
            rule=None,
            perturbation=folder_beside(copy) / "perturbation.safetensors",
            seed=seed,
            device=device(device_, threads),
        )
        console.say(f"Look at {(run / 'report.html').resolve()}")
        if json_:
            for record in lines(run / "records.jsonl"):
                console.emit(record)
