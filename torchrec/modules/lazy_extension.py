"""Lazy modules: sizes that are known at the first forward pass, and functions to run then."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from torchrec.modules._private import awaits_first_pass

M = TypeVar("M", bound=nn.Module)


class LazyModuleExtensionMixin(LazyModuleMixin):
    """A ``LazyModuleMixin`` that takes keyword arguments and guards ``apply()``.

    PyTorch passes keyword arguments to ``initialize_parameters`` itself by now, so what is left for
    this class is the guard: a function applied to parameters without storage fails deep inside, or,
    where it tests for a type, does nothing without a word.

    A subclass declares ``UninitializedParameter``s, gives them shapes in ``initialize_parameters``,
    which receives the arguments of the first forward call, and may name the class it turns into in
    ``cls_to_become``. It may also make its parameters there: then it has none before.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchrec.modules.lazy_extension import LazyModuleExtensionMixin
        >>> class Scale(LazyModuleExtensionMixin, nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.factor = nn.UninitializedParameter()
        ...     def initialize_parameters(self, *, input):
        ...         self.factor.materialize(input.shape[-1:])
        ...         nn.init.constant_(self.factor, 2.0)
        ...     def forward(self, *, input):
        ...         return input * self.factor
        >>> Scale()(input=torch.tensor([1.0, 2.5])).detach()
        tensor([2., 5.])
    """

    _loaded = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]
        self._loaded = True  # so that all parameters are there, though no pass was run

    def apply(self, fn: Callable[[nn.Module], None]) -> nn.Module:
        """Apply ``fn`` to every submodule and to this module, children first.

        Args:
            fn: the function to apply.

        Returns:
            This module.

        Raises:
            RuntimeError: a parameter or buffer has no size yet, or is not made yet. Run a forward pass first, or hand
                ``fn`` to ``lazy_apply``, which runs it after that pass.
        """
        module: nn.Module = self  # type: ignore[assignment]
        if any(map(is_lazy, itertools.chain(module.parameters(), module.buffers()))):
            raise _not_ready(module, "has parameters without a size")
        parts = [part for part in module.modules() if isinstance(part, LazyModuleExtensionMixin)]
        for part in parts:
            if awaits_first_pass(part) and not part._loaded:
                raise _not_ready(part, "makes its parameters in its first forward pass")
        return super().apply(fn)  # type: ignore[misc, no-any-return]


def _not_ready(module: nn.Module, why: str) -> RuntimeError:
    return RuntimeError(
        f"apply() needs an initialised module. {type(module).__name__} {why}: run a forward pass "
        "first, or use torchrec.modules.lazy_extension.lazy_apply, which applies the function "
        "right after that pass."
    )


class _ApplyOnce:
    """A forward hook that applies a function to its module and takes itself away.

    An object and not a closure: the copy of a module carries a copy of the hook, with a handle of
    its own.
    """

    handle: RemovableHandle

    def __init__(self, fn: Callable[[nn.Module], None]) -> None:
        self.fn = fn

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        self.handle.remove()
        module.apply(self.fn)


def lazy_apply(module: M, fn: Callable[[nn.Module], None]) -> M:
    """Apply ``fn`` to a module and all its submodules once, right after its first forward pass.

    For initial values of modules whose sizes are not known yet; works on any other module alike.
    Called several times, the functions run in that order. The output of that first pass is the one
    of the old values, and its gradient is lost where ``fn`` overwrites parameters: take it as a dry
    run.

    Args:
        module: module to visit, lazy or not.
        fn: function to apply to every submodule and to ``module``, children first. Lazy modules
            have become what they stand for when it runs: a ``LazyLinear`` is a ``Linear``.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is no ``nn.Module`` or ``fn`` cannot be called.

    Example:
        >>> import torch
        >>> from torchrec.modules.lazy_extension import lazy_apply
        >>> @torch.no_grad()
        ... def fill(module):
        ...     module.weight.fill_(1.0)
        >>> linear = lazy_apply(torch.nn.LazyLinear(2, bias=False), fill)
        >>> _ = linear(torch.zeros(1, 3))  # a dry run: `linear` learns its size, then `fill` runs
        >>> linear(torch.tensor([[1.0, 2.0, 3.0]])).detach()
        tensor([[6., 6.]])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` should be an nn.Module. Received {type(module).__name__}.")
    if not callable(fn):
        raise TypeError(f"`fn` should be a function of a module. Received {type(fn).__name__}.")
    hook = _ApplyOnce(fn)
    hook.handle = module.register_forward_hook(hook)
    return module
