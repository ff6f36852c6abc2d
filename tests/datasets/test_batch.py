"""The batch that data sets make."""

from __future__ import annotations

import io

import pytest
import torch
from torch.utils import _pytree as pytree

from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.streamable import Pipelineable


def make() -> Batch:
    return Batch(
        dense_features=torch.arange(4.0).view(2, 2),
        sparse_features=KeyedJaggedTensor.from_lists({"a": [[1, 2], []], "b": [[3], [4]]}),
        labels=torch.tensor([0, 1]),
    )


def same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.dense_features, other.dense_features)
    assert torch.equal(one.labels, other.labels)
    assert one.sparse_features.keys() == other.sparse_features.keys()
    for key in one.sparse_features.keys():  # noqa: SIM118 - not a dict
        assert one.sparse_features[key].to_dense() == [] or torch.equal(
            one.sparse_features[key].values(), other.sparse_features[key].values()
        )


def test_moves_all_parts() -> None:
    batch = make()
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch)
    parts = (moved.dense_features, moved.sparse_features, moved.labels)
    assert all(str(part.device) == "meta" for part in (parts[0], parts[2]))
    assert str(parts[1].values().device) == "meta"
    same(batch.to(torch.device("cpu"), non_blocking=True), batch)


def test_is_pipelineable() -> None:
    assert issubclass(Batch, Pipelineable)
    assert (Batch.__module__, Batch.__name__) == ("torchrec.datasets.utils", "Batch")


def test_every_part_is_recorded_and_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for kind in (torch.Tensor, KeyedJaggedTensor):
        name = kind.__name__
        monkeypatch.setattr(kind, "record_stream", lambda self, stream, n=name: seen.append(n))
        monkeypatch.setattr(kind, "pin_memory", lambda self, n=name: seen.append(n) or self)
    batch = make()
    batch.record_stream(None)
    assert seen == ["Tensor", "KeyedJaggedTensor", "Tensor"]
    same(batch.pin_memory(), batch)
    assert seen[3:] == ["Tensor", "KeyedJaggedTensor", "Tensor"]


def test_is_a_pytree() -> None:
    batch = make()
    leaves, spec = pytree.tree_flatten(batch)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    same(pytree.tree_unflatten(leaves, spec), batch)
    doubled = pytree.tree_map(lambda x: 2 * x, batch)
    assert torch.equal(doubled.labels, torch.tensor([0, 2]))
    assert doubled.sparse_features.values().tolist() == [2, 4, 6, 8]
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(batch)[0]]
    assert paths[0] == ".dense_features"
    assert ".sparse_features.values" in paths
    same(pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(spec))), batch)


def test_survives_a_file() -> None:
    file = io.BytesIO()
    torch.save(make(), file)
    file.seek(0)
    same(torch.load(file, weights_only=True), make())
