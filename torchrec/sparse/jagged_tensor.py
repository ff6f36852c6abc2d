"""The sparse types: JaggedTensor, KeyedJaggedTensor, KeyedTensor, and what converts between them."""

from torchrec.sparse._jagged import JaggedTensor
from torchrec.sparse._keyed import KeyedTensor, permute_multi_embedding, regroup_kts
from torchrec.sparse._keyed_jagged import KeyedJaggedTensor

__all__ = [
    "JaggedTensor",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "permute_multi_embedding",
    "regroup_kts",
]
