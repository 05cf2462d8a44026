"""Models of other libraries, where they are installed: the attacks take them as they are."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import striped
from miscue.data import floats
from miscue.dice import Dice
from miscue.errors import InputError
from miscue.evasions import deepfool, fgsm, one_pixel, pgd
from miscue.evasions.dpatch import detected, dpatch
from miscue.measures.accuracy import accuracy
from miscue.models.adapters import adapted
from miscue.models.store import load_model, save_model
from miscue.victims import Victim, network, victim

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' own


def with_torchvision(name: str) -> ModuleType:
    """A module that needs torchvision. Where its compiled operators do not fit this PyTorch, they are declared only."""
    root = name.partition(".")[0]
    if importlib.util.find_spec(root) is None:
        pytest.skip(f"{root} is not installed")
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for known in [module for module in sys.modules if module.partition(".")[0] in ("torchvision", "timm")]:
        del sys.modules[known]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                     "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
        library.define(operator)
    LIBRARIES.append(library)
    return importlib.import_module(name)


LIBRARIES: list[torch.library.Library] = []  # what they declare is gone with them


def attacked(model: nn.Module, x: Tensor) -> None:
    """Attacks by gradient and by query run and keep their budgets, and the model is as before."""
    model.eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for found in (
        fgsm(model, x, y, eps=0.03),
        pgd(model, x, y, eps=0.03, alpha=0.01, steps=3),
        deepfool(model, x, y, steps=3, candidates=3),
        one_pixel(model, x, y, population=8, generations=2),
    ):
        assert found.x.shape == x.shape
        assert not found.already.any()
        with torch.no_grad():
            assert torch.equal(found.success, model(found.x).argmax(1) != y)
    assert pgd(model, x, y, eps=0.1, alpha=0.02, steps=10).success.any()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def photos(n: int = 4, side: int = 64) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_torchvision() -> None:
    models = with_torchvision("torchvision.models")
    torch.manual_seed(0)
    network = models.resnet18(weights=None, num_classes=10)
    weights = models.ResNet18_Weights.DEFAULT.transforms()
    attacked(adapted(network, mean=weights.mean, std=weights.std), photos())


@pytest.mark.parametrize("name", [f"torchvision:{name}" for name in ("vgg11_bn", "resnet50", "densenet121")])
def test_a_network_of_the_zoo_is_a_victim(name: str, tmp_path: Path) -> None:
    """It is built for the images' size and channels, and comes back from a file as it was."""
    with_torchvision("torchvision.models")
    data = striped(12, size=32)
    chosen = victim(name)
    assert isinstance(chosen, Victim)
    model = chosen.untrained(data, Dice(0)).eval()
    x = floats(data.images)
    assert torch.equal(chosen.untrained(data, Dice(0)).eval()(x), scores := model(x))
    assert scores.shape == (12, 3)
    assert sum(p.numel() for p in model.parameters()) < 25e6
    save_model(tmp_path / "model.safetensors", model, chosen.plan(data))
    assert torch.allclose(load_model(tmp_path / "model.safetensors")[0](x), scores, atol=1e-4)
    with pytest.raises(InputError, match="needs images of at least"):
        chosen.untrained(striped(12, size=7), Dice(0))


def test_a_network_of_the_zoo_learns() -> None:
    with_torchvision("torchvision.models")
    chosen = network("torchvision:resnet18", 2)
    quick = replace(chosen, recipe=replace(chosen.recipe, shift=0, batch_size=32, precision="float32"))
    assert accuracy(quick(striped(240), Dice(0)), striped(60, seed=1)) > 90


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm(name: str) -> None:
    timm = with_torchvision("timm")
    torch.manual_seed(0)
    more = {"img_size": 64} if name.startswith("vit") else {}
    network = timm.create_model(name, pretrained=False, num_classes=7, **more)
    model = adapted(network)
    assert model.mean.flatten().tolist() == pytest.approx(network.pretrained_cfg["mean"])
    assert model.std.flatten().tolist() == pytest.approx(network.pretrained_cfg["std"])
    for parameter in network.parameters():  # a fresh head is all but blind
        if parameter.ndim == 2 and len(parameter) == 7:
            nn.init.normal_(parameter)
    attacked(model, photos())


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=64, patch_size=8, num_labels=6, initializer_range=0.2)
    processor: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    attacked(adapted(transformers.ViTForImageClassification(config), **processor), photos())


def test_a_torchvision_detector_fits_the_patch() -> None:
    """Its losses in training mode, its boxes in eval mode, by the same protocol as ours."""
    detection = with_torchvision("torchvision.models.detection")
    if LIBRARIES:
        sys.modules["torchvision.ops.boxes"].nms = kept_boxes
        sys.modules["torchvision.ops.boxes"].batched_nms = lambda boxes, scores, labels, limit: kept_boxes(
            boxes + labels[:, None] * (boxes.max() + 1), scores, limit
        )
    torch.manual_seed(0)
    detector = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    images = list(photos(2, side=160))
    targets = [{"boxes": torch.tensor([[30.0, 30.0, 90.0, 110.0]]), "labels": torch.tensor([1])}] * 2
    for module in detector.modules():  # fresh statistics would drown the photos
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        detector.train()(images, targets)
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    made = dpatch(detector, images, targets, size=40, steps=3, batch=2, lr=0.1, dice=Dice(0))
    assert made.loss[-1] > made.loss[0]
    assert made.patch.shape == (3, 40, 40)
    assert all({"boxes", "labels", "scores"} <= set(one) for one in detected(detector, images))
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())


def kept_boxes(boxes: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Non-maximum suppression in Python, for a torchvision without its compiled operators."""
    from miscue.measures.detection import overlaps

    order, kept = scores.argsort(descending=True)[:400], []
    while len(order):
        kept.append(int(order[0]))
        order = order[1:][overlaps(boxes[order[:1]], boxes[order[1:]])[0] <= limit]
    return torch.tensor(kept, dtype=torch.long)
