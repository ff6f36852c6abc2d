"""States of quantised tables in parts: which part of which table each tensor is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from torchrec.checks import require_type
from torchrec.distributed.embedding_types import (
    FeatureShardingMixIn,
    ListOfKJTList,
    ShardedEmbeddingModule,
)
from torchrec.distributed.fused_params import FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS
from torchrec.distributed.quant_parts import QuantizedParts, StepOfParts
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.fx.proxies import LeafModule, holds_proxy, is_proxy
from torchrec.quant.collections import QuantizedCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["ShardedQuantEmbeddingModuleState", "WeightSpec", "sharded_tbes_weights_spec"]

Out = TypeVar("Out")


@dataclass
class WeightSpec:
    """Which part of a table a tensor of a state is.

    Attributes:
        fqn: name that the whole has in the state of the model before it was sharded, where that has scales and biases
            apart if this one has.
        shard_offsets: row and column of the whole where the part begins; columns count numbers, not bytes.
        shard_sizes: its rows and columns.
        sharding_type: of the table.
        virtual_table_dim_offsets: always None: no table is without bounds here.
    """

    fqn: str
    shard_offsets: list[int]
    shard_sizes: list[int]
    sharding_type: str | None
    virtual_table_dim_offsets: list[int] | None = None


class ShardedQuantEmbeddingModuleState(
    ShardedEmbeddingModule[ListOfKJTList, list[list[torch.Tensor]], Out, StepOfParts], LeafModule
):
    """A quantised collection whose tables are in parts, on several devices of one process.

    The parts are the modules ``tbes.<rank>.<number>.<table>``, with a state each.

    Args:
        module: the collection.
        configs: its tables.
        prefix: what their names in its state begin with.
        table_name_to_parameter_sharding: where each table goes.
        env: the devices.
        fused_params: see `BaseQuantEmbeddingSharder`.
        device: where ids come in and vectors go out. Default, and for ``meta``: where the first part is.
        module_fqn: its path in the model, for errors.
    """

    def __init__(
        self,
        module: QuantizedCollection,
        configs: list[Any],
        prefix: str,
        table_name_to_parameter_sharding: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None,
        device: torch.device | None,
        module_fqn: str | None,
    ) -> None:
        super().__init__()
        if not isinstance(env, ShardingEnv) or env.process_group is not None:
            raise ValueError(
                "`env` should be one of `ShardingEnv.from_local`, as `shard_quant_model` makes: quantised tables "
                "are spread over devices of one process, which a plan names; give further processes a model each. "
                f"Received {type(env).__name__}"
                f"{' with a process group' if isinstance(env, ShardingEnv) else ''}."
            )
        self._parts = QuantizedParts(
            configs,
            module.quantized_tables(),
            table_name_to_parameter_sharding,
            env.world_size,
            None if device is None or device.type == "meta" else device,
            module.output_dtype(),
            bool((fused_params or {}).get(FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS)),
            module_fqn or "",
        )
        self._prefix = prefix
        self.tbes = self._parts.tbes
        self.chooser = self._parts.chooser

    def create_context(self) -> StepOfParts:
        """Return what the steps of one look-up hand on to each other."""
        return StepOfParts()

    def input_dist(self, ctx: StepOfParts, features: KeyedJaggedTensor) -> ListOfKJTList:  # type: ignore[override]
        """Return for each rank the rows that it looks up, on its device.

        Args:
            ctx: of the look-up, written to.
            features: ids of all features of the tables.

        Raises:
            IdOutOfRangeError: for an id that no row stands for, if its table's policy says so.
        """
        if not isinstance(features, KeyedJaggedTensor):
            require_type(features, "`features`", KeyedJaggedTensor)
        if features.variable_stride_per_key() or features.inverse_indices_or_none() is not None:
            features = features.expand_inverse()
        return self._parts.distribute(ctx, features)

    @abstractmethod
    def output_dist(self, ctx: StepOfParts, output: list[list[torch.Tensor]]) -> Out:  # type: ignore[override]
        """Put together what was looked up."""

    def compute_and_output_dist(self, ctx: StepOfParts, input: ListOfKJTList) -> Out:  # type: ignore[override]
        """Look up and put together.

        Args:
            ctx: of the look-up.
            input: of all ranks.
        """
        return self.output_dist(ctx, self.compute(ctx, input))

    def forward(self, *input: Any, **kwargs: Any) -> Out:  # type: ignore[override]
        """Look up, as the collection did.

        Args:
            *input: ids by feature, one `KeyedJaggedTensor`.
            **kwargs: likewise, under the name ``features``.
        """
        if is_proxy(input):
            traced: Out = self.recorded_with(input, kwargs)
            return traced
        if holds_proxy(*input):
            within: Out = self.recorded(*input)
            return within
        ctx = self.create_context()
        return self.compute_and_output_dist(ctx, self.input_dist(ctx, *input, **kwargs))

    @property
    def shardings(self) -> Mapping[str, FeatureShardingMixIn]:
        """Sharding type -> which ranks look up the features of such tables."""
        return self._parts.shardings()

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        """Return how many ids outside ``[0, num_embeddings)`` each table has been given.

        Args:
            reset: start again from 0.
        """
        return self.chooser.out_of_range_counts(reset)

    def weight_specs(self, path: str = "") -> dict[str, WeightSpec]:
        """Return which part of which table each tensor of the state is, by its name.

        Args:
            path: of this module in its model.
        """
        path = f"{path}." if path else ""
        found = {}
        for part in self._parts.parts:
            table, shard = self._parts.configs[part.table].name, part.shard
            places = {"weight": (list(shard.offsets), list(shard.sizes))}
            if part.rows.is_split:
                for factor in ("weight_qscale", "weight_qbias"):
                    places[factor] = [shard.rows.start, 0], [len(shard.rows), 1]
            for name, (offsets, sizes) in places.items():
                found[f"{path}tbes.{part.path}.{name}"] = WeightSpec(
                    f"{path}{self._prefix}.{table}.{name}", offsets, sizes, part.sharding_type
                )
        return found


def sharded_tbes_weights_spec(
    sharded_model: nn.Module,
    virtual_table_name_to_bucket_lengths: Mapping[str, list[int]] | None = None,
) -> dict[str, WeightSpec]:
    """Return which part of which table each tensor of the state of a model is, by its name.

    What is there of the state of the whole model can be written to its parts by this, see the example.

    Args:
        sharded_model: from `torchrec.inference.modules.shard_quant_model`.
        virtual_table_name_to_bucket_lengths: must be None: no table is without bounds here.

    Raises:
        ValueError: for tables without bounds.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> from torchrec.inference.modules import quantize_inference_model, shard_quant_model
        >>> table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"])
        >>> model = quantize_inference_model(nn.Sequential(EmbeddingBagCollection([table])))
        >>> whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        >>> sharded, _ = shard_quant_model(model, world_size=2, compute_device="cpu")
        >>> specs = sharded_tbes_weights_spec(sharded)
        >>> {name: (spec.fqn, spec.shard_sizes) for name, spec in specs.items() if name.endswith("weight")}
        {'0.tbes.0.0.t.weight': ('0.embedding_bags.t.weight', [10, 4])}
    """
    if virtual_table_name_to_bucket_lengths:
        raise ValueError(
            "`virtual_table_name_to_bucket_lengths` should be None: no quantised table is without bounds. "
            f"Received {list(virtual_table_name_to_bucket_lengths)}."
        )
    found = {}
    for path, child in sharded_model.named_modules():
        if isinstance(child, ShardedQuantEmbeddingModuleState):
            found.update(child.weight_specs(path))
    return found
