"""Checkpoints are whole or not there: whatever is written, whatever fails."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchrec
from torchrec.files import remove_folder
from torchrec.state_tree import join_state, split_state
from torchrec.training import Checkpoints, checkpoint

pytestmark = pytest.mark.once

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)
names = st.text(max_size=4) | st.sampled_from(["$tensor", "$tuple", "$items", "$float", "a.b"])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(names, inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(trees)
def test_state_comes_back(state: object) -> None:
    rest, tensors = split_state(state)
    text = json.dumps(rest, allow_nan=False)
    assert join_state(json.loads(text), tensors) == state
    assert not tensors


def test_nan_comes_back() -> None:
    rest, _ = split_state([math.nan])
    (value,) = join_state(rest, {})  # type: ignore[misc]
    assert math.isnan(value)


def test_tensors_of_all_kinds_come_back(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {
        "parameter": torch.nn.Parameter(whole.clone()),
        "view": whole[1, 2],
        "transposed": whole.T,
        "overlapping": [whole[:2], whole[1:]],
        "empty": torch.zeros(0, 3),
        "tied": [whole, whole],
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "kinds": {i: torch.ones(2).to(d) for i, d in enumerate([torch.bool, torch.int8, torch.bfloat16])},
        "twin names": {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)},
    }  # fmt: skip
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    loaded = checkpoints.load(1)

    def same(one: Any, other: Any) -> None:
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        elif isinstance(one, dict):
            assert one.keys() == other.keys()
            for key in one:
                same(one[key], other[key])
        else:
            for a, b in zip(one, other, strict=True):
                same(a, b)

    same(state, loaded)
    assert loaded["tied"][0] is loaded["tied"][1]


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Received object at 'model\.0'"):
        Checkpoints(tmp_path).save(1, {"model": [object()]})
    assert Checkpoints(tmp_path).latest() is None


def test_last_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.latest() is None
    for step in (5, 100_000_000, 20, 30, 40):
        checkpoints.save(step, {"step": step})
    assert checkpoints.steps() == [30, 40, 100_000_000]
    assert checkpoints.latest() == 100_000_000
    assert checkpoints.load(30) == {"step": 30}


def test_best_weights_stay_while_they_are_needed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best in ((10, 10), (20, 10), (30, 30), (40, 30)):
        if step == best:
            checkpoints.save_best(step, {"w": torch.tensor(float(step))})
        checkpoints.save(step, {}, best=best)
        found = sorted(path.name for path in tmp_path.glob("best-*"))
        assert (
            found
            == {
                10: ["best-00000010"],
                20: ["best-00000010"],
                30: ["best-00000010", "best-00000030"],
                40: ["best-00000030"],
            }[step]
        )
    assert checkpoints.load_best(30)["w"] == 30


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": 1})
    checkpoints.save(1, {"x": 2})
    assert checkpoints.load(1) == {"x": 2}
    checkpoints.save(2, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_there_is_no_such_checkpoint(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(3, {})
    with pytest.raises(ValueError, match=r"`step` should be one of \[3\].* Received 4"):
        Checkpoints(tmp_path).load(4)
    with pytest.raises(ValueError, match=r"`keep` should be at least 1. Received 0"):
        Checkpoints(tmp_path, keep=0)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3 if path.suffix == ".safetensors" else 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "index.json"])
@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink], ids=["cut", "flip", "remove"])
def test_damage_names_the_file(name: str, damage: Any, tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(3, {"w": torch.ones(5)})
    damage(path / name)
    with pytest.raises(ValueError, match=f"Checkpoint file '.*{name}' should be as it was written"):
        Checkpoints(tmp_path).load(3)


@pytest.mark.slow
def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Harmless is a bit of the layout of the index: what is loaded is the same then."""
    checkpoints = Checkpoints(tmp_path)
    state = {"epoch": 1, "betas": (0.9, 0.999), "data": {"row": 2816}, "w": torch.tensor([0.5])}
    path = checkpoints.save(3, state, best=2)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            try:
                loaded = checkpoints.load(3)
            except ValueError as error:
                unnoticed = str(file) not in str(error) and "of format" not in str(error)
            else:
                unnoticed = loaded != state
            assert not unnoticed, (file, bit)
        file.write_bytes(whole)


def test_other_formats_are_refused_with_the_version_that_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 3)
        patch.setattr(torchrec, "__version__", "0.2.0")
        checkpoints.save(3, {})
    with pytest.raises(
        ValueError, match=r"of format 2\. Received format 3, which rowwise 0\.2\.0 wr"
    ):
        checkpoints.load(3)
    with pytest.raises(ValueError, match="Received format 3"):
        checkpoints.tidy()
    former = tmp_path / "step-00000004"
    former.mkdir()
    (former / "state.json").write_text('{"version": 1, "best": null, "tensors": {}, "state": {}}')
    with pytest.raises(
        ValueError, match=r"step-00000004' .* Received format 1, which earlier builds"
    ):
        checkpoints.load(4)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "index.json"])
@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink], ids=["cut", "flip", "remove"])
def test_damage_of_one_before_the_last_hinders_nothing(
    name: str, damage: Any, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save_best(step, {"w": torch.full((5,), float(step))})
        former = checkpoints.save(step, {"w": torch.ones(5)}, best=step)
    checkpoints.save_best(3, {"w": torch.zeros(5)})
    damage(former / name)
    checkpoints.save(3, {"w": torch.full((5,), 3.0)}, best=3)
    checkpoints.tidy()
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.load(3)["w"].tolist() == [3.0] * 5
    assert checkpoints.load_best(3)["w"].tolist() == [0.0] * 5
    assert checkpoints.load_best(2)["w"].tolist() == [2.0] * 5  # who knows who needs it
    with pytest.raises(ValueError, match=f"Checkpoint file '.*{name}' should be as it was written"):
        checkpoints.load(2)
    for step in (4, 5):
        checkpoints.save(step, {}, best=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best-00000003", "step-00000004", "step-00000005"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["tensors.safetensors", "index.json"])
def test_damage_of_the_best_weights_says_which_checkpoints_need_them(
    name: str, tmp_path: Path
) -> None:
    """To remove these weights alone would help nobody."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save_best(step, {"w": torch.full((5,), float(step))})
        checkpoints.save(step, {}, best=step)
    _cut(tmp_path / "best-00000002" / name)
    with pytest.raises(ValueError, match=r"Checkpoints from step 2 on need it: .* remove them\.$"):
        checkpoints.load_best(2)
    remove_folder(tmp_path / "step-00000002")
    assert checkpoints.latest() == 1
    assert checkpoints.load_best(1)["w"].tolist() == [1.0] * 5


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink], ids=["cut", "flip", "remove"])
def test_damage_of_the_last_is_told_before_anything_is_removed(damage: Any, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        last = Checkpoints(tmp_path, keep=3).save(step, {})
    damage(last / "index.json")
    with pytest.raises(
        ValueError, match=r"go on from the checkpoint before, remove '.*step-00000003"
    ):
        Checkpoints(tmp_path, keep=1).tidy()
    assert Checkpoints(tmp_path).steps() == [1, 2, 3]


def _full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _half_written(tensors: object, path: Path) -> None:
    Path(path).write_bytes(b"half")
    _full()


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (safetensors.torch, "save_file", _half_written),
        (os, "fsync", _full),
        (os, "rename", _full),
        (os, "mkdir", _full),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_full_disk_leaves_the_former_whole(
    module: Any, name: str, broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"w": torch.ones(5)})
    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken)
        with pytest.raises(
            OSError, match=r"step 2 should be written to '.*No space left on device\. What was"
        ):
            checkpoints.save(2, {"w": torch.zeros(5)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert torch.equal(checkpoints.load(1)["w"], torch.ones(5))
    checkpoints.save(2, {"w": torch.zeros(5)})
    assert checkpoints.steps() == [2]


LIMITED = """
import resource, sys, torch
from torchrec.training import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"w": torch.ones(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    checkpoints.save(2, {"w": torch.ones(1_000_000)})
except OSError as error:
    print(error.errno, error)
print(checkpoints.latest(), checkpoints.load(1)["w"].sum().item())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_system_that_writes_no_more(tmp_path: Path) -> None:
    """The library that writes tensors meets the limit itself."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    message, state = done.stdout.splitlines()
    assert message.startswith(
        f"{errno.EFBIG} [Errno {errno.EFBIG}] The checkpoint of step 2 should"
    )
    assert "File too large. What was there before is whole" in message
    assert state == "1 10.0"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_left_over_folders_are_ignored_and_removed(tmp_path: Path) -> None:
    left = tmp_path / ".step-00000009.writing"
    left.mkdir()
    (left / "tensors.safetensors").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.save(1, {})
    assert not left.exists()
