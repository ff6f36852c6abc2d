"""Marks in graphs, and what programs that trace ask for beside a tracer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from torchrec.fx._private import SourceRange, source_range_factory
from torchrec.fx.proxies import is_proxy


def _fx_marker(s: str, any_proxy_unused: Tensor) -> None:
    """Stand in a graph, and do nothing."""


torch.fx.wrap("_fx_marker")


def fx_marker(s: str, any_proxy_unused: Tensor) -> None:
    """Leave a mark in the graph that is being traced, for passes over it to find; otherwise do nothing.

    Args:
        s: names the mark.
        any_proxy_unused: any value that depends on an input, so that the tracer sees the call.

    Example:
        >>> def double(x):
        ...     fx_marker("begin", x)
        ...     return x * 2
        >>> graph = torch.fx.symbolic_trace(double).graph
        >>> [is_marker_node(node, "begin") for node in graph.nodes]
        [False, True, False, False]
    """
    _fx_marker(s, any_proxy_unused)


def is_marker_node(node: Node, marker_name: str) -> bool:
    """Say whether a node of a graph is the mark of that name.

    Args:
        node: of a graph.
        marker_name: what `fx_marker` was given.
    """
    return node.op == "call_function" and node.target is _fx_marker and node.args[0] == marker_name


def assert_fx_safe(condition: bool, message: str) -> None:
    """Raise unless a condition holds, but not while it is traced: then it cannot be known.

    Args:
        condition: what should hold.
        message: of the error.

    Raises:
        AssertionError: it does not.

    Example:
        >>> def positive(x):
        ...     assert_fx_safe(x.sum() > 0, "x should be positive")
        ...     return x
        >>> _ = torch.fx.symbolic_trace(positive)
        >>> positive(torch.zeros(2))
        Traceback (most recent call last):
        AssertionError: x should be positive
    """
    if not is_proxy(condition) and not condition:
        raise AssertionError(message)


def fake_range() -> SourceRange:
    """Return a place in source code that stands for none, as compilers of TorchScript want one."""
    return source_range_factory("", None, 0, 0).make_raw_range(0, 1)


def dmp_fx_trace_forward(dmp: nn.Module, tracer: torch.fx.Tracer) -> Graph:
    """Trace what a `DistributedModelParallel`, or another wrapper with a ``module`` in it, runs.

    Args:
        dmp: the wrapper.
        tracer: to trace with.

    Returns:
        The graph of the module inside.

    Raises:
        TypeError: there is no module inside.

    Example:
        >>> from torchrec.fx import Tracer
        >>> wrapper = nn.Module()
        >>> wrapper.module = nn.Linear(2, 1)
        >>> [node.op for node in dmp_fx_trace_forward(wrapper, Tracer()).nodes]
        ['placeholder', 'get_attr', 'get_attr', 'call_function', 'output']
    """
    module = getattr(dmp, "module", None)
    if not isinstance(module, nn.Module):
        raise TypeError(
            "`dmp` should be a wrapper with the module that it runs as its `module`. "
            f"Received {type(dmp).__name__}."
        )
    return tracer.trace(module)
