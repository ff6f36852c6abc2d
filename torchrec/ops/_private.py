"""What the choice of an implementation asks of PyTorch's private API, all of it in this one file.

``tests/ops/test_private.py`` says what each should answer, and so whether another version of PyTorch still does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._library import simple_registry
from torch._library.autograd import Info, make_autograd_impl
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.library import Library

# How many `TorchDispatchMode`s are in force (fake tensors, `make_fx`, logging, ...).
num_dispatch_modes = torch._C._len_torch_dispatch_stack
# How many `TorchFunctionMode`s are in force; a default device is one.
num_function_modes = torch._C._len_torch_function_stack
# What `torch.jit.trace` is recording into; None: it is not recording.
jit_trace = torch._C._get_tracing_state
# Whether `torch.func` is transforming what runs now (grad, jvp, vmap, ...).
has_transforms = torch._C._are_functorch_transforms_active
# How deep forward-mode AD is at work, so that tensors may have tangents; -1: it is not.
tangent_level: Callable[[], int] = partial(getattr, forward_ad, "_current_level")
# Whether a backward pass runs for several gradients at once (`torch.autograd.grad(is_grads_batched=True)`).
has_batched_grads = partial(
    torch._C._dispatch_tls_is_dispatch_key_included, torch._C._dispatch_key_parse("VmapMode")
)
# Whether the backward pass under way comes to a node of the graph: all of them, unless it is one for some tensors only.
will_run = torch._C._will_engine_execute_node
# The arguments of an operator and their types.
parse_schema = torch._C.parse_schema
# Whether a tensor stands for zeros that have no memory, as autograd makes them.
is_zero = Tensor._is_zerotensor
# Fails on the device when it gets there, instead of waiting for it here.
assert_later = torch._assert_async


def guard_of(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Return what tells whether as many tensors, given one by one, are just like these.

    Of the same types, dtypes, shapes and strides, on the same device, lazy in the same ways, of which a gradient is
    asked or not; and no tensor twice. That takes a twentieth of a microsecond a tensor.
    """
    make: Any = TensorGuards  # whose hints are wrong
    check: Callable[..., bool] = make(
        *tensors,
        dynamic_dims_sizes=[list(t.shape) for t in tensors],
        dynamic_dims_strides=[list(t.stride()) for t in tensors],
    ).check
    return check


def register_fake(library: Library, operator: str, fake: Callable[..., object]) -> None:
    """Do what `torch.library.register_fake` does, but do not look for the line it is called from: that takes longer."""
    entry = simple_registry.singleton.find(operator)
    entry.fake_impl.register(fake, __name__, library)


def register_autograd(
    library: Library,
    operator: OpOverload,
    save: Callable[..., object],
    backward: Callable[..., object],
) -> None:
    """Do what `torch.library.register_autograd` does, but make its classes (half a millisecond) when first called."""

    @cache
    def made() -> Callable[..., Any]:
        return make_autograd_impl(operator, Info(backward, save))

    def autograd(keyset: object, *args: object) -> object:
        return made()(keyset, *args)

    library.impl(operator, autograd, "Autograd", with_keyset=True)


def linear_pointwise(input: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
    """Return ``input @ weight.T + bias`` of oneDNN with "relu" or "none" behind it, in one pass."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, then, [], "")
    return output


def linear_pointwise_plus(input: Tensor, weight: Tensor, addend: Tensor) -> Tensor:
    """Return ``input @ weight.T + addend`` of oneDNN, in one pass; the addend is contiguous."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise.binary(input, addend, weight, None, "add")
    return output


@contextmanager
def outside_jit_trace() -> Iterator[None]:
    """Step out of the recording of `torch.jit.trace`, to make what is the same for all inputs."""
    state = jit_trace()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def is_wrapped(tensor: Tensor) -> bool:
    """Say whether a transform stands between the tensor and its numbers."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


@contextmanager
def outside_transforms(tensor: Tensor) -> Iterator[Tensor]:
    """Step out of the transforms of `torch.func`, to keep a number that is no part of what they transform.

    Args:
        tensor: the number.

    Yields:
        The same, as it is outside.
    """
    with temporarily_clear_interpreter_stack():
        while is_wrapped(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        yield tensor
