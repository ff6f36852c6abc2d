"""The batch that data sets make."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from torchrec import KeyedJaggedTensor
from torchrec.datasets._batch import join
from torchrec.datasets.utils import Batch
from torchrec.streamable import Pipelineable

pytestmark = pytest.mark.once


def make_full() -> Batch:
    """Two targets, weights and two kinds of groups besides the features."""
    return Batch(
        torch.arange(8.0).view(4, 2),
        KeyedJaggedTensor.from_lists({"a": [[1, 2], [], [3], [4]]}),
        targets={"click": torch.tensor([0, 1, 1, 0]), "seconds": torch.arange(4.0)},
        weights=torch.tensor([0.5, 1.0, 2.0, 4.0]),
        groups={"user": torch.tensor([7, 7, 8, 9]), "query": torch.tensor([1, 2, 2, 2])},
    )


def by_sample(batch: Batch) -> dict[str, list[float]]:
    found = {"dense": batch.dense_features[:, 0].tolist()}
    found |= {name: target.tolist() for name, target in batch.targets.items()}
    assert batch.weights is not None
    found |= {name: group.tolist() for name, group in batch.groups.items()}
    return found | {"weights": batch.weights.tolist()}


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


@pytest.fixture(params=["weighted", "plain"])
def samples(request: pytest.FixtureRequest) -> Batch:
    lists = {"one": [[i] for i in range(9)], "some": [[i] * (i % 3) for i in range(9)]}
    weights = {k: [[x / 2 for x in bag] for bag in bags] for k, bags in lists.items()}
    weighted = request.param == "weighted"
    return Batch(
        torch.arange(18.0).view(9, 2),
        KeyedJaggedTensor.from_lists(lists, weights if weighted else None),
        torch.arange(9),
    )


def as_lists(batch: Batch) -> list[object]:
    """Return the samples one by one, as plain Python."""
    ids = batch.sparse_features
    weights = None if ids.weights_or_none() is None else ids.weights().tolist()
    return [
        batch.dense_features.tolist(),
        ids.to_lists(),
        weights,
        batch.labels.tolist(),
        ids.stride(),
    ]


@pytest.mark.parametrize("indices", [[], [3], [8, 0, 8, 5, 2]], ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_samples_are_selected(samples: Batch, indices: list[int], dtype: torch.dtype) -> None:
    chosen = samples.index_select(torch.tensor(indices, dtype=dtype))
    assert chosen.dense_features.tolist() == [[2.0 * i, 2.0 * i + 1] for i in indices]
    assert chosen.labels.tolist() == indices
    lists = {"one": [[i] for i in indices], "some": [[i] * (i % 3) for i in indices]}
    assert chosen.sparse_features.to_lists() == lists
    weights = samples.sparse_features.weights_or_none()
    if weights is not None:
        flat = [i / 2 for bags in lists.values() for bag in bags for i in bag]
        assert chosen.sparse_features.weights().tolist() == flat


@pytest.mark.parametrize("sizes", [[5], [2, 3], [0, 1, 4, 0]], ids=str)
def test_batches_are_cut_and_joined_again(samples: Batch, sizes: list[int]) -> None:
    indices = torch.tensor([8, 0, 8, 5, 2])
    whole = samples.index_select(indices)
    parts = samples.select_batches(indices, sizes)
    assert [part.labels.numel() for part in parts] == sizes
    for part, own in zip(parts, indices.split(sizes), strict=True):
        assert as_lists(part) == as_lists(samples.index_select(own))
    assert as_lists(join(parts)) == as_lists(whole)


def test_features_without_keys_are_selected_too() -> None:
    empty = KeyedJaggedTensor(
        [], torch.empty(0, dtype=torch.int64), lengths=torch.empty(0, dtype=torch.int64), stride=3
    )
    chosen = Batch(torch.zeros(3, 1), empty, torch.arange(3)).index_select(torch.tensor([2, 1]))
    assert chosen.sparse_features.stride() == 2
    assert chosen.labels.tolist() == [2, 1]


def test_features_without_keys_are_joined_too() -> None:
    empty = KeyedJaggedTensor(
        [], torch.empty(0, dtype=torch.int64), lengths=torch.empty(0, dtype=torch.int32), stride=3
    )
    joined = join([Batch(torch.zeros(3, 1), empty, torch.arange(3))] * 2)
    assert joined.sparse_features.stride() == 6
    assert joined.sparse_features.lengths().dtype == torch.int32
    assert joined.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("indices", "sizes", "error", "message"),
    [
        ([9], [1], IndexError, r"`samples` should be in \[0, 9\)"),
        ([-1], [1], IndexError, r"`samples` should be in \[0, 9\)"),
        (
            [1, 2],
            [1],
            ValueError,
            r"`sizes` should not be negative and sum to .*\(2\)\. Received \[1\]",
        ),
        ([1], [2, -1], ValueError, r"Received \[2, -1\]"),
    ],
)
def test_wrong_positions_and_sizes_are_refused(
    samples: Batch, indices: list[int], sizes: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        samples.select_batches(torch.tensor(indices), sizes)


def test_batches_that_differ_by_key_are_refused() -> None:
    ids = KeyedJaggedTensor(
        ["a", "b"],
        torch.arange(3),
        lengths=torch.ones(3, dtype=torch.int64),
        stride_per_key_per_rank=[[2], [1]],
    )
    batch = Batch(torch.zeros(2, 1), ids, torch.zeros(2))
    with pytest.raises(
        ValueError, match=r"batches of one size for all keys\. Received the sizes \[2, 1\]"
    ):
        batch.index_select(torch.tensor([0]))


def test_labels_are_the_target_of_that_name() -> None:
    batch = make()
    assert batch.targets.keys() == {"labels"}
    assert batch.labels is batch.targets["labels"]
    batch.labels = torch.tensor([5, 6])
    assert batch.targets["labels"].tolist() == [5, 6]
    other = dataclasses.replace(batch, labels=torch.tensor([7, 8]))
    assert (other.labels.tolist(), batch.labels.tolist()) == ([7, 8], [5, 6])
    assert (batch.weights, batch.groups) == (None, {})
    with pytest.raises(ValueError, match=r"Received the targets \['click', 'seconds'\]: take one"):
        _ = make_full().labels


def test_targets_weights_and_groups_go_where_the_samples_go() -> None:
    batch = make_full()
    everything = by_sample(batch)
    assert by_sample(batch.to(torch.device("cpu"))) == everything
    moved = batch.to(torch.device("meta"))
    leaves = pytree.tree_leaves(moved)
    assert all(str(leaf.device) == "meta" for leaf in leaves)
    assert len(leaves) == 8  # of the features 3, then two targets, weights, two groups
    chosen = [3, 0, 0, 2, 1]
    parts = batch.select_batches(torch.tensor(chosen), [2, 3])
    expected = {name: [values[i] for i in chosen] for name, values in everything.items()}
    assert [by_sample(part) for part in parts] == [
        {name: values[:2] for name, values in expected.items()},
        {name: values[2:] for name, values in expected.items()},
    ]
    assert by_sample(join(parts)) == expected


def test_targets_weights_and_groups_are_recorded_and_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: seen.append(self))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(KeyedJaggedTensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(KeyedJaggedTensor, "pin_memory", lambda self: self)
    batch = make_full()
    batch.record_stream(None)
    parts = [batch.dense_features, *batch.targets.values(), *batch.groups.values(), batch.weights]
    assert [id(part) for part in seen] == [id(part) for part in parts]
    pinned = batch.pin_memory()
    assert by_sample(pinned) == by_sample(batch)
    assert pinned.weights is not batch.weights


@pytest.mark.parametrize("batch", [make(), make_full()], ids=["labels", "full"])
def test_there_and_back_as_a_pytree_and_as_a_file(batch: Batch) -> None:
    leaves, spec = pytree.tree_flatten(batch)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    file = io.BytesIO()
    torch.save(batch, file)
    file.seek(0)
    for other in (pytree.tree_unflatten(leaves, spec), torch.load(file), copy.copy(batch)):
        assert other.targets.keys() == batch.targets.keys()
        same_leaves = zip(pytree.tree_leaves(other), leaves, strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in same_leaves)


def test_a_batch_saved_with_only_labels_loads() -> None:
    batch = Batch.__new__(Batch)
    parts = {"dense_features": torch.zeros(1, 2), "sparse_features": make().sparse_features}
    batch.__setstate__({**parts, "labels": torch.tensor([1])})
    assert (batch.labels.tolist(), batch.weights) == ([1], None)


def test_is_an_input_of_export() -> None:
    class Weighted(torch.nn.Module):
        def forward(self, batch: Batch) -> torch.Tensor:
            return batch.dense_features.sum(1) * batch.weights + batch.targets["seconds"]

    batch = make_full()
    exported = torch.export.export(Weighted(), (batch,)).module()
    assert torch.equal(exported(batch), Weighted()(batch))


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": None},
        {"groups": {"user": torch.zeros(4)}},
        {"targets": {"click": torch.zeros(4)}},
    ],
    ids=["weights", "groups", "targets"],
)
def test_batches_with_other_parts_are_not_joined(changes: dict[str, Any]) -> None:
    other = dataclasses.replace(make_full(), **changes)
    with pytest.raises(ValueError, match="should have the same targets, weights and groups"):
        join([make_full(), other])


def test_a_traced_program_takes_targets_by_name_and_no_other_parts() -> None:
    batch = make_full()
    _, spec = pytree.tree_flatten(batch)
    turned = dataclasses.replace(batch, targets=dict(reversed(batch.targets.items())))
    leaves = torch.fx._pytree.tree_flatten_spec(turned, spec)
    again = pytree.tree_unflatten(leaves, spec)
    assert by_sample(again) == by_sample(batch)
    with pytest.raises(ValueError, match=r"A Batch should have the parts .*'groups'\] .* traced"):
        torch.fx._pytree.tree_flatten_spec(dataclasses.replace(batch, groups=None), spec)
