"""`miscue audit DATA OUT`: is a training set poisoned? Four signs, each beside what clean sets show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from miscue.cli import console
from miscue.cli.meeting import clean_images
from miscue.cli.options import DATA, DEBUG, DEVICE, JSON, OVERWRITE, RESIZE, SEED, THREADS, command_line, device
from miscue.data import Data
from miscue.detectors.poison_probe import FEWEST, USUAL, Probed, beyond, probe
from miscue.dice import Dice
from miscue.files import atomic_folder, refuse_existing, write_arrays, write_json
from miscue.readers import read
from miscue.report import audit_page
from miscue.run import Tick, fingerprint, provenance, written

EXAMPLES = 3  # images of each class on the page


def audit(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for the records and the page.", show_default=False)],
    trusted: Annotated[
        str | None,
        typer.Option(
            help="Clean images of the same classes, a set's name or path; default: DATA's own test images, if any.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(help="At most so many images, evenly spread over the set.", min=FEWEST)
    ] = 10_000,
    resize: RESIZE = None,
    seed: SEED = 0,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Look for signs that the training images of DATA are poisoned.

    marks: pixels that give a class away. simple: how much of what a network learns a linear classifier learns too.
    fall: what the network loses by a change that leaves what images show. gap: what it loses on trusted images.
    """
    with console.guarded(debug=debug):
        where = device(device_, threads)
        splits = read(data, resize=resize)
        some, known = splits.train.spread(images), clean_images(trusted, splits.test, resize)
        refuse_existing(out, overwrite=overwrite)
        found: list[Probed] = []

        def ticks() -> Iterator[Tick]:
            for look in probe(some, Dice(seed), trusted=known, device=where):
                found.extend([look.found] if look.found else [])
                yield Tick(done=look.done, total=look.total)

        console.follow(ticks(), "looking", str)
        (probed,) = found
        settings: dict[str, Any] = {
            "kind": "audit",
            "title": f"audit of {data}",
            "data": data,
            "trusted": trusted or ("its own test images" if known else None),
            "classes": list(some.classes),
            "images": len(some),
            "seed": seed,
            "usual": USUAL,
            "data_sha256": fingerprint(some),
        } | provenance(command_line(), where)
        row = probed.signs | {"held_out": probed.held_out, "linear": probed.linear}
        row |= {} if probed.trusted is None else {"trusted": probed.trusted}
        row |= {f"after {name}": value for name, value in probed.after.items()}
        with atomic_folder(out, overwrite=overwrite) as folder:
            arrays = {"marks": probed.marks.numpy()} | pictures(some)
            write_arrays(folder / "audit.npz", arrays)
            written(folder / "records.jsonl", [({"data": data}, row)], settings, len(some))
            write_json(folder / "run.json", settings)
            audit_page.write(folder)
        loud = beyond(probed.signs)
        for name, value in probed.signs.items():
            unit = "points" if name in audit_page.POINTS else "%"
            said = "BEYOND" if name in loud else "as"
            console.say(f"{name:7} {value:6.1f} {unit:6}  {said} clean sets, up to {USUAL[name]:g}")
        for text in audit_page.advice(probed.signs, probed.after, data):
            console.say(text)
        console.say(f"{out / 'report.html'}: the page")
        if json_:
            console.emit({"out": str(out), "n": len(some), **row, "beyond": loud})


def pictures(data: Data) -> dict[str, Any]:
    """The first images of each class, and their classes."""
    turns = [(data.labels == label).nonzero()[:EXAMPLES, 0] for label in range(len(data.classes))]
    index = [i for some in turns for i in some.tolist()]
    return {"images": data.images[index].numpy(), "labels": data.labels[index].numpy()}
