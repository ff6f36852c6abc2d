"""Names of modules and of what a state has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from torchrec.distributed._sharded import ShardedModule

T = TypeVar("T")


def get_unsharded_module_names(model: nn.Module) -> list[str]:
    """Return the paths of the largest modules that have nothing sharded in them; none if nothing is.

    Args:
        model: a model, perhaps wrapped.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> from torchrec.distributed import DistributedModelParallel
        >>> table = EmbeddingBagConfig(10, 2, "t", feature_names=["f"])
        >>> model = nn.Sequential(EmbeddingBagCollection([table]), nn.Sequential(nn.Linear(2, 1)))
        >>> get_unsharded_module_names(DistributedModelParallel(model))
        ['_dmp_wrapped_module.1']
    """
    return list(_unsharded_paths(model)) if _has_sharded(model) else []


def _has_sharded(module: nn.Module) -> bool:
    return any(isinstance(child, ShardedModule) for child in module.modules())


def _unsharded_paths(module: nn.Module) -> Iterator[str]:
    if isinstance(module, ShardedModule):
        return
    for name, child in module.named_children():
        if not _has_sharded(child):
            yield name
        else:
            yield from (f"{name}.{path}" for path in _unsharded_paths(child))


def filter_state_dict(state_dict: Mapping[str, T], name: str) -> OrderedDict[str, T]:
    """Return what a state has of one module, without the path of the module.

    Args:
        state_dict: of a model.
        name: path of the module.

    Example:
        >>> dict(filter_state_dict({"over.weight": 1, "over.bias": 2, "overall.bias": 3}, "over"))
        {'weight': 1, 'bias': 2}
    """
    prefix = f"{name}."
    return OrderedDict(
        (key.removeprefix(prefix), value)
        for key, value in state_dict.items()
        if key.startswith(prefix)
    )


def add_prefix_to_state_dict(state_dict: dict[str, Any], prefix: str) -> None:
    """Write something before every name of a state, in place; the order stays.

    Args:
        state_dict: changed.
        prefix: with its dot, if there is to be one.

    Example:
        >>> state = {"weight": 1, "bias": 2}
        >>> add_prefix_to_state_dict(state, "over.")
        >>> state
        {'over.weight': 1, 'over.bias': 2}
    """
    for name in list(state_dict):
        state_dict[f"{prefix}{name}"] = state_dict.pop(name)


def none_throws(optional: T | None, message: str = "Unexpected `None`") -> T:
    """Return a value that is there.

    Args:
        optional: the value.
        message: of the error.

    Raises:
        AssertionError: if it is None.

    Example:
        >>> none_throws(3)
        3
    """
    if optional is None:
        raise AssertionError(message)
    return optional
