"""Collections of embedding tables that are looked up together."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.checks import require_list, require_type
from torchrec.errors import IdOutOfRangeError
from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
    pooling_type_to_str,
)
from torchrec.modules.table_collection import TableCollection
from torchrec.modules.tables import (
    checked_tables,
    embedding_names_by_table,
    has_sparse_gradient,
)
from torchrec.ops.embedding import Bags, Ids, LookupSpec, lookup_bags, lookup_sequences, new_table
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    keyed_tensor,
)

__all__ = [
    "EmbeddingBagCollection",
    "EmbeddingBagCollectionInterface",
    "EmbeddingCollection",
    "EmbeddingCollectionInterface",
    "get_embedding_names_by_table",
    "process_pooled_embeddings",
    "reorder_inverse_indices",
]


def get_embedding_names_by_table(
    tables: list[EmbeddingBagConfig] | list[EmbeddingConfig],
) -> list[list[str]]:
    """Return, for each table, the names of the outputs of its features.

    A feature that is looked up in several tables gives one output each, named ``feature@table``.

    Args:
        tables: the tables.

    Example:
        >>> get_embedding_names_by_table([
        ...     EmbeddingBagConfig(10, 4, "t1", feature_names=["f1", "f2"]),
        ...     EmbeddingBagConfig(10, 4, "t2", feature_names=["f2"]),
        ... ])
        [['f1', 'f2@t1'], ['f2@t2']]
    """
    require_list(tables, "`tables`", BaseEmbeddingConfig)
    return embedding_names_by_table(tables)


def reorder_inverse_indices(
    inverse_indices: tuple[list[str], Tensor] | None, feature_names: list[str]
) -> Tensor:
    """Return the inverse indices of a batch in the order of ``feature_names``.

    Args:
        inverse_indices: keys and, for each, the positions in its own batch of the samples of the
            full batch, ``(F, B)``; None gives an empty tensor.
        feature_names: the order wanted.

    Raises:
        ValueError: if a feature has no inverse indices.

    Example:
        >>> reorder_inverse_indices((["a", "b"], torch.tensor([[0, 1], [0, 0]])), ["b", "a"]).tolist()
        [[0, 0], [0, 1]]
    """
    return _reorder_inverse_indices(inverse_indices, feature_names)


def _reorder_inverse_indices(
    inverse_indices: tuple[list[str], Tensor] | None, feature_names: list[str]
) -> Tensor:
    if inverse_indices is None:
        return torch.empty(0)
    if not (isinstance(inverse_indices, tuple) and len(inverse_indices) == 2):
        raise TypeError(
            "`inverse_indices` should be a tuple of keys and a tensor. "
            f"Received {type(inverse_indices).__name__}."
        )
    keys, indices = inverse_indices
    require_list(keys, "`inverse_indices`, their keys,", str)
    require_type(indices, "`inverse_indices`, their positions,", Tensor)
    require_list(feature_names, "`feature_names`", str)
    position = {key: k for k, key in enumerate(keys)}
    for feature in feature_names:
        if feature not in position:
            raise ValueError(
                f"`inverse_indices` should have the feature '{feature}'. Received keys {keys}."
            )
    return indices[[position[feature] for feature in feature_names]]


torch.fx.wrap("_reorder_inverse_indices")  # tracers record the call


def process_pooled_embeddings(pooled_embeddings: list[Tensor], inverse_indices: Tensor) -> Tensor:
    """Bring features with batches of their own to the full batch, side by side.

    Args:
        pooled_embeddings: one ``(B_f, D_f)`` a feature.
        inverse_indices: for each feature the rows to take, ``(F, B)``; empty: all, as they are.

    Returns:
        ``(B, sum of D_f)``.

    Example:
        >>> pooled = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]])]
        >>> process_pooled_embeddings(pooled, torch.tensor([[0, 1, 1], [0, 0, 0]])).tolist()
        [[1.0, 3.0, 4.0], [2.0, 3.0, 4.0], [2.0, 3.0, 4.0]]
    """
    return _process_pooled_embeddings(pooled_embeddings, inverse_indices)


def _process_pooled_embeddings(pooled_embeddings: list[Tensor], inverse_indices: Tensor) -> Tensor:
    require_list(pooled_embeddings, "`pooled_embeddings`", Tensor)
    require_type(inverse_indices, "`inverse_indices`", Tensor)
    if inverse_indices.dim() == 0 or (
        inverse_indices.is_floating_point() and inverse_indices.numel()
    ):
        raise ValueError(
            "`inverse_indices` should be integers shaped [F, B], or empty. "
            f"Received {inverse_indices.dtype} of shape {list(inverse_indices.shape)}."
        )
    if inverse_indices.numel() > 0:
        if len(inverse_indices) != len(pooled_embeddings):
            raise ValueError(
                "`inverse_indices` should have one row a feature "
                f"({len(pooled_embeddings)}). Received {len(inverse_indices)}."
            )
        pairs = zip(pooled_embeddings, inverse_indices, strict=True)
        pooled_embeddings = [pooled.index_select(0, rows) for pooled, rows in pairs]
    return torch.cat(pooled_embeddings, dim=1)


torch.fx.wrap("_process_pooled_embeddings")  # tracers record the call


class EmbeddingBagCollectionInterface(nn.Module, abc.ABC):
    """What stands in for an `EmbeddingBagCollection`: sharded and quantised collections, and others."""

    @abc.abstractmethod
    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool.

        Args:
            features: ids by feature.
        """

    @abc.abstractmethod
    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""

    @abc.abstractmethod
    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""


class EmbeddingCollectionInterface(nn.Module, abc.ABC):
    """What stands in for an `EmbeddingCollection`: sharded and quantised collections, and others."""

    @abc.abstractmethod
    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up.

        Args:
            features: ids by feature.
        """

    @abc.abstractmethod
    def embedding_configs(self) -> list[EmbeddingConfig]:
        """Return the tables."""

    @abc.abstractmethod
    def need_indices(self) -> bool:
        """Return whether the ids are passed on with their embeddings."""

    @abc.abstractmethod
    def embedding_dim(self) -> int:
        """Return D."""

    @abc.abstractmethod
    def embedding_names_by_table(self) -> list[list[str]]:
        """Return, for each table, the names of the outputs of its features."""


def _make_bag(config: EmbeddingBagConfig, device: torch.device) -> nn.Module:
    mode = "sum" if config.pooling == PoolingType.NONE else pooling_type_to_str(config.pooling)
    weight = new_table(config.num_rows, config.embedding_dim, config.dtype, device)
    return nn.EmbeddingBag(
        config.num_rows,
        config.embedding_dim,
        mode=mode,
        sparse=has_sparse_gradient(config),
        include_last_offset=True,
        _weight=weight,
    )


def _make_embedding(config: EmbeddingConfig, device: torch.device) -> nn.Module:
    weight = new_table(config.num_rows, config.embedding_dim, config.dtype, device)
    sparse = has_sparse_gradient(config)
    return nn.Embedding(config.num_rows, config.embedding_dim, sparse=sparse, _weight=weight)


class EmbeddingBagCollection(
    TableCollection, EmbeddingBagCollectionInterface, FusedOptimizerModule, LeafModule
):
    """Several embedding tables; the embeddings of each bag of ids are pooled into one.

    All tables are looked up in one call. This is the class for every use on one device: it is fast
    as it stands.

    The weights are ordinary parameters, ``embedding_bags.<table>.weight``. A table whose
    configuration names an ``optimizer`` is updated in the backward pass and has no gradient; any
    other is trained like the rest of the model.

    Args:
        tables: the tables.
        is_weighted: whether each id comes with a weight that its embedding is multiplied with; if
            not, weights that features have are left unread.
        device: of the tables. Default: PyTorch's default device.
        output_dtype: of the result. Default: float32, where tables are stored in half precision too; of a
            module that was cast as a whole (``half()``), that of its tables.
            Whatever it is, embeddings are summed in float32.

    Raises:
        ValueError: for tables that cannot be together, see the message.

    Example:
        >>> ebc = EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(
        ...         name="t1", embedding_dim=3, num_embeddings=10, feature_names=["f1"],
        ...         init_fn=torch.nn.init.ones_,
        ...     ),
        ...     EmbeddingBagConfig(
        ...         name="t2", embedding_dim=4, num_embeddings=10, feature_names=["f2"],
        ...         init_fn=torch.nn.init.ones_,
        ...     ),
        ... ])
        >>> features = KeyedJaggedTensor(
        ...     keys=["f1", "f2"],
        ...     values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]),
        ...     offsets=torch.tensor([0, 2, 2, 3, 4, 5, 8]),
        ... )
        >>> pooled = ebc(features)
        >>> pooled.values().tolist()[0]
        [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
        >>> pooled.keys(), pooled.offset_per_key()
        (['f1', 'f2'], [0, 3, 7])
    """

    embedding_bags: nn.ModuleDict

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._is_weighted = is_weighted
        self._embedding_bag_configs = tables = checked_tables(tables, EmbeddingBagConfig)
        self._set_tables(tables, "embedding_bags", _make_bag, device, output_dtype)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool.

        Args:
            features: ids of all features of the tables, and possibly others, in any order of keys.
                Features with inverse indices, as those with batches of their own need, are brought
                to the full batch by them.

        Returns:
            One embedding a feature (twice looked up: one a table, ``feature@table``) and sample:
            values ``(B, sum of D)``. An empty bag gives zeros.

        Raises:
            IdOutOfRangeError: for an id that no row stands for, if its table's policy says so.
            ValueError: for a feature that is missing, or weights that are.
        """
        if not isinstance(features, KeyedJaggedTensor):
            if not is_proxy(features):
                require_type(features, "`features`", KeyedJaggedTensor)
            traced: KeyedTensor = self.recorded(features)
            return traced
        given, tables = features.bags, self._tables
        if given.strides_per_rank is not None or given.inverse_indices is not None:
            given = features.expand_inverse().bags
        if self._is_weighted and given.weights is None:
            raise ValueError("`features` should have weights, as `is_weighted` says.")
        weights, spec, groups = tables.lookup_of(given.keys)
        if not weights:
            values = given.values.new_empty((given.stride(), 0), dtype=tables.output_dtype)
            return KeyedTensor([], [], values)
        sample_weights = given.weights if self._is_weighted else None
        bags = Bags(given.values, given.offsets(), sample_weights)
        output, out_of_range = lookup_bags(weights, spec, bags, tables.output_dtype, groups)
        if tables.counts_ids:
            self._count(out_of_range)
        return keyed_tensor(tables.embedding_names, tables.dims, output)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return self._embedding_bag_configs

    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""
        return self._is_weighted


class EmbeddingCollection(
    TableCollection, EmbeddingCollectionInterface, FusedOptimizerModule, LeafModule
):
    """Several embedding tables; each id gives one embedding, as sequence models want them.

    All tables are looked up in one call. The weights are ordinary parameters,
    ``embeddings.<table>.weight``; see `EmbeddingBagCollection` for how they are trained.

    Args:
        tables: the tables.
        device: of the tables. Default: PyTorch's default device.
        need_indices: pass the ids on as the weights of the result.
        use_gather_select: without effect: there is one way to select.
        use_gather_select_per_sharding: likewise.
        output_dtype: of the result. Default: float32, where tables are stored in half precision too; of a
            module that was cast as a whole (``half()``), that of its tables.

    Raises:
        ValueError: for tables that cannot be together, see the message.

    Example:
        >>> ec = EmbeddingCollection(tables=[
        ...     EmbeddingConfig(name="t1", embedding_dim=3, num_embeddings=10, feature_names=["f1"]),
        ...     EmbeddingConfig(name="t2", embedding_dim=3, num_embeddings=10, feature_names=["f2"]),
        ... ])
        >>> features = KeyedJaggedTensor.from_offsets_sync(
        ...     keys=["f1", "f2"],
        ...     values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]),
        ...     offsets=torch.tensor([0, 2, 2, 3, 4, 5, 8]),
        ... )
        >>> embeddings = ec(features)
        >>> embeddings["f2"].values().shape, embeddings["f2"].lengths().tolist()
        (torch.Size([5, 3]), [1, 1, 3])
    """

    embeddings: nn.ModuleDict

    def __init__(
        self,
        tables: list[EmbeddingConfig],
        device: torch.device | str | None = None,
        need_indices: bool = False,
        use_gather_select: bool = False,
        use_gather_select_per_sharding: dict[str, bool] | None = None,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._need_indices = need_indices
        self._use_gather_select = use_gather_select
        self._use_gather_select_per_sharding = use_gather_select_per_sharding
        self._embedding_configs = tables = checked_tables(tables, EmbeddingConfig)
        self._set_tables(tables, "embeddings", _make_embedding, device, output_dtype)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up.

        Args:
            features: ids of all features of the tables, and possibly others, in any order of keys.
                Features with inverse indices are brought to the full batch by them; those with
                batches of their own and no inverse indices are looked up as they are.

        Returns:
            For each feature (twice looked up: for each ``feature@table``) the embeddings of its ids,
            values ``(N, D)``, with the lengths of the feature; the ids as weights if
            ``need_indices``.

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
        weights, spec, groups = self._tables.lookup_of(features.keys())
        if not weights:
            return {}
        offsets, sizes = features.offset_per_key(), features.length_per_key()
        starts = [offsets[slot.key] for slot in spec.slots]
        counts = [sizes[slot.key] for slot in spec.slots]
        ids = Ids(features.values(), starts, counts, features.stride())
        try:
            outputs, out_of_range = lookup_sequences(weights, spec, ids, self.output_dtype, groups)
        except IdOutOfRangeError as error:
            raise name_sample(error, self._embedding_configs, spec, features) from None
        if self._tables.counts_ids:
            self._count(out_of_range)
        names = self._tables.embedding_names
        return jagged_outputs(features, names, spec, outputs, self._need_indices)

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
        dims = sorted(set(self._tables.dims))
        if len(dims) != 1:
            raise ValueError(f"All tables should have one `embedding_dim` here. Received {dims}.")
        return dims[0]

    def use_gather_select(self) -> bool:
        """Return what was given."""
        return self._use_gather_select

    def use_gather_select_per_sharding(self) -> dict[str, bool] | None:
        """Return what was given."""
        return self._use_gather_select_per_sharding


def jagged_outputs(
    features: KeyedJaggedTensor,
    names: Sequence[str],
    spec: LookupSpec,
    outputs: Sequence[Tensor],
    need_indices: bool,
) -> dict[str, JaggedTensor]:
    """Return the embeddings of a look-up of sequences by name, with the lengths of their features.

    Args:
        features: the input.
        names: of the outputs.
        spec: of the look-up.
        outputs: the embeddings.
        need_indices: pass the ids on as weights.
    """
    inputs, keys = features.to_dict(), features.keys()
    result = {}
    for name, slot, output in zip(names, spec.slots, outputs, strict=True):
        mine = inputs[keys[slot.key]]
        indices = mine.values() if need_indices else None
        result[name] = JaggedTensor(output, weights=indices, lengths=mine.lengths())
    return result


def name_sample(
    error: IdOutOfRangeError,
    configs: Sequence[EmbeddingConfig],
    spec: LookupSpec,
    features: KeyedJaggedTensor,
) -> IdOutOfRangeError:
    """Return the error with the sample in place of the position of the id in its feature.

    Args:
        error: of a look-up of sequences.
        configs: the tables.
        spec: of the look-up.
        features: its input.
    """
    asked = error.feature, [table.name for table in configs].index(error.table)
    (key,) = {slot.key for slot in spec.slots if (slot.feature, slot.table) == asked}
    lengths = features[features.keys()[key]].lengths()
    ends = lengths.long().cumsum(0)
    sample = int(torch.searchsorted(ends, error.sample, right=True))
    return IdOutOfRangeError(error.table, error.feature, sample, error.id, error.rows)
