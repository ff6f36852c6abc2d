"""Models for prediction: their tables quantised, their dense part in half precision, and what packages them."""

from __future__ import annotations

import abc
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.checks import require_integer, require_type
from torchrec.distributed.fused_params import (
    FUSED_PARAM_BOUNDS_CHECK_MODE,
    FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP,
    FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS,
    FUSED_PARAM_REGISTER_TBE_BOOL,
)
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.distributed.planner.constants import BATCH_SIZE
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator, ShardEstimator
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.quant_embedding import QuantEmbeddingCollectionSharder
from torchrec.distributed.quant_embeddingbag import (
    QuantEmbeddingBagCollectionSharder,
    QuantFeatureProcessedEmbeddingBagCollectionSharder,
)
from torchrec.distributed.shard import check_unsharded, shard_by_plan
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.quant import embedding_modules as quant
from torchrec.quant.collections import QuantizedCollection
from torchrec.quant.convert import QUANTIZED_FORMS, put_in_place, quantize_embeddings
from torchrec.quant.preparation import (
    MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT,
    set_option,
)
from torchrec.quant.weights import new_config
from torchrec.types import BoundsCheckMode

__all__ = [
    "DEFAULT_FUSED_PARAMS",
    "DEFAULT_QUANT_MAPPING",
    "DEFAULT_SHARDERS",
    "FEATURE_PROCESSED_EBC_TYPE",
    "FUSED_PARAM_BOUNDS_CHECK_MODE",
    "FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP",
    "FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS",
    "FUSED_PARAM_REGISTER_TBE_BOOL",
    "MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT",
    "BatchingMetadata",
    "PredictFactory",
    "PredictModule",
    "QualNameMetadata",
    "assign_weights_to_tbe",
    "get_table_to_weights_from_tbe",
    "quantize_dense",
    "quantize_embeddings",
    "quantize_feature",
    "quantize_inference_model",
    "set_pruning_data",
    "shard_quant_model",
    "trim_torch_package_prefix_from_typename",
]

DEFAULT_FUSED_PARAMS: dict[str, Any] = {
    FUSED_PARAM_REGISTER_TBE_BOOL: True,
    FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS: True,
    FUSED_PARAM_BOUNDS_CHECK_MODE: BoundsCheckMode.NONE,
    FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP: False,
}

DEFAULT_SHARDERS: list[ModuleSharder[Any]] = [
    QuantEmbeddingBagCollectionSharder(fused_params=DEFAULT_FUSED_PARAMS),
    QuantEmbeddingCollectionSharder(fused_params=DEFAULT_FUSED_PARAMS),
    QuantFeatureProcessedEmbeddingBagCollectionSharder(fused_params=DEFAULT_FUSED_PARAMS),
]


def trim_torch_package_prefix_from_typename(typename: str) -> str:
    """Return the name of a type without what `torch.package` puts before it.

    Args:
        typename: as ``torch.typename`` gives it.

    Example:
        >>> trim_torch_package_prefix_from_typename("<torch_package_0>.a.b.C")
        'a.b.C'
    """
    return typename.partition(".")[2] if typename.startswith("<torch_package_") else typename


def _name_of(kind: type[nn.Module]) -> str:
    return trim_torch_package_prefix_from_typename(f"{kind.__module__}.{kind.__qualname__}")


DEFAULT_QUANT_MAPPING: dict[str, type[nn.Module]] = {
    _name_of(kind): QUANTIZED_FORMS[kind] for kind in (EmbeddingBagCollection, EmbeddingCollection)
}
FEATURE_PROCESSED_EBC_TYPE: str = FeatureProcessedEmbeddingBagCollection.__name__


@dataclass
class BatchingMetadata:
    """How an input is batched.

    Attributes:
        type: of the input: ``"dense"`` or ``"sparse"``, say.
        device: where it is put.
        pinned: names of the tensors that are pinned.
    """

    type: str
    device: str
    pinned: list[str]


@dataclass
class QualNameMetadata:
    """What is known of a module by its name.

    Attributes:
        need_preproc: whether its input is processed first.
    """

    need_preproc: bool


class PredictFactory(abc.ABC):
    """Makes a module that predicts, and says how its input is batched."""

    @abc.abstractmethod
    def create_predict_module(self) -> nn.Module:
        """Return the module, with its weights."""

    @abc.abstractmethod
    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """Return how each input is batched, by name."""

    def batching_metadata_json(self) -> str:
        """Return `batching_metadata` as JSON."""
        return json.dumps({name: asdict(data) for name, data in self.batching_metadata().items()})

    @abc.abstractmethod
    def result_metadata(self) -> str:
        """Return a word that says how results are split among the requests of a batch."""

    @abc.abstractmethod
    def run_weights_independent_tranformations(self, predict_module: nn.Module) -> nn.Module:
        """Return a module transformed before it has weights: quantised on the meta device, say.

        Args:
            predict_module: the module.
        """

    @abc.abstractmethod
    def run_weights_dependent_transformations(self, predict_module: nn.Module) -> nn.Module:
        """Return a module transformed by its weights.

        Args:
            predict_module: the module.
        """

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        """Return what is known of modules, by their names. Default: nothing."""
        return {}

    def qualname_metadata_json(self) -> str:
        """Return `qualname_metadata` as JSON."""
        return json.dumps({name: asdict(data) for name, data in self.qualname_metadata().items()})

    def model_inputs_data(self) -> dict[str, Any]:
        """Return inputs to try the module with, by name. Default: none."""
        return {}


class PredictModule(nn.Module, abc.ABC):
    """A module that predicts, without gradients. Derived classes have `predict_forward`.

    Args:
        module: what predicts.
        device: where it is. Default: wherever it is put.

    Example:
        >>> class Sums(PredictModule):
        ...     def predict_forward(self, batch):
        ...         return self.predict_module(batch["x"])
        >>> module = Sums(nn.Linear(2, 1))
        >>> module({"x": torch.ones(3, 2)}).requires_grad, list(module.state_dict())
        (False, ['weight', 'bias'])
    """

    def __init__(self, module: nn.Module, device: str | None = None) -> None:
        super().__init__()
        require_type(module, "`module`", nn.Module)
        self._module = module if device is None else module.to(device)

    @property
    def predict_module(self) -> nn.Module:
        """What predicts."""
        return self._module

    @abc.abstractmethod
    def predict_forward(self, batch: dict[str, Tensor]) -> Any:
        """Predict.

        Args:
            batch: tensors by name.
        """
        raise NotImplementedError(f"{type(self).__name__} should define `predict_forward`.")

    def forward(self, batch: dict[str, Tensor]) -> Any:
        """Predict, in inference mode.

        Args:
            batch: tensors by name.
        """
        with torch.inference_mode():
            return self.predict_forward(batch)

    def state_dict(  # type: ignore[override]
        self,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """Return the state of what predicts, under the names that it has there.

        Args:
            destination: written to. Default: a new one.
            prefix: of the names.
            keep_vars: return parameters, not their values.
        """
        found: dict[str, Any] = {} if destination is None else destination
        self._module.state_dict(destination=found, prefix=prefix, keep_vars=keep_vars)
        return found


def quantize_inference_model(
    model: nn.Module,
    quantization_mapping: Mapping[str, type[nn.Module]] | None = None,
    per_table_weight_dtype: dict[str, torch.dtype] | None = None,
    fp_weight_dtype: torch.dtype = torch.int8,
    quantization_dtype: torch.dtype = torch.int8,
    output_dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Return a copy of a model with its collections of tables quantised; the model stays as it is.

    Args:
        model: the model.
        quantization_mapping: name of a type, with its module -> the class whose ``from_float`` quantises it. Default:
            all collections of this package.
        per_table_weight_dtype: tables of another dtype, by name.
        fp_weight_dtype: of the tables of collections with feature processors.
        quantization_dtype: of all other tables.
        output_dtype: of look-ups.

    Raises:
        ValueError: as `quantize_embeddings`.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(100, 64, "t", feature_names=["f"])
        >>> model = nn.Sequential(EmbeddingBagCollection(tables=[table]))
        >>> type(quantize_inference_model(model)[0]).__module__, type(model[0]).__module__
        ('torchrec.quant.collections', 'torchrec.modules.embedding_modules')
    """
    require_type(model, "`model`", nn.Module)
    mapping = dict(QUANTIZED_FORMS)
    if quantization_mapping is not None:
        kinds = {_name_of(type(child)): type(child) for child in model.modules()}
        mapping = {
            kinds[name]: made for name, made in quantization_mapping.items() if name in kinds
        }
    plain, processed = (
        new_config(dtype, output_dtype, per_table_weight_dtype=per_table_weight_dtype)
        for dtype in (quantization_dtype, fp_weight_dtype)
    )
    configs = dict.fromkeys(mapping, plain)
    if FeatureProcessedEmbeddingBagCollection in configs:
        configs[FeatureProcessedEmbeddingBagCollection] = processed
    return put_in_place(model, mapping, configs, inplace=False)


def shard_quant_model(
    model: nn.Module,
    world_size: int = 1,
    compute_device: str = "cuda",
    sharding_device: str = "meta",
    sharders: list[ModuleSharder[Any]] | None = None,
    device_memory_size: int | None = None,
    constraints: dict[str, ParameterConstraints] | None = None,
    ddr_cap: int | None = None,
    sharding_plan: ShardingPlan | None = None,
) -> tuple[nn.Module, ShardingPlan]:
    """Spread the quantised tables of a model over devices of this process; return the model and the plan.

    Each part is on the device that the plan names for it (``"rank:1/cuda:1"``). What it answers is that of the whole
    model to the last bit, under every plan. Its tables are gone from the model afterwards: the rest of it stays where
    it is, and `torchrec.distributed.quant_state.sharded_tbes_weights_spec` says which part each tensor of the state is.

    Args:
        model: with quantised collections; changed, or itself replaced if it is one.
        world_size: how many devices. On the CPU they are parts beside each other in its memory.
        compute_device: what they are, ``"cpu"`` or ``"cuda"``.
        sharding_device: where ids come in and vectors go out. ``"meta"``: where the first part of each collection is.
        sharders: who shards which type of module. Default: `DEFAULT_SHARDERS`.
        device_memory_size: bytes of each accelerator that plans may use. Default: as many as it has.
        constraints: wishes, by name of table. Default: whole tables.
        ddr_cap: bytes of the host's memory that plans may use. Default: as many as it has.
        sharding_plan: where tables go. Default: that of an `EmbeddingShardingPlanner`.

    Raises:
        ValueError: for a model without quantised collections, and a plan that does not fit.
        PlannerError: there is no room.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> tables = [EmbeddingBagConfig(100, 8, name, feature_names=[name]) for name in "ab"]
        >>> model = quantize_inference_model(nn.Sequential(EmbeddingBagCollection(tables=tables)))
        >>> sharded, plan = shard_quant_model(model, world_size=2, compute_device="cpu")
        >>> {name: sharding.ranks for name, sharding in plan.plan["0"].items()}
        {'a': [0], 'b': [1]}
    """
    require_type(model, "`model`", nn.Module)
    check_unsharded(model)
    device = torch.device(sharding_device)
    sharders = DEFAULT_SHARDERS if sharders is None else sharders
    if sharding_plan is None:
        sharding_plan = _plan_of_tables(
            model,
            sharders,
            Topology(
                world_size=world_size,
                compute_device=compute_device,
                hbm_cap=device_memory_size,
                ddr_cap=ddr_cap,
                local_world_size=world_size,
            ),
            constraints,
        )
    env = ShardingEnv.from_local(world_size, 0)
    return shard_by_plan(model, sharding_plan, sharders, env, device), sharding_plan


def _plan_of_tables(
    model: nn.Module,
    sharders: list[ModuleSharder[Any]],
    topology: Topology,
    constraints: dict[str, ParameterConstraints] | None,
) -> ShardingPlan:
    """Return a plan for a model that predicts; for whole tables where nothing else is wished for."""
    tables = [
        table
        for child in model.modules()
        for sharder in sharders
        if type(child) is sharder.module_type
        for table in sharder.shardable_parameters(child)
    ]
    if not tables:
        kinds = ", ".join(sharder.module_type.__name__ for sharder in sharders)
        raise ValueError(
            f"`model` should have a quantised collection that the sharders take: {kinds}. Received none; "
            "`quantize_inference_model` makes them."
        )
    if constraints is None:
        whole = ParameterConstraints(sharding_types=[ShardingType.TABLE_WISE.value])
        constraints = dict.fromkeys(tables, whole)
    estimators: list[ShardEstimator] = [
        EmbeddingPerfEstimator(topology, constraints, is_inference=True),
        EmbeddingStorageEstimator(topology, constraints, is_inference=True),
    ]
    planner = EmbeddingShardingPlanner(
        topology,
        enumerator=EmbeddingEnumerator(topology, BATCH_SIZE, constraints, estimators),
        constraints=constraints,
    )
    return planner.plan(model, sharders)


def set_pruning_data(
    model: nn.Module,
    tables_to_rows_post_pruning: dict[str, int],
    module_types: Sequence[type[nn.Module]] | None = None,
) -> nn.Module:
    """Have the quantised forms of tables keep so many of their first rows; return the model.

    Args:
        model: the model, on which this is noted.
        tables_to_rows_post_pruning: how many, by table.
        module_types: of the collections. Default: pooled ones, with and without feature processors.

    Raises:
        ValueError: for numbers below 1.
    """
    for table, rows in tables_to_rows_post_pruning.items():
        require_integer(rows, f"`tables_to_rows_post_pruning` of table '{table}'", least=1)
    kinds = module_types or (EmbeddingBagCollection, FeatureProcessedEmbeddingBagCollection)
    quant.for_each_module_of_type_do(
        model,
        kinds,
        lambda m: set_option(
            m,
            MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT,
            tables_to_rows_post_pruning,
        ),
    )
    return model


def quantize_feature(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the inputs of a module with tensors of floats in float16: a hook before its forward pass.

    Args:
        module: the module.
        inputs: of it.

    Example:
        >>> [x.dtype for x in quantize_feature(nn.Identity(), (torch.ones(1), torch.ones(1).int()))]
        [torch.float16, torch.int32]
    """
    return tuple(
        x.half() if isinstance(x, Tensor) and x.dtype in (torch.float32, torch.float64) else x
        for x in inputs
    )


def quantize_dense(
    predict_module: PredictModule,
    dtype: torch.dtype,
    additional_embedding_module_type: Sequence[type[nn.Module]] = [],
) -> nn.Module:
    """Return a copy of what predicts with its dense part in another dtype.

    Args:
        predict_module: holds it.
        dtype: a floating dtype. With float16 the inputs of the module are cast as well.
        additional_embedding_module_type: further types of modules that stay as they are, besides collections of
            tables, which the copy shares.
    """
    require_type(predict_module, "`predict_module`", PredictModule)
    if not dtype.is_floating_point:
        raise ValueError(f"`dtype` should be a floating dtype. Received {dtype}.")
    module = predict_module.predict_module
    kinds = (*QUANTIZED_FORMS, QuantizedCollection, *additional_embedding_module_type)
    kept = {id(child): child for child in module.modules() if isinstance(child, kinds)}
    copied = copy.deepcopy(module, {**kept})
    untouched = {id(part) for child in kept.values() for part in child.modules()}
    for child in copied.modules():
        if id(child) in untouched:
            continue
        for parameter in child.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in list(child.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                persistent = name in child.state_dict()
                child.register_buffer(name, buffer.to(dtype), persistent=persistent)
    if dtype is torch.float16:
        copied.register_forward_pre_hook(quantize_feature)
    return copied


Weights = list[tuple[Tensor, Tensor | None]]


def get_table_to_weights_from_tbe(model: nn.Module) -> dict[str, Weights]:
    """Return the codes, and the scales with the biases, of all quantised tables of a model, by name.

    Args:
        model: the model.

    Returns:
        Views of the tables: uint8 ``(E, bytes)``, and uint8 ``(E, 4)`` or None for floats.
    """
    return {
        name: [table.parts()]
        for child in model.modules()
        if isinstance(child, QuantizedCollection)
        for name, table in child.quantized_tables().items()
    }


def assign_weights_to_tbe(model: nn.Module, table_to_weight: Mapping[str, Weights]) -> None:
    """Write the codes, and the scales with the biases, of all quantised tables of a model.

    Args:
        model: the model.
        table_to_weight: as `get_table_to_weights_from_tbe` returns them.

    Raises:
        ValueError: for a table that is not given, or weights of another size.
    """
    for name, [(codes, head)] in get_table_to_weights_from_tbe(model).items():
        if name not in table_to_weight:
            raise ValueError(
                f"`table_to_weight` should have table '{name}'. Received {list(table_to_weight)}."
            )
        ((new_codes, new_head),) = table_to_weight[name]
        for mine, new in ((codes, new_codes), (head, new_head)):
            shapes = [None if x is None else list(x.shape) for x in (mine, new)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"`table_to_weight` of table '{name}' should have the shape {shapes[0]}. "
                    f"Received {shapes[1]}."
                )
            if mine is not None and new is not None:
                mine.copy_(new)
