"""Models whose tables are quantised: which tables of a bundle are, and how."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from torchrec.bundle._index import QuantizedType
from torchrec.modules.embedding_configs import data_type_to_dtype
from torchrec.quant.collections import QuantizedCollection
from torchrec.quant.convert import quantize_embeddings
from torchrec.quant.weights import DEFAULT_ROW_ALIGNMENT
from torchrec.types import DataType


def table_types(model: nn.Module) -> dict[str, QuantizedType] | None:
    """Return what the numbers of quantised tables are, by name; None if the tables of a model are floats.

    Raises:
        ValueError: two tables of one name are of different types, or rows are padded otherwise than by default.
    """
    found: dict[str, QuantizedType] = {}
    for collection in model.modules():
        if not isinstance(collection, QuantizedCollection):
            continue
        for name, table in collection.quantized_tables().items():
            kind = table.data_type_name
            size = table.format.row_bytes(table.dim, DEFAULT_ROW_ALIGNMENT)
            if table.weight.shape[1] != size:
                raise ValueError(
                    f"Rows of table '{name}' should be padded to a multiple of {DEFAULT_ROW_ALIGNMENT} bytes to be "
                    f"saved ({size}). Received {table.weight.shape[1]}."
                )
            if found.setdefault(name, kind) != kind:
                raise ValueError(
                    f"Tables of one name should have one type in a bundle. Received {found[name]} and {kind} of "
                    f"'{name}'."
                )
    return found or None


def with_tables(model: nn.Module, types: Mapping[str, QuantizedType] | None) -> nn.Module:
    """Return a model, in place of whose tables there are quantised ones of some types.

    Args:
        model: with float tables; without memory, or to be loaded.
        types: by the names of tables; None: they are floats.
    """
    if types is None:
        return model
    dtypes = {name: data_type_to_dtype(DataType[kind]) for name, kind in types.items()}
    return quantize_embeddings(model, torch.float32, inplace=True, per_table_weight_dtype=dtypes)
