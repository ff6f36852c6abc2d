"""Sparse types compare what they read with the memory that there is: their tensors may change in place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.ops import backends

T = torch.tensor
Change = Callable[[Tensor, Tensor, Tensor], object]
Use = Callable[[KeyedJaggedTensor], object]

native_only = pytest.mark.skipif(
    backends()["embedding_bag"]["cpu"].name != "native", reason="plain PyTorch has no addresses"
)

CHANGES: dict[str, Change] = {
    "lengths too long": lambda lengths, values, weights: lengths.fill_(10**6),
    "lengths negative": lambda lengths, values, weights: lengths.neg_(),
    "lengths that wrap": lambda lengths, values, weights: lengths.fill_(2**62),
    "values gone": lambda lengths, values, weights: values.set_(T([1, 2])),
    "lengths gone": lambda lengths, values, weights: lengths.set_(T([1])),
    "memory freed": lambda lengths, values, weights: values.untyped_storage().resize_(0),
}
USES: dict[str, Use] = {
    "permute": lambda kjt: kjt.permute([1, 0]),
    "permute some": lambda kjt: kjt.permute([1, 1, 0]),
    "look up": lambda kjt: collection()(kjt),
}


def collection() -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(name=f"t{key}", embedding_dim=4, num_embeddings=10, feature_names=[key])
        for key in "ab"
    ]
    return EmbeddingBagCollection(tables=tables)


@native_only
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_no_longer_fits_is_refused(change: str, use: str) -> None:
    lengths, values, weights = T([1, 2, 2, 1]), T([1, 2, 3, 4, 5, 6]), torch.ones(6)
    kjt = KeyedJaggedTensor(["a", "b"], values, weights, lengths=lengths)
    CHANGES[change](lengths, values, weights)
    with pytest.raises(ValueError, match=r"`(lengths|sizes|offsets|values|weights|groups)`"):
        USES[use](kjt)


@native_only
@pytest.mark.parametrize("change", [name for name in CHANGES if name.startswith("lengths")])
def test_permute_reads_lengths_again_where_their_sums_are_known(change: str) -> None:
    lengths, values, weights = T([1, 2, 2, 1]), T([1, 2, 3, 4, 5, 6]), torch.ones(6)
    kjt = KeyedJaggedTensor(["a", "b"], values, weights, lengths=lengths).sync()
    CHANGES[change](lengths, values, weights)
    with pytest.raises(ValueError, match=r"`(lengths|strides)`"):
        kjt.permute([1, 0])


def test_lengths_that_still_fit_are_those_of_now() -> None:
    lengths = T([1, 2, 2, 1])
    kjt = KeyedJaggedTensor(["a", "b"], T([1, 2, 3, 4, 5, 6]), lengths=lengths).sync()
    lengths.copy_(T([2, 1, 1, 2]))
    assert kjt.permute([1, 0]).lengths().tolist() == [1, 2, 2, 1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
def test_lengths_whose_sum_wraps_are_refused(dtype: torch.dtype) -> None:
    quarter = 2**62
    with pytest.raises(ValueError, match=f"Received a sum of {2**64}: {2**63} for key 'a'"):
        KeyedJaggedTensor(["a", "b"], torch.empty(0, dtype=dtype), lengths=T([quarter] * 4))
