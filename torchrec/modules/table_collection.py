"""What collections of pooled embeddings and of sequences have in common: a module that holds tables."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.checks import checked_device, require_type
from torchrec.modules.collection import TableShard, TableStore
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, initialise
from torchrec.modules.stray_ids import add_counts, counts_by_table, set_counts
from torchrec.modules.tables import OutputType, Tables, embedding_names_by_table
from torchrec.ops.hashing.schema import hash_ids
from torchrec.optim.keyed import KeyedOptimizer

# These fill each element without a look at the shape: some rows start as those of a whole table do.
_BY_ELEMENT = {
    nn.init.constant_,
    nn.init.normal_,
    nn.init.ones_,
    nn.init.trunc_normal_,
    nn.init.uniform_,
    nn.init.zeros_,
}


class TableCollection(nn.Module):
    """Tables as parameters: how they are trained, what becomes of their rows and of stray ids."""

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
        self._device = torch.get_default_device() if device is None else checked_device(device)
        holder = nn.ModuleDict()
        modules = []
        for config in configs:
            modules.append(make(config, self._device))
            holder[config.name] = modules[-1]
        setattr(self, prefix, holder)
        self._tables = Tables(configs, modules, prefix, output_dtype=output_dtype)
        for weight, config in zip(self._tables.weights(), configs, strict=True):
            weight.requires_grad_(config.enable_grad)
            initialise(config, weight)
        counts = torch.zeros(len(modules), dtype=torch.int64, device=self._device)
        self.register_buffer("_out_of_range", counts, persistent=False)
        self.register_load_state_dict_post_hook(_weights_loaded)  # type: ignore[no-untyped-call]

    @property
    def device(self) -> torch.device:
        """The device of the tables."""
        weights = self._tables.weights()
        return weights[0].device if weights else self._device

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the tables that are updated in the backward pass."""
        return self._tables.optimizer()

    def reset_parameters(self) -> None:
        """Give every table its initial weights anew, as a new collection has them; and no state."""
        for config, weight in zip(self._tables.configs, self._tables.weights(), strict=True):
            initialise(config, weight)
        self._tables.reset_states()
        self._tables.restart()

    def out_of_range_counts(self, reset: bool = False) -> dict[str, int]:
        """Return how many ids outside ``[0, num_embeddings)`` each table has been given.

        Counted are the tables with ``hash_size`` or an ``id_policy`` other than ``ERROR``. On an
        accelerator this waits for the device; the look-ups, which count, do not.

        Args:
            reset: start again from 0.

        Example:
            >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
            >>> table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"], hash_size=5)
            >>> ebc = EmbeddingBagCollection(tables=[table])
            >>> _ = ebc(KeyedJaggedTensor.from_lists({"f": [[3, 12], [-1]]}))
            >>> ebc.out_of_range_counts()
            {'t': 2}
        """
        names = [config.name for config in self._tables.configs]
        if self._out_of_range.is_meta:  # then nothing has been looked up
            return dict.fromkeys(names, 0)
        return counts_by_table(self._out_of_range, names, reset)

    def set_out_of_range_counts(self, counts: Mapping[str, int]) -> None:
        """Go on counting ids out of range from other numbers, say without those of an evaluation.

        Args:
            counts: by table; others stay as they are.

        Raises:
            ValueError: for an unknown table.
        """
        set_counts(self._out_of_range, counts, self._tables.number)

    def _count(self, out_of_range: Tensor) -> None:
        """Add what a look-up has counted, but for one that runs again for its backward pass."""
        if self._out_of_range.is_meta:  # made without memory; the weights have been assigned since
            with torch.inference_mode(False):  # counts outlive the mode that they begin in
                self._out_of_range = torch.zeros_like(out_of_range)
        add_counts(self._out_of_range, out_of_range)

    def table_store(self) -> TableStore:
        """Return the tables: this very collection has them."""
        return self

    def table_configs(self) -> Sequence[BaseEmbeddingConfig]:
        """Return the tables."""
        return self._tables.configs

    def table_shards(self, table: str) -> list[TableShard]:
        """Return the tensors that hold the weights of a table: here one, the whole of it.

        Args:
            table: its name.

        Raises:
            ValueError: for an unknown table.
        """
        _, weight, _ = self._tables.table(table)
        return [TableShard(range(weight.shape[0]), range(weight.shape[1]), weight)]

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return, for each table, the names of the outputs of its features."""
        return embedding_names_by_table(self._tables.configs)

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
            >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
            >>> ebc = EmbeddingBagCollection(
            ...     tables=[EmbeddingBagConfig(10, 2, "t", feature_names=["f"])]
            ... )
            >>> ebc.load_rows("t", torch.tensor([7]), torch.tensor([[1.0, 2.0]]))
            >>> ids, vectors = ebc.export_rows("t", torch.tensor([7]))
            >>> vectors.tolist()
            [[1.0, 2.0]]
        """
        config, weight, update = self._tables.table(table)
        ids = check_rows(config, ids).to(weight.device)
        require_type(vectors, f"`vectors` of table '{table}'", Tensor)
        expected = (len(ids), weight.shape[1])
        if tuple(vectors.shape) != expected:
            raise ValueError(
                f"`vectors` of table '{table}' should have the shape {expected}. "
                f"Received {tuple(vectors.shape)}."
            )
        if len(ids.unique()) != len(ids):
            raise ValueError(f"`ids` of table '{table}' should be distinct.")
        with torch.no_grad():
            weight.index_copy_(0, ids, vectors.to(weight))
        if reset_state:
            update.reset_state(ids)

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
        config, weight, _ = self._tables.table(table)
        weight = weight.detach()
        if ids is None:
            return torch.arange(len(weight), device=weight.device), weight.clone()
        ids = check_rows(config, ids).to(weight.device)
        return ids, weight.index_select(0, ids)

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make rows as they were before any training, as for ids that have just got them.

        That is: new initial weights; no gradient that waits for the former id, whatever form it
        waits in; and no optimizer state: that of a fused table is reset at once, and so is that of
        every optimizer that has stepped with the table; that of any other when it steps.

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
            >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
            >>> ebc = EmbeddingBagCollection(tables=[
            ...     EmbeddingBagConfig(3, 1, "t", feature_names=["f"], init_fn=nn.init.ones_)
            ... ])
            >>> ebc.load_rows("t", torch.tensor([0, 1]), torch.tensor([[5.0], [6.0]]))
            >>> ebc.reset_rows("t", torch.tensor([1, 2]))
            >>> ebc.embedding_bags["t"].weight.tolist()
            [[5.0], [1.0], [1.0]]
        """
        config, weight, update = self._tables.table(table)
        if not (isinstance(rows, Tensor) and rows.dim() == 1 and rows.dtype is torch.int64):
            require_type(rows, f"`rows` of table '{table}'", Tensor)
            raise TypeError(
                f"`rows` of table '{table}' should be int64 of shape (N,). "
                f"Received {rows.dtype} of shape {tuple(rows.shape)}."
            )
        rows = rows.to(weight.device)
        outside = (rows < 0) | (rows >= len(weight))
        if bool(outside.any()):
            raise IndexError(
                f"`rows` of table '{table}' should be in [0, {len(weight)}). "
                f"Received {int(rows[outside][0])}."
            )
        if not rows.numel():
            return
        with torch.no_grad():
            weight.index_copy_(0, rows, initial_rows(config, rows, weight.dtype))
        update.forget_rows(rows)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, also those that fused tables have accumulated and not applied.

        Args:
            set_to_none: set gradients to None instead of zeros.
        """
        super().zero_grad(set_to_none)
        self._tables.discard_gradients()

    def weights_loaded(self) -> None:
        """Meet weights that were loaded: what waits, such as gradients, was for the former ones."""
        self._tables.restart()

    @property
    def output_dtype(self) -> torch.dtype:
        """The dtype of what look-ups give."""
        return self._tables.output_dtype

    @property
    def output_type(self) -> OutputType:
        """Which dtype look-ups give, of tables that may be cast."""
        return self._tables.output_type

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tables.bind()
        self._device = self._out_of_range.device
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._tables.bind()


def _weights_loaded(collection: TableCollection, _: object) -> None:
    collection.weights_loaded()


def check_rows(config: BaseEmbeddingConfig, ids: Tensor) -> Tensor:
    """Return ids as rows of a table, int64.

    Args:
        config: of the table.
        ids: integers, ``(N,)``.

    Raises:
        ValueError: if they are not.
        IndexError: for a row that the table does not have.
    """
    require_type(ids, f"`ids` of table '{config.name}'", Tensor)
    if ids.dim() != 1 or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise ValueError(
            f"`ids` of table '{config.name}' should be integers of shape (N,). "
            f"Received {ids.dtype} of shape {tuple(ids.shape)}."
        )
    bad = ((ids < 0) | (ids >= config.num_rows)).nonzero()
    if len(bad):
        raise IndexError(
            f"`ids` of table '{config.name}' should be in [0, {config.num_rows}). "
            f"Received {int(ids[bad[0]])}."
        )
    return ids.long()


def initial_rows(config: BaseEmbeddingConfig, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return first values of rows, drawn from a generator of their own, ``(N, D)``.

    They depend on the table and on which rows these are, so a run that is taken up draws the same.

    Args:
        config: of the table.
        rows: int64 ``(N,)``, distinct.
        dtype: of the table.
    """
    # A sum, so that the order of the rows does not count; of hashes, so that other rows have another sum.
    seed = zlib.crc32(config.name.encode()) ^ int(hash_ids(rows, 2**62).sum() & (2**62 - 1))
    device = rows.device
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type=device.type):
        # Not torch.manual_seed, which would reach the generators of all devices.
        generator = torch.default_generator
        if not on_cpu:
            generator = torch.get_device_module(device).default_generators[device.index]
        generator.manual_seed(seed)
        init_fn = config.init_fn
        if isinstance(init_fn, partial):
            init_fn = init_fn.func
        by_element = init_fn is None or init_fn in _BY_ELEMENT
        # Else its spread may depend on the shape, or its values on the row: it needs the whole table.
        count = len(rows) if by_element else config.num_rows
        fresh = torch.empty((count, config.embedding_dim), dtype=dtype, device=device)
        initialise(config, fresh)
        return fresh if by_element else fresh.index_select(0, rows)
