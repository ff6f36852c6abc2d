"""The layout of specs and hyper-parameters: what Python writes is what the kernels read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from torchrec.ops import _library
from torchrec.ops.embedding import (
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    layout,
    native,
    new_hyper,
    reference,
    write_hyper,
)
from torchrec.ops.embedding.hyper import LR, STEP, read_hyper
from torchrec.ops.embedding.spec import read_spec
from torchrec.ops.embedding.updates import Hyper
from torchrec.types import OptimizerType

needs_native = pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")

TABLES = [
    TableSpec("user", 4, 30, 20, PolicyCode.OVERFLOW, OptimizerType.ADAM, 2, 7, 11),
    TableSpec("item", 3, 9, 9, PolicyCode.ROWS),
]
SLOTS = [SlotSpec("u", 0, 1, PoolingCode.MEAN, 3), SlotSpec("i", 1, 0, PoolingCode.NONE, 0)]


@needs_native
def test_python_and_kernels_name_the_same_fields_in_the_same_order() -> None:
    version, header, table, slot, hyper = _library.native.embedding_layout()
    assert version == layout.VERSION
    assert (tuple(header), tuple(table)) == (layout.HEADER, layout.TABLE)
    assert (tuple(slot), tuple(hyper)) == (layout.SLOT, layout.HYPER)


def test_the_tensor_of_a_spec_is_laid_out_as_named() -> None:
    numbers = iter(LookupSpec(TABLES, SLOTS, 2, 7).tensor.tolist())
    assert {n: next(numbers) for n in layout.HEADER} == {"version": 3, "tables": 2, "slots": 2}
    assert {n: next(numbers) for n in layout.TABLE} == {
        "dim": 4, "rows": 30, "num_embeddings": 20, "policy": 2, "rule": 3, "states": 2,
        "first_row": 7, "shard_rows": 11,
    }  # fmt: skip
    assert {n: next(numbers) for n in layout.TABLE} == {
        "dim": 3, "rows": 9, "num_embeddings": 9, "policy": 5, "rule": -1, "states": 0,
        "first_row": 0, "shard_rows": 9,
    }  # fmt: skip
    assert [next(numbers) for _ in layout.SLOT] == [0, 1, 1, 3]
    assert [next(numbers) for _ in layout.SLOT] == [1, 0, 2, 0]
    assert list(numbers) == []


def test_a_spec_is_read_as_it_was_written() -> None:
    tables, slots = read_spec(LookupSpec(TABLES, SLOTS, 2, 7).tensor)
    for mine, other in zip(tables, TABLES, strict=True):
        assert (mine.dim, mine.rows, mine.num_embeddings) == (
            other.dim, other.rows, other.num_embeddings,
        )  # fmt: skip
        assert (mine.policy, mine.optimizer, mine.states) == (
            other.policy, other.optimizer, other.states,
        )  # fmt: skip
        assert (mine.first_row, mine.num_shard_rows) == (other.first_row, other.num_shard_rows)
    assert [(s.table, s.key, s.pooling, s.column) for s in slots] == [
        (s.table, s.key, s.pooling, s.column) for s in SLOTS
    ]


def test_hyper_parameters_are_read_as_they_were_written() -> None:
    settings = Hyper(
        lr=0.5, weight_decay=0.25, weight_decay_mode="decoupled", max_gradient=3.0, eps=1e-4,
        betas=(0.5, 0.75), momentum=0.9, dampening=0.0, nesterov=True, eta=0.125,
    )  # fmt: skip
    rows = new_hyper(2)
    rows[1, STEP] = 4
    write_hyper(rows[1], settings)
    assert read_hyper(rows[1]) == (settings, 4)
    rows[1, LR] = 0.0625
    assert read_hyper(rows[1])[0].lr == 0.0625
    assert rows[0].tolist() == [0.0] * len(layout.HYPER)


def test_specs_and_hyper_parameters_can_lie_on_another_device() -> None:
    assert LookupSpec(TABLES, SLOTS, 2, 7, device="meta").tensor.is_meta
    assert LookupSpec(TABLES, SLOTS, 2, 7, device="meta").subset([1]).tensor.is_meta
    assert new_hyper(2, "meta").is_meta
    with torch.device("meta"):  # what is not asked for stays where kernels read it
        assert LookupSpec(TABLES, SLOTS, 2, 7).tensor.is_cpu
        row = new_hyper(1)[0]
        write_hyper(row, Hyper(lr=0.5))
    assert row[LR] == 0.5


BACKENDS = [
    pytest.param(native, marks=needs_native, id="native"),
    pytest.param(reference, id="reference"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            lambda t: t.index_fill(0, torch.tensor([0]), 1), "version 3.*Received 1", id="version"
        ),
        pytest.param(lambda t: t[:0], "version 3.*Received no numbers", id="empty"),
    ],
)
def test_another_version_is_refused(backend, spoil, message) -> None:
    spec = LookupSpec([TableSpec("t", 2, 3, 3)], [SlotSpec("f", 0, 0)], 1, 2)
    ids, offsets = torch.tensor([0]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=message):
        backend.embedding_bag(
            [torch.zeros(3, 2)], spoil(spec.tensor), ids, offsets, None, None, 1, 2,
            torch.float32, spec.names,
        )  # fmt: skip


@needs_native
@pytest.mark.parametrize(
    "cut", [slice(0, -1), slice(0, 3)], ids=["one_number_short", "header_only"]
)
def test_kernels_refuse_a_spec_that_is_too_short(cut: slice) -> None:
    spec = LookupSpec([TableSpec("t", 2, 3, 3)], [SlotSpec("f", 0, 0)], 1, 2)
    with pytest.raises(ValueError, match="should hold the numbers of its tables and slots"):
        native.choose_rows(spec.tensor[cut], torch.tensor([0]), None, [0], [1], 1, 1, spec.names)


@pytest.mark.parametrize(
    "library",
    [SimpleNamespace(), SimpleNamespace(embedding_layout=lambda: (1, [], [], [], []))],
    ids=["none", "1"],
)
def test_kernels_of_another_layout_are_refused_when_they_are_loaded(library, request) -> None:
    version = request.node.callspec.id
    with pytest.raises(ImportError, match=f"version 3 of the layout.*Received {version}: build"):
        native.require_layout(library)


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (4, 2), (0, 6)])
def test_a_shard_outside_its_table_is_refused(first: int, count: int) -> None:
    with pytest.raises(ValueError, match=rf"'t' should be within \[0, 5\).*{first}.*{count}"):
        TableSpec("t", 2, 5, 5, first_row=first, shard_rows=count)
