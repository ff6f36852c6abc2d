"""The sparse types: JaggedTensor, KeyedJaggedTensor, KeyedTensor, and what converts between them."""

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

__all__ = [
    "ComputeJTDictToKJT",
    "ComputeKJTToJTDict",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "flatten_kjt_list",
    "jt_is_equal",
    "kjt_is_equal",
    "permute_multi_embedding",
    "regroup_kts",
    "unflatten_kjt_list",
]
