"""What the sparse types use of PyTorch's private names: pytrees, for which there is no public registration yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Parts = Callable[[Any], tuple[list[Tensor], Any]]


def register_pytree(
    cls: type[Any],
    parts: Parts,
    join: Callable[[Any, Any], Any],
    names: Callable[[Any], list[str]],
    dump: Callable[[Any], Any],
    load: Callable[[Any], Any],
    arrange: Callable[[Any, Any], list[Tensor]],
) -> None:
    """Make a class a node of pytrees, for ``torch.export``, ``torch.func`` and programs of ``torch.fx``.

    Args:
        cls: the class.
        parts: from an object to its tensors, and the context: what of it is no tensor.
        join: from tensors and context to an object. Not only tensors are handed to it.
        names: from a context to the names of the tensors.
        dump: from a context to what JSON holds.
        load: back.
        arrange: from an object and the context of a program's input to its tensors as that context has them; raises
            where it does not fit.
    """

    def parts_with_names(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
        tensors, context = parts(node)
        entries = [pytree.GetAttrKey(name) for name in names(context)]
        return list(zip(entries, tensors, strict=True)), context

    def parts_as(node: Any, spec: Any) -> list[Tensor]:
        return arrange(node, spec.context)

    pytree.register_pytree_node(
        cls,
        parts,
        join,
        serialized_type_name=f"torchrec.{cls.__name__}",
        to_dumpable_context=dump,
        from_dumpable_context=load,
        flatten_with_keys_fn=parts_with_names,
    )
    torch.fx._pytree.register_pytree_flatten_spec(cls, parts_as)
