"""Steps from the input of a model to arguments, and a tracer: for programs that trace models themselves.

Pipelines here trace nothing: they see what modules are called with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

from torch import nn
from torch.fx import Tracer as GraphTracer

from torchrec.distributed.train_pipeline.types import ArgInfo, BaseArgInfoStep
from torchrec.distributed.types import ShardedModule

__all__ = ["ArgInfoStepFactory", "Tracer"]


@dataclass
class _Step(BaseArgInfoStep):
    """A step that calls a function.

    Attributes:
        function: of what the step before has made.
    """

    function: Callable[[Any], Any]

    def process(self, arg: Any) -> Any:
        return self.function(arg)


def _made(value: Any, arg: Any) -> Any:
    """Return a value, or what steps make where it is steps."""
    if isinstance(value, BaseArgInfoStep):
        return value.process(arg)
    return value.process_steps(arg) if isinstance(value, ArgInfo) else value


class ArgInfoStepFactory:
    """Makes steps.

    Example:
        >>> import torch
        >>> steps = [ArgInfoStepFactory.get_attr("shape"), ArgInfoStepFactory.get_item(0)]
        >>> ArgInfo(steps).process_steps(torch.ones(2, 3))
        2
        >>> ArgInfoStepFactory.from_list([1, ArgInfoStepFactory.noop()]).process("x")
        [1, 'x']
    """

    @classmethod
    def noop(cls) -> BaseArgInfoStep:
        """Return a step that changes nothing."""
        return _Step(lambda arg: arg)

    @classmethod
    def get_attr(cls, name: str) -> BaseArgInfoStep:
        """Return a step to an attribute.

        Args:
            name: of the attribute.
        """
        return _Step(attrgetter(name))

    @classmethod
    def get_item(cls, index: str | int) -> BaseArgInfoStep:
        """Return a step to an item.

        Args:
            index: of the item.
        """
        return _Step(itemgetter(index))

    @classmethod
    def postproc(cls, pipelined_postproc_module: nn.Module) -> BaseArgInfoStep:
        """Return a step through a module.

        Args:
            pipelined_postproc_module: called with what the step before has made.
        """
        return _Step(pipelined_postproc_module)

    @classmethod
    def from_scalar(cls, value: object) -> BaseArgInfoStep:
        """Return a step to a value, whatever was before.

        Args:
            value: it.
        """
        return _Step(lambda _: value)

    @classmethod
    def from_list(cls, value: list[object]) -> BaseArgInfoStep:
        """Return a step to a list.

        Args:
            value: its items, or steps to them.
        """
        return _Step(lambda arg: [_made(each, arg) for each in value])

    @classmethod
    def from_dict(cls, value: dict[str, object]) -> BaseArgInfoStep:
        """Return a step to a dictionary.

        Args:
            value: its items, or steps to them.
        """
        return _Step(lambda arg: {name: _made(each, arg) for name, each in value.items()})


class Tracer(GraphTracer):
    """Traces a model around its sharded modules, which it leaves whole.

    Args:
        leaf_modules: paths of other modules that stay whole. Default: none.
        extend_leaf_fqn: modules inside of these stay whole as well, where they are reached. Default False.
    """

    proxy_buffer_attributes = True

    def __init__(
        self, leaf_modules: list[str] | None = None, extend_leaf_fqn: bool = False
    ) -> None:
        super().__init__()
        self._leaf_modules = list(leaf_modules or [])
        self._extends = extend_leaf_fqn

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module stays whole.

        Args:
            m: the module.
            module_qualified_name: its path.
        """
        if isinstance(m, ShardedModule) or module_qualified_name in self._leaf_modules:
            return True
        if self._extends and self.is_extended_leaf_modules(m, module_qualified_name):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def is_extended_leaf_modules(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is in one of the others that stay whole, by its path.

        Args:
            m: the module.
            module_qualified_name: its path.
        """
        return any(module_qualified_name.startswith(f"{leaf}.") for leaf in self._leaf_modules)
