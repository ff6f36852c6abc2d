"""From the rows that a sequence look-up returns to one JaggedTensor an embedding name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec.ops.jagged import jagged_index_select
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.streamable import Multistreamable


@dataclass
class SequenceVBEContext(Multistreamable):
    """How the rows of features with batches of their own sizes spread over the full batch.

    Attributes:
        recat: ``(F * B,)`` integers: for each bag of the full batch, feature after feature, the bag
            that was looked up for it.
        unpadded_lengths: integers: length of each bag that was looked up.
        reindexed_lengths: ``(F, B)`` or ``(F * B,)`` integers: length of each bag of the full
            batch.
        reindexed_length_per_key: sum of the lengths of each feature in the full batch.
        reindexed_values: ids of the full batch, wanted where indices are returned. Default None.
    """

    recat: Tensor
    unpadded_lengths: Tensor
    reindexed_lengths: Tensor
    reindexed_length_per_key: list[int]
    reindexed_values: Tensor | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done."""
        for tensor in (
            self.recat,
            self.unpadded_lengths,
            self.reindexed_lengths,
            self.reindexed_values,
        ):
            if tensor is not None:
                tensor.record_stream(stream)


@dataclass(frozen=True)
class _Bags:
    """The bags that rows belong to, by feature: what all outputs are cut from."""

    lengths: Sequence[Tensor]
    values: Tensor | None
    length_per_key: Sequence[int]


def construct_jagged_tensors(
    embeddings: Tensor,
    features: KeyedJaggedTensor,
    embedding_names: Sequence[str],
    need_indices: bool = False,
    features_to_permute_indices: Mapping[str, Sequence[int]] | None = None,
    original_features: KeyedJaggedTensor | None = None,
    reverse_indices: Tensor | None = None,
    seq_vbe_ctx: SequenceVBEContext | None = None,
    use_gather_select: bool = False,
) -> dict[str, JaggedTensor]:
    """Cut the rows of a sequence look-up into one JaggedTensor an embedding name.

    Args:
        embeddings: ``(N, D)`` rows, in the order of the ids of ``features``.
        features: the ids that were looked up.
        embedding_names: name of the output of each key. A name that several keys share (the columns
            of one table, split over several shards) gets their rows side by side.
        need_indices: return the ids too, as the weights of the outputs. Default False.
        features_to_permute_indices: by shared name, which of its keys comes first, second, ...
            Default: their order.
        original_features: the ids before duplicates were taken out; with ``reverse_indices``.
            Default ``features``.
        reverse_indices: ``(N',)`` integers: the row of each id of ``original_features``. Default:
            row by row.
        seq_vbe_ctx: how bags spread over the full batch, for features with batches of their own
            sizes.
        use_gather_select: taken for compatibility; the result is the same, and so is the way to it.

    Returns:
        JaggedTensors of embeddings ``(N_key, D)`` by name, in the order of the names.

    Raises:
        ValueError: names, rows, ids and lengths do not fit each other.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import construct_jagged_tensors
        >>> from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
        >>> features = KeyedJaggedTensor(
        ...     keys=["movie", "user"],
        ...     values=torch.tensor([7, 8, 9]),
        ...     lengths=torch.tensor([2, 0, 0, 1]),
        ... )
        >>> rows = torch.tensor([[0.7, 0.0], [0.8, 0.0], [0.9, 0.0]])
        >>> out = construct_jagged_tensors(rows, features, ["movie", "user"], need_indices=True)
        >>> out["movie"].lengths(), out["movie"].weights()
        (tensor([2, 0]), tensor([7, 8]))
    """
    if reverse_indices is not None:
        embeddings = embeddings.index_select(0, reverse_indices)
    if seq_vbe_ctx is not None:
        total = sum(seq_vbe_ctx.reindexed_length_per_key)
        lengths, recat = seq_vbe_ctx.unpadded_lengths, seq_vbe_ctx.recat
        embeddings, _ = jagged_index_select(embeddings, lengths, recat, total)
        bags = _Bags(
            seq_vbe_ctx.reindexed_lengths.reshape(len(embedding_names), -1).unbind(),
            seq_vbe_ctx.reindexed_values,
            seq_vbe_ctx.reindexed_length_per_key,
        )
    else:
        original = features if original_features is None else original_features
        bags = _Bags(
            original.lengths().split(original.stride_per_key()),
            original.values(),
            original.length_per_key(),
        )
    return _by_name(embeddings, bags, embedding_names, need_indices, features_to_permute_indices)


def construct_jagged_tensors_inference(
    embeddings: Tensor,
    lengths: Tensor,
    values: Tensor,
    embedding_names: Sequence[str],
    need_indices: bool = False,
    features_to_permute_indices: Mapping[str, Sequence[int]] | None = None,
    reverse_indices: Tensor | None = None,
    remove_padding: bool = False,
) -> dict[str, JaggedTensor]:
    """Cut the rows of a sequence look-up by embedding name, from plain tensors.

    On an accelerator this waits for the sums of the lengths.

    Args:
        embeddings: ``(N, D)`` rows, in the order of ``values``.
        lengths: ``(F, B)`` or ``(F * B,)`` integers: number of ids of each bag, feature after
            feature.
        values: ``(N,)`` integer ids.
        embedding_names: name of the output of each feature (see ``construct_jagged_tensors``).
        need_indices: return the ids too, as the weights of the outputs. Default False.
        features_to_permute_indices: by shared name, which of its features comes first, second, ...
            Default: their order.
        reverse_indices: ``(N,)`` integers: the row of each id. Default: row by row.
        remove_padding: leave out rows and ids behind those that ``lengths`` count. Default False:
            raise.

    Returns:
        JaggedTensors of embeddings ``(N_key, D)`` by name, in the order of the names.

    Raises:
        ValueError: names, rows, ids and lengths do not fit each other.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import construct_jagged_tensors_inference
        >>> out = construct_jagged_tensors_inference(
        ...     torch.tensor([[0.7], [0.8], [0.9]]),
        ...     torch.tensor([[2, 0], [0, 1]]),
        ...     torch.tensor([7, 8, 9]),
        ...     ["movie", "user"],
        ... )
        >>> out["user"].values(), out["user"].lengths()
        (tensor([[0.9000]]), tensor([0, 1]))
    """
    if reverse_indices is not None:
        embeddings = embeddings.index_select(0, reverse_indices)
    lengths = lengths.reshape(len(embedding_names), -1)
    length_per_key = lengths.sum(1).tolist()
    if remove_padding:
        embeddings, values = embeddings[: sum(length_per_key)], values[: sum(length_per_key)]
    bags = _Bags(lengths.unbind(), values, length_per_key)
    return _by_name(embeddings, bags, embedding_names, need_indices, features_to_permute_indices)


def _by_name(
    embeddings: Tensor,
    bags: _Bags,
    names: Sequence[str],
    need_indices: bool,
    column_order: Mapping[str, Sequence[int]] | None,
) -> dict[str, JaggedTensor]:
    """Cut rows (and ids) by feature and join the features that share a name."""
    if len(names) != len(bags.length_per_key):
        raise ValueError(
            f"`embedding_names` should have one name for each of the {len(bags.length_per_key)} "
            f"features. Received {list(names)}."
        )
    if embeddings.shape[0] != sum(bags.length_per_key):
        raise ValueError(
            f"`embeddings` should have one row for each of the {sum(bags.length_per_key)} ids of "
            f"features {list(names)}. Received {tuple(embeddings.shape)}."
        )
    if need_indices and bags.values is None:
        raise ValueError(
            "`seq_vbe_ctx.reindexed_values` should be given with `need_indices`. Received None."
        )
    rows = embeddings.split(list(bags.length_per_key))
    ids = (
        bags.values.split(list(bags.length_per_key))
        if need_indices and bags.values is not None
        else None
    )
    keys_of: dict[str, list[int]] = {}
    for key, name in enumerate(names):
        keys_of.setdefault(name, []).append(key)
    outputs = {}
    for name, keys in keys_of.items():
        pieces = [rows[key] for key in _ordered(name, keys, column_order)]
        outputs[name] = JaggedTensor(
            pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1),
            weights=None if ids is None else ids[keys[0]],
            lengths=bags.lengths[keys[0]],
        )
    return outputs


def _ordered(
    name: str, keys: list[int], column_order: Mapping[str, Sequence[int]] | None
) -> list[int]:
    """Return the features of one name in the order of their columns."""
    order = None if column_order is None else column_order.get(name)
    if order is None:
        return keys
    if sorted(order) != list(range(len(keys))):
        raise ValueError(
            f"`features_to_permute_indices` of '{name}' should order its {len(keys)} features. "
            f"Received {list(order)}."
        )
    return [keys[i] for i in order]


def jagged_index_select_with_empty(
    values: Tensor, ids: Tensor, offsets: Tensor, output_offsets: Tensor
) -> Tensor:
    """Take bags of a jagged tensor by position; there may be none to take.

    Args:
        values: ``(N, *)`` rows of all bags.
        ids: ``(M,)`` integers: the bags to take.
        offsets: ``(B,)`` integers: where each bag ends in ``values``.
        output_offsets: ``(M,)`` integers: where each bag that is taken ends in the output.

    Returns:
        The rows of the bags taken, ``(output_offsets[-1], *)``.

    Raises:
        ValueError: ``output_offsets`` are not as many as ``ids``.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import jagged_index_select_with_empty
        >>> jagged_index_select_with_empty(
        ...     torch.tensor([10, 20, 21, 30]),
        ...     ids=torch.tensor([2, 1]),
        ...     offsets=torch.tensor([1, 3, 4]),
        ...     output_offsets=torch.tensor([1, 3]),
        ... )
        tensor([30, 20, 21])
    """
    if ids.shape != output_offsets.shape:
        raise ValueError(
            f"`output_offsets` should have shape {tuple(ids.shape)}, as `ids`. "
            f"Received {tuple(output_offsets.shape)}."
        )
    if not ids.numel():
        return values[:0]
    lengths = offsets.diff(prepend=offsets.new_zeros(1))
    selected, _ = jagged_index_select(values, lengths, ids, int(output_offsets[-1]))
    return selected


def deterministic_dedup(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ids, and for each the last place where it stands.

    The last one wins where several writes go to one id. The result does not depend on thread
    timing.

    Args:
        ids: ``(N,)`` integers.

    Returns:
        The distinct ids in ascending order, and their last positions in ``ids``, both
        ``(unique,)``.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import deterministic_dedup
        >>> deterministic_dedup(torch.tensor([5, 3, 5, 1]))
        (tensor([1, 3, 5]), tensor([3, 1, 2]))
    """
    in_order, positions = ids.sort(stable=True)
    last = torch.ones_like(in_order, dtype=torch.bool)
    last[:-1] = in_order[1:] != in_order[:-1]
    return in_order[last], positions[last]
