"""The sparse types as pytrees: for torch.export and everything that maps over tensors.

A KeyedJaggedTensor flattens to values, lengths (or offsets, where these alone were given), and, where it has them,
weights, batch sizes ``[F, W]`` and inverse indices. What was computed, and the numbers kept on the host, are left out:
they follow from the rest, and a structure that changed when one of them was computed would not match itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrec.checks import require_type
from torchrec.sparse._bags import KeyedBags
from torchrec.sparse._jagged import JaggedTensor, make_jagged
from torchrec.sparse._keyed import KeyedTensor, make_keyed_tensor
from torchrec.sparse._keyed_jagged import KeyedJaggedTensor, keyed_jagged
from torchrec.sparse._lengths import BagLengths, bounds_as, bounds_given
from torchrec.sparse._private import register_pytree

# Lengths and offsets say the same, so a program that was traced with one takes the other: contexts that differ in
# `bounds` alone are equal. (They are named tuples, as torch.export makes no others in a strict trace.)


class JtContext(NamedTuple):
    """What of a JaggedTensor is no tensor: which tensors it has beside its values."""

    bounds: str
    others: list[str]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JtContext) and self[1:] == other[1:]

    def __ne__(self, other: object) -> bool:
        return not self == other


class KjtContext(NamedTuple):
    """What of a KeyedJaggedTensor is no tensor: which tensors it has beside its values, and its keys."""

    bounds: str
    others: list[str]
    keys: list[str]
    inverse_keys: list[str] | None
    stride: int | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KjtContext) and self[1:] == other[1:]

    def __ne__(self, other: object) -> bool:
        return not self == other


class KtContext(NamedTuple):
    """What of a KeyedTensor is no tensor."""

    keys: list[str]
    length_per_key: list[int]
    key_dim: int


def _names(context: JtContext | KjtContext) -> list[str]:
    """Return the names of the tensors, in order."""
    return ["values", context.bounds, *context.others]


def _kjt_parts(kjt: KeyedJaggedTensor) -> tuple[list[Tensor], KjtContext]:
    bags = kjt.bags
    bounds, tensor = bounds_given(bags)
    given = {
        "weights": bags.weights,
        "stride_per_key_per_rank": bags.strides_tensor(),
        "inverse_indices": None if bags.inverse_indices is None else bags.inverse_indices[1],
    }
    others = {name: other for name, other in given.items() if other is not None}
    inverse_keys = None if bags.inverse_indices is None else list(bags.inverse_indices[0])
    context = KjtContext(bounds, list(others), list(bags.keys), inverse_keys, bags.stride_or_none())
    return [bags.values, tensor, *others.values()], context


def _kjt_join(tensors: Sequence[Any], context: KjtContext) -> KeyedJaggedTensor:
    # Not only tensors come here: pytrees also carry placeholders, so nothing may be checked.
    part = dict(zip(_names(context), tensors, strict=True))
    inverse = None
    if context.inverse_keys is not None:
        inverse = context.inverse_keys, part["inverse_indices"]
    return keyed_jagged(
        KeyedBags(
            context.keys,
            part["values"],
            part.get("weights"),
            part.get("lengths"),
            part.get("offsets"),
            context.stride,
            part.get("stride_per_key_per_rank"),
            inverse,
        )
    )


def _kjt_dump(context: KjtContext) -> list[object]:
    return [context.keys, _names(context), context.inverse_keys, context.stride]


def _kjt_load(dumped: Sequence[Any]) -> KjtContext:
    keys, (_, bounds, *others), inverse_keys, stride = dumped
    return KjtContext(bounds, others, keys, inverse_keys, stride)


def _kjt_arrange(kjt: KeyedJaggedTensor, context: KjtContext) -> list[Tensor]:
    """Return the tensors with the keys in the order that a program was traced with."""
    require_type(kjt, "`input`", KeyedJaggedTensor)
    keys = kjt.keys()
    if keys != context.keys:
        _require_same("keys", sorted(context.keys), sorted(keys))
        kjt = kjt.permute([keys.index(key) for key in context.keys])
    tensors, own = _kjt_parts(kjt)
    _require_same("tensors", context.others, own.others)
    _require_same("keys of the inverse indices", context.inverse_keys, own.inverse_keys)
    return _bounded(tensors, kjt.bags, context)


def _bounded(
    tensors: list[Tensor], bags: BagLengths, context: JtContext | KjtContext
) -> list[Tensor]:
    """Return the tensors with lengths or offsets, as the context has them."""
    return [tensors[0], bounds_as(bags, context.bounds), *tensors[2:]]


def _require_same(what: str, traced: object, given: object) -> None:
    if traced != given:
        raise ValueError(
            f"The {what} of the input should be those that the program was traced with, {traced}. "
            f"Received {given}."
        )


def _jt_parts(jt: JaggedTensor) -> tuple[list[Tensor], JtContext]:
    bounds, tensor = bounds_given(jt)
    weights = jt.weights_or_none()
    if weights is None:
        return [jt.values(), tensor], JtContext(bounds, [])
    return [jt.values(), tensor, weights], JtContext(bounds, ["weights"])


def _jt_join(tensors: Sequence[Any], context: JtContext) -> JaggedTensor:
    part = dict(zip(_names(context), tensors, strict=True))
    return make_jagged(
        part["values"], part.get("weights"), part.get("lengths"), part.get("offsets")
    )


def _jt_load(dumped: Sequence[str]) -> JtContext:
    _, bounds, *others = dumped
    return JtContext(bounds, others)


def _jt_arrange(jt: JaggedTensor, context: JtContext) -> list[Tensor]:
    require_type(jt, "`input`", JaggedTensor)
    tensors, own = _jt_parts(jt)
    _require_same("tensors", context.others, own.others)
    return _bounded(tensors, jt, context)


def _kt_parts(kt: KeyedTensor) -> tuple[list[Tensor], KtContext]:
    return [kt.values()], KtContext(kt.keys(), kt.length_per_key(), kt.key_dim())


def _kt_join(tensors: Sequence[Any], context: KtContext) -> KeyedTensor:
    (values,) = tensors
    return make_keyed_tensor(context.keys, context.length_per_key, values, context.key_dim)


def _kt_arrange(kt: KeyedTensor, context: KtContext) -> list[Tensor]:
    """Return the values with the keys in the order that a program was traced with."""
    require_type(kt, "`input`", KeyedTensor)
    keys, lengths, key_dim = context
    own = KtContext(kt.keys(), kt.length_per_key(), kt.key_dim())
    if own == context:
        return [kt.values()]
    _require_same("`key_dim`", key_dim, own.key_dim)
    _require_same(
        "keys and their lengths",
        sorted(zip(keys, lengths, strict=True)),
        sorted(zip(own.keys, own.length_per_key, strict=True)),
    )
    parts = kt.to_dict()
    return [torch.cat([parts[key] for key in keys], key_dim)]


def register() -> None:
    """Make the three types pytrees, and objects that ``torch.load`` takes without asking: they hold data only."""
    torch.serialization.add_safe_globals([JaggedTensor, KeyedJaggedTensor, KeyedTensor])
    register_pytree(
        KeyedJaggedTensor,
        _kjt_parts,
        _kjt_join,
        _names,
        _kjt_dump,
        _kjt_load,
        _kjt_arrange,
    )
    register_pytree(
        JaggedTensor,
        _jt_parts,
        _jt_join,
        _names,
        _names,
        _jt_load,
        _jt_arrange,
    )
    register_pytree(
        KeyedTensor,
        _kt_parts,
        _kt_join,
        lambda _: ["values"],
        list,
        lambda dumped: KtContext(*dumped),
        _kt_arrange,
    )
