"""From the section of a model and a transform to the model: its tables, and what is on top."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchrec.datasets.features import SequenceFeature
from torchrec.datasets.initial_weights import Pretrained
from torchrec.datasets.transform import FeatureTransform, TableSpec
from torchrec.datasets.transform.pretrained import PretrainedRows
from torchrec.models.registry._first_order import (
    linear_name,
    weights_alone,
    weights_beside,
    without_vectors,
)
from torchrec.models.registry._initial_weights import Fill, initialise_layers, table_init_fn
from torchrec.models.registry._managed import ManagedTables
from torchrec.models.registry._registry import (
    ModelInputs,
    ModelSection,
    RegisteredModel,
    Terms,
    find,
    names,
)
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
    EmbeddingCollection,
)
from torchrec.types import IdPolicy, OptimizerType, optimizer_value

C = TypeVar("C", bound=BaseEmbeddingConfig)


TableRule: TypeAlias = Annotated[
    Literal["adam", "adamw", "adagrad", "rowwise_adagrad", "sgd"], BeforeValidator(optimizer_value)
]
"""The update rules that an experiment can name for its tables."""


class TableOptimizer(BaseModel):
    """How tables are trained: in the backward pass, by a fused optimizer.

    Attributes:
        optimizer: the rule.
        lr: learning rate.
        weight_decay: pull towards zero: of adamw decoupled from the gradient, else an L2 penalty.
        updates: ``"lazy"``: of the rows of the batch alone; ``"dense"``: of all rows, as of a table
            with a dense gradient.
        batch_l2: L2 penalty of the rows that a batch looks up, as a mean over its samples.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    optimizer: TableRule
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    updates: Literal["lazy", "dense"] = "lazy"
    batch_l2: NonNegativeFloat = 0.0

    @property
    def options(self) -> dict[str, float | bool]:
        """What a table's ``optimizer_options`` say of this."""
        lazy: dict[str, float | bool] = {} if self.updates == "lazy" else {"lazy": False}
        return {**lazy, "batch_l2": self.batch_l2} if self.batch_l2 else lazy


def build_model(
    section: ModelSection,
    transform: FeatureTransform,
    optimizer: TableOptimizer | None = None,
    device: torch.device | str | None = None,
    table_device: torch.device | str | None = None,
) -> nn.Module:
    """Return a model of the registry, on the features of a transform.

    Args:
        section: which model, and its options.
        transform: what makes the features, fitted.
        optimizer: of the tables, which are then updated in the backward pass. Default none: they
            have gradients as all parameters do.
        device: of all parameters. Default: PyTorch's default device.
        table_device: of the tables, ``"meta"`` for ones that get memory where they are spread over ranks.
            Default: ``device``.

    Returns:
        A module from dense features ``(B, len(transform.dense_names))`` and sparse features, a
        ``KeyedJaggedTensor``, to logits ``(B, 1)``; for several tasks ``(B, T)``, in the order of the
        transform's targets, more of those whose target is one of several classes.

    Raises:
        ValueError: there is no feature at all, the tables have dimensions or are read in ways that
            the model does not take, the model has not as many outputs as the targets take, or the
            transform is not fitted.

    Example:
        >>> import pyarrow as pa
        >>> from torchrec.datasets.features import SparseFeature
        >>> clicks = pa.table({"user": ["ann", "ben"], "click": [0, 1]})
        >>> transform = FeatureTransform({"user": SparseFeature(rows=100)}, "click").fit([clicks])
        >>> model = build_model(ModelSection(name="deepfm", dim=4), transform)
        >>> batch = transform(clicks)
        >>> model(batch.dense_features, batch.sparse_features).shape
        torch.Size([2, 1])
    """
    model = find(section.name)
    num_dense = len(transform.dense_names)
    _check_outputs(model, section.name, transform.outputs)
    if not transform.tables and not num_dense:
        raise ValueError("`features` should have one or more features. Received none.")
    pooled, sequences = _split(model, section.name, transform)
    terms = model.terms(section)
    if terms == "weights":
        pooled = weights_alone(pooled)
    check_dims(model, section, [*pooled, *sequences])
    tables = device if table_device is None else table_device
    # The order of these two decides which random numbers each gets.
    inputs = ModelInputs(
        num_dense,
        _pooled(pooled, section, terms, optimizer, transform, tables) if pooled else None,
        _sequences(sequences, section, optimizer, transform, tables) if sequences else None,
        [linear_name(spec.name) for spec in pooled] if terms == "both" else (),
        transform.outputs,
    )
    if device is None:
        return _built(model, section, inputs)
    with torch.device(device), _UnfilledOnMeta():
        return _built(model, section, inputs)


def _built(
    model: RegisteredModel[ModelSection], section: ModelSection, inputs: ModelInputs
) -> nn.Module:
    built = model.build(section, inputs)
    initialise_layers(built, section.layer_init or model.layer_init)
    return built


class _UnfilledOnMeta(TorchFunctionMode):
    """Leaves out filling what has no memory.

    There PyTorch has ``normal_`` in Python, whose first use imports sympy: 3 s and 77 MB, where a
    model is loaded in a few milliseconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def _check_outputs(model: RegisteredModel[ModelSection], name: str, outputs: Sequence[int]) -> None:
    """Refuse tasks that a model has no outputs for."""
    if model.tasks == "several" or outputs == [1]:
        return
    if model.tasks == "numbers" and set(outputs) == {1}:
        return
    able = [other for other in names() if find(other).tasks == "several"]
    what = f"{len(outputs)} of them, which take {', '.join(map(str, outputs))} numbers a sample"
    takes = "one task" if model.tasks == "one" else "tasks"
    raise ValueError(
        f"`tasks` should be what model '{name}' predicts, {takes} of one number a sample. Received "
        f"{what}: choose {' or '.join(able)}, as `model.name`."
    )


def check_dims(
    model: RegisteredModel[ModelSection], section: ModelSection, specs: Sequence[TableSpec]
) -> None:
    """Refuse tables of several dimensions where a model wants one.

    Raises:
        ValueError: it does, and they have.
    """
    dims = {spec.name: spec.dim or section.dim for spec in specs}
    if model.dims == "one" and len(set(dims.values())) > 1:
        raise ValueError(
            f"`dim` should be the same for all tables of model '{section.name}'. Received {dims}."
        )


def table_config(
    kind: type[C],
    spec: TableSpec,
    section: ModelSection,
    optimizer: TableOptimizer | None,
    transform: FeatureTransform,
) -> C:
    """Return the configuration of a table.

    Args:
        kind: of configuration: of a table whose embeddings are pooled, or not.
        spec: what the features ask for.
        section: of the model, whose dimension and initial weights tables without any of their own
            have.
        optimizer: of the table; None: it has a gradient.
        transform: knows which id has which row.

    Raises:
        ValueError: the table has rows that are not known.
    """
    if spec.rows is None:
        raise ValueError(
            f"`rows` of table '{spec.name}' should be known: fit the transform to the training "
            "data first. Received None."
        )
    dim = spec.dim or section.dim
    rule = spec.init or section.table_init or find(section.name).table_init(dim)
    if isinstance(rule, Pretrained):
        init_fn: Fill | None = PretrainedRows(rule, spec, transform.rows_of)
        optimizer = None if rule.frozen else optimizer
    else:
        init_fn = table_init_fn(rule, spec.rows, dim)
    return kind(
        num_embeddings=spec.rows,
        embedding_dim=dim,
        name=spec.name,
        feature_names=list(spec.features),
        id_policy=IdPolicy.HASH if spec.ids == "hash" else spec.out_of_range,
        optimizer=None if optimizer is None else OptimizerType(optimizer.optimizer),
        lr=None if optimizer is None else optimizer.lr,
        weight_decay=None if optimizer is None else optimizer.weight_decay,
        init_fn=init_fn,
        enable_grad=not (isinstance(rule, Pretrained) and rule.frozen),
        optimizer_options={} if optimizer is None else optimizer.options,
    )


def _split(
    model: RegisteredModel[ModelSection], name: str, transform: FeatureTransform
) -> tuple[list[TableSpec], list[TableSpec]]:
    """Return the tables that are read pooled, and those that are read as sequences."""
    if model.lookups == "pooled":
        return transform.tables, []
    if model.lookups == "sequences":
        return [], transform.tables
    pooled: list[TableSpec] = []
    sequences: list[TableSpec] = []
    for spec in transform.tables:
        kinds = {isinstance(transform.features[f], SequenceFeature) for f in spec.features}
        if len(kinds) > 1:
            raise ValueError(
                f"Table '{spec.name}' should be read by features of type sequence alone, or by none, "
                f"as model '{name}' reads them id by id. Received features {list(spec.features)}: "
                "give one of them a `table` of its own."
            )
        (sequences if kinds == {True} else pooled).append(spec)
    return pooled, sequences


def _pooled(
    specs: Sequence[TableSpec],
    section: ModelSection,
    terms: Terms,
    optimizer: TableOptimizer | None,
    transform: FeatureTransform,
    device: torch.device | str | None,
) -> EmbeddingBagCollectionInterface:
    def config(spec: TableSpec) -> EmbeddingBagConfig:
        table = table_config(EmbeddingBagConfig, spec, section, optimizer, transform)
        table.pooling = PoolingType[spec.pooling.upper()]
        return table

    tables = [config(spec) for spec in specs]
    if terms == "both":
        tables += weights_beside([config(without_vectors(spec)) for spec in specs])
    collection = EmbeddingBagCollection(tables, is_weighted=transform.is_weighted, device=device)
    if any(spec.ids == "managed" for spec in specs):
        return ManagedTables(collection, specs)
    return collection


def _sequences(
    specs: Sequence[TableSpec],
    section: ModelSection,
    optimizer: TableOptimizer | None,
    transform: FeatureTransform,
    device: torch.device | str | None,
) -> EmbeddingCollection:
    for spec in specs:
        if spec.ids == "managed":
            raise ValueError(
                f"`ids` of table '{spec.name}' should be plain, hash or vocabulary, as model "
                f"'{section.name}' reads it id by id. Received managed."
            )
    tables = [table_config(EmbeddingConfig, spec, section, optimizer, transform) for spec in specs]
    return EmbeddingCollection(tables, device=device)
