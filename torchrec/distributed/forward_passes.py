"""Forward passes of a sharded model, which ranks begin, end and go back through together.

A rank whose loss leaves out what it has looked up in a collection is waited for by those whose losses do not: what a
model returns is tied to all that was looked up on the way, so that each backward pass comes through all of it. A rank
that has looked up less than the others is found out where the forward pass ends, before gradients of layers are added
up: there it would be waited for in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed._private import map_leaves
from torchrec.distributed.agreement import difference
from torchrec.distributed.sharded_tables import ShardedTables
from torchrec.distributed.terms import number_of
from torchrec.distributed.types import ShardedModule
from torchrec.distributed.wire import Wire

__all__ = ["ForwardPasses"]


# `DistributedDataParallel` puts its buckets in order by what the first backward pass has brought: ranks tell each other
# as they begin the second forward pass, where they would wait for one that does something else.
_FIRST = 3


class _Tied(torch.autograd.Function):
    """What a model returns, whose backward pass comes through all that was looked up for it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *looked_up: Tensor) -> Tensor:
        ctx.others = len(looked_up)
        return output.detach()  # not a view to autograd: who gets it may change it in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *[None] * ctx.others


class ForwardPasses:
    """The forward passes of a model.

    Args:
        model: sharded.
        tables: those of its collections.
        adds_up: whether gradients of its layers are added up in the backward pass.
    """

    def __init__(self, model: nn.Module, tables: Iterable[ShardedTables], adds_up: bool) -> None:
        of_ranks = [each for each in tables if each.wire is not None]
        self._exchanges = [each.away.exchange for each in of_ranks if each.away is not None]
        self._copies = [each.here for each in of_ranks]
        wires = {id(each.wire.group): each.wire for each in of_ranks if each.wire is not None}
        self._wires: list[Wire] = list(wires.values()) if adds_up else []
        self._modules = _around_tables(model)
        self._params = {
            f"{path}.{name}" if path else name: param
            for path, module in self._modules.items()
            if not isinstance(module, ShardedModule)
            for name, param in module.named_parameters(recurse=False)
        }
        self._ended = 0

    def run(self, call: Callable[[], Any]) -> Any:
        """Run a forward pass, and return what it does.

        Args:
            call: runs it.

        Raises:
            ValueError: on all ranks, if one of them has left out what others look up, or trains other layers.
        """
        if not torch.is_grad_enabled() or not self._copies:
            return call()
        if self._ended < _FIRST:
            for wire in self._wires:
                wire.begin(f"the beginning of forward pass {self._ended} of the model").numbers()
        with ExitStack() as stack:
            looked_up = [stack.enter_context(each.recording()) for each in self._exchanges]
            output = call()
        for wire in self._wires:
            self._end(wire)
        self._ended += 1
        looked_up += [copies.marks() for copies in self._copies]
        marks = [mark for each in looked_up for mark in each]
        return map_leaves(lambda leaf: _tied(leaf, marks), output) if marks else output

    def _end(self, wire: Wire) -> None:
        """Find out whether all ranks have come to the end of the same pass, and train the same layers."""
        flags = [each.training for each in self._modules.values()]
        flags += [each.requires_grad for each in self._params.values()]
        head = [number_of(bytes(flags))]
        topic = f"the end of forward pass {self._ended} of the model"
        of_ranks = wire.begin(topic, [head] * wire.world_size, len(head)).numbers()
        if any(each != head for each in of_ranks):
            raise ValueError(difference(wire.gather(self._described())))

    def _described(self) -> dict[str, str]:
        return {
            **{f"`training` of module '{n}'": str(m.training) for n, m in self._modules.items()},
            **{f"`requires_grad` of '{n}'": str(p.requires_grad) for n, p in self._params.items()},
        }


def _around_tables(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by path, but what is in sharded ones: that differs from rank to rank."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if not path.startswith(inside):
            found[path] = module
            if isinstance(module, ShardedModule):
                inside = (*inside, f"{path}." if path else "")
    return found


def _tied(leaf: Any, looked_up: list[Tensor]) -> Any:
    if type(leaf) is not Tensor or not leaf.requires_grad:
        return leaf
    return _Tied.apply(leaf, *looked_up)  # type: ignore[no-untyped-call]
