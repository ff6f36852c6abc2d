"""What batches use of PyTorch's private names: pytrees, which have no public registration yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree


def register_pytree(cls: type[Any], parts_of: Callable[[Any], Mapping[str, Any]]) -> None:
    """Make a class a node of pytrees, for ``torch.compile``, ``torch.export`` and programs of ``torch.fx``.

    Args:
        cls: the class, made from its parts by name.
        parts_of: from an object to its parts by name, in one order; only those that are there, as a
            pytree counts None as a leaf.
    """

    def flatten(node: Any) -> tuple[list[Any], list[str]]:
        parts = parts_of(node)
        return list(parts.values()), list(parts)

    def flatten_with_keys(node: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
        parts = parts_of(node)
        return [(pytree.GetAttrKey(name), part) for name, part in parts.items()], list(parts)

    def flatten_as(node: Any, spec: Any) -> list[Any]:
        parts = parts_of(node)
        if list(parts) != spec.context:
            raise ValueError(
                f"A {cls.__name__} should have the parts {spec.context} that the program was traced "
                f"with. Received {list(parts)}."
            )
        return list(parts.values())

    pytree.register_pytree_node(
        cls,
        flatten,
        lambda parts, names: cls(**dict(zip(names, parts, strict=True))),
        serialized_type_name=f"torchrec.{cls.__name__}",
        flatten_with_keys_fn=flatten_with_keys,
    )
    torch.fx._pytree.register_pytree_flatten_spec(cls, flatten_as)
