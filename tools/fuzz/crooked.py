"""Arguments bent out of shape, by nothing but their types: what no operator can have been written for."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

# Of integers in tensors, and of sizes: none that could be had, but would take all memory.
EXTREMES = (-1, 0, 1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
SIZES = (-1, 0, 1, 2, 7, -(2**31), 2**45, 2**62, 2**63 - 1, -(2**63))
DTYPES = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
)

Bend = Callable[[Random, Tensor], Tensor]


class Marked(Tensor):
    """A subclass that does nothing."""


# ---- the same numbers in another form: an operator should give what it gives for plain memory


def strided(random: Random, tensor: Tensor) -> Tensor:
    """Every second element of a larger tensor."""
    wide = torch.stack([tensor, torch.ones_like(tensor)], -1)
    return wide[..., 0]


def transposed(random: Random, tensor: Tensor) -> Tensor:
    if tensor.dim() < 2:
        return strided(random, tensor)
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def shifted(random: Random, tensor: Tensor) -> Tensor:
    """Memory that begins within other memory."""
    return torch.cat([tensor[:1], tensor, tensor[:1]])[min(1, tensor.size(0)) :][: tensor.size(0)]


def negated(random: Random, tensor: Tensor) -> Tensor:
    """The lazy negative of the negative."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return strided(random, tensor)
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


def conjugated(random: Random, tensor: Tensor) -> Tensor:
    return tensor.conj().resolve_conj().conj() if tensor.is_complex() else strided(random, tensor)


def asking(random: Random, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.clone().requires_grad_()
    return strided(random, tensor)


def parameter(random: Random, tensor: Tensor) -> Tensor:
    return torch.nn.Parameter(tensor.clone(), requires_grad=False)


def subclass(random: Random, tensor: Tensor) -> Tensor:
    return tensor.clone().as_subclass(Marked)


FORMS: tuple[Bend, ...] = (
    strided,
    transposed,
    shifted,
    negated,
    conjugated,
    asking,
    parameter,
    subclass,
)


# ---- other numbers, or none


def shorter(random: Random, tensor: Tensor) -> Tensor:
    """Memory of its own, which ends where the tensor does: a step too far is seen."""
    return tensor[: random.randint(0, max(0, tensor.size(0) - 1))].clone()


def longer(random: Random, tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1], tensor[:1]])


def narrower(random: Random, tensor: Tensor) -> Tensor:
    return tensor[..., :-1].contiguous()


def wider(random: Random, tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[..., :1]], -1)


def another_dtype(random: Random, tensor: Tensor) -> Tensor:
    return tensor.to(random.choice(DTYPES))


def more_dimensions(random: Random, tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(random.choice((0, -1)))


def flat(random: Random, tensor: Tensor) -> Tensor:
    return tensor.flatten()


def scalar(random: Random, tensor: Tensor) -> Tensor:
    return tensor.flatten()[0].clone() if tensor.numel() else tensor.sum()


def overlapping(random: Random, tensor: Tensor) -> Tensor:
    """One row that stands for all."""
    return tensor[:1].expand(tensor.shape) if tensor.size(0) else tensor


def extreme(random: Random, tensor: Tensor) -> Tensor:
    """One element, or all, at the edge of what the dtype holds."""
    changed = tensor.clone()
    if tensor.is_complex() or tensor.is_floating_point():
        value: float = random.choice((float("nan"), float("inf"), -float("inf"), -1.0, 1e30, 0.0))
    elif tensor.dtype is torch.bool:
        return tensor.logical_not()
    else:
        span = torch.iinfo(tensor.dtype)
        value = max(span.min, min(span.max, random.choice(EXTREMES)))
    if random.random() < 0.2 or not tensor.numel():
        return changed.fill_(value)
    changed.view(-1)[random.randrange(tensor.numel())] = value
    return changed


def next_to(random: Random, tensor: Tensor) -> Tensor:
    """One element more or less by one."""
    if tensor.dtype is torch.bool or not tensor.numel():
        return tensor
    changed = tensor.clone()
    changed.view(-1)[random.randrange(tensor.numel())] += (
        random.choice((-1, 1)) if tensor.dtype != torch.uint8 else 1
    )
    return changed


def zeros_without_memory(random: Random, tensor: Tensor) -> Tensor:
    return torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)


def freed(random: Random, tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.untyped_storage().resize_(0)
    return copy


def is_freed(tensor: Tensor) -> bool:
    """Say whether a tensor has lost its memory: PyTorch itself must not read it any more."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor._is_zerotensor():
        return False
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def sparse(random: Random, tensor: Tensor) -> Tensor:
    return tensor.to_sparse()


def elsewhere(random: Random, tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def odd_bytes(random: Random, tensor: Tensor) -> Tensor:
    """Booleans that are neither 0 nor 1."""
    if tensor.dtype is not torch.bool:
        return tensor
    return (tensor.to(torch.uint8) * random.choice((2, 254))).view(torch.bool)


NUMBERS: tuple[Bend, ...] = (
    shorter,
    shorter,
    longer,
    narrower,
    narrower,
    wider,
    another_dtype,
    more_dimensions,
    flat,
    scalar,
    overlapping,
    extreme,
    extreme,
    extreme,
    next_to,
    next_to,
    zeros_without_memory,
    freed,
    sparse,
    elsewhere,
    odd_bytes,
)


def bent_tensor(random: Random, tensor: Tensor, bends: tuple[Bend, ...]) -> tuple[Tensor, str]:
    """Return a tensor in another form, or another one, and what was done."""
    bend = random.choice(bends)
    if is_freed(tensor) or (
        tensor.dim() == 0 and bend not in (another_dtype, more_dimensions, elsewhere, sparse)
    ):
        return tensor, "nothing"
    try:
        return bend(random, tensor), bend.__name__
    except (
        RuntimeError,
        IndexError,
        NotImplementedError,
    ):  # what is bent cannot be bent that way again
        return tensor, "nothing"


def bent_integers(random: Random, numbers: list[int]) -> tuple[list[int], str]:
    changed = list(numbers)
    kind = random.choice(("extreme", "extreme", "next", "dropped", "added", "none", "negative"))
    if kind == "none":
        return [], kind
    if kind == "added" or not changed:
        return [*changed, random.choice(SIZES)], "added"
    at = random.randrange(len(changed))
    if kind == "dropped":
        del changed[at]
    elif kind == "negative":
        changed[at] = -changed[at]
    else:
        changed[at] = (
            random.choice(SIZES) if kind == "extreme" else changed[at] + random.choice((-1, 1))
        )
    return changed, kind


_LARGEST = 2**63 - 1  # that an operator takes


def bent_number(random: Random, number: int) -> tuple[int, str]:
    if random.random() < 0.5:
        return min(number + random.choice((-1, 1)), _LARGEST), "next"
    return random.choice(SIZES), "extreme"


def bent_list(random: Random, tensors: list[Any], bends: tuple[Bend, ...]) -> tuple[list[Any], str]:
    changed = list(tensors)
    kind = random.choice(("bent", "bent", "bent", "dropped", "twice", "none", "swapped"))
    if kind == "none" or not changed:
        return [], "none"
    at = random.randrange(len(changed))
    if kind == "dropped":
        del changed[at]
    elif kind == "twice":
        changed.append(changed[at])
    elif kind == "swapped":
        other = random.randrange(len(changed))
        changed[at], changed[other] = changed[other], changed[at]
    elif changed[at] is not None:
        changed[at], done = bent_tensor(random, changed[at], bends)
        return changed, f"{done} of {at}"
    return changed, kind


def bent(random: Random, value: Any, kind: str) -> tuple[Any, str]:
    """Return an argument of a type in another value, and what was done."""
    if "Tensor" in kind and isinstance(value, list):
        return bent_list(random, value, NUMBERS)
    if kind in ("Tensor", "Optional[Tensor]"):
        if kind == "Optional[Tensor]" and (value is None or random.random() < 0.15):
            fresh = torch.tensor([random.choice(EXTREMES) for _ in range(random.randint(0, 3))])
            return (fresh, "some") if value is None else (None, "None")
        return bent_tensor(random, value, NUMBERS)
    if isinstance(value, list):
        return bent_integers(random, value)
    if isinstance(value, bool):
        return not value, "not"
    if isinstance(value, int):
        return bent_number(random, value)
    if isinstance(value, float):
        return random.choice((float("nan"), float("inf"), -1.5, 1e300)), "extreme"
    if isinstance(value, str):
        return random.choice(("", value[: len(value) // 2], "\x1e" * 3)), "cut"
    if isinstance(value, torch.dtype):
        return random.choice(DTYPES), "another"
    return value, "nothing"


def other_form(random: Random, value: Any) -> tuple[Any, str]:
    """Return the same numbers in another form, and what was done."""
    if isinstance(value, Tensor):
        return bent_tensor(random, value, FORMS)
    if isinstance(value, list) and any(isinstance(one, Tensor) for one in value):
        return [
            other_form(random, one)[0] if isinstance(one, Tensor) and random.random() < 0.5 else one
            for one in value
        ], "forms"
    return value, "nothing"
