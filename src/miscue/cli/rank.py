"""`miscue rank MODEL DATA OUT`: which images are hard for a model, as a table and as pictures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from miscue.cli import console
from miscue.cli.meeting import met
from miscue.cli.options import (
    DATA,
    DEBUG,
    DEVICE,
    JSON,
    MODEL,
    OVERWRITE,
    RESIZE,
    THREADS,
    command_line,
    device,
)
from miscue.cli.pieces import pieces
from miscue.data import Data
from miscue.errors import InputError, lookup
from miscue.files import atomic_folder, refuse_existing, write_arrays, write_json
from miscue.hardness import HARDNESS, ease, emphasised
from miscue.measures.accuracy import predictions
from miscue.measures.statistics import auroc
from miscue.models.networks import placed
from miscue.report import rank_page
from miscue.run import fingerprint, provenance, written

PART = 64  # images between two checkpoints
EMPHASIS = 3.0  # how many times as often the hardest image is drawn as the easiest


def rank(
    model: MODEL,
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for the table and the page.", show_default=False)],
    by: Annotated[str, typer.Option(help=f"One of: {', '.join(HARDNESS)}.")] = "kappa",
    images: Annotated[int, typer.Option(help="At most so many images, evenly spread over the set.", min=1)] = 1000,
    split: Annotated[str, typer.Option(help="Whose images: test or train.")] = "test",
    resize: RESIZE = None,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Rank images by how soon their class flips: the hardest first, for a look at labels and gaps in the data.

    OUT/ranking.csv has all of them, OUT/report.html the hardest and the easiest of each class.
    """
    with console.guarded(debug=debug):
        where = device(device_, threads)
        lookup(HARDNESS, by, "measure")
        source, some = met(model, data, split=split, images=images, resize=resize)
        refuse_existing(out, overwrite=overwrite)
        net = placed(source.model, where)
        asked = {"by": by, "model_sha256": source.sha256, "data_sha256": fingerprint(some)}

        def looked(part: slice) -> dict[str, torch.Tensor]:
            return {"values": ease(by, net, some.take(part))}

        title = f"ranking by {by}"
        every = pieces(out, asked, looked, count=len(some), size=PART, title=title, overwrite=overwrite)
        with every as found:
            values = found["values"]
            named = predictions(net, some.images).cpu()
            row = measured(values, named, net, some, by)
            settings: dict[str, Any] = {
                "kind": "rank",
                "title": f"hard images of {data} for {Path(model).name}",
                "model": model,
                "network": source.name,
                "data": data,
                "split": split,
                "classes": list(some.classes),
                **asked,
            } | provenance(command_line(), where)
            order = values.argsort(stable=True)
            arrays = {"images": some.images, "labels": some.labels, "named": named, "values": values, "order": order}
            line = {"data": data, "by": by, "network": source.name}
            with atomic_folder(out, overwrite=overwrite) as folder:
                (folder / "ranking.csv").write_text(table(some, values, named, order), encoding="utf-8")
                write_arrays(folder / "ranking.npz", {key: value.numpy() for key, value in arrays.items()})
                written(folder / "records.jsonl", [(line, row)], settings, len(some))
                write_json(folder / "run.json", settings)
                rank_page.write(folder)
        console.say(f"{out / 'ranking.csv'}: {len(some)} images, the hardest first")
        console.say(f"{out / 'report.html'}: the page")
        if json_:
            console.emit({"out": str(out), "by": by, "n": len(some), **row})


def measured(values: torch.Tensor, named: torch.Tensor, net: nn.Module, some: Data, by: str) -> dict[str, float]:
    """accuracy, and how well the ranking, made for the classes that the model *names*, points out where it errs."""
    wrong = named != some.labels
    row = {"accuracy": 100 * float((~wrong).double().mean())}
    if bool(wrong.any()) and not bool(wrong.all()):
        blind = ease(by, net, Data(images=some.images, labels=named, classes=some.classes))
        row["auroc_of_errors"] = auroc(-blind, wrong)
    return row


def table(some: Data, values: torch.Tensor, named: torch.Tensor, order: torch.Tensor) -> str:
    """The ranking as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "image", "file", "class", "named", "value"])
    for place, i in enumerate(order.tolist(), start=1):
        names = some.classes[int(some.labels[i])], some.classes[int(named[i])]
        writer.writerow([place, i, some.files[i] if some.files else "", *names, f"{float(values[i]):.6g}"])
    return text.getvalue()


def emphasis_of(path: Path, train: Data, emphasis: float) -> torch.Tensor:
    """The weights of training images by the table that `miscue rank --split train` made of all of them: float (n,).

    Raises:
        InputError: no such table, or one of other images.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(int(row["image"]), row["class"], float(row["value"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is not a ranking made by miscue rank") from None
    names = {image: name for image, name, _ in rows}
    if sorted(names) != list(range(len(train))) or len(rows) != len(train):
        raise InputError(
            f"{path} ranks {len(rows)} images, the training set has {len(train)}: "
            f"rank all of them with --split train --images {len(train)}"
        )
    if any(names[i] != train.classes[label] for i, label in enumerate(train.labels.tolist())):
        raise InputError(f"{path} is a ranking of other images: the classes are not those of the training set")
    values = torch.empty(len(train))
    for image, _, value in rows:
        values[image] = value
    return emphasised(values, emphasis)
