"""A module's graph with PyTorch's own operations in place of the operators of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchrec.inference.exports._lookups import (
    ChosenRows,
    PermutedKeys,
    PooledLookup,
    SequenceLookup,
    StoredTable,
    stored_rows,
)
from torchrec.inference.exports._searching import FrozenMap
from torchrec.ops.collision.reference import find
from torchrec.ops.embedding.spec import SlotSpec, TableSpec, read_spec

NAMESPACE = "rowwise"


def portable(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a graph without operators of this package.

    What they read that does not change (weights, the tensor that describes the look-up, the index of an id map)
    becomes a part of the module that takes the place of each.

    Args:
        graph: of an exported program, for inference; it is used up.

    Raises:
        ValueError: it has an operator that a graph without this package cannot have; names it.
    """
    for node in list(graph.graph.nodes):
        operator = str(node.target)
        if node.op != "call_function" or not operator.startswith(f"{NAMESPACE}."):
            continue
        make = _REPLACEMENTS.get(operator.split(".")[1])
        if make is None:
            raise ValueError(
                f"A model that is exported should have no operator '{operator}', which does not work "
                "without this package. Received one: put the model into evaluation mode, or leave out "
                "the part that needs it."
            )
        module, arguments = make(graph, node)
        name = f"replaced_{node.name}"
        graph.add_submodule(name, module)
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(name, arguments))
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    return fx.GraphModule(_used(graph), graph.graph)


def _used(graph: fx.GraphModule) -> dict[str, object]:
    """Return what the nodes of a graph name, without weights that have been copied; parameters need no gradient."""
    found: dict[str, object] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            found[node.target] = graph.get_submodule(node.target)
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            value = getattr(graph.get_submodule(owner), name)
            if isinstance(value, nn.Parameter):
                value = nn.Parameter(value.detach(), requires_grad=False)
            found[node.target] = value
    return found


def _constant(graph: fx.GraphModule, node: object) -> Tensor:
    """Return the tensor that an argument is in every run."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        node = node.args[0]  # a copy of it, or it without its gradient
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        raise ValueError(
            f"A look-up that is exported should read tables that are parts of the model. Received {node}."
        )
    owner, _, name = str(node.target).rpartition(".")
    tensor = getattr(graph.get_submodule(owner), name)
    assert isinstance(tensor, Tensor)
    return tensor.detach()


def _tables(
    graph: fx.GraphModule,
    weights: Sequence[object],
    spec: object,
    formats: Sequence[int] | None = None,
) -> tuple[list[TableSpec], list[SlotSpec], list[StoredTable]]:
    tables, slots = read_spec(_constant(graph, spec))
    for table in tables:
        if table.num_shard_rows != table.rows:
            raise ValueError(
                f"A table that is exported should be whole. Received {table.num_shard_rows} of "
                f"{table.rows} rows: gather the model first, as by `torchrec.distributed.unshard`."
            )
    found = [_constant(graph, weight) for weight in weights]
    if formats is None:
        return tables, slots, [StoredTable(weight) for weight in found]
    stored = [
        stored_rows(rows, format, table.dim)
        for rows, format, table in zip(found, formats, tables, strict=True)
    ]
    return tables, slots, stored


_Replacement = Callable[[fx.GraphModule, fx.Node], tuple[nn.Module, tuple[Any, ...]]]


def _pooled(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]]:
    weights, spec, values, offsets, sample_weights, divisors, num_keys, width, dtype, _ = node.args
    tables, slots, found = _tables(graph, weights, spec)  # type: ignore[arg-type]
    module = PooledLookup(tables, slots, found, num_keys, width, dtype)  # type: ignore[arg-type]
    return module, (values, offsets, sample_weights, divisors)


def _sequences(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]]:
    weights, spec, values, starts, counts, _, dtype, _ = node.args
    tables, slots, found = _tables(graph, weights, spec)  # type: ignore[arg-type]
    return SequenceLookup(tables, slots, found, dtype), (values, starts, counts)  # type: ignore[arg-type]


def _pooled_codes(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]]:
    weights, formats, spec, values, offsets, sample_weights, num_keys, width, dtype, _ = node.args
    tables, slots, stored = _tables(graph, weights, spec, formats)  # type: ignore[arg-type]
    module = PooledLookup(tables, slots, stored, num_keys, width, dtype)  # type: ignore[arg-type]
    return module, (values, offsets, sample_weights, None)


def _sequences_of_codes(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]]:
    weights, formats, spec, values, starts, counts, _, dtype, _ = node.args
    tables, slots, stored = _tables(graph, weights, spec, formats)  # type: ignore[arg-type]
    return SequenceLookup(tables, slots, stored, dtype), (values, starts, counts)  # type: ignore[arg-type]


def _chosen(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]]:
    spec, values, _, starts, counts, *_ = node.args
    return ChosenRows(*read_spec(_constant(graph, spec))), (values, starts, counts)


def _permuted(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]]:
    lengths, values, weights, strides, order, total = node.args
    assert isinstance(strides, Sequence)
    if len(set(strides)) > 1:
        raise ValueError(
            "Features whose keys are taken in another order should have as many bags a key, to be exported. "
            f"Received {list(strides)}."
        )
    module = PermutedKeys(order, len(strides))  # type: ignore[arg-type]
    return module, (lengths, values, weights, total)


def _found(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]]:
    ids, index, wanted, missing = node.args
    of_rows, entries = _constant(graph, ids), _constant(graph, index)
    # A free row may have any id: it is held if a search for its id comes to it.
    is_held = find(of_rows, entries, of_rows, -1) == torch.arange(len(of_rows))
    return FrozenMap(of_rows, is_held.nonzero().flatten(), missing), (wanted,)  # type: ignore[arg-type]


class _Offsets(nn.Module):
    def forward(self, lengths: Tensor) -> Tensor:
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


class _Interaction(nn.Module):
    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        vectors = torch.cat([dense.unsqueeze(1), sparse], 1)
        count = vectors.shape[1]
        first, second = torch.triu_indices(count, count, offset=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return torch.cat([dense, products.index_select(1, first * count + second)], 1)


def _same_arguments(module: type[nn.Module]) -> _Replacement:
    return lambda graph, node: (module(), node.args)


_REPLACEMENTS: dict[str, _Replacement] = {
    "embedding_bag": _pooled,
    "embedding_sequence": _sequences,
    "quantized_bag": _pooled_codes,
    "quantized_sequence": _sequences_of_codes,
    "choose_rows": _chosen,
    "permute_jagged": _permuted,
    "id_map_find": _found,
    "lengths_to_offsets": _same_arguments(_Offsets),
    "dot_interaction": _same_arguments(_Interaction),
}
