"""The sparse types: JaggedTensor, KeyedJaggedTensor, KeyedTensor, and what converts between them."""

from __future__ import annotations

from itertools import chain

from torch import nn

from torchrec.checks import require_type
from torchrec.fx.proxies import is_proxy
from torchrec.sparse._flat import (
    flatten_kjt_list,
    jt_is_equal,
    kjt_is_equal,
    unflatten_kjt_list,
)
from torchrec.sparse._jagged import JaggedTensor
from torchrec.sparse._keyed import KeyedTensor, permute_multi_embedding, regroup_kts
from torchrec.sparse._keyed import keyed_tensor as keyed_tensor
from torchrec.sparse._keyed_jagged import KeyedJaggedTensor
from torchrec.sparse._keyed_jagged import keyed_jagged as keyed_jagged
from torchrec.sparse._meta import JaggedTensorMeta
from torchrec.sparse._pytree import register as _register_pytrees

_register_pytrees()


def _all_keys_used_once(keyed_tensors: list[KeyedTensor], groups: list[list[str]]) -> bool:
    """Say whether groups take every key, and each once: programs of the API ask for it under this name."""
    keys = sorted(chain.from_iterable(keyed_tensor.keys() for keyed_tensor in keyed_tensors))
    taken = sorted(chain.from_iterable(groups))
    return taken == keys and len(set(taken)) == len(taken)


class ComputeKJTToJTDict(nn.Module):
    """``KeyedJaggedTensor.to_dict`` as a module.

    Example:
        >>> import torch
        >>> kjt = KeyedJaggedTensor(["a", "b"], torch.tensor([5, 7]), lengths=torch.tensor([1, 1]))
        >>> ComputeKJTToJTDict()(kjt)["b"].values()
        tensor([7])
    """

    def forward(self, keyed_jagged_tensor: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return one JaggedTensor a key."""
        if not is_proxy(keyed_jagged_tensor):
            require_type(keyed_jagged_tensor, "`keyed_jagged_tensor`", KeyedJaggedTensor)
        return keyed_jagged_tensor.to_dict()


class ComputeJTDictToKJT(nn.Module):
    """``KeyedJaggedTensor.from_jt_dict`` as a module.

    Example:
        >>> import torch
        >>> jt = JaggedTensor(torch.tensor([5, 7]), lengths=torch.tensor([2]))
        >>> ComputeJTDictToKJT()({"a": jt}).keys()
        ['a']
    """

    def forward(self, jt_dict: dict[str, JaggedTensor]) -> KeyedJaggedTensor:
        """Return one KeyedJaggedTensor of all keys."""
        return KeyedJaggedTensor.from_jt_dict(jt_dict)


__all__ = [
    "ComputeJTDictToKJT",
    "ComputeKJTToJTDict",
    "JaggedTensor",
    "JaggedTensorMeta",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "flatten_kjt_list",
    "jt_is_equal",
    "kjt_is_equal",
    "permute_multi_embedding",
    "regroup_kts",
    "unflatten_kjt_list",
]
