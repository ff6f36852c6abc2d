"""The surface of the TorchRec API: every name is there, and takes what its signature says.

The facts are the text files beside this one. Ours may take more, behind the parameters of the API or by keyword, with
defaults; never fewer, under other names, in another order, or with another default. Annotations do not count.
"""

from __future__ import annotations

import ast
import enum
import functools
import importlib
import inspect
import re
from dataclasses import dataclass, field
from inspect import Parameter, getattr_static
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.once

# Modules of the API that are not there yet. A test holds that this is so: the list can only shrink.
NOT_BUILT: frozenset[str] = frozenset(
    [
        "torchrec.modules.hash_mc_metrics",
    ]
)

# Where ours differs, and why. A test holds that it does.
_BOTH_WAYS = "is a property, as FusedOptimizerModule has it; what it gives can be called too"
_LATER = "is still to come, with the sharded collections and the pipelines"
_ONE_EXCHANGE = (
    "is of one sharding type: there is one exchange for all of them, and no class a type"
)
_NO_STORE = "is of tables in a key-value store, which there are none of"
_NO_KERNELS = "is of modules of kernels, which there are none of"
_WRAPPER = (
    "is the work of the data-parallel wrapper around the model, which sees all copies at once"
)
_OBSERVED = (
    "is done by collections, which tell the tracker the rows that they look up (`observe_lookups`)"
)
DIFFERENCES: dict[str, dict[str, str]] = {
    "torchrec.distributed.embedding": {
        "ShardedEmbeddingCollection.create_embedding_sharding is missing": _ONE_EXCHANGE,
        "ShardedEmbeddingCollection.create_grouped_sharding_infos is missing": _ONE_EXCHANGE,
        "ShardedEmbeddingCollection.create_rocksdb_hard_link_snapshot is missing": _NO_STORE,
        "ShardedEmbeddingCollection.init_data_parallel is missing": _WRAPPER,
        "ShardedEmbeddingCollection.write_dist: embeddings (positional) is None": _LATER,
    },
    "torchrec.distributed.embedding_types": dict.fromkeys(
        [
            "ShardedEmbeddingModule.register_post_lookup_tracker_fn is missing",
            "ShardedEmbeddingModule.register_post_odist_tracker_fn is missing",
        ],
        _OBSERVED,
    ),
    "torchrec.distributed.embeddingbag": {
        "ShardedEmbeddingBag.create_embedding_bag_sharding is missing": _ONE_EXCHANGE,
        "ShardedEmbeddingBagCollection.create_embedding_bag_sharding is missing": _ONE_EXCHANGE,
        "ShardedEmbeddingBagCollection.create_grouped_sharding_infos is missing": _ONE_EXCHANGE,
        "ShardedEmbeddingBagCollection.create_rocksdb_hard_link_snapshot is missing": _NO_STORE,
        "ShardedEmbeddingBagCollection.init_data_parallel is missing": _WRAPPER,
        "VariableBatchEmbeddingBagCollectionAwaitable is missing": _ONE_EXCHANGE,
    },
    "torchrec.distributed.fp_embeddingbag": {
        "ShardedFeatureProcessedEmbeddingBagCollection.add_fp_params_grad_sync_callback is missing": (
            "the weights of processors are dense parameters: the data-parallel wrapper keeps them alike"
        ),
    },
    "torchrec.distributed.quant_embedding": {
        "ShardedQuantEmbeddingCollection.output_jt_dict is missing": _ONE_EXCHANGE,
        "ShardedQuantEmbeddingCollection.sharding_type_device_group_to_sharding_infos is missing": _ONE_EXCHANGE,
        "ShardedQuantEmbeddingCollection.tbes_configs is missing": _NO_KERNELS,
    },
    "torchrec.distributed.quant_embeddingbag": {
        "ShardedQuantEmbeddingBagCollection.sharding_type_device_group_to_sharding_infos is missing": _ONE_EXCHANGE,
        "ShardedQuantEmbeddingBagCollection.tbes_configs is missing": _NO_KERNELS,
    },
    "torchrec.distributed.types": {
        "ModuleSharder.shard is no classmethod": "it is one by mistake: sharders are objects with options",
    },
    "torchrec.modules.fused_embedding_modules": {
        "EmbeddingFusedOptimizer.__init__: tables (positional) is shown (positional)": "see below",
        "EmbeddingFusedOptimizer.__init__: emb_module (positional) is None": (
            "a collection makes it; the API hands it a module of kernels that there is none of"
        ),
        "FusedEmbeddingBagCollection.fused_optimizer is no method": _BOTH_WAYS,
        "FusedEmbeddingCollection.fused_optimizer is no method": _BOTH_WAYS,
    },
    "torchrec.metrics.rec_metric": {
        "RecMetricComputation.is no Metric": "would ask for torchmetrics, of which nothing is used",
    },
}

# Bases that say how a class is written, not what it can stand for.
_MANNERS = {"ABC", "Generic", "ProxyableClassMeta", "object"}


@dataclass
class Entry:
    """One name of a module: the line that states it, and those of its members."""

    line: str
    members: list[str] = field(default_factory=list)


def _read(path: Path) -> dict[str, list[Entry]]:
    modules: dict[str, list[Entry]] = {}
    entries: list[Entry] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("module "):
            entries = modules.setdefault(line.removeprefix("module "), [])
        elif line.startswith("    "):
            entries[-1].members.append(line.strip())
        elif line and not line.startswith("#"):
            entries.append(Entry(line))
    return modules


SURFACE: dict[str, list[Entry]] = {
    module: entries
    for path in sorted(Path(__file__).parent.glob("*.txt"))
    for module, entries in _read(path).items()
}


def _default_text(value: object) -> str:
    """Write a default so that equal ones read the same: members, classes and functions by name."""
    if repr(value) == "<factory>":
        return "factory"
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if inspect.isclass(value) or inspect.isroutine(value):
        return "private" if value.__name__.startswith("_") else str(value.__name__)
    if type(value).__repr__ is object.__repr__:
        return f"{type(value).__name__.lstrip('_')}()"  # PyTorch has made classes public
    return ast.unparse(ast.parse(repr(value), mode="eval"))


@dataclass(frozen=True)
class Taken:
    """A parameter, as both sides are compared."""

    name: str
    kind: str  # positional, keyword, *, **
    default: str | None = None

    def __str__(self) -> str:
        text = self.name if self.default is None else f"{self.name}={self.default}"
        return f"{text} ({self.kind})"


_KINDS = {
    Parameter.POSITIONAL_ONLY: "positional",
    Parameter.POSITIONAL_OR_KEYWORD: "positional",
    Parameter.KEYWORD_ONLY: "keyword",
    Parameter.VAR_POSITIONAL: "*",
    Parameter.VAR_KEYWORD: "**",
}


def _stated(text: str) -> list[Taken]:
    """Return the parameters of a line such as ``def f(a, b=1, *, c)``."""
    tree = ast.parse(f"def {text[: text.rindex(')') + 1]}: ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    given = tree.args
    names = [argument.arg for argument in [*given.posonlyargs, *given.args]]
    defaults = [None] * (len(names) - len(given.defaults)) + [
        ast.unparse(d) for d in given.defaults
    ]
    taken = [Taken(n, "positional", d) for n, d in zip(names, defaults, strict=True)]
    if given.vararg:
        taken.append(Taken(given.vararg.arg, "*"))
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        taken.append(
            Taken(argument.arg, "keyword", None if default is None else ast.unparse(default))
        )
    if given.kwarg:
        taken.append(Taken(given.kwarg.arg, "**"))
    return taken


def _ours(function: object) -> list[Taken]:
    assert callable(function)
    return [
        Taken(p.name, _KINDS[p.kind], None if p.default is p.empty else _default_text(p.default))
        for p in inspect.signature(function).parameters.values()
    ]


def _is_taken(want: Taken, have: Taken, by_any_position: bool) -> bool:
    return (
        have.name == want.name
        and (have.kind == want.kind or by_any_position)
        and want.default in (None, have.default)  # ours may have a default where the API has none
    )


def _compare(stated: list[Taken], ours: list[Taken]) -> list[str]:
    """Say where ``ours`` cannot be called as ``stated``."""
    found = []
    ordered = [p for p in ours if p.kind == "positional"]
    by_keyword = {p.name: p for p in ours if p.kind == "keyword"}
    kinds = {p.kind for p in ours}
    position = 0
    for want in stated:
        have: Taken | None
        if want.kind in ("*", "**"):
            if want.kind not in kinds:
                found.append(f"takes no {want.kind}{want.name}")
            continue
        if want.kind == "keyword" or ("*" in kinds and want.name in by_keyword):
            # PyTorch writes `*args, prefix=""` for what may be given by position too.
            have = by_keyword.pop(want.name, None)
        else:
            have = ordered[position] if position < len(ordered) else None
            position += 1
        if have is None or not _is_taken(want, have, "*" in kinds):
            found.append(f"{want} is {have}")
    further = [*ordered[position:], *by_keyword.values()]
    found += [f"asks for {p}, which the API does not have" for p in further if p.default is None]
    return found


def _constructor(cls: type) -> object:
    made = getattr_static(cls, "__init__")
    if inspect.isfunction(made):
        return made
    new = getattr_static(cls, "__new__")
    return new.__func__ if isinstance(new, staticmethod) else _nothing


def _nothing(self: object) -> None:
    """Stand for a constructor that a class inherits from `object`."""


def _compare_member(cls: type, line: str) -> list[str]:
    kind, rest = line.split(" ", 1)
    name = re.split(r"[(\s]", rest, maxsplit=1)[0]
    if kind == "members":
        stated = ast.literal_eval(rest)
        ours = {m.name: m.value for m in cls} if issubclass(cls, enum.Enum) else {}
        return [f"{n} = {v!r} is {ours.get(n)!r}" for n, v in stated.items() if ours.get(n) != v]
    if name == "__init__":
        return [f"__init__: {t}" for t in _compare(_stated(rest)[1:], _ours(_constructor(cls))[1:])]
    try:
        ours = getattr_static(cls, name)
    except AttributeError:
        return [f"{name} is missing"]
    if kind == "property":
        is_one = isinstance(ours, property | functools.cached_property)
        return [] if is_one else [f"{name} is no property"]
    wrapper = {"staticmethod": staticmethod, "classmethod": classmethod}.get(kind)
    if wrapper is not None and not isinstance(ours, wrapper):
        return [f"{name} is no {kind}"]
    if wrapper is None and not callable(ours):
        return [f"{name} is no method"]
    if rest.endswith("(...)"):
        return []
    function = ours.__func__ if wrapper is not None else ours
    # What a method calls its object does not count.
    first = 0 if kind == "staticmethod" else 1
    differences = _compare(_stated(rest)[first:], _ours(function)[first:])
    return [f"{name}: {text}" for text in differences]


def _compare_class(cls: type, entry: Entry) -> list[str]:
    bases = entry.line[entry.line.index("(") + 1 : -1].split(",")
    ours = {base.__name__ for base in cls.__mro__}
    found = [f"is no {base}" for base in bases if base not in ours | _MANNERS]
    for member in entry.members:
        found += _compare_member(cls, member)
    return [f"{cls.__name__}.{text}" for text in found]


def _compare_entry(module: ModuleType, entry: Entry) -> list[str]:
    kind, rest = entry.line.split(" ", 1)
    name = rest.split(" import ")[1] if kind == "from" else re.split(r"[(\s]", rest, maxsplit=1)[0]
    if not hasattr(module, name):
        return [f"{name} is missing"]
    ours = getattr(module, name)
    if kind == "from":
        origin = rest.split(" import ")[0]
        same = origin in NOT_BUILT or ours is getattr(importlib.import_module(origin), name)
        return [] if same else [f"{name} is not that of {origin}"]
    if kind == "const":
        stated = ast.literal_eval(rest.split(" = ", 1)[1])
        return [] if ours == stated else [f"{name} = {stated!r} is {ours!r}"]
    if kind == "class":
        return _compare_class(ours, entry) if inspect.isclass(ours) else [f"{name} is no class"]
    if kind == "def":
        return [f"{name}: {text}" for text in _compare(_stated(rest), _ours(ours))]
    return []


@pytest.mark.parametrize("name", sorted(SURFACE.keys() - NOT_BUILT))
def test_every_name_takes_what_the_api_says(name: str) -> None:
    module = importlib.import_module(name)
    found = [text for entry in SURFACE[name] for text in _compare_entry(module, entry)]
    assert found == list(DIFFERENCES.get(name, {}))


@pytest.mark.parametrize("name", sorted(NOT_BUILT))
def test_what_is_not_built_is_not_there(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_the_facts_are_whole() -> None:
    assert len(SURFACE) > 120
    assert SURFACE.keys() >= NOT_BUILT
    assert sum(len(entries) for entries in SURFACE.values()) > 700


def _plain(a: int, b: float = float("inf"), *, c: torch.dtype = torch.int32) -> None: ...


@pytest.mark.parametrize(
    ("stated", "difference"),
    [
        ("f(a, b=inf, *, c=torch.int32)", []),
        ("f(a)", []),
        ("f(a, c=torch.int32)", ["c=torch.int32 (positional) is b=inf (positional)"]),
        ("f(b=inf)", ["b=inf (positional) is a (positional)"]),
        ("f(a, b=1.0)", ["b=1.0 (positional) is b=inf (positional)"]),
        ("f(a, b)", []),
        ("f(a, b=inf, d=2)", ["d=2 (positional) is None"]),
        ("f(a, b=inf, **kw)", ["takes no **kw"]),
        ("f(*, c=torch.int64)", [
            "c=torch.int64 (keyword) is c=torch.int32 (keyword)",
            "asks for a (positional), which the API does not have",
        ]),
    ],
)  # fmt: skip
def test_differences_are_found(stated: str, difference: list[str]) -> None:
    assert _compare(_stated(stated), _ours(_plain)) == difference
