"""The sparse types: JaggedTensor, KeyedJaggedTensor, KeyedTensor, and what converts between them."""

from itertools import chain

from torchrec.sparse._flat import (
    ComputeJTDictToKJT,
    ComputeKJTToJTDict,
    flatten_kjt_list,
    jt_is_equal,
    kjt_is_equal,
    unflatten_kjt_list,
)
from torchrec.sparse._jagged import JaggedTensor
from torchrec.sparse._keyed import KeyedTensor, permute_multi_embedding, regroup_kts
from torchrec.sparse._keyed_jagged import KeyedJaggedTensor
from torchrec.sparse._pytree import register as _register_pytrees

_register_pytrees()

JaggedTensorMeta = type(JaggedTensor)
"""The metaclass of the sparse types, whose objects graphs of ``torch.fx`` can hold."""


def _all_keys_used_once(keyed_tensors: list[KeyedTensor], groups: list[list[str]]) -> bool:
    """Say whether groups take every key, and each once: programs of the API ask for it under this name."""
    keys = sorted(chain.from_iterable(keyed_tensor.keys() for keyed_tensor in keyed_tensors))
    taken = sorted(chain.from_iterable(groups))
    return taken == keys and len(set(taken)) == len(taken)


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
