"""Collections of embedding tables that are looked up together."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchrec.errors import IdOutOfRangeError
from torchrec.modules._rows import export_rows, load_rows, reset_rows
from torchrec.modules._tables import (
    Tables,
    check_tables,
    embedding_names_by_table,
    initialise,
)
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
    pooling_type_to_str,
)
from torchrec.ops.embedding import Bags, Ids, lookup_bags, lookup_sequences, new_table
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = [
    "EmbeddingBagCollection",
    "EmbeddingBagCollectionInterface",
    "EmbeddingCollection",
    "EmbeddingCollectionInterface",
    "get_embedding_names_by_table",
    "process_pooled_embeddings",
    "reorder_inverse_indices",
]

C = TypeVar("C", bound="_Collection")


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
    if inverse_indices is None:
        return torch.empty(0)
    keys, indices = inverse_indices
    position = {key: k for k, key in enumerate(keys)}
    for feature in feature_names:
        if feature not in position:
            raise ValueError(
                f"`inverse_indices` should have the feature '{feature}'. Received keys {keys}."
            )
    return indices[[position[feature] for feature in feature_names]]


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
    if inverse_indices.numel() > 0:
        if len(inverse_indices) != len(pooled_embeddings):
            raise ValueError(
                "`inverse_indices` should have one row a feature "
                f"({len(pooled_embeddings)}). Received {len(inverse_indices)}."
            )
        pairs = zip(pooled_embeddings, inverse_indices, strict=True)
        pooled_embeddings = [pooled.index_select(0, rows) for pooled, rows in pairs]
    return torch.cat(pooled_embeddings, dim=1)


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


class _Collection(nn.Module):
    """Tables as parameters, their fused optimizer, their rows: common to both collections."""

    _tables: Tables
    _out_of_range: Tensor
    _device: torch.device

    def _set_tables(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        prefix: str,
        make: Callable[[Any, torch.device], nn.Module],
        device: torch.device | str | None,
        output_dtype: torch.dtype | None,
    ) -> None:
        if output_dtype is not None and not (
            isinstance(output_dtype, torch.dtype) and output_dtype.is_floating_point
        ):
            raise TypeError(
                f"`output_dtype` should be a floating torch.dtype. Received {output_dtype!r}."
            )
        self._device = torch.device("cpu" if device is None else device)
        holder = nn.ModuleDict()
        modules = []
        for config in configs:
            modules.append(make(config, self._device))
            holder[config.name] = modules[-1]
        setattr(self, prefix, holder)
        self._tables = Tables(configs, modules, prefix)
        for weight, config in zip(self._tables.weights(), configs, strict=True):
            weight.requires_grad_(config.enable_grad)
            initialise(config, weight)
        self._output_dtype = output_dtype
        counts = torch.zeros(len(modules), dtype=torch.int64, device=self._device)
        self.register_buffer("_out_of_range", counts, persistent=False)
        self.register_load_state_dict_post_hook(_weights_loaded)  # type: ignore[no-untyped-call]

    @property
    def device(self) -> torch.device:
        """The device that the tables were made on."""
        return self._device

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the tables that are updated in the backward pass."""
        return self._tables.optimizer()

    def reset_parameters(self) -> None:
        """Give every table its initial weights anew, as a new collection has them; and no state."""
        for config, weight in zip(self._tables.configs, self._tables.weights(), strict=True):
            initialise(config, weight)
        self._tables.reset_states()

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        """Return how many ids outside ``[0, num_embeddings)`` each table has been given.

        Counted are the tables with ``hash_size`` or an ``id_policy`` other than ``ERROR``. On an
        accelerator this waits for the device; the look-ups, which count, do not.

        Args:
            reset: start again from 0.

        Example:
            >>> table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"], hash_size=5)
            >>> ebc = EmbeddingBagCollection(tables=[table])
            >>> _ = ebc(KeyedJaggedTensor.from_lists({"f": [[3, 12], [-1]]}))
            >>> ebc.out_of_range_counts()
            {'t': 2}
        """
        names = [config.name for config in self._tables.configs]
        counts = dict(zip(names, self._out_of_range.tolist(), strict=True))
        if reset:
            self._out_of_range.zero_()
        return counts

    def load_rows(
        self, table: str, ids: Tensor, vectors: Tensor, reset_state: bool = False
    ) -> None:
        """Write rows of a table.

        Args:
            table: name of the table.
            ids: rows, ``(N,)``, distinct.
            vectors: ``(N, D)``, of any floating type.
            reset_state: also set the state of the fused optimizer for these rows to what it was
                before any update. By default it stays as it is.

        Raises:
            ValueError: for an unknown table, shapes that do not fit, or a row that comes twice.
            IndexError: for a row that the table does not have.

        Example:
            >>> ebc = EmbeddingBagCollection(
            ...     tables=[EmbeddingBagConfig(10, 2, "t", feature_names=["f"])]
            ... )
            >>> ebc.load_rows("t", torch.tensor([7]), torch.tensor([[1.0, 2.0]]))
            >>> ids, vectors = ebc.export_rows("t", torch.tensor([7]))
            >>> vectors.tolist()
            [[1.0, 2.0]]
        """
        load_rows(self._tables, table, ids, vectors, reset_state)

    def export_rows(self, table: str, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read rows of a table.

        Args:
            table: name of the table.
            ids: rows, ``(N,)``. Default: all.

        Returns:
            The rows, int64 ``(N,)``, and a copy of their vectors, ``(N, D)``.

        Raises:
            ValueError: for an unknown table.
            IndexError: for a row that the table does not have.
        """
        return export_rows(self._tables, table, ids)

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make rows as they were before any training, as for ids that have just got them.

        That is: new initial weights; no gradient that waits for the former id, whatever form it
        waits in; and no optimizer state. State of a fused table is reset at once, that of any other
        optimizer when it next steps.

        Weights are drawn from a generator of their own, which depends on the table and the rows
        alone. An ``init_fn`` is called for a tensor of the shape of the whole table, unless it is
        one of `torch.nn.init` that takes no notice of shapes.

        Args:
            table: name of the table.
            rows: int64 ``(N,)``, distinct.

        Raises:
            TypeError: for rows that are no integers.
            ValueError: for an unknown table.
            IndexError: for a row that the table does not have.

        Example:
            >>> ebc = EmbeddingBagCollection(tables=[
            ...     EmbeddingBagConfig(3, 1, "t", feature_names=["f"], init_fn=nn.init.ones_)
            ... ])
            >>> ebc.load_rows("t", torch.tensor([0, 1]), torch.tensor([[5.0], [6.0]]))
            >>> ebc.reset_rows("t", torch.tensor([1, 2]))
            >>> ebc.embedding_bags["t"].weight.tolist()
            [[5.0], [1.0], [1.0]]
        """
        reset_rows(self._tables, table, rows)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, also those that fused tables have accumulated and not applied.

        Args:
            set_to_none: set gradients to None instead of zeros.
        """
        super().zero_grad(set_to_none)
        self._tables.discard_gradients()

    def _dtype(self) -> torch.dtype:
        return self._tables.dtype if self._output_dtype is None else self._output_dtype

    def _lookup_of(self, features: KeyedJaggedTensor) -> tuple[list[Tensor], Any, Any]:
        """Return the weights, the spec for these features, and the groups that get a gradient."""
        tables = self._tables
        weights = tables.bound_weights()
        recorded = torch.is_grad_enabled()
        requires_grad = tuple([recorded and w.requires_grad for w in weights])
        spec, groups = tables.lookup(tuple(features.keys()), requires_grad, tables.mode())
        return weights, spec, groups

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tables.bind()
        self._device = self._out_of_range.device
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._tables.bind()


def _weights_loaded(collection: _Collection, _: object) -> None:
    collection._tables.restart()


def _make_bag(config: EmbeddingBagConfig, device: torch.device) -> nn.Module:
    mode = "sum" if config.pooling == PoolingType.NONE else pooling_type_to_str(config.pooling)
    weight = new_table(config.num_rows, config.embedding_dim, config.dtype, device)
    return nn.EmbeddingBag(
        config.num_rows, config.embedding_dim, mode=mode, include_last_offset=True, _weight=weight
    )


def _make_embedding(config: EmbeddingConfig, device: torch.device) -> nn.Module:
    weight = new_table(config.num_rows, config.embedding_dim, config.dtype, device)
    return nn.Embedding(config.num_rows, config.embedding_dim, _weight=weight)


class EmbeddingBagCollection(_Collection, EmbeddingBagCollectionInterface, FusedOptimizerModule):
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
        device: of the tables. Default: the CPU.
        output_dtype: of the result. Default: that of the tables, the wider where they differ.
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
        self._embedding_bag_configs = tables = list(tables)
        check_tables(tables, EmbeddingBagConfig)
        self._set_tables(tables, "embedding_bags", _make_bag, device, output_dtype)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool.

        Args:
            features: ids of all features of the tables, and possibly others, in any order of keys.
                Features with batches of their own are brought to the full batch by their inverse
                indices.

        Returns:
            One embedding a feature (twice looked up: one a table, ``feature@table``) and sample:
            values ``(B, sum of D)``. An empty bag gives zeros.

        Raises:
            IdOutOfRangeError: for an id that no row stands for, if its table's policy says so.
            ValueError: for a feature that is missing, or weights that are.
        """
        if features.variable_stride_per_key():
            features = features.expand_inverse()
        sample_weights = None
        if self._is_weighted:
            sample_weights = features.weights_or_none()
            if sample_weights is None:
                raise ValueError("`features` should have weights, as `is_weighted` says.")
        weights, spec, groups = self._lookup_of(features)
        tables = self._tables
        if not weights:
            values = features.values().new_empty((features.stride(), 0), dtype=self._dtype())
            return KeyedTensor([], [], values)
        bags = Bags(features.values(), features.offsets(), sample_weights)
        output, out_of_range = lookup_bags(weights, spec, bags, self._dtype(), groups)
        if tables.counts_ids:
            self._out_of_range.add_(out_of_range)
        return KeyedTensor(tables.embedding_names, tables.dims, output)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return self._embedding_bag_configs

    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""
        return self._is_weighted


class EmbeddingCollection(_Collection, EmbeddingCollectionInterface, FusedOptimizerModule):
    """Several embedding tables; each id gives one embedding, as sequence models want them.

    All tables are looked up in one call. The weights are ordinary parameters,
    ``embeddings.<table>.weight``; see `EmbeddingBagCollection` for how they are trained.

    Args:
        tables: the tables.
        device: of the tables. Default: the CPU.
        need_indices: pass the ids on as the weights of the result.
        use_gather_select: without effect: there is one way to select.
        use_gather_select_per_sharding: likewise.
        output_dtype: of the result. Default: that of the tables, the wider where they differ.

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
        self._embedding_configs = tables = list(tables)
        check_tables(tables, EmbeddingConfig)
        self._set_tables(tables, "embeddings", _make_embedding, device, output_dtype)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up.

        Args:
            features: ids of all features of the tables, and possibly others, in any order of keys.

        Returns:
            For each feature (twice looked up: for each ``feature@table``) the embeddings of its ids,
            values ``(N, D)``, with the lengths of the feature; the ids as weights if
            ``need_indices``.

        Raises:
            IdOutOfRangeError: for an id that no row stands for, if its table's policy says so.
            ValueError: for a feature that is missing.
        """
        weights, spec, groups = self._lookup_of(features)
        if not weights:
            return {}
        offsets, sizes = features.offset_per_key(), features.length_per_key()
        starts = [offsets[slot.key] for slot in spec.slots]
        counts = [sizes[slot.key] for slot in spec.slots]
        ids = Ids(features.values(), starts, counts)
        try:
            outputs, out_of_range = lookup_sequences(weights, spec, ids, self._dtype(), groups)
        except IdOutOfRangeError as error:
            raise _with_sample(error, features[error.feature].lengths()) from None
        if self._tables.counts_ids:
            self._out_of_range.add_(out_of_range)
        inputs = features.to_dict()
        result = {}
        for name, feature, output in zip(
            self._tables.embedding_names, self._tables.features, outputs, strict=True
        ):
            mine = inputs[feature]
            indices = mine.values() if self._need_indices else None
            result[name] = JaggedTensor(output, weights=indices, lengths=mine.lengths())
        return result

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

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return, for each table, the names of the outputs of its features."""
        return embedding_names_by_table(self._embedding_configs)

    def use_gather_select(self) -> bool:
        """Return what was given."""
        return self._use_gather_select

    def use_gather_select_per_sharding(self) -> dict[str, bool] | None:
        """Return what was given."""
        return self._use_gather_select_per_sharding


def _with_sample(error: IdOutOfRangeError, lengths: Tensor) -> IdOutOfRangeError:
    """Return the error with the sample in place of the position of the id in its feature."""
    ends = lengths.long().cumsum(0)
    sample = int(torch.searchsorted(ends, error.sample, right=True))
    return IdOutOfRangeError(error.table, error.feature, sample, error.id, error.rows)
