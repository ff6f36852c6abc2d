"""What this package uses of PyTorch that PyTorch keeps to itself."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

# The number of the backward pass that this thread is in, -1 outside of any.
backward_pass_number: Callable[[], int] = torch._C._current_graph_task_id
# Has the backward pass under way call a function of no argument when all gradients are there; a RuntimeError
# outside of one. The pass owns the function: it calls those that were queued first first, an error in one ends
# `backward()` as an error in the pass does, and if the pass itself fails, none is called.
at_end_of_backward_pass: Callable[[Callable[[], None]], None] = (
    torch.autograd.Variable._execution_engine.queue_callback
)


@lru_cache(maxsize=1)
def reduced_by_ddp(backward_pass: int) -> dict[int, str]:
    """Return the names, by id, of all parameters whose gradients of several ranks a `DistributedDataParallel` adds up.

    A parameter does not tell, and there is no list of these modules: all objects are looked through, which takes some
    hundredths of a second.

    Args:
        backward_pass: number of the pass under way; in one of them they are looked for once.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {}
    # By type: the attributes of others' objects are not for us to touch.
    kind = torch.nn.parallel.DistributedDataParallel
    found = [module for module in gc.get_objects() if issubclass(type(module), kind)]
    reduced = {
        id(param)
        for module in found
        if module.process_group.size() > 1
        for param in module._module_parameters
    }
    return {
        id(param): name
        for module in found
        for name, param in module.module.named_parameters()
        if id(param) in reduced
    }


def row_gradients(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and values of a sparse gradient as they came, duplicates and all."""
    return grad._indices()[0], grad._values()


def has_torchs_optimizer_in_backward(param: Tensor) -> bool:
    """Say whether PyTorch's own function of that kind has given a parameter to an optimizer."""
    return hasattr(param, "_in_backward_optimizers")


def pass_on_torchs_optimizer_in_backward(former: Tensor, param: Tensor) -> None:
    """Give a parameter what PyTorch's own function of that kind has given the one whose place it takes.

    Args:
        former: the one that it was given to; with another one, nothing happens.
        param: a leaf of the graph.
    """
    if not has_torchs_optimizer_in_backward(former) or has_torchs_optimizer_in_backward(param):
        return
    from torch.distributed.optim import apply_optimizer_in_backward as its

    hooked = former in its.param_to_optim_hook_handle_map
    given = zip(former._optimizer_classes, former._optimizer_kwargs, strict=True)  # type: ignore[attr-defined]
    required = param.requires_grad  # it looks for the node of the graph that adds gradients up
    param.requires_grad_(True)
    with torch.enable_grad():
        for optimizer_class, options in given:
            its._apply_optimizer_in_backward(optimizer_class, [param], options, hooked)
    param.requires_grad_(required)
