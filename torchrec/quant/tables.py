"""The tables of a quantised collection: their rows as buffers, and how input is looked up in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchrec.checks import checked_device, require_integer
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.stray_ids import add_counts, counts_by_table
from torchrec.modules.tables import embedding_names_by_table, slots_of, table_spec_of
from torchrec.ops import held, is_wrapped
from torchrec.ops.embedding import Ids, LookupSpec, PolicyCode, choose_rows, new_table
from torchrec.ops.quant import RowFormat, dequantize_rows
from torchrec.ops.quant.formats import HEAD
from torchrec.quant._private import buffers_by_name
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.tensor_types import UIntXTensor
from torchrec.types import DataType, IdPolicy

QuantizedWeights = tuple[Tensor, Tensor | None]
"""Codes (or the bytes of floats) and scales with biases, uint8 ``(E, 4)``; or whole rows and None."""

_FORMATS = {
    DataType.FP32: RowFormat.FP32,
    DataType.FP16: RowFormat.FP16,
    DataType.BF16: RowFormat.BF16,
    DataType.INT8: RowFormat.INT8,
    DataType.INT4: RowFormat.INT4,
    DataType.INT2: RowFormat.INT2,
}
DATA_TYPES = tuple(_FORMATS)
_Name = Literal["INT8", "INT4", "INT2", "FP16", "BF16", "FP32"]
_NAMES: dict[RowFormat, _Name] = {
    RowFormat.FP32: "FP32",
    RowFormat.FP16: "FP16",
    RowFormat.BF16: "BF16",
    RowFormat.INT8: "INT8",
    RowFormat.INT4: "INT4",
    RowFormat.INT2: "INT2",
}
_OUTPUTS = (torch.float32, torch.float16, torch.bfloat16)
# Orders of keys whose look-ups are kept; of further ones the oldest is made again when it comes.
_MOST_LOOKUPS = 64


def format_of(data_type: DataType, name: str) -> RowFormat:
    """Return how a table of a data type lies in memory.

    Raises:
        ValueError: naming the table, for a type that quantised tables do not have.
    """
    if data_type not in _FORMATS:
        raise ValueError(
            f"`data_type` of table '{name}' should be one of {', '.join(map(str, _FORMATS))}. "
            f"Received {data_type}."
        )
    return _FORMATS[data_type]


def rows_left(config: BaseEmbeddingConfig) -> int:
    """Return how many rows of a table are left, once it is pruned."""
    left = config.num_embeddings_post_pruning
    return config.num_rows if left is None else left


class QuantizedTable(nn.Module):
    """The rows of one table, as bytes: the buffer ``weight``, uint8 ``(E, bytes)``.

    Args:
        config: of the table.
        device: of the rows.
        row_alignment: rows are padded to a multiple of it.
        split: whether the state has ``weight`` without scales and biases, and these as
            ``weight_qscale`` and ``weight_qbias``, float16 ``(E, 1)``.
        given: the rows. Default: zeros.
    """

    weight: Tensor

    def __init__(
        self,
        config: BaseEmbeddingConfig,
        device: torch.device,
        row_alignment: int,
        split: bool,
        given: QuantizedWeights | None,
    ) -> None:
        super().__init__()
        self.format = format_of(config.data_type, config.name)
        self._name, self.dim = config.name, config.embedding_dim
        self.row_alignment, self.is_split = row_alignment, split and self.format.has_codes
        shape = rows_left(config), self.format.row_bytes(config.embedding_dim, row_alignment)
        self.register_buffer("weight", self._whole(given, shape, device))

    def _whole(
        self, given: QuantizedWeights | None, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        if given is None:
            return new_table(*shape, torch.uint8, device).zero_()
        weight, head = _bytes_of(given[0]), given[1]
        if head is None and weight.shape == shape:
            return weight.to(device).contiguous()
        begin = HEAD if self.format.has_codes else 0
        codes = self.format.row_bytes(self.dim) - begin
        fits = weight.dim() == 2 and weight.shape[0] == shape[0] and weight.shape[1] >= codes
        if begin:
            fits = fits and head is not None and tuple(head.shape) == (shape[0], HEAD)
        if not fits or weight.dtype is not torch.uint8:
            raise ValueError(
                f"Quantised weights of table '{self._name}' should be uint8: {codes} bytes of codes and, apart "
                f"from floats, {HEAD} of scale and bias, for each of {shape[0]} rows; or rows of {shape[1]} bytes. "
                f"Received {list(weight.shape)} and {None if head is None else list(head.shape)}."
            )
        rows = new_table(*shape, torch.uint8, device).zero_()
        if head is not None and begin:
            rows[:, :begin] = head
        rows[:, begin : begin + codes] = weight[:, :codes]
        return rows

    @property
    def data_type_name(self) -> _Name:
        """The name of what its numbers are."""
        return _NAMES[self.format]

    def parts(self) -> QuantizedWeights:
        """Return views of the codes, and of the scales with the biases; of floats None in their place."""
        begin = HEAD if self.format.has_codes else 0
        codes = self.weight[:, begin : self.format.row_bytes(self.dim)]
        return codes, self.weight[:, :begin] if begin else None

    def cut(self, rows: range, columns: range) -> QuantizedWeights:
        """Return some columns of some rows, as views of the codes and of the scales with the biases.

        Args:
            rows: of the table.
            columns: of its numbers.

        Raises:
            ValueError: for columns that begin or end within a byte.
        """
        codes, head = self.parts()
        bits = self.format.bits
        at, end = columns.start * bits, columns.stop * bits
        if at % 8 or (end % 8 and columns.stop != self.dim):
            raise ValueError(
                f"Table '{self._name}' should be cut at multiples of {8 // bits} columns, as {self.data_type_name} has "
                f"so many in a byte. Received columns {columns.start} to {columns.stop - 1}."
            )
        head = None if head is None else head[rows.start : rows.stop]
        return codes[rows.start : rows.stop, at // 8 : -(-end // 8)], head

    def dequantized(self) -> Tensor:
        """Return the numbers, float32 ``(E, D)``."""
        return dequantize_rows(self.weight, self.format, self.dim)

    def extra_repr(self) -> str:
        """Say what it holds."""
        return f"{self.weight.shape[0]}, {self.dim}, {self.format.name}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if not self.is_split:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        codes, head = self.parts()
        assert head is not None
        numbers = head.view(torch.float16)
        destination[prefix + "weight"] = codes
        destination[prefix + "weight_qscale"] = numbers[:, :1]
        destination[prefix + "weight_qbias"] = numbers[:, 1:]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take rows as they are, as packed tensors, or without padding, codes apart from scales and biases."""
        name = prefix + "weight"
        given = state_dict.get(name)
        if isinstance(given, Tensor):
            rows = _bytes_of(given)
            factors = [state_dict.pop(f"{name}_{part}", None) for part in ("qscale", "qbias")]
            shape = self.weight.shape[0], self.weight.shape[1]
            if all(isinstance(factor, Tensor) for factor in factors):
                both = torch.cat([factor.reshape(-1, 1).half() for factor in factors], 1)
                head = both.contiguous().view(torch.uint8)
                rows = self._whole((rows, head), shape, torch.device("cpu"))
            elif not self.format.has_codes and rows.shape == (
                shape[0],
                self.format.row_bytes(self.dim),
            ):
                rows = self._whole((rows, None), shape, torch.device("cpu"))
            state_dict[name] = rows
        super()._load_from_state_dict(state_dict, prefix, *args)


def _bytes_of(rows: Tensor) -> Tensor:
    return rows.elem if isinstance(rows, UIntXTensor) else rows


class _Rows:
    """The rows of tables as their modules have them now.

    An object of its own: `torch.export` puts copies of the lists and dictionaries among a module's attributes in their
    places, with what it has put into them for the time being.
    """

    def __init__(self, tables: Sequence[QuantizedTable]) -> None:
        self._buffers = [buffers_by_name(table) for table in tables]

    def now(self) -> list[Tensor]:
        if is_compiling():
            return [buffers["weight"] for buffers in self._buffers]
        return held(self._buffers, "weight")


class RowChooser(nn.Module):
    """Which rows of tables the ids of features choose. It has no state of its own but counts of stray ids.

    Args:
        configs: the tables.
        device: of the ids.
    """

    def __init__(self, configs: Sequence[BaseEmbeddingConfig], device: torch.device) -> None:
        super().__init__()
        self.configs = list(configs)
        self.embedding_names = [n for names in embedding_names_by_table(configs) for n in names]
        self.dims = [c.embedding_dim for c in configs for _ in c.feature_names]
        self.is_pruned = any(c.pruning_indices_remapping is not None for c in configs)
        self._specs: dict[tuple[str, ...], LookupSpec] = {}
        self._counts = any(
            c.id_policy != IdPolicy.ERROR or c.hash_size is not None for c in configs
        )
        # Without memory no table is looked up; what is loaded then is on the CPU.
        place = torch.device("cpu") if device.type == "meta" else device
        counts = torch.zeros(len(self.configs), dtype=torch.int64, device=place)
        self.register_buffer("_out_of_range", counts, persistent=False)
        for t, config in enumerate(configs):
            if config.pruning_indices_remapping is not None:
                rows = config.pruning_indices_remapping.long().to(place)
                self.register_buffer(f"_remapping_{t}", rows, persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the ids."""
        return self.get_buffer("_out_of_range").device

    def count(self, out_of_range: Tensor) -> None:
        """Add what a look-up has counted."""
        if self._counts:
            add_counts(self.get_buffer("_out_of_range"), out_of_range)

    def out_of_range_counts(self, reset: bool) -> dict[str, int]:
        """Return how many ids outside its rows each table has been given."""
        names = [config.name for config in self.configs]
        return counts_by_table(self.get_buffer("_out_of_range"), names, reset)

    def spec_of(self, keys: Sequence[str]) -> LookupSpec:
        """Return the look-up by input with these keys."""
        known = tuple(keys)
        found = self._specs.get(known)
        if found is None:
            slots, width = slots_of(self.configs, keys)
            tables = [table_spec_of(config) for config in self.configs]
            tables = [
                spec
                if config.num_embeddings_post_pruning is None or self._remapping(t) is not None
                else replace(spec, rows=rows_left(config), num_embeddings=rows_left(config))
                for t, (spec, config) in enumerate(zip(tables, self.configs, strict=True))
            ]
            found = LookupSpec(tables, slots, len(keys), width)
            # While exporting it is a fake one, and a transform's dies with it: neither may stay.
            if type(found.tensor) is Tensor and not is_wrapped(found.tensor):
                if len(self._specs) >= _MOST_LOOKUPS:
                    self._specs.pop(next(iter(self._specs)))
                self._specs[known] = found
        return found

    def _remapping(self, t: int) -> Tensor | None:
        name = f"_remapping_{t}"
        return buffers_by_name(self).get(name)

    def rows_of(self, features: KeyedJaggedTensor) -> tuple[KeyedJaggedTensor, LookupSpec]:
        """Return the rows that are left of those that ids choose, one key a slot, and their look-up."""
        spec = self.spec_of(features.keys())
        features = features.permute([slot.key for slot in spec.slots])
        starts, counts = features.offset_per_key()[:-1], features.length_per_key()
        slots = [slot._replace(key=s) for s, slot in enumerate(spec.slots)]
        before = LookupSpec(spec.tables, slots, len(slots), spec.width)
        rows, out_of_range = choose_rows(
            before, Ids(features.values(), starts, counts), features.offsets()
        )
        self.count(out_of_range)
        parts = list(rows.split(counts))
        for s, slot in enumerate(slots):
            remapping = self._remapping(slot.table)
            if remapping is not None:
                kept = parts[s] >= 0
                parts[s] = torch.where(kept, remapping[parts[s].clamp(min=0)], parts[s])
        tables = [
            replace(table, rows=rows_left(config), num_embeddings=0, policy=PolicyCode.ROWS)
            for table, config in zip(spec.tables, self.configs, strict=True)
        ]
        after = LookupSpec(tables, slots, len(slots), spec.width)
        names = [f"{s}" for s in range(len(slots))]
        values = torch.cat(parts) if parts else features.values()
        chosen = KeyedJaggedTensor(
            names, values, features.weights_or_none(), features.lengths(), features.offsets()
        )
        return chosen, after


class QuantizedTables(RowChooser):
    """How input is looked up in quantised tables.

    Args:
        configs: the tables.
        tables: the rows of each.
        device: of the rows.
        output_dtype: of look-ups.
    """

    def __init__(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        tables: Sequence[QuantizedTable],
        device: torch.device,
        output_dtype: torch.dtype,
    ) -> None:
        super().__init__(configs, device)
        if output_dtype not in _OUTPUTS:
            raise ValueError(
                f"`output_dtype` should be one of {', '.join(map(str, _OUTPUTS))}. Received {output_dtype}."
            )
        self.output_dtype = output_dtype
        self.formats = [int(table.format) for table in tables]
        self._rows = _Rows(tables)

    def weights(self) -> list[Tensor]:
        """Return the rows of all tables."""
        return self._rows.now()


def new_tables(
    configs: Sequence[BaseEmbeddingConfig],
    device: torch.device | str,
    output_dtype: torch.dtype,
    given: Mapping[str, QuantizedWeights] | None,
    split: bool,
    row_alignment: int,
) -> tuple[nn.ModuleDict, QuantizedTables]:
    """Return the modules of the tables, and what looks them up.

    Raises:
        ValueError: for weights of a table that there is not, an alignment below 1, or one at which scales and
            biases cannot be told apart.
    """
    require_integer(row_alignment, "`row_alignment`", least=1)
    names = [config.name for config in configs]
    unknown = [name for name in given or {} if name not in names]
    if unknown:
        raise ValueError(
            f"`table_name_to_quantized_weights` should be of the tables {names}. Received '{unknown[0]}'."
        )
    place = checked_device(device)
    holder, tables = nn.ModuleDict(), []
    for config in configs:
        mine = None if given is None else given.get(config.name)
        if given is not None and mine is None:
            raise ValueError(
                f"`table_name_to_quantized_weights` should have table '{config.name}'. Received {list(given)}."
            )
        tables.append(QuantizedTable(config, place, row_alignment, split, mine))
        holder[config.name] = tables[-1]
    return holder, QuantizedTables(configs, tables, place, output_dtype)
