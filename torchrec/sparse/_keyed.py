"""KeyedTensor: one dense tensor for each key, side by side in one."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.checks import checked_device, require_integer, require_list, require_type
from torchrec.fx.proxies import Recordable
from torchrec.ops.permute import regroup
from torchrec.sparse._checks import checked_keys
from torchrec.sparse._meta import JaggedTensorMeta
from torchrec.sparse._text import keyed_text
from torchrec.streamable import Pipelineable


class KeyedTensor(Recordable, Pipelineable, metaclass=JaggedTensorMeta):
    """Dense tensors by key, joined along one dimension: the pooled embeddings of a batch.

    Args:
        keys: F keys.
        length_per_key: size of each key's tensor along ``key_dim``.
        values: the tensors, joined along ``key_dim``; as a rule ``[B, sum of length_per_key]``.
        key_dim: the dimension along which they are joined. Default 1.
        offset_per_key: where each key starts along ``key_dim``, and the end of the last; computed if not given.
        index_per_key: position of each key; computed if not given.

    Raises:
        ValueError: lengths do not fit the keys or the values.

    Example:
        >>> kt = KeyedTensor(["user", "item"], [1, 2], torch.tensor([[1.0, 2.0, 3.0]]))
        >>> kt["item"]
        tensor([[2., 3.]])
        >>> kt.offset_per_key()
        [0, 1, 3]
        >>> print(kt)
        KeyedTensor({
            "user": [[1.0]],
            "item": [[2.0, 3.0]]
        })
        <BLANKLINE>
    """

    def __init__(
        self,
        keys: list[str],
        length_per_key: list[int],
        values: Tensor,
        key_dim: int = 1,
        offset_per_key: list[int] | None = None,
        index_per_key: dict[str, int] | None = None,
    ) -> None:
        self._keys = keys
        self._length_per_key = length_per_key
        self._values = values
        self._key_dim = key_dim
        self._offset_per_key = offset_per_key
        self._index_per_key = index_per_key
        # Fake tensors are left alone: a comparison of their sizes would bind them.
        if not is_compiling() and (type(values) is Tensor or not isinstance(values, Tensor)):
            try:
                _check(keys, length_per_key, values, key_dim, offset_per_key)
                if index_per_key is None:
                    # The quickest way to see that all are strings.
                    "".join(keys if type(keys) is list else checked_keys(keys))
                else:
                    _check_index(keys, index_per_key)
            except (TypeError, ValueError, RuntimeError):
                if self._become_recorded(locals()):
                    return
                _check_types(keys, length_per_key, key_dim, offset_per_key)
                raise

    @staticmethod
    def from_tensor_list(
        keys: list[str], tensors: list[Tensor], key_dim: int = 1, cat_dim: int = 1
    ) -> KeyedTensor:
        """Join one tensor a key.

        Args:
            keys: F keys.
            tensors: one tensor a key, alike in every dimension but ``key_dim``.
            key_dim: the dimension whose size is the key's length. Default 1.
            cat_dim: the dimension along which they are joined; the same. Default 1.

        Example:
            >>> kt = KeyedTensor.from_tensor_list(["a", "b"], [torch.ones(2, 1), torch.zeros(2, 3)])
            >>> kt.length_per_key()
            [1, 3]
        """
        return _from_tensor_list(keys, tensors, key_dim, cat_dim)

    def keys(self) -> list[str]:
        """Return the keys."""
        return self._keys

    def values(self) -> Tensor:
        """Return the joined tensors."""
        return self._values

    def key_dim(self) -> int:
        """Return the dimension along which the tensors are joined."""
        return self._key_dim

    def device(self) -> torch.device:
        """Return the device of the values."""
        return self._values.device

    def length_per_key(self) -> list[int]:
        """Return the size of each key's tensor along ``key_dim``."""
        return self._length_per_key

    def offset_per_key(self) -> list[int]:
        """Return where each key starts along ``key_dim``, and the end of the last: a list, not a tensor."""
        offsets = self._offset_per_key
        if offsets is None:
            offsets = list(accumulate(self._length_per_key, initial=0))
            if not is_compiling():
                self._offset_per_key = offsets
        return offsets

    def index_per_key(self) -> dict[str, int]:
        """Return the position of each key.

        Raises:
            ValueError: a key stands twice.
        """
        index = self._index_per_key
        if index is None:
            index = {key: i for i, key in enumerate(self._keys)}
            if len(index) != len(self._keys):
                raise ValueError(
                    f"`keys` should be distinct to be told apart. Received {self._keys}."
                )
            if not is_compiling():
                self._index_per_key = index
        return index

    def to_dict(self) -> dict[str, Tensor]:
        """Return each key's tensor: views of the values.

        Example:
            >>> KeyedTensor(["a", "b"], [1, 2], torch.tensor([[1.0, 2.0, 3.0]])).to_dict()
            {'a': tensor([[1.]]), 'b': tensor([[2., 3.]])}
        """
        if not self._keys:
            return {}
        parts = torch.split_with_sizes(self._values, self._length_per_key, self._key_dim)
        return dict(zip(self.index_per_key(), parts, strict=True))

    def __getitem__(self, key: str) -> Tensor:
        i = self.index_per_key().get(key) if isinstance(key, str) else None
        if i is None:
            raise KeyError(f"Key should be one of {self._keys}. Received {key!r}.")
        start, length = self.offset_per_key()[i], self._length_per_key[i]
        return self._values.narrow(self._key_dim, start, length)

    @staticmethod
    def regroup(keyed_tensors: list[KeyedTensor], groups: list[list[str]]) -> list[Tensor]:
        """Join the tensors of each group of keys, whichever KeyedTensor they are in, in one call. Differentiable.

        Args:
            keyed_tensors: over the same batch; no key of a group in more than one of them.
            groups: keys of each output; a key may stand in several groups.

        Returns:
            One tensor a group, ``[B, sum of its keys' lengths]``.

        Raises:
            KeyError: a key is in none of them.
            ValueError: a key is in several of them, or there are none.

        Example:
            >>> a = KeyedTensor(["a", "b"], [1, 2], torch.tensor([[1.0, 2.0, 3.0]]))
            >>> b = KeyedTensor(["c"], [1], torch.tensor([[4.0]]))
            >>> KeyedTensor.regroup([a, b], [["c", "b"], ["a"]])
            [tensor([[4., 2., 3.]]), tensor([[1.]])]
        """
        return regroup_kts(keyed_tensors, groups)

    @staticmethod
    def regroup_as_dict(
        keyed_tensors: list[KeyedTensor], groups: list[list[str]], keys: list[str]
    ) -> dict[str, Tensor]:
        """Join the tensors of each group of keys, and give each group a name; see ``regroup``.

        Args:
            keyed_tensors: over the same batch.
            groups: keys of each output.
            keys: name of each output.

        Raises:
            ValueError: not one name a group.
        """
        return _regroup_kts_as_dict(keyed_tensors, groups, keys)

    def to(self, device: torch.device, non_blocking: bool = False) -> KeyedTensor:
        """Return this keyed tensor on ``device``; itself if it is there.

        Args:
            device: target device.
            non_blocking: copy without waiting where memory is pinned. Default False.
        """
        return KeyedTensor(
            self._keys,
            self._length_per_key,
            self._values.to(checked_device(device), non_blocking=non_blocking),
            self._key_dim,
            self._offset_per_key,
            self._index_per_key,
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until the work queued on ``stream`` is done."""
        self._values.record_stream(stream)

    def size_in_bytes(self) -> int:
        """Return the size of the values, in bytes."""
        return self._values.numel() * self._values.element_size()

    def __str__(self) -> str:
        return keyed_text(self._keys, self._values, list(self.to_dict().values()))


def keyed_tensor(keys: list[str], length_per_key: list[int], values: Tensor) -> KeyedTensor:
    """Make a KeyedTensor of parts that need no check: a look-up makes one each time."""
    kt = object.__new__(KeyedTensor)
    kt._keys = keys
    kt._length_per_key = length_per_key
    kt._values = values
    kt._key_dim = 1
    kt._offset_per_key = None
    kt._index_per_key = None
    return kt


def _from_tensor_list(
    keys: list[str], tensors: list[Tensor], key_dim: int, cat_dim: int
) -> KeyedTensor:
    keys = checked_keys(keys)
    require_list(tensors, "`tensors`", Tensor)
    for name, dim in (("key_dim", key_dim), ("cat_dim", cat_dim)):
        require_integer(dim, f"`{name}`")
    if len(keys) != len(tensors) or not tensors:
        raise ValueError(
            f"`tensors` should be one a key ({len(keys)}), and at least one. Received {len(tensors)}."
        )
    if key_dim != cat_dim:
        raise ValueError(
            f"`cat_dim` should be `key_dim` ({key_dim}): the keys are told apart along it. "
            f"Received {cat_dim}."
        )
    first = tensors[0]
    if any(_other_sizes(tensor, key_dim) != _other_sizes(first, key_dim) for tensor in tensors):
        raise ValueError(
            f"`tensors` should be alike in every dimension but {key_dim}. "
            f"Received {[list(tensor.shape) for tensor in tensors]}."
        )
    lengths = [tensor.size(key_dim) for tensor in tensors]
    return KeyedTensor(keys, lengths, torch.cat(tensors, cat_dim), key_dim)


def _other_sizes(tensor: Tensor, dim: int) -> list[int]:
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(
            f"`key_dim` should be a dimension of the tensors, shaped {list(tensor.shape)}. Received {dim}."
        )
    sizes = list(tensor.shape)
    del sizes[dim]
    return sizes


def _check(
    keys: list[str],
    lengths: list[int],
    values: Tensor,
    key_dim: int,
    offsets: list[int] | None,
) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"`values` should be a tensor. Received {type(values).__name__}.")
    if not keys and not lengths and values.numel() == 0:
        return  # empty, whatever its dimensions
    if not -values.dim() <= key_dim < values.dim():
        raise ValueError(
            f"`key_dim` should be a dimension of the values, shaped {list(values.shape)}. Received {key_dim}."
        )
    if len(lengths) != len(keys):
        raise ValueError(f"`length_per_key` should be one a key ({len(keys)}). Received {lengths}.")
    total = values.size(key_dim)
    given = sum(lengths)
    if type(given) is not int and not isinstance(given, int | torch.SymInt):
        raise TypeError
    if given != total or min(lengths, default=0) < 0:
        raise ValueError(
            f"`length_per_key` should not be negative and sum to values.size({key_dim}) ({total}). "
            f"Received {lengths}."
        )
    if offsets is not None and list(offsets) != list(accumulate(lengths, initial=0)):
        raise ValueError(
            f"`offset_per_key` should be {list(accumulate(lengths, initial=0))}. Received {offsets}."
        )


def _check_index(keys: list[str], index: dict[str, int]) -> None:
    require_type(index, "`index_per_key`", dict)
    if index != {key: i for i, key in enumerate(keys)}:
        raise ValueError(
            f"`index_per_key` should be the position of each of `keys`, {keys}. Received {index}."
        )


def _check_types(
    keys: list[str], lengths: list[int], key_dim: int, offsets: list[int] | None
) -> None:
    """Say which argument is of a wrong type. That is asked only where something failed: every look-up builds one."""
    checked_keys(keys)
    require_list(lengths, "`length_per_key`", int)
    require_integer(key_dim, "`key_dim`")
    if offsets is not None:
        require_list(offsets, "`offset_per_key`", int)


def _check_groups(groups: list[list[str]]) -> None:
    require_list(groups, "`groups`", object)
    for number, group in enumerate(groups):
        require_list(group, f"`groups`, number {number},", str)


def regroup_kts(keyed_tensors: list[KeyedTensor], groups: list[list[str]]) -> list[Tensor]:
    """Join the tensors of each group of keys; see ``KeyedTensor.regroup``."""
    return _regroup_kts(keyed_tensors, groups)


def _regroup_kts(keyed_tensors: list[KeyedTensor], groups: list[list[str]]) -> list[Tensor]:
    _require_keyed_tensors(keyed_tensors)
    keyed_tensors = [kt for kt in keyed_tensors if kt._keys] or keyed_tensors[:1]
    try:
        pieces = _pieces_of(keyed_tensors, groups)
    except TypeError:
        _check_groups(groups)
        raise
    counts = [len(group) for group in groups]
    inputs = [kt._values for kt in keyed_tensors]
    if _are_matrices(keyed_tensors):
        return regroup(inputs, pieces, counts)
    return _regroup_by_cat(inputs, keyed_tensors[0]._key_dim, pieces, counts)


def _pieces_of(keyed_tensors: list[KeyedTensor], groups: list[list[str]]) -> list[int]:
    """Return (keyed tensor, first column, number of columns) of each key, one behind the other."""
    indices = [kt.index_per_key() for kt in keyed_tensors]
    pieces: list[int] = []
    for group in groups:
        for key in group:
            source = -1
            for i, index in enumerate(indices):
                if key in index:
                    if source >= 0:
                        raise ValueError(
                            f"Key '{key}' should be in one of the keyed tensors. "
                            f"Received it in numbers {source} and {i}."
                        )
                    source = i
            if source < 0:
                raise KeyError(
                    f"Key should be one of {[kt._keys for kt in keyed_tensors]}. Received {key!r}."
                )
            kt = keyed_tensors[source]
            at = indices[source][key]
            pieces += (source, kt.offset_per_key()[at], kt._length_per_key[at])
    return pieces


def _require_keyed_tensors(keyed_tensors: list[KeyedTensor]) -> None:
    require_list(keyed_tensors, "`keyed_tensors`", KeyedTensor)
    if not keyed_tensors:
        raise ValueError("`keyed_tensors` should hold at least one KeyedTensor. Received none.")


def _regroup_kts_as_dict(
    keyed_tensors: list[KeyedTensor], groups: list[list[str]], keys: list[str]
) -> dict[str, Tensor]:
    """Join the tensors of each group of keys, and name them; see ``KeyedTensor.regroup_as_dict``."""
    keys = checked_keys(keys)
    require_list(groups, "`groups`", object)
    if len(groups) != len(keys):
        raise ValueError(f"`keys` should be one a group ({len(groups)}). Received {len(keys)}.")
    return dict(zip(keys, regroup_kts(keyed_tensors, groups), strict=True))


def _are_matrices(keyed_tensors: list[KeyedTensor]) -> bool:
    first = keyed_tensors[0]._values
    dtype = first.dtype
    for kt in keyed_tensors:
        values = kt._values
        if values.dim() != 2 or kt._key_dim != 1 or values.dtype is not dtype:
            return False
    return True


def _regroup_by_cat(
    inputs: list[Tensor], dim: int, pieces: list[int], counts: list[int]
) -> list[Tensor]:
    """Regroup tensors of any number of dimensions, and of dtypes that differ (the wider one wins)."""
    parts = [
        inputs[pieces[i]].narrow(dim, pieces[i + 1], pieces[i + 2])
        for i in range(0, len(pieces), 3)
    ]
    bounds = list(accumulate(counts, initial=0))
    return [
        torch.cat(parts[a:b], dim) if a < b else inputs[0].narrow(dim, 0, 0)
        for a, b in pairwise(bounds)
    ]


def permute_multi_embedding(
    keyed_tensors: list[KeyedTensor], groups: list[list[str]]
) -> list[Tensor]:
    """Join the tensors of each group of keys; see ``KeyedTensor.regroup``."""
    return regroup_kts(keyed_tensors, groups)


def make_keyed_tensor(
    keys: list[str], length_per_key: list[int], values: Tensor, key_dim: int
) -> KeyedTensor:
    """Make a KeyedTensor of parts that need no check."""
    kt = object.__new__(KeyedTensor)
    kt._keys = keys
    kt._length_per_key = length_per_key
    kt._values = values
    kt._key_dim = key_dim
    kt._offset_per_key = kt._index_per_key = None
    return kt


for _name in ("_from_tensor_list", "_regroup_kts", "_regroup_kts_as_dict"):
    torch.fx.wrap(_name)  # tracers record calls of these
KeyedTensor.__module__ = "torchrec.sparse.jagged_tensor"
