"""Pooled embeddings in new groups, as modules."""

from __future__ import annotations

from torch import Tensor, nn

from torchrec.fx.proxies import LeafModule, holds_proxy
from torchrec.modules.embedding_configs import data_type_to_dtype
from torchrec.ops.permute import regroup
from torchrec.sparse.jagged_tensor import KeyedTensor, regroup_kts
from torchrec.types import CacheMixin, DataType

__all__ = ["KTRegroupAsDict", "PermuteMultiEmbedding", "module_init"]

# Of a row of `permute`: input, output, column in the input, column in the output, columns, and
# the place of the next row for the same input.
_COLUMNS = 6


class PermuteMultiEmbedding(nn.Module, LeafModule):
    """Joins columns of several matrices in new groups, in one call, as `init_tensors` said.

    Args:
        groups: keys of each output; their number is that of the outputs.
        multi_device: without effect: nothing is kept on a device.

    Example:
        >>> permute = PermuteMultiEmbedding([["c", "b"], ["a"]])
        >>> permute.init_tensors(
        ...     permute=torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 2, 0], [0, 1, 0, 0, 1, 0]]),
        ...     in_shapes=torch.tensor([3, 1]),
        ...     out_shapes=torch.tensor([3, 1]),
        ...     out_lengths=[3, 1],
        ... )
        >>> permute([torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0]])])
        [tensor([[4., 2., 3.]]), tensor([[1.]])]
    """

    def __init__(self, groups: list[list[str]], multi_device: bool = False) -> None:
        super().__init__()
        self._groups = groups
        self._pieces: list[int] | None = None
        self._counts: list[int] = []

    def init_tensors(
        self, permute: Tensor, in_shapes: Tensor, out_shapes: Tensor, out_lengths: list[int]
    ) -> None:
        """Say which columns go where.

        Args:
            permute: one row a piece, ``(P, 6)``: input, output, first column in the input, first
                column in the output, number of columns, and a number that is not read.
            in_shapes: columns of each input.
            out_shapes: columns of each output.
            out_lengths: the same.

        Raises:
            ValueError: if a piece does not lie in its input, or the pieces of an output are not its
                columns from the first to the last.
        """
        if permute.dim() != 2 or permute.size(1) != _COLUMNS:
            raise ValueError(
                f"`permute` should be (P, {_COLUMNS}). Received {list(permute.shape)}."
            )
        inputs, outputs = in_shapes.tolist(), out_shapes.tolist()
        if outputs != list(out_lengths) or len(outputs) != len(self._groups):
            raise ValueError(
                f"`out_lengths` should be `out_shapes`, one a group ({len(self._groups)}). "
                f"Received {out_lengths} and {outputs}."
            )
        pieces: list[list[int]] = [[] for _ in outputs]
        ends = [0] * len(outputs)
        for source, target, start, at, columns, _ in permute.tolist():
            known = 0 <= source < len(inputs) and 0 <= target < len(outputs)
            if not known or start < 0 or columns < 0 or start + columns > inputs[source]:
                raise ValueError(
                    "`permute` should hold pieces of the inputs, whose columns are "
                    f"{inputs}. Received {columns} columns of input {source} from {start} on, for "
                    f"output {target}."
                )
            if at != ends[target]:
                raise ValueError(
                    f"`permute` should fill output {target} from left to right. "
                    f"Received column {at} after {ends[target]}."
                )
            pieces[target] += (source, start, columns)
            ends[target] += columns
        if ends != outputs:
            raise ValueError(
                f"`permute` should fill the outputs, of {outputs} columns. Received {ends}."
            )
        self._pieces = [number for part in pieces for number in part]
        self._counts = [len(part) // 3 for part in pieces]

    def set_device(self, device: str) -> None:
        """Do nothing: nothing is kept on a device.

        Args:
            device: without effect.
        """

    def forward(self, values: list[Tensor]) -> list[Tensor]:
        """Return the outputs.

        Args:
            values: the inputs, ``(B, C)`` each.

        Raises:
            RuntimeError: before `init_tensors`.
        """
        if holds_proxy(values):
            traced: list[Tensor] = self.recorded(values)
            return traced
        if self._pieces is None:
            raise RuntimeError("`init_tensors` should be called before the module is.")
        return regroup(values, self._pieces, self._counts)


class KTRegroupAsDict(nn.Module, CacheMixin, LeafModule):
    """Joins the embeddings of each group of keys, whichever KeyedTensor they are in, in one call.

    The result is that of ``KeyedTensor.regroup_as_dict``. Which columns go where is read from the
    input of every call, so keys and lengths may change from one to the next.

    Args:
        groups: keys of each output; a key may be in several groups.
        keys: name of each output.
        emb_dtype: of the outputs. Default: that of the inputs, the wider where they differ.
        multi_device: without effect: nothing is kept on a device.

    Raises:
        ValueError: for names that are not one a group, or come twice.

    Example:
        >>> regroup_module = KTRegroupAsDict([["c", "b"], ["a"]], ["first", "second"])
        >>> regroup_module([
        ...     KeyedTensor(["a", "b"], [1, 2], torch.tensor([[1.0, 2.0, 3.0]])),
        ...     KeyedTensor(["c"], [1], torch.tensor([[4.0]])),
        ... ])
        {'first': tensor([[4., 2., 3.]]), 'second': tensor([[1.]])}
    """

    def __init__(
        self,
        groups: list[list[str]],
        keys: list[str],
        emb_dtype: DataType | None = None,
        multi_device: bool = False,
    ) -> None:
        super().__init__()
        if len(groups) != len(keys) or len(set(keys)) != len(keys):
            raise ValueError(
                f"`keys` should be distinct names, one a group ({len(groups)}). Received {keys}."
            )
        self._groups = groups
        self._keys = keys
        self._dtype = None if emb_dtype is None else data_type_to_dtype(emb_dtype)

    def clear_cache(self) -> None:
        """Do nothing: nothing is kept from one call to the next."""

    def embedding_cast(self, embs: list[Tensor]) -> list[Tensor]:
        """Return the tensors in ``emb_dtype``.

        Args:
            embs: tensors.
        """
        return embs if self._dtype is None else [emb.to(self._dtype) for emb in embs]

    def forward(self, keyed_tensors: list[KeyedTensor]) -> dict[str, Tensor]:
        """Return one tensor a group, ``[B, sum of its keys' lengths]``, under its name.

        Args:
            keyed_tensors: over the same batch; no key of a group in more than one of them.

        Raises:
            KeyError: a key is in none of them.
            ValueError: a key is in several of them, or there are none.
        """
        if holds_proxy(keyed_tensors):
            traced: dict[str, Tensor] = self.recorded(keyed_tensors)
            return traced
        if self._dtype is not None:
            values = self.embedding_cast([kt.values() for kt in keyed_tensors])
            keyed_tensors = [
                KeyedTensor(kt.keys(), kt.length_per_key(), value, kt.key_dim())
                for kt, value in zip(keyed_tensors, values, strict=True)
            ]
        return dict(zip(self._keys, regroup_kts(keyed_tensors, self._groups), strict=True))


def module_init(module: KTRegroupAsDict, keyed_tensors: list[KeyedTensor]) -> None:
    """Run a module once, so that input which does not fit it fails now.

    Args:
        module: the module.
        keyed_tensors: input as it will come.

    Raises:
        KeyError: see ``KTRegroupAsDict.forward``.
        ValueError: likewise.

    Example:
        >>> module_init(KTRegroupAsDict([["z"]], ["first"]), [KeyedTensor(["a"], [1], torch.ones(1, 1))])
        Traceback (most recent call last):
        KeyError: "Key should be one of [['a']]. Received 'z'."
    """
    module(keyed_tensors)
