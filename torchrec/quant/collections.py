"""Collections whose tables are quantised: nearly the same outputs, of a quarter of the memory or less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torchrec.checks import require_type
from torchrec.errors import IdOutOfRangeError
from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    EmbeddingConfig,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection as FloatBags
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
    jagged_outputs,
    name_sample,
)
from torchrec.modules.embedding_modules import EmbeddingCollection as FloatSequences
from torchrec.modules.tables import checked_tables, embedding_names_by_table
from torchrec.ops.embedding import Bags, Ids
from torchrec.ops.quant import lookup_quantized_bags, lookup_quantized_sequences
from torchrec.quant._private import modules_by_name
from torchrec.quant.tables import (
    DATA_TYPES,
    QuantizedTable,
    QuantizedTables,
    QuantizedWeights,
    new_tables,
)
from torchrec.quant.weights import (
    DEFAULT_ROW_ALIGNMENT,
    QuantSettings,
    quantized_config,
    quantized_weights,
    settings_of,
)
from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    keyed_tensor,
)
from torchrec.types import ModuleNoCopyMixin


class QuantizedCollection(nn.Module):
    """What quantised collections have in common: rows of bytes, which no training changes."""

    _tables: QuantizedTables
    _device: torch.device

    def _set_tables(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        prefix: str,
        device: torch.device,
        output_dtype: torch.dtype,
        given: Mapping[str, QuantizedWeights] | None,
        register_tbes: bool,
        split: bool,
        row_alignment: int,
    ) -> None:
        holder, tables = new_tables(configs, device, output_dtype, given, split, row_alignment)
        self._prefix = prefix
        setattr(self, prefix, holder)
        if register_tbes:
            self.tbes = nn.ModuleList([tables])
        self._tables = tables
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        """The device of the tables."""
        weights = self._tables.weights()
        return weights[0].device if weights else self._device

    def output_dtype(self) -> torch.dtype:
        """Return the dtype of what look-ups give."""
        return self._tables.output_dtype

    def quantized_tables(self) -> dict[str, QuantizedTable]:
        """Return the rows of each table, by name."""
        return {
            name: table
            for name, table in self.get_submodule(self._prefix).named_children()
            if isinstance(table, QuantizedTable)
        }

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        """Return how many ids outside ``[0, num_embeddings)`` each table has been given.

        Args:
            reset: start again from 0.
        """
        return self._tables.out_of_range_counts(reset)


class EmbeddingBagCollection(
    QuantizedCollection, EmbeddingBagCollectionInterface, ModuleNoCopyMixin, LeafModule
):
    """Several quantised embedding tables; the embeddings of each bag of ids are pooled into one.

    All tables are looked up in one call, which reads their rows as they are. A table of E rows takes
    ``E * ceil((4 + D * bits / 8) / 16) * 16`` bytes, one of floats the same without the 4. Sums are in float32, and to
    the last bit those of an `torchrec.EmbeddingBagCollection` that has the dequantised tables.

    The rows are buffers, ``embedding_bags.<table>.weight``, uint8 ``(E, bytes)``: scale and bias, float16, then codes;
    a number is ``code * scale + bias``. They are not trained, and sample weights get no gradient.

    Args:
        tables: the tables; their ``data_type`` is INT8, INT4, INT2, FP16, BF16 or FP32.
        is_weighted: whether each id comes with a weight that its embedding is multiplied with.
        device: of the tables.
        output_dtype: of the result: float32, float16 or bfloat16.
        table_name_to_quantized_weights: for each table codes and, apart from floats, scales and biases, both uint8, see
            `quantize_state_dict`. Default: zeros.
        register_tbes: show what looks the tables up as the module ``tbes.0``.
        quant_state_dict_split_scale_bias: whether the state has codes as ``weight``, scales and biases as
            ``weight_qscale`` and ``weight_qbias``.
        row_alignment: rows are padded to a multiple of so many bytes.
        cache_features_order: without effect: the order of features is always remembered.

    Raises:
        ValueError: for tables that cannot be together, or weights that do not fit them.

    Example:
        >>> from torchrec.ops.quant import RowFormat, quantize_rows
        >>> from torchrec.types import DataType
        >>> table = EmbeddingBagConfig(3, 2, "t", DataType.INT8, feature_names=["f"])
        >>> ebc = EmbeddingBagCollection([table], is_weighted=False, device=torch.device("cpu"))
        >>> rows = quantize_rows(torch.tensor([[0.0, 255.0], [1.0, 256.0], [2.0, 2.0]]), RowFormat.INT8)
        >>> _ = ebc.load_state_dict({"embedding_bags.t.weight": rows})
        >>> ebc(KeyedJaggedTensor.from_lists({"f": [[0, 1], [], [2]]})).values().tolist()
        [[1.0, 511.0], [0.0, 0.0], [2.0, 2.0]]
    """

    embedding_bags: nn.ModuleDict

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        is_weighted: bool,
        device: torch.device,
        output_dtype: torch.dtype = torch.float32,
        table_name_to_quantized_weights: Mapping[str, QuantizedWeights] | None = None,
        register_tbes: bool = False,
        quant_state_dict_split_scale_bias: bool = False,
        row_alignment: int = DEFAULT_ROW_ALIGNMENT,
        cache_features_order: bool = False,
    ) -> None:
        super().__init__()
        self._is_weighted = is_weighted
        self._embedding_bag_configs = checked_tables(tables, EmbeddingBagConfig, DATA_TYPES)
        self._set_tables(
            self._embedding_bag_configs,
            "embedding_bags",
            device,
            output_dtype,
            table_name_to_quantized_weights,
            register_tbes,
            quant_state_dict_split_scale_bias,
            row_alignment,
        )

    @classmethod
    def from_float(
        cls, module: FloatBags, use_precomputed_fake_quant: bool = False
    ) -> EmbeddingBagCollection:
        """Return the quantised form of a collection.

        Args:
            module: with a ``qconfig``, which `torchrec.inference.modules.quantize_embeddings` gives it.
            use_precomputed_fake_quant: without effect: nothing is computed before.

        Raises:
            ValueError: for a table whose weights are not finite, naming table and row; or without ``qconfig``.
        """
        require_type(module, "`module`", FloatBags)
        return cls(**bags_of(module, settings_of(module)))

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool.

        Args:
            features: ids of all features of the tables, and possibly others, in any order of keys.

        Returns:
            One embedding a feature (twice looked up: one a table, ``feature@table``) and sample. An empty bag gives
            zeros.

        Raises:
            IdOutOfRangeError: for an id that no row stands for, if its table's policy says so.
            ValueError: for a feature that is missing, or weights that are.
        """
        if not isinstance(features, KeyedJaggedTensor):
            if not is_proxy(features):
                require_type(features, "`features`", KeyedJaggedTensor)
            traced: KeyedTensor = self.recorded(features)
            return traced
        given = features.bags
        tables: QuantizedTables = modules_by_name(self)["_tables"]
        if given.strides_per_rank is not None or given.inverse_indices is not None:
            features = features.expand_inverse()
            given = features.bags
        weighted = self._is_weighted
        if weighted and given.weights is None:
            raise ValueError("`features` should have weights, as `is_weighted` says.")
        weights = tables.weights()
        if not weights:
            values = given.values.new_empty((given.stride(), 0), dtype=tables.output_dtype)
            return KeyedTensor([], [], values)
        if tables.is_pruned:
            looked_up, spec = tables.rows_of(features)
            given = looked_up.bags
        else:
            spec = tables.spec_of(given.keys)
        sample_weights = given.weights.detach() if weighted and given.weights is not None else None
        bags = Bags(given.values, given.offsets(), sample_weights)
        output, out_of_range = lookup_quantized_bags(
            weights, tables.formats, spec, bags, tables.output_dtype
        )
        tables.count(out_of_range)
        return keyed_tensor(tables.embedding_names, tables.dims, output)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return self._embedding_bag_configs

    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""
        return self._is_weighted


class EmbeddingCollection(
    QuantizedCollection, EmbeddingCollectionInterface, ModuleNoCopyMixin, LeafModule
):
    """Several quantised embedding tables; each id gives one embedding. See `EmbeddingBagCollection`.

    The rows are buffers, ``embeddings.<table>.weight``.

    Args:
        tables: the tables.
        device: of the tables.
        need_indices: pass the ids on as the weights of the result.
        output_dtype: of the result: float32, float16 or bfloat16.
        table_name_to_quantized_weights: as of `EmbeddingBagCollection`.
        register_tbes: likewise.
        quant_state_dict_split_scale_bias: likewise.
        row_alignment: likewise.
        cache_features_order: likewise.

    Raises:
        ValueError: for tables that cannot be together, or weights that do not fit them.

    Example:
        >>> from torchrec.ops.quant import RowFormat, quantize_rows
        >>> from torchrec.types import DataType
        >>> table = EmbeddingConfig(2, 2, "t", DataType.FP16, feature_names=["f"])
        >>> ec = EmbeddingCollection([table], device=torch.device("cpu"))
        >>> rows = quantize_rows(torch.tensor([[0.5, 1.0], [2.0, 3.0]]), RowFormat.FP16)
        >>> _ = ec.load_state_dict({"embeddings.t.weight": rows})
        >>> ec(KeyedJaggedTensor.from_lists({"f": [[1, 0], [1]]}))["f"].values().tolist()
        [[2.0, 3.0], [0.5, 1.0], [2.0, 3.0]]
    """

    embeddings: nn.ModuleDict

    def __init__(
        self,
        tables: list[EmbeddingConfig],
        device: torch.device,
        need_indices: bool = False,
        output_dtype: torch.dtype = torch.float32,
        table_name_to_quantized_weights: Mapping[str, QuantizedWeights] | None = None,
        register_tbes: bool = False,
        quant_state_dict_split_scale_bias: bool = False,
        row_alignment: int = DEFAULT_ROW_ALIGNMENT,
        cache_features_order: bool = False,
    ) -> None:
        super().__init__()
        self._need_indices = need_indices
        self._embedding_configs = checked_tables(tables, EmbeddingConfig, DATA_TYPES)
        self._set_tables(
            self._embedding_configs,
            "embeddings",
            device,
            output_dtype,
            table_name_to_quantized_weights,
            register_tbes,
            quant_state_dict_split_scale_bias,
            row_alignment,
        )

    @classmethod
    def from_float(
        cls, module: FloatSequences, use_precomputed_fake_quant: bool = False
    ) -> EmbeddingCollection:
        """Return the quantised form of a collection; see `EmbeddingBagCollection.from_float`.

        Args:
            module: with a ``qconfig``.
            use_precomputed_fake_quant: without effect.
        """
        require_type(module, "`module`", FloatSequences)
        return cls(**sequences_of(module, settings_of(module)))

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up.

        Args:
            features: ids of all features of the tables, and possibly others, in any order of keys.

        Returns:
            For each feature (twice looked up: for each ``feature@table``) the embeddings of its ids, ``(N, D)``, with
            the lengths of the feature; the ids as weights if ``need_indices``.

        Raises:
            IdOutOfRangeError: for an id that no row stands for, if its table's policy says so.
            ValueError: for a feature that is missing.
        """
        if not isinstance(features, KeyedJaggedTensor):
            if not is_proxy(features):
                require_type(features, "`features`", KeyedJaggedTensor)
            traced: dict[str, JaggedTensor] = self.recorded(features)
            return traced
        if features.inverse_indices_or_none() is not None:
            features = features.expand_inverse()
        tables: QuantizedTables = modules_by_name(self)["_tables"]
        weights, spec = tables.weights(), tables.spec_of(features.keys())
        if not weights:
            return {}
        if tables.is_pruned:
            looked_up, chosen = tables.rows_of(features)
        else:
            looked_up, chosen = features, spec
        offsets, sizes = looked_up.offset_per_key(), looked_up.length_per_key()
        starts = [offsets[slot.key] for slot in chosen.slots]
        counts = [sizes[slot.key] for slot in chosen.slots]
        ids = Ids(looked_up.values(), starts, counts, features.stride())
        try:
            outputs, out_of_range = lookup_quantized_sequences(
                weights, tables.formats, chosen, ids, tables.output_dtype
            )
        except IdOutOfRangeError as error:
            raise name_sample(error, self._embedding_configs, spec, features) from None
        tables.count(out_of_range)
        return jagged_outputs(features, tables.embedding_names, spec, outputs, self._need_indices)

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """Return the tables."""
        return self._embedding_configs

    def need_indices(self) -> bool:
        """Return whether the ids are passed on with their embeddings."""
        return self._need_indices

    def embedding_dim(self) -> int:
        """Return D, which all tables have.

        Raises:
            ValueError: if they do not.
        """
        dims = sorted({table.embedding_dim for table in self._embedding_configs})
        if len(dims) != 1:
            raise ValueError(f"All tables should have one `embedding_dim` here. Received {dims}.")
        return dims[0]

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return, for each table, the names of the outputs of its features."""
        return embedding_names_by_table(self._embedding_configs)


# What the constructors take, by name.


def bags_of(module: FloatBags, settings: QuantSettings) -> dict[str, Any]:
    """Return the arguments of the quantised form of a collection."""
    configs = [quantized_config(config, settings) for config in module.embedding_bag_configs()]
    return {"is_weighted": module.is_weighted(), **_tables_of(module, configs, settings)}


def sequences_of(module: FloatSequences, settings: QuantSettings) -> dict[str, Any]:
    """Return the arguments of the quantised form of a collection."""
    configs = [quantized_config(config, settings) for config in module.embedding_configs()]
    return {"need_indices": module.need_indices(), **_tables_of(module, configs, settings)}


def _tables_of(
    module: FloatBags | FloatSequences, configs: list[Any], settings: QuantSettings
) -> dict[str, Any]:
    return {
        "tables": configs,
        "device": module.device,
        "output_dtype": settings.output_dtype,
        "table_name_to_quantized_weights": quantized_weights(module, configs, settings),
        "register_tbes": settings.register_tbes,
        "quant_state_dict_split_scale_bias": settings.split,
        "row_alignment": settings.row_alignment,
        "cache_features_order": settings.cache_features_order,
    }
