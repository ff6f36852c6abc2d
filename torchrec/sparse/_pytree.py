"""The sparse types as pytrees: for torch.export and everything that maps over tensors.

A KeyedJaggedTensor flattens to values, lengths, and, where it has them, weights, batch sizes ``[F, W]`` and inverse
indices. Offsets and the numbers kept on the host are left out: they follow from the rest, and a structure that changed
when one of them was computed would not match itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrec.sparse._bags import KeyedBags
from torchrec.sparse._checks import require_type
from torchrec.sparse._jagged import JaggedTensor, make_jagged
from torchrec.sparse._keyed import KeyedTensor, make_keyed_tensor
from torchrec.sparse._keyed_jagged import KeyedJaggedTensor, bags_of, keyed_jagged
from torchrec.sparse._private import register_pytree


class KjtContext(NamedTuple):
    """What of a KeyedJaggedTensor is no tensor: its keys, and which tensors it has."""

    keys: list[str]
    names: list[str]
    inverse_keys: list[str] | None
    stride: int | None


class KtContext(NamedTuple):
    """What of a KeyedTensor is no tensor."""

    keys: list[str]
    length_per_key: list[int]
    key_dim: int


def _kjt_parts(kjt: KeyedJaggedTensor) -> tuple[list[Tensor], KjtContext]:
    bags = bags_of(kjt)
    tensors, names = [bags.values, bags.lengths()], ["values", "lengths"]
    if bags.weights is not None:
        tensors.append(bags.weights)
        names.append("weights")
    strides = bags.strides_tensor()
    if strides is not None:
        tensors.append(strides)
        names.append("stride_per_key_per_rank")
    inverse = bags.inverse_indices
    if inverse is not None:
        tensors.append(inverse[1])
        names.append("inverse_indices")
    inverse_keys = None if inverse is None else list(inverse[0])
    return tensors, KjtContext(list(bags.keys), names, inverse_keys, bags.stride_or_none())


def _kjt_join(tensors: Sequence[Any], context: KjtContext) -> KeyedJaggedTensor:
    # Not only tensors come here: pytrees also carry placeholders, so nothing may be checked.
    part = dict(zip(context.names, tensors, strict=True))
    inverse = None
    if context.inverse_keys is not None:
        inverse = context.inverse_keys, part["inverse_indices"]
    return keyed_jagged(
        KeyedBags(
            context.keys,
            part["values"],
            part.get("weights"),
            part["lengths"],
            None,
            context.stride,
            part.get("stride_per_key_per_rank"),
            inverse,
        )
    )


def _kjt_arrange(kjt: KeyedJaggedTensor, context: KjtContext) -> KeyedJaggedTensor:
    """Put the keys in the order that a program was traced with."""
    require_type("input", kjt, KeyedJaggedTensor)
    keys = kjt.keys()
    if keys != context.keys:
        _require_same("keys", sorted(context.keys), sorted(keys))
        kjt = kjt.permute([keys.index(key) for key in context.keys])
    own = _kjt_parts(kjt)[1]
    _require_same("tensors", context.names, own.names)
    _require_same("keys of the inverse indices", context.inverse_keys, own.inverse_keys)
    return kjt


def _require_same(what: str, traced: object, given: object) -> None:
    if traced != given:
        raise ValueError(
            f"The {what} of the input should be those that the program was traced with, {traced}. "
            f"Received {given}."
        )


def _jt_parts(jt: JaggedTensor) -> tuple[list[Tensor], list[str]]:
    weights = jt.weights_or_none()
    if weights is None:
        return [jt.values(), jt.lengths()], ["values", "lengths"]
    return [jt.values(), jt.lengths(), weights], ["values", "lengths", "weights"]


def _jt_join(tensors: Sequence[Any], names: list[str]) -> JaggedTensor:
    part = dict(zip(names, tensors, strict=True))
    return make_jagged(part["values"], part.get("weights"), part["lengths"], None)


def _jt_arrange(jt: JaggedTensor, names: list[str]) -> JaggedTensor:
    require_type("input", jt, JaggedTensor)
    _require_same("tensors", names, _jt_parts(jt)[1])
    return jt


def _kt_parts(kt: KeyedTensor) -> tuple[list[Tensor], KtContext]:
    return [kt.values()], KtContext(kt.keys(), kt.length_per_key(), kt.key_dim())


def _kt_join(tensors: Sequence[Any], context: KtContext) -> KeyedTensor:
    (values,) = tensors
    return make_keyed_tensor(context.keys, context.length_per_key, values, context.key_dim)


def _kt_arrange(kt: KeyedTensor, context: KtContext) -> KeyedTensor:
    """Put the keys in the order that a program was traced with."""
    require_type("input", kt, KeyedTensor)
    keys, lengths, key_dim = context
    own = KtContext(kt.keys(), kt.length_per_key(), kt.key_dim())
    if own == context:
        return kt
    _require_same("`key_dim`", key_dim, own.key_dim)
    _require_same(
        "keys and their lengths",
        sorted(zip(keys, lengths, strict=True)),
        sorted(zip(own.keys, own.length_per_key, strict=True)),
    )
    parts = kt.to_dict()
    return make_keyed_tensor(
        keys, lengths, torch.cat([parts[key] for key in keys], key_dim), key_dim
    )


def register() -> None:
    """Make the three types pytrees, and objects that ``torch.load`` takes without asking: they hold data only."""
    torch.serialization.add_safe_globals([JaggedTensor, KeyedJaggedTensor, KeyedTensor])
    register_pytree(
        KeyedJaggedTensor,
        _kjt_parts,
        _kjt_join,
        lambda context: context.names,
        list,
        lambda dumped: KjtContext(*dumped),
        _kjt_arrange,
    )
    register_pytree(JaggedTensor, _jt_parts, _jt_join, _same, _same, _same, _jt_arrange)
    register_pytree(
        KeyedTensor,
        _kt_parts,
        _kt_join,
        lambda _: ["values"],
        list,
        lambda dumped: KtContext(*dumped),
        _kt_arrange,
    )


def _same(context: Any) -> Any:
    return context
