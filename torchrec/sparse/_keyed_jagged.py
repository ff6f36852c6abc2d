"""KeyedJaggedTensor: one bag of values for each key and sample, all in one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.checks import checked_device, require_list, require_type
from torchrec.fx.proxies import Recordable
from torchrec.ops.jagged import bags_surely_fit
from torchrec.sparse import _construct, _exchange, _join, _select
from torchrec.sparse._bags import Inverse, KeyedBags, Strides
from torchrec.sparse._construct import reader
from torchrec.sparse._jagged import JaggedTensor
from torchrec.sparse._meta import JaggedTensorMeta
from torchrec.sparse._text import bags_to_lists, keyed_jagged_text
from torchrec.streamable import Pipelineable

Columns = Iterable[str] | None
ColumnsOfKeys = Mapping[str, str] | None


class KeyedJaggedTensor(Recordable, Pipelineable, metaclass=JaggedTensorMeta):
    """A batch of sparse features: for each key and sample a bag of ids.

    Args:
        keys: F distinct keys.
        values: ``[N]`` values of all bags: key after key, and sample after sample within a key.
        weights: ``[N]`` one weight a value. Default: unweighted.
        lengths: ``[F * B]`` number of values of each bag, int32 or int64.
        offsets: ``[F * B + 1]`` where each bag starts, and the end of the last. Give lengths, offsets or both.
        stride: B; needed only without keys.
        stride_per_key_per_rank: ``[F][W]`` size of each key's batch on each rank, when they differ.
        stride_per_key: size of each key's batch, when they differ.
        length_per_key: number of values of each key, if known.
        lengths_offset_per_key: where each key starts in the lengths, if known.
        offset_per_key: where each key starts in the values, if known.
        index_per_key: position of each key, if known.
        jt_dict: the same data by key, if known.
        inverse_indices: keys and ``[F, B]``: which sample of a key's own batch stands at each place of the full batch.

    Example:
        >>> values, lengths = torch.tensor([1, 2, 1, 5, 2, 3, 4, 1]), torch.tensor([3, 1, 2, 2])
        >>> print(KeyedJaggedTensor(keys=["product", "user"], values=values, lengths=lengths))
        KeyedJaggedTensor({
            "product": [[1, 2, 1], [5]],
            "user": [[2, 3], [4, 1]]
        })
        <BLANKLINE>
    """

    bags: KeyedBags
    """All that it consists of, for code of this package; a KeyedJaggedTensor itself is its methods."""
    _jt_dict: dict[str, JaggedTensor] | None = None  # given; never computed

    def __init__(
        self,
        keys: list[str],
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: Strides | None = None,
        stride_per_key: list[int] | None = None,
        length_per_key: list[int] | None = None,
        lengths_offset_per_key: list[int] | None = None,
        offset_per_key: list[int] | None = None,
        index_per_key: dict[str, int] | None = None,
        jt_dict: dict[str, JaggedTensor] | None = None,
        inverse_indices: Inverse | None = None,
    ) -> None:
        if (
            stride is None
            and stride_per_key_per_rank is None
            and stride_per_key is None
            and length_per_key is None
            and lengths_offset_per_key is None
            and offset_per_key is None
            and index_per_key is None
            and jt_dict is None
            and inverse_indices is None
            and bags_surely_fit(keys, values, weights, lengths, offsets)
        ):
            self.bags = KeyedBags(keys, values, weights, lengths, offsets)  # every batch pays
            return
        try:
            tensors = values, weights, lengths, offsets
            sizes = stride, stride_per_key_per_rank, stride_per_key
            self.bags = _construct.checked_bags(keys, *tensors, *sizes, inverse_indices)
            metadata = length_per_key, lengths_offset_per_key, offset_per_key, index_per_key
            if metadata != (None, None, None, None):
                self.bags.set_metadata(*metadata)
        except (TypeError, ValueError):
            if self._become_recorded(locals()):
                return
            raise
        self._jt_dict = jt_dict

    # ---- other ways to build one

    @staticmethod
    def from_lengths_sync(
        keys: list[str],
        values: Tensor,
        lengths: Tensor,
        weights: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: list[list[int]] | None = None,
        inverse_indices: Inverse | None = None,
    ) -> KeyedJaggedTensor:
        """Build one from lengths, and bring the numbers of each key to the host at once; see the class.

        Example:
            >>> values, lengths = torch.tensor([5, 6, 7]), torch.tensor([1, 0, 0, 2])
            >>> KeyedJaggedTensor.from_lengths_sync(["a", "b"], values, lengths).offset_per_key()
            [0, 1, 3]
        """
        known = stride, stride_per_key_per_rank, inverse_indices
        return keyed_jagged(_construct.synced(keys, values, weights, lengths, None, *known))

    @staticmethod
    def from_offsets_sync(
        keys: list[str],
        values: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: list[list[int]] | None = None,
        inverse_indices: Inverse | None = None,
    ) -> KeyedJaggedTensor:
        """Build one from offsets, and bring the numbers of each key to the host at once; see the class."""
        known = stride, stride_per_key_per_rank, inverse_indices
        return keyed_jagged(_construct.synced(keys, values, weights, None, offsets, *known))

    @staticmethod
    def from_jt_dict(jt_dict: dict[str, JaggedTensor]) -> KeyedJaggedTensor:
        """Join one JaggedTensor a key. Batches of different sizes give a variable batch per key.

        Args:
            jt_dict: at least one; all weighted or none.

        Raises:
            ValueError: it is empty, or some have weights and some have not.

        Example:
            >>> jt = JaggedTensor(torch.tensor([5, 7, 1]), lengths=torch.tensor([1, 2]))
            >>> KeyedJaggedTensor.from_jt_dict({"a": jt, "b": jt}).keys()
            ['a', 'b']
        """
        return keyed_jagged(_join.concat_keys(jt_dict))

    @staticmethod
    def from_lists(
        lists: Mapping[str, Sequence[Any]],
        weights: Mapping[str, Sequence[Any]] | None = None,
        dtype: torch.dtype = torch.int64,
    ) -> KeyedJaggedTensor:
        """Build one from lists; see ``torchrec.sparse.convert.kjt_parts_from_lists``.

        Args:
            lists: for each key one list of ids a sample; a single id stands for a list of one, None for none.
            weights: for each key lists of the same lengths. Default: unweighted.
            dtype: of the values. Default int64.

        Example:
            >>> KeyedJaggedTensor.from_lists({"a": [[1, 2, 1], [5]], "b": [[2], [4, 1]]}).lengths()
            tensor([3, 1, 1, 2])
        """
        return KeyedJaggedTensor(**reader().kjt_parts_from_lists(lists, weights, dtype)._asdict())

    @staticmethod
    def from_arrow(
        table: object, columns: Columns = None, weights: ColumnsOfKeys = None
    ) -> KeyedJaggedTensor:
        """Build one from an Arrow table; see ``torchrec.sparse.convert.kjt_parts_from_arrow``."""
        return KeyedJaggedTensor(**reader().kjt_parts_from_arrow(table, columns, weights)._asdict())

    @staticmethod
    def from_pandas(
        df: object, columns: Columns = None, weights: ColumnsOfKeys = None
    ) -> KeyedJaggedTensor:
        """Build one from a pandas DataFrame; see ``torchrec.sparse.convert.kjt_parts_from_pandas``."""
        return KeyedJaggedTensor(**reader().kjt_parts_from_pandas(df, columns, weights)._asdict())

    @staticmethod
    def from_polars(
        df: object, columns: Columns = None, weights: ColumnsOfKeys = None
    ) -> KeyedJaggedTensor:
        """Build one from a polars DataFrame; see ``torchrec.sparse.convert.kjt_parts_from_polars``."""
        return KeyedJaggedTensor(**reader().kjt_parts_from_polars(df, columns, weights)._asdict())

    def to_lists(self) -> dict[str, list[list[Any]]]:
        """Return the values of each key and sample as lists: the inverse of ``from_lists``."""
        return bags_to_lists(self.bags, self.bags.values)

    @staticmethod
    def empty(
        is_weighted: bool = False,
        device: torch.device | None = None,
        values_dtype: torch.dtype | None = None,
        weights_dtype: torch.dtype | None = None,
        lengths_dtype: torch.dtype = torch.int32,
    ) -> KeyedJaggedTensor:
        """Build one of no keys and a batch of zero.

        Args:
            is_weighted: whether it has weights. Default False.
            device: where. Default: PyTorch's.
            values_dtype: Default int64, the dtype of ids.
            weights_dtype: Default: PyTorch's floating-point dtype.
            lengths_dtype: Default int32.
        """
        dtypes = values_dtype, weights_dtype, lengths_dtype
        return KeyedJaggedTensor([], *_construct.empty_parts(is_weighted, device, *dtypes))

    @staticmethod
    def empty_like(kjt: KeyedJaggedTensor, device: torch.device | None = None) -> KeyedJaggedTensor:
        """Build one of no keys, with the batch size, dtypes and device of another.

        Args:
            kjt: the other.
            device: where, if not there.
        """
        return _empty_like(kjt, device)

    @staticmethod
    def concat(kjt_list: list[KeyedJaggedTensor]) -> KeyedJaggedTensor:
        """Join the keys of several over the same batch. One without keys adds nothing.

        Args:
            kjt_list: at least one; all weighted or none; batches of one size, unless they vary by key.

        Raises:
            ValueError: nothing to join, batch sizes that differ, a key twice, or weights in some only.

        Example:
            >>> a = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]]})
            >>> b = KeyedJaggedTensor.from_lists({"b": [[], [4]]})
            >>> KeyedJaggedTensor.concat([a, b]).to_lists()
            {'a': [[1], [2, 3]], 'b': [[], [4]]}
        """
        return _concat(kjt_list)

    # ---- reading

    def keys(self) -> list[str]:
        """Return the F keys."""
        return self.bags.keys

    def values(self) -> Tensor:
        """Return the values of all keys, ``[N]``: key after key, sample after sample."""
        return self.bags.values

    def weights(self) -> Tensor:
        """Return the weights, ``[N]``.

        Raises:
            ValueError: there are none.
        """
        return self.bags.require_weights()

    def weights_or_none(self) -> Tensor | None:
        """Return the weights, or None."""
        return self.bags.weights

    def lengths(self) -> Tensor:
        """Return the number of values of each bag, ``[F * B]``."""
        return self.bags.lengths()

    def lengths_or_none(self) -> Tensor | None:
        """Return the lengths if they were given or computed before, or None."""
        return self.bags.lengths_or_none()

    def offsets(self) -> Tensor:
        """Return where each bag starts in the values, and the end of the last, ``[F * B + 1]``."""
        return self.bags.offsets()

    def offsets_or_none(self) -> Tensor | None:
        """Return the offsets if they were given or computed before, or None."""
        return self.bags.offsets_or_none()

    def device(self) -> torch.device:
        """Return the device of the values."""
        return self.bags.values.device

    def variable_stride_per_key(self) -> bool:
        """Say whether the keys have batches of their own sizes."""
        return self.bags.strides_per_rank is not None

    def stride(self) -> int:
        """Return the size of the batch, B.

        With a variable batch per key: the size of the full batch if inverse indices tell it, or else of the largest.
        """
        return self.bags.stride()

    def stride_per_key(self) -> list[int]:
        """Return the size of each key's batch."""
        return self.bags.stride_per_key()

    def stride_per_key_per_rank(self) -> list[list[int]]:
        """Return the size of each key's batch on each rank, ``[F][W]``; empty unless the batch varies by key."""
        return self.bags.stride_per_key_per_rank()

    def inverse_indices(self) -> Inverse:
        """Return, for each key, which of its samples stands at each place of the full batch.

        Returns:
            The keys, and a tensor ``[F, B]`` of positions in each key's own batch.

        Raises:
            ValueError: there are none.
        """
        return self.bags.require_inverse()

    def inverse_indices_or_none(self) -> Inverse | None:
        """Return the inverse indices, or None."""
        return self.bags.inverse_indices

    def index_per_key(self) -> dict[str, int]:
        """Return the position of each key."""
        return self.bags.index_per_key()

    def length_per_key(self) -> list[int]:
        """Return the number of values of each key. On an accelerator this waits for the lengths, once."""
        return self.bags.length_per_key()

    def length_per_key_or_none(self) -> list[int] | None:
        """Return the number of values of each key if it is known on the host, or None."""
        return self.bags.length_per_key_or_none()

    def offset_per_key(self) -> list[int]:
        """Return where each key starts in the values, and the end of the last."""
        return self.bags.offset_per_key()

    def offset_per_key_or_none(self) -> list[int] | None:
        """Return where each key starts in the values if it is known on the host, or None."""
        return self.bags.offset_per_key_or_none()

    def lengths_offset_per_key(self) -> list[int]:
        """Return where each key starts in the lengths, and the end of the last."""
        return self.bags.lengths_offset_per_key()

    def sync(self) -> KeyedJaggedTensor:
        """Bring the numbers of each key to the host, so that nothing waits for them later, and return this."""
        self.bags.sync()
        return self

    def unsync(self) -> KeyedJaggedTensor:
        """Forget the numbers of each key that were computed from the lengths, and return this."""
        self.bags.unsync()
        return self

    def size_in_bytes(self) -> int:
        """Return the size of the tensors held, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.bags.tensors())

    def __str__(self) -> str:
        return keyed_jagged_text(self.bags)

    # ---- by key

    def __getitem__(self, key: str) -> JaggedTensor:
        return _select.one_key(self.bags, key) if self._jt_dict is None else self._jt_dict[key]

    def to_dict(self, compute_offsets: bool = True) -> dict[str, JaggedTensor]:
        """Return one JaggedTensor a key: views of this one's tensors.

        Args:
            compute_offsets: without effect here: the offsets of each are computed when they are asked for.

        Example:
            >>> kjt = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]})
            >>> kjt.to_dict()["b"].to_dense()
            [tensor([], dtype=torch.int64), tensor([4])]
        """
        return _select.by_key(self.bags) if self._jt_dict is None else self._jt_dict

    def split(self, segments: list[int]) -> list[KeyedJaggedTensor]:
        """Cut the keys into runs of ``segments[i]`` keys: views of this one's tensors.

        Args:
            segments: number of keys of each part, 0 or more; together all keys.

        Raises:
            ValueError: segments do not sum to the number of keys.

        Example:
            >>> kjt = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]})
            >>> [part.keys() for part in kjt.split([1, 0, 1])]
            [['a'], [], ['b']]
        """
        return [keyed_jagged(bags) for bags in _select.split(self.bags, segments)]

    def permute(
        self, indices: list[int], indices_tensor: Tensor | None = None
    ) -> KeyedJaggedTensor:
        """Take keys by position, in the order given; a key may be left out or taken several times.

        Args:
            indices: positions of the keys.
            indices_tensor: the same as a tensor; without effect here.

        Raises:
            IndexError: there is no key at a position.

        Example:
            >>> kjt = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]})
            >>> kjt.permute([1, 0]).to_lists()
            {'b': [[], [4]], 'a': [[1], [2, 3]]}
        """
        return keyed_jagged(_select.permute(self.bags, indices))

    def expand_inverse(self) -> KeyedJaggedTensor:
        """Gather every key to the full batch by its inverse indices, so that an ordinary look-up can follow.

        Returns:
            One with a batch of one size for all keys, and without inverse indices.

        Raises:
            ValueError: there are no inverse indices.

        Example:
            >>> kjt = KeyedJaggedTensor(
            ...     ["a", "b"],
            ...     torch.tensor([5, 6, 7]),
            ...     lengths=torch.tensor([1, 1, 1]),
            ...     stride_per_key_per_rank=[[2], [1]],
            ...     inverse_indices=(["a", "b"], torch.tensor([[0, 1, 0], [0, 0, 0]])),
            ... )
            >>> kjt.expand_inverse().to_lists()
            {'a': [[5], [6], [5]], 'b': [[7], [7], [7]]}
        """
        return keyed_jagged(_select.expand_inverse(self.bags))

    # ---- the same bags with other tensors, here or elsewhere

    def with_values(self, values: Tensor) -> KeyedJaggedTensor:
        """Return the same bags with other values, as many, in the same order.

        Example:
            >>> KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]]}).with_values(torch.tensor([7, 8, 9])).to_lists()
            {'a': [[7], [8, 9]]}
        """
        return keyed_jagged(self.bags.replace(values, self.bags.weights))

    def with_weights(self, weights: Tensor) -> KeyedJaggedTensor:
        """Return the same bags with other weights, ``[N]``."""
        return keyed_jagged(self.bags.replace(self.bags.values, weights))

    def flatten_lengths(self) -> KeyedJaggedTensor:
        """Return this with one-dimensional lengths. They always are, so it is the same under a new object."""
        return keyed_jagged(self.bags.map(lambda tensor: tensor))

    def to(
        self, device: torch.device, non_blocking: bool = False, dtype: torch.dtype | None = None
    ) -> KeyedJaggedTensor:
        """Return this on ``device``, with what is known on the host.

        Args:
            device: target device.
            non_blocking: copy without waiting where memory is pinned. Default False.
            dtype: of the weights. Values are ids and keep theirs. Default: as it is.
        """
        device = checked_device(device)
        bags = self.bags.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if dtype is not None:
            require_type(dtype, "`dtype`", torch.dtype)
            if bags.weights is not None:
                bags = bags.replace(bags.values, bags.weights.to(dtype))
        return keyed_jagged(bags)

    def pin_memory(self) -> KeyedJaggedTensor:
        """Return this in pinned memory, from which copies to an accelerator need not wait."""
        return keyed_jagged(self.bags.map(lambda tensor: tensor.pin_memory()))

    def copy_(self, kjt: KeyedJaggedTensor, non_blocking: bool = False) -> KeyedJaggedTensor:
        """Copy another of the same keys and sizes into this one's tensors, and return this.

        Args:
            kjt: what to copy.
            non_blocking: copy without waiting where memory is pinned. Default False.

        Raises:
            ValueError: keys or sizes differ.
        """
        require_type(kjt, "`kjt`", KeyedJaggedTensor)
        self.bags.copy_(kjt.bags, non_blocking)
        return self

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until the work queued on ``stream`` is done."""
        for tensor in self.bags.tensors():
            tensor.record_stream(stream)

    def clear_storage(self) -> int:
        """Free the memory of every tensor, views of it included, and return how many bytes that was."""
        return self.bags.clear_storage()

    def __getstate__(self) -> dict[str, object]:
        """Return the parts by their names in saved files; a shallow copy shares tensors, but no caches."""
        state = self.bags.state()
        return state if self._jt_dict is None else {**state, "_jt_dict": self._jt_dict}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take in what ``__getstate__`` returned."""
        self.bags = KeyedBags.from_state(state)
        self._jt_dict = state.get("_jt_dict")

    # ---- between ranks

    def dist_labels(self) -> list[str]:
        """Name what is sent between ranks, in order."""
        return list(_exchange.sent(self.bags))

    def dist_tensors(self) -> list[Tensor]:
        """Return the tensors that are sent between ranks, in the order of ``dist_labels``."""
        return list(_exchange.sent(self.bags).values())

    def dist_splits(self, key_splits: list[int]) -> list[list[int]]:
        """Return how many rows of each tensor go to each rank, in the order of ``dist_labels``.

        Args:
            key_splits: number of keys that go to each rank.

        Raises:
            ValueError: they do not sum to the number of keys.

        Example:
            >>> KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]}).dist_splits([1, 1])
            [[2, 2], [3, 1]]
        """
        return _exchange.splits(self.bags, key_splits)

    @staticmethod
    def dist_init(
        keys: list[str],
        tensors: list[Tensor],
        variable_stride_per_key: bool,
        num_workers: int,
        recat: Tensor | None,
        stride_per_rank: list[int] | None,
        stagger: int = 1,
    ) -> KeyedJaggedTensor:
        """Put together what was received from the ranks.

        Args:
            keys: the F keys that this rank has now.
            tensors: in the order of ``dist_labels``, each the parts of all W ranks one after another.
            variable_stride_per_key: whether the batch sizes vary by key.
            num_workers: number of ranks, W.
            recat: positions ``[W * F]`` of the blocks (one rank's bags of one key) in the order they shall stand in, or
                of all single bags. Default: key after key, rank after rank within a key.
            stride_per_rank: size of each rank's batch, unless they vary by key.
            stagger: number of nodes that the ranks came from in turns. Default 1.

        Raises:
            ValueError: tensors, sizes or positions do not fit one another.

        Example:
            >>> from_two_ranks = [torch.tensor([1, 1, 0, 2]), torch.tensor([5, 6, 7, 8])]
            >>> KeyedJaggedTensor.dist_init(["a", "b"], from_two_ranks, False, 2, None, [1, 1]).to_lists()
            {'a': [[5], []], 'b': [[6], [7, 8]]}
        """
        varies = variable_stride_per_key
        received = _exchange.Received(keys, tensors, varies, num_workers, stride_per_rank)
        values, weights, lengths = received.reorder(recat, stagger)
        strides = received.strides_per_rank(stagger) if varies else None
        return KeyedJaggedTensor(keys, values, weights, lengths, stride_per_key_per_rank=strides)


def keyed_jagged(bags: KeyedBags) -> KeyedJaggedTensor:
    """Make a KeyedJaggedTensor of a record that needs no check."""
    kjt = object.__new__(KeyedJaggedTensor)
    kjt.bags = bags
    return kjt


def _concat(kjt_list: list[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    if type(kjt_list) is not list:
        require_list(kjt_list, "`kjt_list`", KeyedJaggedTensor)
    every = [kjt.bags for kjt in kjt_list if isinstance(kjt, KeyedJaggedTensor)]
    if len(every) != len(kjt_list):
        require_list(kjt_list, "`kjt_list`", KeyedJaggedTensor)
    return keyed_jagged(_join.concat(every))


def _empty_like(kjt: KeyedJaggedTensor, device: torch.device | None) -> KeyedJaggedTensor:
    require_type(kjt, "`kjt`", KeyedJaggedTensor)
    like = keyed_jagged(kjt.bags.emptied())
    return like if device is None else like.to(device)


for _name in ("_concat", "_empty_like", "keyed_jagged"):
    torch.fx.wrap(_name)  # tracers record calls of these
KeyedJaggedTensor.__module__ = "torchrec.sparse.jagged_tensor"
