"""The parts of a tensor that one rank has, as the local tensor of a `DTensor`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from torchrec.distributed._private import ALL_GATHER, TO_COPY, WAIT, shell_of

__all__ = ["LocalShardsWrapper"]


class LocalShardsWrapper(Tensor):
    """Some parts of a tensor: what ``to_local()`` of a `DTensor` gives whose parts PyTorch could not have cut.

    PyTorch cuts a dimension into equal pieces, one a rank; a plan may give a rank several parts, of any
    sizes, or none. With this as its local tensor a `DTensor` says where its parts are, and is saved and
    loaded by `torch.distributed.checkpoint`. Nothing is computed with it: that would take the parts for
    PyTorch's pieces. In the state of a sharded model, ``full_tensor()`` of the `DTensor` gives the whole.

    Args:
        local_shards: the parts, of one type and device.
        local_offsets: where in the whole each begins.

    Example:
        >>> wrapper = LocalShardsWrapper([torch.ones(4, 2), torch.ones(4, 2)], [(0, 0), (0, 6)])
        >>> wrapper.shape, wrapper.local_offsets(), wrapper.is_empty_shard()
        (torch.Size([4, 4]), [torch.Size([0, 0]), torch.Size([0, 6])], False)
    """

    _local_shards: list[Tensor]
    _storage_meta: TensorStorageMetadata

    @staticmethod
    def __new__(
        cls, local_shards: list[Tensor], local_offsets: Sequence[Sequence[int]]
    ) -> LocalShardsWrapper:
        """Return the parts as one tensor: of columns side by side, of vectors one behind the other."""
        if len(local_shards) != len(local_offsets):
            raise ValueError(
                f"`local_offsets` should be one for each of the {len(local_shards)} shards. "
                f"Received {len(local_offsets)}."
            )
        like = local_shards[0] if local_shards else torch.empty(0, 0)
        size = list(like.shape)
        if local_shards:
            size[-1] = sum(shard.shape[-1] for shard in local_shards)
        wrapper = shell_of(cls, like, torch.Size(size))
        chunks = [
            ChunkStorageMetadata(torch.Size(offsets), shard.shape)
            for shard, offsets in zip(local_shards, local_offsets, strict=True)
        ]
        wrapper._local_shards = list(local_shards)
        wrapper._storage_meta = TensorStorageMetadata(
            TensorProperties.create_from_tensor(like), torch.Size(size), chunks
        )
        return wrapper

    def local_shards(self) -> list[Tensor]:
        """Return the parts; none if the rank has none."""
        return self._local_shards

    def local_sizes(self) -> list[torch.Size]:
        """Return the size of each part."""
        return [chunk.sizes for chunk in self.local_chunks]

    def local_offsets(self) -> list[torch.Size]:
        """Return where in the whole each part begins."""
        return [chunk.offsets for chunk in self.local_chunks]

    @property
    def local_chunks(self) -> list[ChunkStorageMetadata]:
        """Offsets and sizes of the parts."""
        return self._storage_meta.chunks

    def storage_metadata(self) -> TensorStorageMetadata:
        """Return what is known of the parts beside their values."""
        return self._storage_meta

    def is_empty_shard(self) -> bool:
        """Whether this rank has no part."""
        return not self._local_shards

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the parts are; ``meta`` if there is none."""
        return self._local_shards[0].device if self._local_shards else torch.device("meta")

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """Whether the parts have no memory."""
        return self.device.type == "meta"

    def is_pinned(self) -> bool:  # type: ignore[override]
        """Whether the parts are in pinned memory."""
        return any(shard.is_pinned() for shard in self._local_shards)

    def requires_grad_(self, requires_grad: bool = True) -> LocalShardsWrapper:
        """Have the parts require gradients, or not.

        Args:
            requires_grad: whether they do.
        """
        for shard in self._local_shards:
            shard.requires_grad_(requires_grad)
        return self

    def _map(self, function: Callable[[Tensor], Tensor]) -> LocalShardsWrapper:
        return LocalShardsWrapper(list(map(function, self._local_shards)), self.local_offsets())

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do with each part what keeps sizes."""
        aten = torch.ops.aten
        handlers = {
            aten.clone.default: cls.handle_clone,
            aten.copy_.default: cls.handle_copy_,
            aten.detach.default: cls.handle_detach,
            aten.empty_like.default: cls.handle_empty_like,
            aten.equal.default: cls.handle_equal,
            aten.new_empty.default: cls.handle_new_empty,
            TO_COPY: cls.handle_to_copy,
            aten.view.default: cls.handle_view,
            aten.view_as.default: cls.handle_view_as,
            aten.zeros_like.default: cls.handle_zeros_like,
            ALL_GATHER: cls.handle_all_gather_into_tensor,
            WAIT: cls.handle_wait_tensor,
        }
        if func not in handlers:
            raise TypeError(
                f"{func.__name__} should be given the parts of a LocalShardsWrapper, `local_shards()`. "
                "Received the wrapper."
            )
        return handlers[func](args, dict(kwargs or {}))

    # Each takes the arguments of an operator, the first of which is a wrapper.

    @staticmethod
    def _of(args: tuple[Any, ...]) -> LocalShardsWrapper:
        wrapper: LocalShardsWrapper = args[0]
        return wrapper

    @staticmethod
    def handle_clone(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Return copies of the parts."""
        return LocalShardsWrapper._of(args)._map(lambda shard: torch.clone(shard, **kwargs))

    @staticmethod
    def handle_copy_(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Write the parts of another wrapper, which has the same ones, into these."""
        own, other = LocalShardsWrapper._of(args), args[1]
        if not isinstance(other, LocalShardsWrapper) or other.local_chunks != own.local_chunks:
            raise ValueError(
                "A LocalShardsWrapper should be given one with parts of the same places. Received "
                f"{other.local_chunks if isinstance(other, LocalShardsWrapper) else type(other).__name__}."
            )
        for shard, source in zip(own.local_shards(), other.local_shards(), strict=True):
            shard.copy_(source)
        return own

    @staticmethod
    def handle_detach(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Return the parts, in the same memory, out of the graph."""
        return LocalShardsWrapper._of(args)._map(torch.detach)

    @staticmethod
    def handle_empty_like(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Return parts of the same places, not filled."""
        return LocalShardsWrapper._of(args)._map(lambda shard: torch.empty_like(shard, **kwargs))

    @staticmethod
    def handle_zeros_like(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Return parts of the same places, of zeros."""
        return LocalShardsWrapper._of(args)._map(lambda shard: torch.zeros_like(shard, **kwargs))

    @staticmethod
    def handle_new_empty(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Return parts of the same places, not filled: of no other sizes."""
        if tuple(args[1]) != tuple(args[0].shape):
            raise ValueError(
                f"`size` should be that of the parts, {tuple(args[0].shape)}. Received {tuple(args[1])}."
            )
        return LocalShardsWrapper._of(args)._map(lambda shard: torch.empty_like(shard, **kwargs))

    @staticmethod
    def handle_to_copy(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Return copies of the parts of another type, or on another device."""
        return LocalShardsWrapper._of(args)._map(lambda shard: TO_COPY(shard, *args[1:], **kwargs))

    @staticmethod
    def handle_view(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Return the same parts, as which `DTensor` sees them: of no other sizes."""
        if tuple(args[1]) != tuple(args[0].shape):
            raise ValueError(
                f"`size` should be that of the parts, {tuple(args[0].shape)}. Received {tuple(args[1])}."
            )
        return LocalShardsWrapper._of(args)._map(lambda shard: shard.view(shard.shape))

    @staticmethod
    def handle_view_as(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalShardsWrapper:
        """Return the same parts, of the shape of another tensor: of no other sizes."""
        return LocalShardsWrapper.handle_view((args[0], args[1].shape), kwargs)

    @staticmethod
    def handle_equal(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether two wrappers have the same parts at the same places."""
        one, other = LocalShardsWrapper._of(args), args[1]
        return one.local_chunks == other.local_chunks and all(
            map(torch.equal, one.local_shards(), other.local_shards())
        )

    @staticmethod
    def handle_all_gather_into_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Refuse to gather: PyTorch would take the parts for the pieces that it cuts itself."""
        raise TypeError(
            "The whole should be asked of a `DTensor` in the state of a sharded model: of another one, PyTorch would "
            f"put parts together by ranks, not by offsets. Received parts at {args[0].local_offsets()}."
        )

    @staticmethod
    def handle_wait_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the wrapper: nothing is on its way to it."""
        wrapper: Tensor = args[0]
        return wrapper

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return where the parts are."""
        places = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in self.local_chunks]
        return f"LocalShardsWrapper(local shards (offsets, sizes)={places})"

    # What torch.distributed.checkpoint asks of the local tensor of a `DTensor`.

    def __create_write_items__(self, fqn: str, tensor: Tensor) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, self._storage_meta.properties, tensor.size()),
            )
            for chunk in self.local_chunks
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return self.local_chunks

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for shard, offsets in zip(self._local_shards, self.local_offsets(), strict=True):
            if offsets == index.offset:
                return shard
        raise ValueError(f"A LocalShardsWrapper should have a part at {index.offset}.")
