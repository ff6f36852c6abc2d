"""KeyedJaggedTensors as flat lists, and compared with one another."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.checks import require_list
from torchrec.sparse._jagged import JaggedTensor
from torchrec.sparse._keyed_jagged import KeyedJaggedTensor
from torchrec.sparse._lengths import BagLengths, bounds_as, given_or_none


def flatten_kjt_list(
    kjt_arr: list[KeyedJaggedTensor],
) -> tuple[list[Tensor | None], list[list[str]]]:
    """Write several KeyedJaggedTensors as a list of tensors and a list of lists of strings.

    Args:
        kjt_arr: any number of them.

    Returns:
        Six tensors or None for each (values, weights, lengths, offsets, ``stride_per_key_per_rank``, inverse indices);
        of lengths and offsets what was given. And for each its keys, followed by the keys of the inverse indices if it
        has them.

    Example:
        >>> kjt = KeyedJaggedTensor(["a"], torch.tensor([5, 7]), lengths=torch.tensor([2]))
        >>> tensors, contexts = flatten_kjt_list([kjt])
        >>> contexts
        [['a']]
        >>> kjt_is_equal(unflatten_kjt_list(tensors, contexts)[0], kjt)
        True
    """
    require_list(kjt_arr, "`kjt_arr`", KeyedJaggedTensor)
    tensors: list[Tensor | None] = []
    contexts: list[list[str]] = []
    for kjt in kjt_arr:
        bags = kjt.bags
        inverse = bags.inverse_indices
        tensors += [
            bags.values,
            bags.weights,
            *given_or_none(bags),
            bags.strides_tensor(),
            None if inverse is None else inverse[1],
        ]
        contexts.append(list(bags.keys) + ([] if inverse is None else list(inverse[0])))
    return tensors, contexts


_FIELDS = 6


def unflatten_kjt_list(
    values: list[Tensor | None], contexts: list[list[str]]
) -> list[KeyedJaggedTensor]:
    """Read what ``flatten_kjt_list`` wrote.

    Args:
        values: six tensors or None for each KeyedJaggedTensor.
        contexts: the keys of each.

    Raises:
        ValueError: not six tensors for each list of keys.
    """
    require_list(values, "`values`", object)
    require_list(contexts, "`contexts`", list)
    if len(values) != _FIELDS * len(contexts):
        raise ValueError(
            f"`values` should be {_FIELDS} for each of {len(contexts)} contexts. Received {len(values)}."
        )
    kjts = []
    for i, context in enumerate(contexts):
        data, weights, lengths, offsets, strides, inverse = values[_FIELDS * i : _FIELDS * (i + 1)]
        if data is None:
            raise ValueError(f"`values` should hold the values of keys {context}. Received None.")
        # The inverse indices have one row a key, so they tell where their keys begin.
        split = len(context) - (0 if inverse is None else inverse.size(0))
        kjts.append(
            KeyedJaggedTensor(
                context[:split],
                data,
                weights,
                lengths,
                offsets,
                stride_per_key_per_rank=strides,
                inverse_indices=None if inverse is None else (context[split:], inverse),
            )
        )
    return kjts


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a, b)


def _same_bags(a: BagLengths, b: BagLengths) -> bool:
    return _equal(bounds_as(a, "lengths"), bounds_as(b, "lengths"))


def jt_is_equal(jt_1: JaggedTensor, jt_2: JaggedTensor) -> bool:
    """Say whether two JaggedTensors hold the same bags, in the same dtypes, and the same weights.

    Nothing else is equal to one.

    Example:
        >>> a = JaggedTensor(torch.tensor([5, 7]), lengths=torch.tensor([1, 1]))
        >>> jt_is_equal(a, JaggedTensor(torch.tensor([5, 7]), offsets=torch.tensor([0, 1, 2])))
        True
    """
    return (
        isinstance(jt_1, JaggedTensor)
        and isinstance(jt_2, JaggedTensor)
        and _equal(jt_1.values(), jt_2.values())
        and _equal(jt_1.weights_or_none(), jt_2.weights_or_none())
        and _same_bags(jt_1, jt_2)
    )


def kjt_is_equal(kjt_1: KeyedJaggedTensor, kjt_2: KeyedJaggedTensor) -> bool:
    """Say whether two KeyedJaggedTensors hold the same keys in the same order, and the same bags and weights.

    Nothing else is equal to one.

    Example:
        >>> kjt = KeyedJaggedTensor(["a", "b"], torch.tensor([5, 7]), lengths=torch.tensor([1, 1]))
        >>> kjt_is_equal(kjt, kjt.permute([1, 0]))
        False
    """
    if not (isinstance(kjt_1, KeyedJaggedTensor) and isinstance(kjt_2, KeyedJaggedTensor)):
        return False
    inverse_1, inverse_2 = kjt_1.inverse_indices_or_none(), kjt_2.inverse_indices_or_none()
    same_inverse = inverse_1 is inverse_2
    if inverse_1 is not None and inverse_2 is not None:
        same_inverse = inverse_1[0] == inverse_2[0] and _equal(inverse_1[1], inverse_2[1])
    return (
        same_inverse
        and kjt_1.keys() == kjt_2.keys()
        and kjt_1.stride_per_key() == kjt_2.stride_per_key()
        and kjt_1.stride_per_key_per_rank() == kjt_2.stride_per_key_per_rank()
        and _equal(kjt_1.values(), kjt_2.values())
        and _equal(kjt_1.weights_or_none(), kjt_2.weights_or_none())
        and _same_bags(kjt_1.bags, kjt_2.bags)
    )
