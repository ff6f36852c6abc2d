"""A tracer of ``torch.fx`` that keeps modules whole by the names of their classes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx import Tracer as PyTorchTracer

from torchrec.fx.proxies import LeafModule

_is_tracing = ContextVar("_is_tracing", default=False)


def is_fx_tracing() -> bool:
    """Say whether a `Tracer` of this package is tracing, for code that should do something else then.

    ``torch.fx.symbolic_trace`` does not count.

    Example:
        >>> is_fx_tracing()
        False
    """
    return _is_tracing.get()


class Tracer(PyTorchTracer):
    """Traces as ``torch.fx.Tracer`` does, and records modules of some classes as one call each.

    Args:
        leaf_modules: names of these classes. Default: none but those that every tracer keeps whole: modules of
            ``torch.nn``, embedding collections, and others whose work depends on the numbers of their input.

    Example:
        >>> from torchrec.modules.mlp import MLP
        >>> graph = Tracer(leaf_modules=["Perceptron"]).trace(MLP(4, [3, 2]))
        >>> [node.target for node in graph.nodes if node.op == "call_module"]
        ['_mlp.0', '_mlp.1']
    """

    def __init__(self, leaf_modules: Collection[str] | None = None) -> None:
        super().__init__()
        self._leaf_modules = frozenset(leaf_modules or ())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether to record a call of a module, and not what it does.

        Args:
            m: the module.
            module_qualified_name: its path in the module that is traced.
        """
        if isinstance(m, LeafModule) or type(m).__name__ in self._leaf_modules:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def trace(
        self,
        root: nn.Module | Callable[..., Any],
        concrete_args: dict[str, Any] | None = None,
    ) -> Graph:
        """Trace a module or a function.

        Args:
            root: what to trace.
            concrete_args: values of arguments by name; the graph refuses others. Default: none.

        Returns:
            The graph.
        """
        token = _is_tracing.set(True)
        try:
            return super().trace(root, concrete_args)
        finally:
            _is_tracing.reset(token)


def symbolic_trace(
    root: nn.Module | Callable[..., Any],
    concrete_args: dict[str, Any] | None = None,
    leaf_modules: Collection[str] | None = None,
) -> GraphModule:
    """Trace a module or a function to a module that does what its graph says.

    ``torch.fx.symbolic_trace`` gives the same outputs; this takes names of classes that it keeps whole.

    Args:
        root: what to trace.
        concrete_args: values of arguments by name; the graph refuses others. Default: none.
        leaf_modules: see `Tracer`.

    Returns:
        The module, which shares the parameters of ``root``.

    Example:
        >>> from torchrec.models.dlrm import DenseArch
        >>> model = symbolic_trace(DenseArch(4, [3, 2]), leaf_modules=["MLP"])
        >>> print(model.code.strip())
        def forward(self, features : torch.Tensor) -> torch.Tensor:
            model = self.model(features);  features = None
            return model
    """
    tracer = Tracer(leaf_modules)
    graph = tracer.trace(root, concrete_args)
    name = type(root).__name__ if isinstance(root, nn.Module) else root.__name__
    return GraphModule(tracer.root, graph, name)
