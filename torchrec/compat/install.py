"""Names of the original's kernels, for programs that import them: ``fbgemm_gpu`` and ``torch.ops.fbgemm``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

from torchrec.compat import enums
from torchrec.compat.operators import OPERATORS, define_operators

__all__ = ["install"]

_NAME = "fbgemm_gpu"
_COMMON = (
    "BoundsCheckMode",
    "CacheAlgorithm",
    "ComputeDevice",
    "EmbeddingLocation",
    "PoolingMode",
)
_ALL = (*_COMMON, "SparseType")

# Module -> what programs import from it; a pair where its name there is another.
_MODULES: dict[str, tuple[str | tuple[str, str], ...]] = {
    "split_embedding_configs": ("EmbOptimType", "EmbeddingLocation", "SparseType"),
    "split_table_batched_embeddings_ops_common": _COMMON,
    "split_table_batched_embeddings_ops_training": (*_ALL, ("OptimType", "EmbOptimType")),
    "split_table_batched_embeddings_ops_inference": _ALL,
    "split_table_batched_embeddings_ops": (*_ALL, ("OptimType", "EmbOptimType")),
    "sparse_ops": (),
}


class _Names(ModuleType):
    """A module that has just these names."""

    def __init__(self, name: str, contents: Mapping[str, object]) -> None:
        super().__init__(name, "Names of the original's kernels, from torchrec.compat.")
        # Who asks whether the package is there finds it.
        vars(self).update({"__spec__": ModuleSpec(name, None), **contents})


class _Installed:
    """What `install` has registered in this process: modules and operators live as long as it does."""

    library: torch.library.Library | None = None


def install() -> None:
    """Let programs import the enumerations, and call the operators, that the original has in a package of kernels.

    Registers a module ``fbgemm_gpu`` with ``EmbOptimType``, ``BoundsCheckMode``, ``SparseType``, ``PoolingMode`` and
    their kin where programs look for them, and ``torch.ops.fbgemm.*``, made of the operators of this library: they
    differentiate, trace and run on any device as those do. Call it once, before the program's own imports; a second
    call does nothing. What is not there raises as any missing name does.

    Raises:
        RuntimeError: the real package is installed, or has its operators registered.

    Example:
        >>> from torchrec import compat
        >>> compat.install()
        >>> from fbgemm_gpu.split_embedding_configs import EmbOptimType
        >>> EmbOptimType.EXACT_SGD
        <EmbOptimType.EXACT_SGD: 'exact_sgd'>
        >>> torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 0, 2]))
        tensor([0, 1, 1, 3])
    """
    if _Installed.library is not None:
        return
    if _NAME in sys.modules or importlib.util.find_spec(_NAME) is not None:
        raise RuntimeError(
            f"`torchrec.compat.install` should not run beside the real '{_NAME}', whose operators would have the same "
            f"names. Received an environment that has it: `pip uninstall {_NAME}`, or leave the call out."
        )
    present = next((name for name in OPERATORS if hasattr(torch.ops.fbgemm, name)), None)
    if present is not None:
        raise RuntimeError(
            "`torchrec.compat.install` should be the only one to register operators in `torch.ops.fbgemm`. "
            f"Received a process that has '{present}' there."
        )
    library = torch.library.Library("fbgemm", "DEF")
    define_operators(library)
    _Installed.library = library
    for module in _modules():
        sys.modules[module.__name__] = module


def _modules() -> list[ModuleType]:
    """Make the modules: the package, and those in it."""
    parts: dict[str, object] = {}
    for name, contents in _MODULES.items():
        pairs = [(entry, entry) if isinstance(entry, str) else entry for entry in contents]
        parts[name] = _Names(
            f"{_NAME}.{name}", {there: getattr(enums, here) for there, here in pairs}
        )
    package = _Names(_NAME, {"__path__": [], **parts})
    return [package, *(part for part in parts.values() if isinstance(part, ModuleType))]
