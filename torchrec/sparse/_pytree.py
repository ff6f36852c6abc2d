"""The sparse types as pytrees: for torch.export and everything that maps over tensors.

A KeyedJaggedTensor flattens to values, lengths, and, where it has them, weights, batch sizes ``[F, W]`` and inverse
indices. Offsets and the numbers kept on the host are left out: they follow from the rest, and a structure that changed
when one of them was computed would not match itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchrec.sparse._jagged import JaggedTensor, make_jagged
from torchrec.sparse._keyed import KeyedTensor
from torchrec.sparse._keyed_jagged import KeyedJaggedTensor, make_keyed_jagged


class KjtContext(NamedTuple):
    """What of a KeyedJaggedTensor is no tensor: its keys, and which tensors it has."""

    keys: list[str]
    names: list[str]
    inverse_keys: list[str] | None
    stride: int | None


def _kjt_parts(kjt: KeyedJaggedTensor) -> tuple[list[Tensor], KjtContext]:
    tensors, names = [kjt.values(), kjt.lengths()], ["values", "lengths"]
    weights = kjt.weights_or_none()
    if weights is not None:
        tensors.append(weights)
        names.append("weights")
    strides = kjt._strides_per_rank
    if strides is not None:
        tensors.append(strides if isinstance(strides, Tensor) else torch.tensor(strides))
        names.append("stride_per_key_per_rank")
    inverse = kjt.inverse_indices_or_none()
    if inverse is not None:
        tensors.append(inverse[1])
        names.append("inverse_indices")
    inverse_keys = None if inverse is None else list(inverse[0])
    return tensors, KjtContext(list(kjt.keys()), names, inverse_keys, kjt._stride)


def _kjt_join(tensors: Sequence[Any], context: KjtContext) -> KeyedJaggedTensor:
    # Not only tensors come here: pytrees also carry placeholders, so nothing may be checked.
    part = dict(zip(context.names, tensors, strict=True))
    kjt = make_keyed_jagged(context.keys, part["values"], part.get("weights"), part["lengths"])
    kjt._stride = context.stride
    kjt._strides_per_rank = part.get("stride_per_key_per_rank")
    if context.inverse_keys is not None:
        kjt._inverse_indices = context.inverse_keys, part["inverse_indices"]
    return kjt


def _jt_parts(jt: JaggedTensor) -> tuple[list[Tensor], list[str]]:
    weights = jt.weights_or_none()
    if weights is None:
        return [jt.values(), jt.lengths()], ["values", "lengths"]
    return [jt.values(), jt.lengths(), weights], ["values", "lengths", "weights"]


def _jt_join(tensors: Sequence[Any], names: list[str]) -> JaggedTensor:
    part = dict(zip(names, tensors, strict=True))
    return make_jagged(part["values"], part.get("weights"), part["lengths"], None)


def _kt_parts(kt: KeyedTensor) -> tuple[list[Tensor], tuple[list[str], list[int], int]]:
    return [kt.values()], (kt.keys(), kt.length_per_key(), kt.key_dim())


def _kt_join(tensors: Sequence[Any], context: tuple[list[str], list[int], int]) -> KeyedTensor:
    keys, lengths, key_dim = context
    kt = object.__new__(KeyedTensor)
    kt._keys, kt._length_per_key, kt._key_dim = keys, lengths, key_dim
    (kt._values,) = tensors
    kt._offset_per_key = kt._index_per_key = None
    return kt


def _register(
    cls: type[Any],
    parts: Callable[[Any], tuple[list[Tensor], Any]],
    join: Callable[[Any, Any], Any],
    names: Callable[[Any], list[str]],
    dump: Callable[[Any], Any],
    load: Callable[[Any], Any],
) -> None:
    def parts_with_names(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
        tensors, context = parts(node)
        entries = [pytree.GetAttrKey(name) for name in names(context)]
        return list(zip(entries, tensors, strict=True)), context

    pytree.register_pytree_node(
        cls,
        parts,
        join,
        serialized_type_name=f"torchrec.{cls.__name__}",
        to_dumpable_context=dump,
        from_dumpable_context=load,
        flatten_with_keys_fn=parts_with_names,
    )
    torch.fx._pytree.register_pytree_flatten_spec(cls, lambda node, spec: parts(node)[0])


def _same(context: Any) -> Any:
    return context


def register() -> None:
    """Make the three types pytrees, and objects that ``torch.load`` takes without asking: they hold data only."""
    torch.serialization.add_safe_globals([JaggedTensor, KeyedJaggedTensor, KeyedTensor])
    _register(
        KeyedJaggedTensor,
        _kjt_parts,
        _kjt_join,
        lambda context: context.names,
        list,
        lambda dumped: KjtContext(*dumped),
    )
    _register(JaggedTensor, _jt_parts, _jt_join, _same, _same, _same)
    _register(KeyedTensor, _kt_parts, _kt_join, lambda _: ["values"], list, tuple)
