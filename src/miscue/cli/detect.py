"""`miscue calibrate`, `miscue detect` and `miscue certify`: find stickers by covering, and see behind them."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

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
    fraction,
)
from miscue.cli.pieces import pieces
from miscue.covers import BLIND, FILLS
from miscue.data import floats
from miscue.detectors.consistency import Detector, Verdict
from miscue.detectors.patchcleanser import Masks, certified, cleanse
from miscue.errors import InputError
from miscue.files import atomic_folder, refuse_existing, refuse_file, write_arrays, write_json
from miscue.layouts.pictures import FORMATS, decode
from miscue.measures.accuracy import predictions
from miscue.models.networks import placed
from miscue.models.sources import sourced
from miscue.readers import read
from miscue.report import detect_page
from miscue.run import Tick, provenance

PART, CERTIFIED = 8, 32  # images looked at between two checkpoints, or certified together
SMALLEST = Detector()


def calibrate(
    model: MODEL,
    data: DATA,
    out: Annotated[Path, typer.Argument(help="File to write the detector to (.safetensors).", show_default=False)],
    window: Annotated[
        int, typer.Option(help="Side of the covering square: sticker plus stride - 1.", min=1)
    ] = SMALLEST.window,
    stride: Annotated[int, typer.Option(help="Pixels from one window to the next.", min=1)] = SMALLEST.stride,
    fill: Annotated[str, typer.Option(help=f"What a covered pixel becomes: {', '.join(FILLS)}.")] = SMALLEST.fill,
    false_positives: Annotated[
        float, typer.Option(help="The share of clean images that may alarm.", parser=fraction, metavar="NUMBER")
    ] = 0.05,
    images: Annotated[int, typer.Option(help="At most so many clean images, evenly spread.", min=1)] = 500,
    split: Annotated[str, typer.Option(help="Whose images: train or test.")] = "train",
    resize: RESIZE = None,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Show a detector of stickers clean images, so that it knows what a model does when nothing is wrong."""
    with console.guarded(debug=debug):
        refuse_file(out, overwrite=overwrite)
        where = device(device_, threads)
        source, some = met(model, data, split=split, images=images, resize=resize)
        x = floats(some.images.to(where), channels_last=True)
        blank = Detector(window=window, stride=stride, fill=fill)
        detector = blank.calibrated(placed(source.model, where), x, false_positives=false_positives)
        about = {"false_positives": false_positives, "classes": list(some.classes), "model_sha256": source.sha256}
        detector.save(out, **about, shape=list(some.shape), data=data, **provenance(command_line(), where))
        console.say(f"{out}: the detector; beyond {detector.beyond:.3f} an image alarms")
        if json_:
            console.emit({"out": str(out), "threshold": detector.beyond, "n": len(some)})


def detect(
    model: MODEL,
    detector: Annotated[Path, typer.Argument(help="A detector saved by miscue calibrate.", show_default=False)],
    images: Annotated[
        str, typer.Argument(help="A folder of images, or a data set: its test images.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the table and the page.", show_default=False)],
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Skip images that cannot be read.")] = False,
    resize: RESIZE = None,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Look for stickers on images: class, confidence, alarm, and the class behind the sticker.

    OUT/detections.csv has all images, OUT/report.html the loudest alarms with the place of the sticker.
    """
    with console.guarded(debug=debug):
        where = device(device_, threads)
        guard, facts = Detector.load(detector)
        source = sourced(model)
        if source.sha256 != facts["model_sha256"]:
            raise InputError(f"{detector} was calibrated for another model than {model}")
        refuse_existing(out, overwrite=overwrite)
        net, classes = placed(source.model, where), facts["classes"]
        names, pictures, skipped = pictured(images, facts["shape"], resize, keep_going=keep_going)
        asked: dict[str, Any] = {
            "model_sha256": source.sha256,
            "options": asdict(guard) | {"calibrated for": facts["false_positives"]},
            "images_sha256": hashlib.sha256(pictures.numpy().data).hexdigest(),
            "names": names,
            "skipped": skipped,
        }

        def looked(part: slice) -> dict[str, torch.Tensor]:
            verdict = guard(net, floats(pictures[part].to(where), channels_last=True))
            return {field.name: getattr(verdict, field.name).cpu() for field in fields(Verdict)}

        title = "looking for stickers"
        every = pieces(out, asked, looked, count=len(pictures), size=PART, title=title, overwrite=overwrite)
        with every as found:
            rows = [
                {
                    "file": name,
                    "class": classes[int(found["named"][i])],
                    "confidence": round(float(found["confidence"][i]), 4),
                    "alarm": bool(found["alarm"][i]),
                    "score": round(float(found["score"][i]), 4),
                    "recovered": classes[int(found["recovered"][i])],
                }
                for i, name in enumerate(names)
            ]
            settings = {
                "kind": "detect",
                "title": f"stickers in {images}",
                "model": model,
                "detector": str(detector),
                "images": images,
                "classes": classes,
                **asked,
            } | provenance(command_line(), where)
            arrays = {key: value.numpy() for key, value in found.items()} | {"images": pictures.numpy()}
            with atomic_folder(out, overwrite=overwrite) as folder:
                (folder / "detections.csv").write_text(table(rows), encoding="utf-8")
                write_arrays(folder / "detections.npz", arrays)
                write_json(folder / "run.json", settings)
                detect_page.write(folder)
        for name in skipped:
            console.say(f"skipped, cannot be read: {name}")
        alarms = sum(row["alarm"] for row in rows)
        console.say(f"{out / 'detections.csv'}: {alarms} of {len(rows)} images alarm")
        console.say(f"{out / 'report.html'}: the page")
        if json_:
            for row in rows:
                console.emit(row)


def certify(
    model: MODEL,
    data: DATA,
    patch: Annotated[int, typer.Option(help="Side of the largest patch in pixels.", min=1)] = 5,
    per_side: Annotated[int, typer.Option(help="Masks along each side of an image.", min=1)] = 6,
    fill: Annotated[str, typer.Option(help=f"What a covered pixel becomes: {', '.join(BLIND)}.")] = "grey",
    images: Annotated[int, typer.Option(help="At most so many images, evenly spread over the set.", min=1)] = 1000,
    split: Annotated[str, typer.Option(help="Whose images: test or train.")] = "test",
    resize: RESIZE = None,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """How many images no patch of a size can turn, by double masking (PatchCleanser); training with --holes 2 helps."""
    with console.guarded(debug=debug):
        where = device(device_, threads)
        source, some = met(model, data, split=split, images=images, resize=resize)
        height, width = some.shape[1:]
        masks, net = Masks.against(patch, (height, width), per_side=per_side, fill=fill), placed(source.model, where)
        named, cleansed, sure = [], [], []

        def ticks() -> Iterator[Tick]:
            for start in range(0, len(some), CERTIFIED):
                part = some.take(slice(start, start + CERTIFIED))
                x, y = floats(part.images.to(where), channels_last=True), part.labels.to(where)
                named.append(predictions(net, part.images).cpu() == part.labels)
                cleansed.append((cleanse(net, x, masks).named == y).cpu())
                sure.append(certified(net, x, y, masks).cpu())
                yield Tick(done=start + len(part), total=len(some))

        console.follow(ticks(), "certifying", str)
        means = {
            measure: 100 * float(torch.cat(parts).double().mean())
            for measure, parts in (("accuracy", named), ("cleansed_accuracy", cleansed), ("certified_accuracy", sure))
        }
        console.say(
            f"{means['accuracy']:.1f} % of {len(some)} images right, {means['cleansed_accuracy']:.1f} % behind "
            f"{len(masks)} masks, {means['certified_accuracy']:.1f} % whatever a patch of {patch} x {patch} pixels says"
        )
        if json_:
            console.emit({"model": model, "data": data, "patch": patch, "n": len(some), **means})


def pictured(
    images: str, shape: list[int], resize: int | None, *, keep_going: bool
) -> tuple[list[str], torch.Tensor, list[str]]:
    """(names, uint8 images (n, c, h, w), names of those that cannot be read) of a flat folder, or of a test set."""
    folder = Path(images).expanduser()
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS) if folder.is_dir() else []
    if not files:
        if folder.is_dir() and not any(folder.iterdir()):
            raise InputError(f"{folder} is empty")
        splits = read(images, resize=resize)
        some = splits.test or splits.train
        if list(some.shape) != shape:
            raise InputError(f"{images} has images {some.shape}, the model takes {tuple(shape)}")
        return list(some.files) or [str(i) for i in range(len(some))], some.images, []
    names, pictures, skipped = [], [], []
    for file in files:
        try:
            picture = decode(file, channels=shape[0], resize=resize)
            if list(picture.shape) != shape:
                raise InputError(f"{file} is {tuple(picture.shape)}, the model takes {tuple(shape)}; --resize may help")
        except InputError:
            if not keep_going:
                raise
            skipped.append(file.name)
            continue
        names.append(file.name)
        pictures.append(picture)
    if not pictures:
        raise InputError(f"no image in {folder} can be looked at")
    return names, torch.stack(pictures), skipped


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as comma-separated values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
