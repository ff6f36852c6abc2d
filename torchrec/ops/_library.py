"""The native library and the table of operators: which backends each one has, and which is in use.

An operator is defined once, by its family's ``schema.py``, and gets up to three implementations: ``reference.py``
(plain PyTorch, any device; the specification), ``native.py`` (C++ kernels, CPU) and ``triton.py`` (CUDA). The
PyTorch dispatcher chooses by the device of the tensors.

A trip through the dispatcher to a kernel registered from Python costs 3 µs, more than the small kernels take. What
``define`` returns therefore decides first, and nowhere else is it decided:

- Plain CPU tensors, and nobody who would see the difference: the kernel, straight away; where a gradient is asked of
  them, inside an autograd function of the operator's own. PyTorch's way there, through the dispatcher, costs 30 µs.
- ``torch.func`` or forward-mode AD at work: the reference. It is written out of place, so that PyTorch can
  differentiate and batch it as it does any other formula.
- All else (tracing of any kind, modes, subclasses, other devices): the dispatcher.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Collection, Sequence
from functools import cache
from inspect import signature
from operator import attrgetter
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.nn import Parameter

from torchrec.ops._memory import Known
from torchrec.ops._private import (
    has_batched_grads,
    has_transforms,
    is_wrapped,
    is_zero,
    jit_trace,
    num_dispatch_modes,
    num_function_modes,
    parse_schema,
    register_autograd,
    register_fake,
    tangent_level,
)

ENVIRONMENT_VARIABLE = "ROWWISE_BACKEND"

_library = torch.library.Library("rowwise", "DEF")


def _load_native() -> tuple[ModuleType | None, str]:
    """Return the native library, or None, and the reason for either."""
    choice = os.environ.get(ENVIRONMENT_VARIABLE, "native")
    if choice not in ("native", "reference"):
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE} should be 'native' or 'reference'. Received {choice!r}."
        )
    if choice == "reference":
        return None, f"{ENVIRONMENT_VARIABLE}=reference"
    if importlib.util.find_spec("torchrec.ops._native") is None:
        return None, "the package was installed without a C++ compiler"
    # A library that is there but broken raises here: it is never skipped quietly.
    module = importlib.import_module("torchrec.ops._native")
    module.read_tensors(Tensor, Parameter)
    threads = "OpenMP" if module.openmp() else "one thread, no OpenMP"
    return module, f"C++ kernels, {module.isa()}, {threads}"


native, _why = _load_native()


class Backend(NamedTuple):
    """What an operator uses for tensors of one device type."""

    name: str
    why: str


_backends: dict[str, dict[str, Backend]] = {}


class Gradient(NamedTuple):
    """The gradient of an operator, as ``torch.library.register_autograd`` takes it.

    Attributes:
        save: what it keeps of a call: ``save(ctx, inputs, output)``. It does not ask which gradients are needed.
        backward: ``backward(ctx, *grads)``, one a result (a list for results that are one), and none for those that
            `save` has marked; returns one an argument, None where there is none, a list for a list of tensors.
    """

    save: Callable[..., None]
    backward: Callable[..., Any]


class Definition(NamedTuple):
    """An operator: what ``define`` returned, the specification, and the arguments."""

    call: Callable[..., Any]
    reference: Callable[..., Any]
    schema: Any


# Arguments that are lists of tensors which stay from call to call.
_LASTING = ("weights", "states")

definitions: dict[str, Definition] = {}
"""Every operator by name, for tests that run over all of them."""


def define(
    schema: str,
    *,
    reference: Callable[..., object],
    fake: Callable[..., object],
    native_kernel: Callable[..., object] | None = None,
    decided_by: Collection[str] | None = None,
    bytes_of: Collection[str] = (),
    gradient: Gradient | None = None,
    tags: tuple[torch.Tag, ...] = (),
) -> Callable[..., Any]:
    """Define the operator ``rowwise::<schema>`` and register its implementations.

    Args:
        schema: name, arguments and results in the schema language of ``torch.library``.
        reference: plain PyTorch, right on every device.
        fake: shapes and dtypes of the results, for tracing.
        native_kernel: the CPU implementation on the native library; used where that library is in use.
        decided_by: names of the arguments that are looked at to see whether the kernel may be called straight
            away. Default: all tensors. The kernel itself checks the others.
        bytes_of: names of the arguments that are lists of uint8. No gradient is asked of these, and they are as they
            lie, so that their types say it all; where they are, and that they are bytes, the kernel checks.
        gradient: of the results.
        tags: tags of the operator, such as ``torch.Tag.needs_fixed_stride_order``.

    Returns:
        What to call, with positional arguments, all of them: see the head of this file.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=tags)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    register_fake(_library, f"rowwise::{name}", fake)
    chosen = {"cpu": Backend("reference", _why), "other": Backend("reference", "any device")}
    if native is not None:
        if native_kernel is None:
            chosen["cpu"] = Backend("reference", "no native kernel: plain PyTorch is as fast")
        else:
            _library.impl(name, native_kernel, "CPU")
            chosen["cpu"] = Backend("native", _why)
    _backends[name] = chosen
    operator = getattr(torch.ops.rowwise, name).default
    if gradient is not None:
        register_autograd(_library, operator, gradient.save, gradient.backward)
    kernel = None if native is None else native_kernel
    of_type: dict[str, list[int]] = {"Tensor": [], "List[Tensor]": []}
    lists_of_bytes = []
    parsed = parse_schema(f"rowwise::{schema}")
    lasting = set()
    for i, argument in enumerate(parsed.arguments):
        if argument.name in _LASTING:
            lasting.add(i)
        kind = str(argument.type).replace("Optional[Tensor]", "Tensor")
        if argument.name in bytes_of:
            lists_of_bytes.append(i)
        elif kind in of_type and (decided_by is None or argument.name in decided_by):
            of_type[kind].append(i)
    call = _chooser(
        operator,
        reference,
        kernel,
        len(parsed.arguments),
        of_type["Tensor"],
        of_type["List[Tensor]"],
        lasting,
        lists_of_bytes,
        None
        if gradient is None or kernel is None
        else _recorder(
            kernel, gradient, of_type["List[Tensor]"], str(parsed.returns[0].type) == "List[Tensor]"
        ),
    )
    definitions[name] = Definition(call, reference, parsed)
    return call


def define_effect(schema: str, implementation: Callable[..., None]) -> Callable[..., None]:
    """Define an operator that compiled programs call for what it does, and return it.

    It has no result, and no backends; of its arguments it writes one, or compilers would leave it out.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    register_fake(_library, f"rowwise::{name}", lambda *_: None)
    operator: Callable[..., None] = getattr(torch.ops.rowwise, name).default
    return operator


def _recorder(
    kernel: Callable[..., Any], gradient: Gradient, lists: Sequence[int], returns_list: bool
) -> Callable[..., Any]:
    """Return what calls a kernel and has autograd record it.

    Autograd looks at the arguments of a function one by one, so the lists among them are laid out.
    """

    def laid_out(values: Sequence[Any], last: object) -> list[Any]:
        flat: list[Any] = []
        for i, value in enumerate(values):
            flat += value if i in lists else (value,)
        return [*flat, last]

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> Any:
            arguments = flat[-1]
            output = kernel(*arguments)
            gradient.save(ctx, arguments, output)
            return tuple(output) if returns_list else output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return tuple(
                laid_out(gradient.backward(ctx, *([grads] if returns_list else grads)), None)
            )

    def recorded(*arguments: Any) -> Any:
        output = Recorded.apply(*laid_out(arguments, arguments))  # type: ignore[no-untyped-call]
        return list(output) if returns_list else output

    return recorded


# This runs before every small kernel, and to pack arguments, to loop over them and to call a function takes as long as
# what is asked of them. Hence one expression, and a function with the parameters of its operator.
_CHOOSE = """
def choose({arguments}):
    if is_dynamo_compiling():  # first: what follows cannot be traced
        return operator({arguments})
    if (
        num_dispatch_modes()
        or num_function_modes()
        or has_transforms()
        or tangent_level() >= 0
        or jit_trace() is not None
    ):  # as `is_observed` says
        return step_aside({arguments})
    if {are_plain}:
        return {kernel}
    return look_closer({arguments})
"""
_PLAIN_INTEGERS = "({0} is None or (type({0}) is Tensor and {0}.is_cpu and ({0}.dtype is int64 or {0}.dtype is int32)))"
_PLAIN_BYTES = "are_plain({0})"


@cache
def _compiled(source: str) -> CodeType:
    """Return the code of a function: half of all operators share theirs with another."""
    return compile(source, __file__, "exec")


def _chooser(
    operator: Callable[..., Any],
    reference: Callable[..., Any],
    kernel: Callable[..., Any] | None,
    count: int,
    tensors: Sequence[int],
    lists: Sequence[int],
    lasting: Collection[int] = (),
    lists_of_bytes: Sequence[int] = (),
    recorded: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Return what decides.

    Args:
        operator: what goes through the dispatcher.
        reference: what can be transformed.
        kernel: what reads plain memory, if there is such a thing.
        count: number of arguments.
        tensors: positions of the arguments to look at that are tensors or None.
        lists: positions of those that are lists of such.
        lasting: positions of lists that are mostly those of the last call.
        lists_of_bytes: positions of lists of uint8, see `define`.
        recorded: the kernel as autograd records it. Default: where a gradient is asked, the dispatcher.
    """
    known: dict[int, Known[bool]] = {i: Known() for i in lasting}

    def step_aside(*args: Any) -> Any:
        return reference(*args) if is_transformed() else operator(*args)

    if kernel is None:
        return step_aside

    def look_closer(*args: Any) -> Any:
        floating = bool(lists)
        asked = False  # of a gradient
        for i in tensors:
            tensor = args[i]
            if tensor is None:
                continue
            kind = type(tensor)
            if (kind is not Tensor and kind is not Parameter) or not tensor.is_cpu:
                return step_aside(*args)
            if tensor.dtype is not torch.int64 and tensor.dtype is not torch.int32:
                floating = True
                if not _is_as_it_lies(tensor):
                    return step_aside(*args)
                asked = asked or tensor.requires_grad
        for i in lists_of_bytes:
            if not are_plain(args[i]):
                return step_aside(*args)
        return look_at_lists(args, floating, asked)

    def look_at_lists(args: Sequence[Any], floating: bool, asked: bool) -> Any:
        for i in lists:
            found = args[i]
            is_known = i in known and len(found) > _FEW
            of_list = known[i].get(found[0], found) if is_known else None
            if of_list is None:
                of_list = _gradient_asked_of(found)
                if of_list is None:
                    return step_aside(*args)
                if is_known:
                    known[i].put(found[0], found, of_list)
            asked = asked or of_list
        if floating and has_batched_grads():
            return step_aside(*args)
        if asked and is_grad_enabled():
            return step_aside(*args) if recorded is None else recorded(*args)
        return kernel(*args)

    names = [f"x{i}" for i in range(count)]
    plain = [_PLAIN_INTEGERS.format(names[i]) for i in tensors]
    plain += [_PLAIN_BYTES.format(names[i]) for i in lists_of_bytes]
    arguments = ", ".join(names)
    source = _CHOOSE.format(
        arguments=arguments,
        are_plain=" and ".join(plain) or "True",
        kernel=f"look_at_lists(({arguments},), True, False)" if lists else f"kernel({arguments})",
    )
    namespace: dict[str, Any] = {
        **_CHOOSE_BY,
        "operator": operator,
        "step_aside": step_aside,
        "look_closer": look_closer,
        "look_at_lists": look_at_lists,
        "kernel": kernel,
    }
    exec(_compiled(source), namespace)
    choose: Callable[..., Any] = namespace["choose"]
    return choose


def shortcut(
    kernel: Callable[..., Any],
    *,
    composed: Callable[..., Any],
    tensors: tuple[int, ...],
    lists: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Return a function that is no operator, but composed of others, with a kernel that does the same in one go.

    Args:
        kernel: on the native library.
        composed: the same of plain PyTorch and of operators.
        tensors: the positions of the arguments that are tensors, or None.
        lists: those of the arguments that are lists of tensors. Default: none.

    Returns:
        What to call, with positional arguments: the kernel where ``define`` would call one, else ``composed``.
    """
    count = len(signature(kernel).parameters)
    return _chooser(composed, composed, None if native is None else kernel, count, tensors, lists)


_PLAIN_TYPES = frozenset((Tensor, Parameter))


def _are_plain(tensors: Sequence[Any]) -> bool:
    return _PLAIN_TYPES.issuperset(map(type, tensors))


# Say whether all are tensors of no subclass but `Parameter`.
are_plain: Callable[[Sequence[Any]], bool] = _are_plain if native is None else native.are_plain


_CHOOSE_BY = {
    "are_plain": are_plain,
    "Tensor": Tensor,
    "int32": torch.int32,
    "int64": torch.int64,
    "is_dynamo_compiling": is_dynamo_compiling,
    "num_dispatch_modes": num_dispatch_modes,
    "num_function_modes": num_function_modes,
    "has_transforms": has_transforms,
    "tangent_level": tangent_level,
    "jit_trace": jit_trace,
}


def _is_as_it_lies(tensor: Tensor) -> bool:
    """Say whether floating numbers are those in memory.

    A tensor may stand for the conjugate, the negative or zeros instead. (A sparse one has no address, and says so.)
    """
    return not (tensor.is_neg() or tensor.is_conj() or is_zero(tensor))


def _gradient_asked_of(tensors: Sequence[Tensor | None]) -> bool | None:
    """Say whether a gradient is asked of a list; None: kernels may not read all of its tensors.

    Of a long one in a few passes at the speed of C.
    """
    if len(tensors) <= _FEW:
        asked = False
        for tensor in tensors:
            if tensor is None:
                continue
            if type(tensor) not in _PLAIN_TYPES or not tensor.is_cpu:
                return None
            if tensor.is_neg() or tensor.is_conj() or is_zero(tensor):  # see `_is_as_it_lies`
                return None
            asked = asked or tensor.requires_grad
        return asked and is_grad_enabled()
    found = [tensor for tensor in tensors if tensor is not None]
    if (
        _PLAIN_TYPES.issuperset(map(type, found))
        and all(map(_get_is_cpu, found))
        and not any(map(Tensor.is_neg, found))
        and not any(map(Tensor.is_conj, found))
        and not any(map(is_zero, found))
    ):
        return is_grad_enabled() and any(map(_get_requires_grad, found))
    return None


_FEW = 4
_get_is_cpu, _get_requires_grad = attrgetter("is_cpu"), attrgetter("requires_grad")


def _are_held(objects: list[Any], dicts: list[dict[str, Any]], key: str) -> bool:
    return len(objects) == len(dicts) and all(
        held.get(key) is mine for mine, held in zip(objects, dicts, strict=True)
    )


def _held(dicts: list[dict[str, Any]], key: str) -> list[Any]:
    return [held[key] for held in dicts]


# Return what each of several dictionaries holds under a key. Not for code that is traced.
held: Callable[[list[dict[str, Any]], str], list[Any]] = _held if native is None else native.held

# Say whether each of several dictionaries holds, under a key, the very object of its place in a list. That is asked of
# the weights of a collection at each call, where making and comparing two lists takes longer than a small look-up.
are_held: Callable[[list[Any], list[dict[str, Any]], str], bool] = (
    _are_held if native is None else native.are_held
)


def is_observed() -> bool:
    """Say whether somebody would see that a call has gone past the dispatcher."""
    return (
        num_dispatch_modes() > 0
        or num_function_modes() > 0
        or has_transforms()
        or tangent_level() >= 0
        or jit_trace() is not None
    )


def is_transformed() -> bool:
    """Say whether `torch.func`, forward-mode AD or a batched backward pass is at work.

    They differentiate or batch a formula of PyTorch, but no kernel.
    """
    return not is_compiling() and (has_transforms() or tangent_level() >= 0 or has_batched_grads())


def is_readable(tensor: Tensor) -> bool:
    """Say whether the numbers of a tensor can be looked at: at once, and without anybody taking note of it."""
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and not is_compiling()
        and not num_dispatch_modes()
        and jit_trace() is None
        and not (has_transforms() and is_wrapped(tensor))
    )


def refuse_jit_trace(what: str) -> None:
    """Refuse to turn numbers of a tensor into Python's while `torch.jit.trace` records.

    Args:
        what: what is wanted of them.

    Raises:
        NotImplementedError: while recording.
    """
    if jit_trace() is not None:
        raise NotImplementedError(
            f"torch.jit.trace should not need {what}: they would stay those of the example. "
            "torch.compile and torch.export can follow them."
        )


def is_recorded() -> bool:
    """Say whether autograd records a gradient of our own: nothing transforms the call, and gradients are wanted.

    Raises:
        NotImplementedError: while `torch.jit.trace` records, which knows none of tables.
    """
    if not is_grad_enabled() or is_transformed():
        return False
    if jit_trace() is not None:
        raise NotImplementedError(
            "torch.jit.trace should record look-ups without a gradient, call it under `torch.no_grad()`: it knows "
            "none of tables. torch.compile and torch.export do."
        )
    return True


def backends() -> dict[str, dict[str, Backend]]:
    """Say what each operator uses, by device type, and why.

    Returns:
        Operator name -> device type ("cpu", "other") -> ``Backend(name, why)``.

    Example:
        >>> from torchrec import ops
        >>> sorted(ops.backends()["embedding_bag"])
        ['cpu', 'other']
    """
    return {name: dict(chosen) for name, chosen in _backends.items()}
