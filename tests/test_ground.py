"""Dice, budgets, batches, splits, files: what everything else stands on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import striped
from miscue.balls import levels, linf, released
from miscue.data import Data, batches, hold_out, mix
from miscue.dice import Dice
from miscue.errors import InputError, lookup
from miscue.files import atomic, atomic_folder
from miscue.images import amplified
from miscue.labels import checked_map, label_map
from miscue.losses import unlikelihood


def test_streams_depend_on_seed_and_name_alone() -> None:
    first = Dice(3).named("a", 1).integer()
    Dice(3).named("something else").generator()
    assert Dice(3).named("a").named("1").integer() == first
    assert len({Dice(s).named(n).integer() for s in range(4) for n in ("a", "b", "ab")}) == 12
    assert Dice(0).named("a", "b").integer() != Dice(0).named("ab").integer()


def test_rolled_restores_the_global_stream() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with Dice(1).rolled():
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with Dice(1).rolled():
        assert torch.equal(torch.rand(3), inside)


@given(
    eps=st.one_of(st.floats(1e-4, 1), st.sampled_from([8 / 255, 0.032, 0.1, 0.3, 1 / 255, 1.0])),
    seed=st.integers(0, 2**31),
    scale=st.floats(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_budget_holds_after_rounding(eps: float, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, (3, 1, 5, 4), generator=generator, dtype=torch.uint8)
    x = clean / 255 + scale * torch.randn(clean.shape, generator=generator)
    out = released(x, clean, eps)
    assert out.dtype == torch.uint8
    assert int((out.int() - clean.int()).abs().max()) <= eps * 255 + 1e-6
    assert linf(out, clean) <= eps + 1e-8


def test_budget_is_used_up_where_asked() -> None:
    clean = torch.full((1, 1, 1, 3), 100, dtype=torch.uint8)
    out = released(clean / 255 + torch.tensor([9.0, -9.0, 0.0]), clean, 8 / 255)
    assert out.flatten().tolist() == [108, 92, 100]


@pytest.mark.parametrize("eps", [0, -0.1, 1.01, float("nan")])
def test_eps_out_of_range(eps: float) -> None:
    with pytest.raises(InputError, match="eps must lie in"):
        levels(eps)


def test_batches_cover_every_image_once_a_pass_and_repeat(data: Data) -> None:
    runs = [list(batches(data, size=16, epochs=2, dice=Dice(5))) for _ in range(2)]
    assert all(torch.equal(a.index, b.index) for a, b in zip(*runs, strict=True))
    first = torch.cat([b.index for b in runs[0][:15]])
    assert first.sort().values.equal(torch.arange(240))
    batch = runs[0][3]
    assert batch.x.dtype == torch.float32
    assert torch.equal(batch.x, data.images[batch.index].float() / 255)
    assert torch.equal(batch.y, data.labels[batch.index])


def test_first_pass_does_not_depend_on_the_number_of_passes(data: Data) -> None:
    one = next(iter(batches(data, size=16, epochs=1, dice=Dice(5))))
    three = next(iter(batches(data, size=16, epochs=3, dice=Dice(5))))
    assert torch.equal(one.index, three.index)


def test_heavier_images_are_drawn_more_often(data: Data) -> None:
    weights = torch.ones(len(data))
    weights[:60], weights[60:80] = 3.0, 0.0
    drawn = [batch.index for batch in batches(data, size=40, epochs=50, dice=Dice(0), weights=weights)]
    assert sum(map(len, drawn)) == 50 * len(data)
    counts = torch.bincount(torch.cat(drawn), minlength=len(data)).double()
    assert counts[60:80].sum() == 0
    assert float(counts[:60].mean() / counts[80:].mean()) == pytest.approx(3, rel=0.05)


def test_a_set_smaller_than_a_batch_is_one_batch(data: Data) -> None:
    assert [len(b.y) for b in batches(data, size=1000, epochs=2, dice=Dice(0))] == [240, 240]


def test_hold_out_is_stratified_and_disjoint(data: Data) -> None:
    rest, held = hold_out(data, 0.25, Dice(0))
    assert (len(rest), len(held)) == (180, 60)
    assert held.labels.bincount().tolist() == [20, 20, 20]
    both = torch.cat([rest.images, held.images]).flatten(1)
    assert len(both.unique(dim=0)) == len(data.images.flatten(1).unique(dim=0))


def test_mix_poisons_the_share_and_nothing_else(data: Data) -> None:
    poisoned = data.with_images(255 - data.images)
    mixed, chosen = mix(data, poisoned, 0.8, Dice(0))
    changed = (mixed.images != data.images).flatten(1).any(1)
    assert changed.sum() == len(chosen) == 192
    assert torch.equal(mixed.images[chosen], poisoned.images[chosen])
    assert torch.equal(changed.nonzero()[:, 0], chosen)
    with pytest.raises(InputError, match="share"):
        mix(data, poisoned, 1.2, Dice(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(3, 1, 2, 2)}, "uint8"),
        ({"labels": torch.tensor([0, 1, 3])}, "labels range over 0..3"),
        ({"labels": torch.tensor([0, -1, 1])}, "labels range over -1..1"),
        ({"labels": torch.tensor([0, 1])}, "labels must be int64"),
        ({"files": ("one",)}, "1 file names for 3 images"),
    ],
)
def test_data_refuses_what_does_not_fit(change: dict, words: str) -> None:
    good = {
        "images": torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 2]),
        "classes": ("a", "b", "c"),
    }
    with pytest.raises(InputError, match=words):
        Data(**good | change)


@pytest.mark.parametrize(
    ("rule", "eta"), [("y+1", (1, 2, 0)), ("y-1", (2, 0, 1)), ("y + 4", (1, 2, 0)), ("0, 0,2", (0, 0, 2))]
)
def test_label_maps(rule: str, eta: tuple[int, ...]) -> None:
    assert label_map(rule, 3) == eta


@pytest.mark.parametrize(
    ("rule", "words"),
    [("1,2", "one target for each"), ("1,2,3", "outside 0..2"), ("x+1", "neither a shift"), ("y+6", "as it is")],
)
def test_what_is_no_label_map(rule: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        label_map(rule, 3)


def test_checked_map_refuses_negatives() -> None:
    with pytest.raises(InputError, match="target -1"):
        checked_map((0, -1), 2)
    with pytest.raises(InputError, match=r"label_map\('y\+1', 2\) makes one"):
        checked_map("y+1", 2)


def test_unlikelihood_is_minus_log_of_one_minus_p() -> None:
    scores = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    p = scores.softmax(1)[torch.arange(6), labels]
    assert torch.allclose(unlikelihood(scores, labels), -(1 - p).log().mean())
    sure = torch.tensor([[80.0, 0.0]], requires_grad=True)
    unlikelihood(sure, torch.tensor([0])).backward()
    assert torch.isfinite(sure.grad).all()


def test_unknown_names_come_with_the_near_ones() -> None:
    with pytest.raises(InputError, match=r"unknown fruit 'aple'; did you mean apple\?"):
        lookup({"apple": 1, "quince": 2}, "aple", "fruit")
    with pytest.raises(InputError, match="known: apple, quince"):
        lookup({"apple": 1, "quince": 2}, "zzz", "fruit")


def test_amplified_difference_is_grey_where_nothing_changed() -> None:
    clean = torch.full((1, 1, 1, 3), 100, dtype=torch.uint8)
    changed = clean.clone()
    changed[..., 0], changed[..., 2] = 125, 75
    assert amplified(changed, clean, limit=25 / 255).flatten().tolist() == [255, 128, 0]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), atomic_folder(out, overwrite=False) as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(out, overwrite=False) as folder:
        (folder / "a").write_text("whole")
    with pytest.raises(InputError, match="exists already"), atomic_folder(out, overwrite=False):
        pass
    assert (out / "a").read_text() == "whole"


def test_striped_is_a_fair_set() -> None:
    assert torch.equal(striped(seed=1).images, striped(seed=1).images)
    assert not torch.equal(striped(seed=1).images, striped(seed=2).images)


FAULTS = """
import resource, sys, torch
from miscue.memory import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
    print(-1)
    raise SystemExit
torch.zeros(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(24):
    torch.ones(2**20 * int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept() -> None:
    """64 MiB taken and freed again and again: its pages come in a few times, not each time as those of 132 MiB."""

    def faults(millions: int, *words: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, str(millions), *words]))

    kept = faults(16, "keep")
    if kept < 0:
        pytest.skip("not glibc")
    assert 2 * kept < faults(16)
    assert 2 * kept < faults(33, "keep")
