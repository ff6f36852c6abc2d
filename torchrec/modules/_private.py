"""Private names of PyTorch that modules need: what a new version may break is in this file alone.

``tests/modules/test_private.py`` holds what each should do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

# torch.compiler.disable, without importing the compiler.
from torch._compile import _disable_dynamo as outside_graphs

__all__ = [
    "assert_later",
    "awaits_first_pass",
    "children_by_name",
    "constant_in_graphs",
    "ddp_around",
    "has_hooks",
    "is_cut_up_by_fsdp",
    "outside_graphs",
    "parameters_by_name",
    "reduced_by_ddp",
    "saving_hooks",
]

C = TypeVar("C", bound=Callable[..., object])

# Gives the `DistributedDataParallel` whose forward pass this is, or None.
ddp_around: Callable[[], nn.parallel.DistributedDataParallel | None] = (
    nn.parallel.DistributedDataParallel._get_active_ddp_module
)

# Fails with a message once the device comes to it; the host does not wait.
assert_later = torch._assert_async

# ``(False)`` gives who takes the tensors that this thread saves for a backward pass elsewhere, or None.
saving_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def has_hooks(module: nn.Module) -> bool:
    """Say whether somebody asked to be called when ``module`` is."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def constant_in_graphs(function: C) -> C:
    """Have ``torch.compile`` take what a function returns for a constant, made while it traces.

    As `torch.compiler.assume_constant_result`, without importing the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def awaits_first_pass(module: nn.Module) -> bool:
    """Say whether a lazy module has still to make its parameters, in its first forward pass."""
    return hasattr(module, "_initialize_hook")


def parameters_by_name(module: nn.Module) -> dict[str, Tensor]:
    """Return the dictionary in which a module keeps its own parameters: what is read faster."""
    return module._parameters  # type: ignore[return-value]


def children_by_name(module: nn.Module) -> dict[str, nn.Module]:
    """Return the dictionary in which a module keeps its children, those that come twice as well."""
    return module._modules  # type: ignore[return-value]


def reduced_by_ddp() -> list[Tensor]:
    """Return the parameters of the `DistributedDataParallel` whose forward pass this is, if any."""
    around = ddp_around()
    return [] if around is None else list(around._module_parameters)


def is_cut_up_by_fsdp(param: Tensor) -> bool:
    """Say whether a `FullyShardedDataParallel` has made a parameter part of one that is cut up over ranks."""
    return getattr(param, "_fsdp_flattened", False)
