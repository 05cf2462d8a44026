"""What is put where part of an image is covered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from miscue.covers import ALIKE, BLIND, FILLS, covered
from miscue.errors import InputError


def images(n: int = 3, *, channels: int = 3, size: tuple[int, int] = (20, 26)) -> Tensor:
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))


def squares(n: int, *, side: int = 6, size: tuple[int, int] = (20, 26)) -> Tensor:
    masks = torch.zeros(n, *size, dtype=torch.bool)
    for i in range(n):
        masks[i, 3 * i : 3 * i + side, 4 * i : 4 * i + side] = True
    return masks


def test_flat_fills_are_what_they_say() -> None:
    x, masks = images(), squares(2)[None]
    found = {name: FILLS[name](x, masks).expand(3, 2, *x.shape[1:]) for name in ALIKE}
    assert (found["grey"] == 0.5).all()
    assert (found["black"] == 0).all()
    assert torch.allclose(found["mean"][1, 0, 2], x[1, 2].mean().expand(20, 26))
    assert found["blur"].std() < 0.3 * x.std()


@pytest.mark.parametrize("fill", FILLS)
def test_only_what_is_covered_changes(fill: str) -> None:
    x, masks = images(), squares(3)
    seen = covered(x, masks, fill)
    away = ~masks[:, None].expand_as(x)
    assert torch.equal(seen[away], x[away])
    assert not torch.isclose(seen[~away], x[~away]).all()
    one_by_one = torch.cat([covered(x[i : i + 1], masks[i : i + 1], fill) for i in range(3)])
    assert torch.allclose(seen, one_by_one, atol=1e-6)


@pytest.mark.parametrize("fill", FILLS)
def test_blind_fills_see_nothing_of_what_they_cover(fill: str) -> None:
    x, masks = images(), squares(3)
    other = torch.where(masks[:, None], 1 - x, x)
    same = torch.equal(covered(x, masks, fill), covered(other, masks, fill))
    assert same == (fill in BLIND)


def test_inpainting_goes_on_from_around() -> None:
    flat = torch.full((1, 1, 20, 26), 0.3)
    flat[:, :, :, 13:] = 0.8
    masks = torch.zeros(1, 20, 26, dtype=torch.bool)
    masks[:, 6:12, 1:7] = True
    holes = torch.where(masks[:, None], torch.ones_like(flat), flat)
    assert torch.allclose(covered(holes, masks, "inpaint"), flat, atol=0.02)
    ramp = torch.linspace(0, 1, 26).expand(1, 1, 20, 26)
    middle = torch.zeros(1, 20, 26, dtype=torch.bool)
    middle[:, 6:12, 10:16] = True
    assert float((covered(ramp, middle, "inpaint") - ramp).abs().max()) < 0.1
    assert float((covered(ramp, middle, "grey") - ramp).abs().max()) > 0.09


def test_inpainting_far_from_anything_seen_and_where_nothing_is() -> None:
    x = torch.full((1, 1, 40, 40), 0.7)
    masks = torch.ones(1, 40, 40, dtype=torch.bool)
    masks[:, :2] = False
    assert torch.allclose(covered(x, masks, "inpaint"), x, atol=1e-4)
    everything = torch.ones(1, 40, 40, dtype=torch.bool)
    assert bool(covered(x, everything, "inpaint").isfinite().all())


def test_each_image_under_each_mask() -> None:
    x, masks = images(), squares(2)
    values = FILLS["inpaint"](x, masks[None])
    assert values.shape == (3, 2, 3, 20, 26)
    for k in range(2):
        seen = covered(x, masks[k].expand(3, -1, -1), "inpaint")
        assert torch.allclose(torch.where(masks[k], values[:, k], x), seen, atol=1e-6)


def test_an_unknown_fill() -> None:
    with pytest.raises(InputError, match="did you mean inpaint"):
        covered(images(), squares(3), "inpant")
