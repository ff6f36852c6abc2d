"""A pool of samples of jagged features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules._jagged_index import shifted
from torchrec.modules.object_pool import ObjectPool
from torchrec.modules.pool_rows import check_ids, check_size, last_of_each
from torchrec.ops.jagged import lengths_to_offsets
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["KeyedJaggedTensorPool"]


class KeyedJaggedTensorPool(ObjectPool[KeyedJaggedTensor], LeafModule):
    """Samples of jagged features in numbered places: one bag a feature each, of bounded length.

    All bags are empty at first. A sample is a row of ``values``, the bags of its features one right
    behind the other, with room for the longest, and a row of ``key_lengths``; both are part of the state, and
    with ``is_weighted`` so are ``weights``.

    Args:
        pool_size: number of samples, E.
        feature_max_lengths: feature -> length of its longest bag.
        values_dtype: of the values. Default: int64.
        is_weighted: whether each value has a weight, float32.
        device: where they are. Default: PyTorch's default device.
        enable_uvm: without effect: memory that an accelerator shares with the host is not used.

    Raises:
        ValueError: for sizes below 1, or no features.

    Example:
        >>> pool = KeyedJaggedTensorPool(pool_size=4, feature_max_lengths={"a": 2, "b": 3})
        >>> samples = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4, 5, 6]]})
        >>> pool.update(torch.tensor([0, 3]), samples)
        >>> pool.lookup(torch.tensor([3, 1, 3])).to_lists()
        {'a': [[2, 3], [], [2, 3]], 'b': [[4, 5, 6], [], [4, 5, 6]]}
    """

    values: Tensor
    weights: Tensor
    key_lengths: Tensor

    def __init__(
        self,
        pool_size: int,
        feature_max_lengths: dict[str, int],
        values_dtype: torch.dtype = torch.int64,
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        enable_uvm: bool = False,
    ) -> None:
        super().__init__()
        check_size("pool_size", pool_size)
        if not feature_max_lengths:
            raise ValueError("`feature_max_lengths` should have at least one feature.")
        for feature, length in feature_max_lengths.items():
            check_size(f"feature_max_lengths['{feature}']", length)
        self._feature_max_lengths = feature_max_lengths
        self._width = sum(feature_max_lengths.values())
        shape = pool_size, self._width
        self.register_buffer("values", torch.zeros(shape, dtype=values_dtype, device=device))
        if is_weighted:
            self.register_buffer("weights", torch.zeros(shape, device=device))
        lengths = torch.zeros(
            (pool_size, len(feature_max_lengths)), dtype=torch.int32, device=device
        )
        self.register_buffer("key_lengths", lengths)
        self._is_weighted = is_weighted

    @property
    def pool_size(self) -> int:
        """How many samples there are."""
        return self.values.size(0)

    @property
    def feature_max_lengths(self) -> dict[str, int]:
        """Feature -> length of its longest bag."""
        return self._feature_max_lengths

    @property
    def values_dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def is_weighted(self) -> bool:
        """Whether each value has a weight."""
        return self._is_weighted

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.values.device

    def lookup(self, ids: Tensor) -> KeyedJaggedTensor:
        """Read samples; an accelerator is waited for, to know how many values there are.

        Args:
            ids: their places, int32 or int64 ``(B,)``.

        Returns:
            A batch of B samples, with the features in the order of ``feature_max_lengths``.

        Raises:
            IndexError: for an id that the pool does not have.
        """
        if is_proxy(ids):
            traced: KeyedJaggedTensor = self.recorded(ids)
            return traced
        check_ids(ids, self.pool_size)
        lengths = self.key_lengths.index_select(0, ids).T.reshape(-1)
        offsets = lengths_to_offsets(lengths)
        # To torch.export this is a number yet to come, which int() would not give.
        total: int = offsets[-1].item()  # type: ignore[assignment]
        index = self._places(ids, lengths, offsets, total)
        weights = self.weights.view(-1).index_select(0, index) if self._is_weighted else None
        return KeyedJaggedTensor(
            list(self._feature_max_lengths),
            self.values.view(-1).index_select(0, index),
            weights,
            lengths,
            offsets,
        )

    def forward(self, ids: Tensor) -> KeyedJaggedTensor:
        """Read samples, see `lookup`.

        Args:
            ids: their places.
        """
        return self.lookup(ids)

    def update(self, ids: Tensor, values: KeyedJaggedTensor) -> None:
        """Write samples.

        Args:
            ids: their places, int32 or int64 ``(B,)``. Of an id that comes twice the last one counts.
            values: a batch of B samples, with all features of the pool, and possibly others that are
                left out, in any order.

        Raises:
            IndexError: for an id that the pool does not have.
            ValueError: for a batch of another size, a feature that is missing, weights that are, or
                a bag that is too long.
            TypeError: for values of another dtype.
        """
        check_ids(ids, self.pool_size)
        samples = self._checked(ids, values)
        lengths, offsets = samples.lengths(), samples.offsets()
        by_sample = lengths.view(len(self._feature_max_lengths), ids.size(0)).T
        self._check_lengths(by_sample)
        rows = torch.arange(ids.size(0), device=ids.device)
        index = self._places(rows, lengths, offsets, samples.values().size(0))
        distinct, last = last_of_each(ids)
        distinct = distinct.long()
        self.key_lengths.index_copy_(
            0, distinct, by_sample.to(self.key_lengths.dtype).index_select(0, last)
        )
        pairs = [(self.values, samples.values())]
        if self._is_weighted:
            pairs.append((self.weights, samples.weights().detach()))
        for pool, given in pairs:
            new = pool.new_zeros((ids.size(0), self._width))
            new.view(-1).index_copy_(0, index, given)
            pool.index_copy_(0, distinct, new.index_select(0, last))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        error_msgs = args[-1]
        # Before 0.1 each bag began at a place of its own. Its values would be taken for those of others.
        ends = self.key_lengths.sum(1, keepdim=True)
        behind = torch.arange(self._width, device=ends.device) >= ends
        if not self.values.is_meta and bool((self.values * behind).any()):
            error_msgs.append(
                f"`{prefix}values` should hold zeros behind the values that `{prefix}key_lengths` counts. "
                "Received others: an earlier version saved them, in another order."
            )

    def _places(self, rows: Tensor, lengths: Tensor, offsets: Tensor, total: int) -> Tensor:
        """Return where each value of a batch stands among the values of all rows, flattened.

        Args:
            rows: of each sample, ``(B,)``.
            lengths: of the bags, ``(F * B,)``.
            offsets: their starts in the batch, ``(F * B + 1,)``.
            total: number of values of the batch.
        """
        by_feature = lengths.view(len(self._feature_max_lengths), -1).long()
        starts = by_feature.cumsum(0) - by_feature  # the features of a sample follow one another
        first = (rows.long() * self._width + starts).reshape(-1)
        return shifted(first - offsets[:-1], lengths, total)

    def _checked(self, ids: Tensor, values: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return the features of the pool, in its order."""
        keys = values.keys()
        order = []
        for feature in self._feature_max_lengths:
            if feature not in keys:
                raise ValueError(f"`values` should have the feature '{feature}'. Received {keys}.")
            order.append(keys.index(feature))
        if values.variable_stride_per_key() or values.stride() != ids.size(0):
            raise ValueError(
                f"`values` should have one sample an id ({ids.size(0)}). "
                f"Received {values.stride_per_key()}, by feature."
            )
        if values.values().dtype != self.values_dtype:
            raise TypeError(
                f"`values` should hold {self.values_dtype}. Received {values.values().dtype}."
            )
        if self._is_weighted and values.weights_or_none() is None:
            raise ValueError("`values` should have weights, as `is_weighted` says.")
        return values if order == list(range(len(keys))) else values.permute(order)

    def _check_lengths(self, by_sample: Tensor) -> None:
        limits = torch.tensor(list(self._feature_max_lengths.values()), device=by_sample.device)
        too_long = (by_sample > limits).nonzero()
        if too_long.numel():
            sample, number = too_long[0].tolist()
            feature = list(self._feature_max_lengths)[number]
            raise ValueError(
                f"Bags of feature '{feature}' should hold at most "
                f"{self._feature_max_lengths[feature]} values, its `feature_max_lengths`. "
                f"Received {int(by_sample[sample, number])} in sample {sample}."
            )
