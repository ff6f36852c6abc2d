"""One case: draw arguments by a seed, call an operator, and judge what comes of it by the specification."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fuzz import crooked, valid
from torchrec.ops._library import definitions

Samples = Sequence[tuple[str, tuple[Any, ...]]]

EXPECTED = (ValueError, TypeError, IndexError, RuntimeError)
# What a message should not consist of: traces of C++, and what Python or nanobind say of code, not of arguments.
POOR = re.compile(
    r"Exception raised from|INTERNAL ASSERT|incompatible function arguments|std::|nanobind|0x[0-9a-f]{6}"
    r"|NoneType|has no attribute|unsupported operand|object is not|index out of range$|zip\(\) argument"
    r"|not enough values|too many values|cannot unpack|KeyError|StopIteration|division|modulo|math domain"
    r"|^\s*$|^\d+$"
)
# The reference may need memory for what kernels pass over.
NO_MEMORY = re.compile("allocate memory|Storage size calculation overflowed")
# Tables and maps are read where they lie: in another form they may be refused.
IN_PLACE = re.compile("contiguous")
# How an id lies in an index is left to each implementation.
UNSPECIFIED = ("index", "history_index", "entries")
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-4, torch.float64: 1e-4}


def trusted(name: str) -> tuple[str, ...]:
    """Return the arguments that an operator trusts to be what others made of them.

    What comes of another map is no value of one, and the shape of a state is not looked at. Neither does harm.
    """
    if name.startswith("id_map"):
        return ("ids", "index", "occupied", "history_ids", "history_index", "history_size")
    return ("states",)


class Case(NamedTuple):
    """A call: of which operator, with what, by which way, and how its arguments were bent."""

    seed: int
    name: str
    arguments: list[Any]
    kind: str
    done: tuple[str, ...]
    direct: bool

    def __str__(self) -> str:
        way = "called directly" if self.direct else "through the dispatcher"
        return f"seed {self.seed}: {self.name}, {self.kind} {list(self.done)}, {way}"


# Whose kernels take nothing else.
OF_FLOAT32 = {"weighted_sums", "cross_entropy_sums", "threshold_sums", "roc_areas"}


def drawn_names(samples: Samples) -> list[str]:
    """Return the names of the operators that there are arguments of."""
    return sorted(set(definitions) & {*valid.DRAWS, *(name for name, _ in samples)})


def draw(seed: int, samples: Samples) -> Case:
    """Return the case of a seed: the same, in tensors of its own, every time."""
    random = Random(seed)
    names = drawn_names(samples)
    name = names[seed % len(names)]
    arguments = (
        valid.DRAWS[name](random)
        if name in valid.DRAWS
        else copied(random.choice([given for of, given in samples if of == name]))
    )
    kind = random.choice(("valid", "form", "crooked", "crooked", "crooked"))
    schema = definitions[name].schema.arguments
    done: list[str] = []
    whole = list(arguments)
    for _ in range(0 if kind == "valid" else random.choice((1, 1, 2))):
        at = random.randrange(len(arguments))
        written = schema[at].alias_info is not None
        if kind == "crooked":
            arguments[at], what = crooked.bent(random, arguments[at], str(schema[at].type))
        elif written:
            continue
        else:
            arguments[at], what = crooked.other_form(random, arguments[at])
        done.append(f"{schema[at].name} {what}")
    dtypes = {one.dtype for one in tensors_in(arguments)}
    reads = torch.float64 in dtypes or (name in OF_FLOAT32 and dtypes != {torch.float32})
    if reads and any(map(crooked.is_freed, tensors_in(arguments))):
        arguments, done = whole, ["nothing"]  # what no kernel takes is PyTorch's to compute
    return Case(seed, name, arguments, kind, tuple(done), random.random() < 0.5)


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [copied(one) for one in value] if isinstance(value, (list, tuple)) else value


def plain(value: Any) -> Any:
    """Return the same numbers as plain memory."""
    if isinstance(value, Tensor):
        whole = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        return (
            whole.resolve_conj()
            .resolve_neg()
            .as_subclass(Tensor)
            .clone(memory_format=torch.contiguous_format)
        )
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def differs(found: Any, wanted: Any) -> str:
    """Say how two results differ; nothing: they do not."""
    if isinstance(wanted, Tensor):
        if (
            not isinstance(found, Tensor)
            or found.shape != wanted.shape
            or found.dtype != wanted.dtype
        ):
            return f"{describe(found)} for {describe(wanted)}"
        within = TOLERANCE.get(wanted.dtype, 0.0)
        if not torch.allclose(found, wanted, rtol=within, atol=within, equal_nan=True):
            return f"{found.tolist()} for {wanted.tolist()}"[:400]
        return ""
    if isinstance(wanted, (list, tuple)):
        if len(found) != len(wanted):
            return f"{len(found)} results for {len(wanted)}"
        return next(filter(None, map(differs, found, wanted)), "")
    return "" if found == wanted else f"{found} for {wanted}"


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} of {value.dtype}"
    return str(type(value).__name__)


def outcome(call: Callable[..., Any], arguments: list[Any]) -> tuple[Any, BaseException | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(*arguments), None
        except Exception as error:  # judged by who asks
            return None, error


class Verdict(NamedTuple):
    """What came of a case: "right", "refused", "wrong" or "poor", and why."""

    verdict: str
    why: str = ""


def judge(seed: int, samples: Samples) -> tuple[Case, Verdict]:
    """Run a case: the value that the specification gives, or a sentence that says what is wrong."""
    case, same = draw(seed, samples), draw(seed, samples)
    definition = definitions[case.name]
    operator = getattr(torch.ops.rowwise, case.name).default
    found, error = outcome(definition.call if case.direct else operator, case.arguments)
    if error is not None:
        if case.kind != "crooked" and not IN_PLACE.search(str(error)):
            return case, Verdict("wrong", f"refused: {type(error).__name__}: {error}"[:400])
        first = str(error).strip().split("\n")[0]
        if not isinstance(error, EXPECTED) or POOR.search(first):
            return case, Verdict("poor", f"{type(error).__name__}: {error}"[:400])
        return case, Verdict("refused", f"{type(error).__name__}: {first}"[:200])
    if any(one.is_meta or crooked.is_freed(one) for one in tensors_in(case.arguments)):
        return case, Verdict("right")  # shapes of no memory, or memory that was not needed
    if case.kind == "crooked" and any(done.split()[0] in trusted(case.name) for done in case.done):
        return case, Verdict("right")
    theirs = plain(same.arguments)
    wanted, refused = outcome(definition.reference, theirs)
    if refused is not None and not NO_MEMORY.search(str(refused)):
        return case, Verdict("wrong", f"taken, refused by the reference: {refused}"[:400])
    if refused is not None:
        return case, Verdict("right")
    why = differs(plain(found), plain(wanted))
    for argument, mine, other in zip(
        definition.schema.arguments, case.arguments, theirs, strict=True
    ):
        shared = (
            f"{argument.name} overlapping" in case.done
        )  # what is written there, is so several times
        if (
            argument.alias_info is not None
            and argument.name not in UNSPECIFIED
            and not (why or shared)
        ):
            why = differs(plain(mine), other)
            why = why and f"`{argument.name}` became {why}"
    return case, Verdict("wrong", why) if why else Verdict("right")


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for one in value for t in tensors_in(one)] if isinstance(value, list) else []
