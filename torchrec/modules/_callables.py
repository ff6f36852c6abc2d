"""What a caller may pass for "a module or a function of a tensor"."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

TensorFunction: TypeAlias = nn.Module | Callable[[Tensor], Tensor]
ModuleOrTensorFunction: TypeAlias = TensorFunction | Callable[[], nn.Module]

_Kind = inspect.Parameter


def extract_module_or_tensor_callable(module_or_callable: ModuleOrTensorFunction) -> TensorFunction:
    """Return a module or a function of a tensor, from one of these or from what makes a module.

    Args:
        module_or_callable: a module or a function of a tensor, returned as they are; or a module
            class or another callable without required arguments, called to make a module. Whether a
            callable takes an argument is read from its signature; built-in functions without one
            are taken as tensor functions.

    Returns:
        The module or the function.

    Raises:
        TypeError: the argument cannot be called.
        ValueError: a callable without required arguments returned something that is no module.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import extract_module_or_tensor_callable
        >>> extract_module_or_tensor_callable(torch.nn.PReLU)
        PReLU(num_parameters=1)
        >>> extract_module_or_tensor_callable(torch.relu) is torch.relu
        True
    """
    if isinstance(module_or_callable, nn.Module):
        return module_or_callable
    if not callable(module_or_callable):
        raise TypeError(
            "`module_or_callable` should be a module, a function that makes one, or a function of "
            f"a tensor. Received {module_or_callable!r}."
        )
    if not _makes_a_module(module_or_callable):
        return module_or_callable  # type: ignore[return-value]
    module = module_or_callable()  # type: ignore[call-arg]
    if not isinstance(module, nn.Module):
        raise ValueError(
            "`module_or_callable`, a callable without required arguments, should return an "
            f"nn.Module. Received {type(module).__name__} from {module_or_callable!r}."
        )
    return module


def _makes_a_module(function: Callable[..., object]) -> bool:
    """Whether ``function`` can be called without arguments, or is a module class."""
    made = function.func if isinstance(function, functools.partial) else function
    if isinstance(made, type) and issubclass(made, nn.Module):
        return True
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a built-in function tells no signature
        return False
    # A bare *args is a wrapper around a function of a tensor: factories have no use for it.
    return all(p.default is not _Kind.empty or p.kind is _Kind.VAR_KEYWORD for p in parameters)
