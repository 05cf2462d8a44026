"""`miscue activations MODEL DATA OUT`: how large a network's activations are, and which images drive them too far."""

from __future__ import annotations

from dataclasses import asdict
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
)
from miscue.files import atomic_folder, refuse_existing, write_arrays, write_json
from miscue.measures.activations import layers, maxima, overdriven, weight_norms
from miscue.measures.outside import surprise
from miscue.models.networks import placed
from miscue.readers import read_alike
from miscue.report import activations_page
from miscue.run import provenance, written

SHOWN = 12  # neurons on the page
EACH = 5  # images of each


def activations(
    model: MODEL,
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for the numbers and the page.", show_default=False)],
    other: Annotated[
        str | None,
        typer.Option(help="Another set to compare with: attacked images, or some of no class.", show_default=False),
    ] = None,
    images: Annotated[int, typer.Option(help="At most so many images of each set, evenly spread.", min=2)] = 1000,
    split: Annotated[str, typer.Option(help="Whose images: test or train.")] = "test",
    resize: RESIZE = None,
    device_: DEVICE = "auto",
    threads: THREADS = 2,
    overwrite: OVERWRITE = False,
    json_: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Look at activations layer by layer: quantiles, maxima, and the images that drive a neuron far beyond its usual.

    Beside them how sure the model is, of images as they are, darker and brighter; and, where it was trained with
    --watch, activations and weights after each epoch. Without --other the images are halved: what is usual is read from
    one half, and the other is looked at.
    """
    with console.guarded(debug=debug):
        where = device(device_, threads)
        source, some = met(model, data, split=split, images=images, resize=resize)
        refuse_existing(out, overwrite=overwrite)
        if other is None:
            usual, looked = some.take(slice(0, None, 2)), some.take(slice(1, None, 2))
        else:
            usual, looked = some, read_alike(other, some, images)
        net = placed(source.model, where)
        sets = {"usual": layers(net, usual.images), "looked at": layers(net, looked.images)}
        sure, shares = surprise(net, usual.images, looked.images)
        found = overdriven(maxima(net, usual.images), maxima(net, looked.images))
        neurons = loudest(found)
        settings: dict[str, Any] = {
            "kind": "activations",
            "title": f"activations of {Path(model).name} on {other or data}",
            "model": model,
            "network": source.name,
            "data": data,
            "other": other,
            "split": split,
            "layers": {name: [asdict(layer) for layer in many] for name, many in sets.items()},
            "weights": weight_norms(net),
            "history": source.history,
            "confidence": {"measures": sure, "shares": dict(zip(sets, shares, strict=True))},
            "neurons": neurons,
        } | provenance(command_line(), where)
        shown = sorted({i for neuron in neurons for i in neuron["images"]})
        most = {f"largest {kind} {layer.name}": layer.largest for kind, many in sets.items() for layer in many}
        line = {"data": data, "other": other, "network": source.name}
        kept = {"index": torch.tensor(shown).numpy(), "images": looked.images[shown].numpy()}
        with atomic_folder(out, overwrite=overwrite) as folder:
            write_arrays(folder / "images.npz", kept)
            written(folder / "records.jsonl", [(line, most | sure)], settings, len(looked))
            write_json(folder / "run.json", settings)
            activations_page.write(folder)
        far = 100 * sum(float((values > 1).any(1).double().mean()) for values in found.values()) / len(found)
        console.say(f"{out}: on the mean layer {far:.1f} % of the images drive some channel beyond its usual 99.9 %")
        console.say(f"{out / 'report.html'}: the page")
        if json_:
            console.emit({"out": str(out), "overdriven": far, "layers": len(found), **sure})


def loudest(found: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """The neurons that some image drives furthest beyond what is usual, at most two a layer, and these images."""
    neurons = []
    for layer, values in found.items():
        most = values.amax(0)
        for channel in most.topk(min(2, len(most))).indices.tolist():
            top = values[:, channel].topk(min(EACH, len(values)))
            neurons.append(
                {
                    "layer": layer,
                    "channel": channel,
                    "beyond": round(float(most[channel]), 3),
                    "images": top.indices.tolist(),
                    "values": [round(value, 3) for value in top.values.tolist()],
                }
            )
    return sorted(neurons, key=lambda neuron: -float(neuron["beyond"]))[:SHOWN]
