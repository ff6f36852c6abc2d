"""What a case is, and what cases share: inputs, tables, states, the tensors of a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

State = dict[str, Any]


class Case(NamedTuple):
    """Something with a state."""

    build: Callable[[], Any]
    prepare: Callable[[Any], None]
    call: Callable[[Any], list[Tensor]]


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Enter a case by the name of its function."""
    CASES[make.__name__] = make
    return make


def leave(_: Any) -> None:
    """Prepare nothing."""


def tensors(result: Any) -> list[Tensor]:
    """Return all tensors of a result, by position or in the order of its keys."""
    from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor

    if isinstance(result, Tensor):
        return [result.detach().clone()]
    if isinstance(result, KeyedTensor):
        return tensors(result.values())
    if isinstance(result, (JaggedTensor, KeyedJaggedTensor)):
        weights = result.weights_or_none()
        found = [result.values(), result.lengths().to(torch.int64)]
        return tensors(found if weights is None else [*found, weights])
    if isinstance(result, Mapping):
        return [t for key in sorted(result) for t in tensors(result[key])]
    if isinstance(result, Iterable):
        return [t for part in result if part is not None for t in tensors(part)]
    raise TypeError(type(result).__name__)


def saved(of: Any) -> State:
    """Return the state of a module or an optimizer; ours, in the form of the original."""
    try:
        from torchrec.compat import original_state_dict
    except ImportError:
        return of.state_dict()
    return original_state_dict(of)


def features(ids: int = 20, weighted: bool = False) -> Any:
    """Return three bags of two features, one of them empty."""
    from torchrec import KeyedJaggedTensor

    values = torch.tensor([1, 7, 3, 3, 0, 19, 4]) % ids
    return KeyedJaggedTensor(
        ["f", "g"],
        values,
        weights=torch.linspace(0.5, 2.0, 7) if weighted else None,
        lengths=torch.tensor([2, 0, 1, 1, 2, 1]),
    )


def dense(rows: int = 3, width: int = 6) -> Tensor:
    """Return numbers."""
    return torch.linspace(-1.0, 1.0, rows * width).view(rows, width)


def of_module(build: Callable[[], nn.Module], *inputs: Any) -> Case:
    """Return the case of a module that is called with inputs."""
    return Case(build, leave, lambda module: tensors(module(*inputs)))


def bag_tables(pooling: str = "MEAN", **more: Any) -> list[Any]:
    """Return two tables of bags."""
    from torchrec import EmbeddingBagConfig, PoolingType

    return [
        EmbeddingBagConfig(
            num_embeddings=20, embedding_dim=4, name="t", feature_names=["f"], **more
        ),
        EmbeddingBagConfig(
            num_embeddings=30,
            embedding_dim=4,
            name="u",
            feature_names=["g"],
            pooling=PoolingType[pooling],
            **more,
        ),
    ]


def tables(**more: Any) -> list[Any]:
    """Return two tables of sequences."""
    from torchrec import EmbeddingConfig

    return [
        EmbeddingConfig(num_embeddings=20, embedding_dim=4, name="t", feature_names=["f"], **more),
        EmbeddingConfig(num_embeddings=30, embedding_dim=4, name="u", feature_names=["g"], **more),
    ]


def bags(is_weighted: bool = False, **more: Any) -> Any:
    """Return a collection of bags."""
    from torchrec import EmbeddingBagCollection

    return EmbeddingBagCollection(tables=bag_tables(**more), is_weighted=is_weighted)
