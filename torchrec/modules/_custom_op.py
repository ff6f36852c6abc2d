"""Modules as operators: opaque to whoever traces the model around them."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from torchrec.modules.sizes import checked_size

CustomOp: TypeAlias = Callable[[list[Tensor | None], int], list[Tensor]]

_NAMESPACE = "torchrec_custom"
_SCHEMA = "(Tensor?[] inputs, SymInt batch_size) -> Tensor[]"
_library = torch.library.Library(_NAMESPACE, "FRAGMENT")


class OpRegistryState:
    """The custom operators of this process: PyTorch takes the schema of a name only once.

    Attributes:
        op_registry_lock: held while an operator is registered.
        op_registry_schema: schema by qualified operator name, with the output dimensions.
    """

    op_registry_lock = threading.Lock()
    op_registry_schema: dict[str, str] = {}  # noqa: RUF012 - one state for the process, as documented


_name_of: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def register_custom_op(module: nn.Module, dims: Sequence[int]) -> CustomOp:
    """Make a module one operator, which ``torch.compile`` and ``torch.export`` do not look into.

    For modules that cannot be traced. The operator is for inference: no gradient flows through it.
    It does not keep the module alive. Registering a module again gives the same operator.

    Args:
        module: called as ``module(inputs, batch_size)``, with a list of tensors or None and an int;
            returns a list of ``len(dims)`` tensors, the i-th of shape ``(batch_size, dims[i])``,
            floating.
        dims: output dimensions.

    Returns:
        The operator: a function ``(inputs, batch_size) -> outputs``.

    Raises:
        TypeError: ``module`` is no module or a dimension no integer.
        ValueError: a dimension is smaller than 1, or ``module`` was registered with other
            dimensions.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import register_custom_op
        >>> class Halves(torch.nn.Module):
        ...     def forward(self, inputs, batch_size):
        ...         return [torch.zeros(batch_size, 2) if x is None else x / 2 for x in inputs]
        >>> halves = Halves()
        >>> op = register_custom_op(halves, [2, 2])
        >>> op([torch.ones(1, 2), None], 1)
        [tensor([[0.5000, 0.5000]]), tensor([[0., 0.]])]
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` should be an nn.Module. Received {type(module).__name__}.")
    sizes = [checked_size(f"dims[{i}]", dim) for i, dim in enumerate(dims)]
    schema = f"{_SCHEMA} of {sizes}"
    with OpRegistryState.op_registry_lock:
        name = _name_of.get(module)
        if name is None:
            name = _register(module, sizes)
            _name_of[module] = name
            OpRegistryState.op_registry_schema[f"{_NAMESPACE}::{name}"] = schema
    known = OpRegistryState.op_registry_schema[f"{_NAMESPACE}::{name}"]
    if known != schema:
        raise ValueError(
            f"`dims` of {type(module).__name__} should stay those it was registered with, "
            f"{known.rpartition(' of ')[2]}. Received {sizes}."
        )
    op: CustomOp = getattr(getattr(torch.ops, _NAMESPACE), name).default
    return op


def _register(module: nn.Module, dims: list[int]) -> str:
    """Define the operator of ``module`` under a name of its own, and return the name."""
    stem = re.sub(r"\W", "_", type(module).__name__)
    name = f"{stem}_{len(OpRegistryState.op_registry_schema)}"
    reference = weakref.ref(module)

    def run(inputs: list[Tensor | None], batch_size: int) -> list[Tensor]:
        alive = reference()
        if alive is None:
            raise ReferenceError(
                f"The module of operator {_NAMESPACE}::{name} is gone: keep it alive."
            )
        with torch.no_grad():
            outputs: list[Tensor] = alive(inputs, batch_size)
        received = [tuple(output.shape) for output in outputs]
        if received != [(batch_size, dim) for dim in dims]:
            raise ValueError(
                f"Operator {_NAMESPACE}::{name} should return {len(dims)} tensors of shapes "
                f"(batch_size, dim) for batch_size={batch_size} and dims={dims}. "
                f"Received {received}."
            )
        return outputs

    def fake(inputs: list[Tensor | None], batch_size: int) -> list[Tensor]:
        given = next((x for x in inputs if x is not None), None)
        like = torch.empty(0) if given is None else given
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return [like.new_empty((batch_size, dim), dtype=dtype) for dim in dims]

    _library.define(name + _SCHEMA)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_library)
    return name
