"""The structure check finds each kind of violation in a tiny tree, and none where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

CHECK = Path(__file__).parents[2] / "tools" / "check_structure.py"


def check(root: Path, files: dict[str, str]) -> tuple[int, str]:
    for name, text in {"torchrec/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, str(CHECK), str(root)], capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.returncode, done.stdout


def long_class(lines: int) -> str:
    return "class A:\n" + "".join(f"    x{i} = {i}\n" for i in range(lines - 1))


def long_function(lines: int, docstring: str = "") -> str:
    return f"def f():\n{docstring}" + "    x = 1\n" * (lines - 1)


GOOD = {
    "layers": {
        "torchrec/__init__.py": "from torchrec.modules import pool",
        "torchrec/errors.py": "import torch",
        "torchrec/ops/__init__.py": "from torchrec import errors",
        "torchrec/ops/a.py": "from torchrec.ops import _native\nimport triton",
        "torchrec/sparse/__init__.py": "from torchrec.ops import a",
        "torchrec/modules/__init__.py": "import torchrec.sparse",
    },
    "a façade and its parts": {
        "torchrec/sparse/__init__.py": "from torchrec.sparse.a import A",
        "torchrec/sparse/a.py": "from torchrec.sparse.b import B",
        "torchrec/sparse/b.py": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from torchrec.sparse.c import C",
        "torchrec/sparse/c.py": "",
    },
    "the command line": {
        "rowwise/__init__.py": "",
        "rowwise/cli/__init__.py": "import sys\nfrom typing import TYPE_CHECKING\nimport typer\n"
        "import rowwise.cli.console\nif TYPE_CHECKING:\n    import torchrec.errors\n"
        "def f():\n    import pyarrow\n    from torchrec.errors import g",
        "rowwise/cli/console.py": "from rich.table import Table",
        "torchrec/errors.py": "",
        "torchrec/__main__.py": "from rowwise.cli import main",
    },
    "sizes at their limits": {
        "torchrec/types.py": long_function(80) + long_class(400) + "\n" * 120,
        "torchrec/errors.py": long_function(80, '    """One.\n\n    Two.\n    """\n'),
        "torchrec/ops/a/triton.py": "\n" * 800,
        "tests/test_a.py": "\n" * 800,
        "csrc/a.cpp": "//\n" * 800,
    },
    "ten parameters, and those of the API": {
        "torchrec/types.py": "class A:\n"
        "    def __init__(self, a, b, c, d, e, f, g, h, *, i, j): ...\n"
        "class KeyedJaggedTensor:\n"
        "    def __init__(self, keys, values, weights, lengths, offsets, stride,\n"
        "      stride_per_key_per_rank, stride_per_key, length_per_key, offset_per_key,\n"
        "      jt_dict, inverse_indices, ours): ...\n",
    },
    "two deep, and steps of the API": {
        "torchrec/types.py": "class A(nn.Module): ...\nclass B(A): ...\n",
        "torchrec/optim/a.py": "from torchrec.types import B as C\nclass D(nn.Module): ...\n"
        "class OptimizerWrapper(D): ...\nclass WarmupOptimizer(OptimizerWrapper): ...\n",
    },
    "one class of ours between two of the API": {
        "torchrec/metrics/a.py": "class RecMetricComputation(nn.Module): ...\n"
        "class Sums(RecMetricComputation): ...\nclass NEMetricComputation(Sums): ...\n",
    },
    "a path of the API that re-exports": {
        "torchrec/modules/utils.py": "from torchrec.modules.copying import copy",
        "torchrec/modules/copying.py": "def copy(): ...",
    },
    "bindings include nanobind": {"csrc/a/bindings.cpp": "#include <nanobind/nanobind.h>"},
}

BAD = {
    "upwards": (
        {"torchrec/ops/a.py": "import torchrec.sparse", "torchrec/sparse/__init__.py": ""},
        "torchrec.ops.a (L1) imports upwards: torchrec.sparse (L2)",
    ),
    "upwards inside a function": (
        {
            "torchrec/ops/a.py": "def f():\n    from torchrec.sparse import b",
            "torchrec/sparse/b.py": "",
        },
        "imports upwards: torchrec.sparse.b (L2)",
    ),
    "upwards in a type hint": (
        {
            "torchrec/ops/a.py": "import typing\nif typing.TYPE_CHECKING:\n"
            "    from ..sparse.b import B",
            "torchrec/sparse/b.py": "",
        },
        "imports upwards: torchrec.sparse.b (L2)",
    ),
    "upwards by import_module": (
        {
            "torchrec/ops/a.py": "import importlib\nimportlib.import_module('torchrec.sparse')",
            "torchrec/sparse/__init__.py": "",
        },
        "imports upwards: torchrec.sparse (L2)",
    ),
    "sideways": (
        {"torchrec/optim/a.py": "from torchrec.sparse import b", "torchrec/sparse/b.py": ""},
        "torchrec.optim.a (L2) imports sideways: torchrec.sparse.b (L2)",
    ),
    "the package itself": (
        {"torchrec/sparse/a.py": "from torchrec import EmbeddingBagCollection"},
        "torchrec.sparse.a (L2) imports the façade torchrec",
    ),
    "no layer": ({"torchrec/extra/a.py": ""}, "torchrec.extra: has no layer"),
    "a cycle": (
        {
            "torchrec/sparse/a.py": "from . import b",
            "torchrec/sparse/b.py": "from .c import x",
            "torchrec/sparse/c.py": "import torchrec.sparse.a",
        },
        "import cycle: torchrec.sparse.a <-> torchrec.sparse.b <-> torchrec.sparse.c",
    ),
    "a lazy cycle": (
        {
            "torchrec/sparse/a.py": "from torchrec.sparse.b import x",
            "torchrec/sparse/b.py": "def f():\n    from torchrec.sparse.a import y",
        },
        "import cycle: torchrec.sparse.a <-> torchrec.sparse.b",
    ),
    "a cycle of type hints": (
        {
            "torchrec/sparse/a.py": "from torchrec.sparse.b import B",
            "torchrec/sparse/b.py": "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from torchrec.sparse.a import A",
        },
        "import cycle: torchrec.sparse.a <-> torchrec.sparse.b",
    ),
    "a backend outside ops": (
        {
            "torchrec/sparse/a.py": "def f():\n    from torchrec.ops import _native",
            "torchrec/ops/__init__.py": "",
        },
        "a.py:2: torchrec.ops._native is private to the folder of torchrec.ops",
    ),
    "Triton outside ops": (
        {"torchrec/quant/a.py": "import triton.language as tl"},
        "a.py:1: only torchrec.ops imports triton",
    ),
    "the command line from below": (
        {"torchrec/report/a.py": "from rowwise.cli import main", "rowwise/cli/__init__.py": ""},
        "torchrec.report.a (L6) imports upwards: rowwise.cli (L8)",
    ),
    "an import before the command is known": (
        {"rowwise/cli/a.py": "import torchrec.files"},
        "a.py:1: torchrec.files is imported before a command runs",
    ),
    "a library before the command is known": (
        {"rowwise/cli/a.py": "import typer\nfrom pyarrow import parquet"},
        "a.py:2: pyarrow is imported before a command runs",
    ),
    "long file": ({"torchrec/types.py": "\n" * 601}, "types.py: 601 lines, limit 600"),
    "long test": ({"tests/test_a.py": "\n" * 801}, "test_a.py: 801 lines, limit 800"),
    "long kernel": ({"csrc/a/kernels.cpp": "//\n" * 801}, "kernels.cpp: 801 lines, limit 800"),
    "long function": ({"torchrec/types.py": long_function(81)}, "f has 81 lines, limit 80"),
    "long class": ({"torchrec/types.py": long_class(401)}, "A has 401 lines, limit 400"),
    "eleven parameters": (
        {
            "torchrec/types.py": "class A:\n"
            "    def __init__(self, a, b, c, d, e, f, g, h, *, i, j, k): ..."
        },
        "types.py:2: A.__init__ has 11 parameters, limit 10",
    ),
    "three deep": (
        {
            "torchrec/types.py": "class A(nn.Module): ...\nclass B(A): ...",
            "torchrec/modules/__init__.py": "from torchrec.types import B",
            "torchrec/modules/a.py": "from torchrec.modules import B\nclass C(B): ...",
        },
        "a.py:2: C inherits 3 deep, limit 2",
    ),
    "three deep where the API prescribes nothing": (
        {
            "torchrec/metrics/a.py": "class RecMetricComputation(nn.Module): ...\n"
            "class Sums(RecMetricComputation): ...\nclass NEMetricComputation(Sums): ...\n"
            "class OurMetricComputation(Sums): ...\n",
        },
        "a.py:4: OurMetricComputation inherits 3 deep, limit 2",
    ),
    "a name that says nothing": (
        {"torchrec/sparse/_utils.py": ""},
        "torchrec/sparse/_utils.py: a name should say what is in it",
    ),
    "a folder that says nothing": (
        {"csrc/common/a.h": ""},
        "csrc/common: a name should say what is in it",
    ),
    "code under a name that says nothing": (
        {"torchrec/modules/utils.py": "def copy(): ..."},
        "torchrec/modules/utils.py: a path of the API with such a name should only re-export",
    ),
    "PyTorch in a kernel": (
        {"csrc/a/kernels.cpp": "#include <torch/extension.h>"},
        "kernels take raw pointers and do not include <torch/extension.h>",
    ),
    "Python in a kernel": (
        {"csrc/a/kernels.cpp": '# include "nanobind/nanobind.h"'},
        "only bindings.cpp includes <nanobind/nanobind.h>",
    ),
}


@pytest.mark.parametrize("files", GOOD.values(), ids=GOOD)
def test_passes(tmp_path: Path, files: dict[str, str]) -> None:
    assert check(tmp_path, files) == (0, "structure: holds\n")


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD)
def test_finds(tmp_path: Path, files: dict[str, str], message: str) -> None:
    code, printed = check(tmp_path, files)
    assert code == 1
    assert message in printed
    assert "structure: 1 violations" in printed


OWNED = {
    "private names at home": {
        "torchrec/types.py": "class A:\n"
        "    _x: int = 0\n"
        "    __slots__ = ('_slot',)\n"
        "    def __init__(self): self._y = super()._z\n"
        "    def same(self, other): return other._x, other._y, other._slot, other._hidden()\n"
        "    def _hidden(self): return getattr(self, '_anything')\n",
    },
    "what Python makes public": {
        "torchrec/types.py": "def f(row, member): return row._replace(a=1)._asdict(), member._value_\n",
    },
    "private modules in their folder": {
        "torchrec/sparse/__init__.py": "from torchrec.sparse._a import f",
        "torchrec/sparse/_a.py": "from torchrec import _environment\ndef f(): ...",
        "torchrec/_environment.py": "",
        "torchrec/ops/a/__init__.py": "from torchrec.ops import _library, _native",
        "torchrec/ops/_library.py": "",
        "torchrec/ops/__init__.py": "",
    },
    "a file of libraries' private names": {
        "torchrec/ops/_private.py": "from torch.utils import _pytree\nimport torch\n"
        "modes = torch._C._len_torch_dispatch_stack\n",
        "torchrec/ops/a.py": "from torchrec.ops import _private",
        "torchrec/ops/__init__.py": "",
        "torchrec/sparse/_private.py": "import torch._dynamo",
    },
    "attributes of one's own": {
        "torchrec/types.py": "import torch\nclass A:\n"
        "    def __init__(self, name):\n        setattr(self, name, 1)\n        self.x = torch.x\n"
        "def f():\n    a = A('b')\n    a.x = 2\n    A.__module__ = 'torchrec'\n",
    },
    "a hook of one module": {
        "torchrec/types.py": "def f(module): module.register_forward_hook(print)\n"
        "def g(module): module.register_module('a', None)\n",
        "torchrec/optim/step_hook.py": "from torch.optim.optimizer "
        "import register_optimizer_step_pre_hook",
    },
    "a cast that is not typing's": {
        "torchrec/types.py": "def f(array, cast): cast(array.cast(int))"
    },
    "pooled or in sequence": {
        "torchrec/types.py": "def f(a: EmbeddingBagCollection | EmbeddingCollection | None): ...\n"
        "__all__ = ['EmbeddingBagCollection', 'EmbeddingCollection', 'XEmbeddingCollection']",
    },
}

NOT_OWNED = {
    "a private attribute read": (
        {"torchrec/types.py": "def f(self, x): return self.table._weight"},
        "types.py:1: self.table._weight reaches into what another file owns",
    ),
    "a private attribute set": (
        {"torchrec/types.py": "def f(param):\n    param._fused = True"},
        "types.py:2: param._fused reaches into what another file owns",
    ),
    "a private method called": (
        {"torchrec/types.py": "class A:\n    def _f(self): ...\ndef g(a): a._f(), a._g()"},
        "types.py:3: a._g reaches into what another file owns",
    ),
    "a private attribute by its name": (
        {"torchrec/types.py": "def f(param): return getattr(param, '_fused', None)"},
        "types.py:1: getattr(param, '_fused', None) reaches into",
    ),
    "a private attribute of a library": (
        {"torchrec/types.py": "import torch\nmodes = torch._C._len_torch_dispatch_stack()"},
        "types.py:2: torch._C._len_torch_dispatch_stack reaches into",
    ),
    "a private module of a library": (
        {"torchrec/types.py": "def f():\n    from torch.utils._pytree import tree_map"},
        "types.py:2: torch.utils._pytree.tree_map is private to its library",
    ),
    "a private module of another folder": (
        {
            "torchrec/sparse/a.py": "from torchrec.ops._library import define",
            "torchrec/ops/_library.py": "",
            "torchrec/ops/__init__.py": "",
        },
        "a.py:1: torchrec.ops._library.define is private to the folder of torchrec.ops",
    ),
    "a private function of a neighbour": (
        {
            "torchrec/sparse/a.py": "from torchrec.sparse.b import _f",
            "torchrec/sparse/b.py": "def _f(): ...",
        },
        "a.py:1: torchrec.sparse.b._f is private to the file of torchrec.sparse.b",
    ),
    "the package in a file of libraries' private names": (
        {"torchrec/ops/_private.py": "from torchrec.types import A", "torchrec/types.py": ""},
        "_private.py:1: torchrec.types.A should not be known to _private.py",
    ),
    "two files of libraries' private names": (
        {"torchrec/ops/_private.py": "", "torchrec/ops/a/_private.py": ""},
        "torchrec.ops: has 2 files _private.py, limit 1",
    ),
    "setattr on others": (
        {"torchrec/types.py": "def f(param, name): setattr(param, name, 1)"},
        "types.py:1: setattr(param, name, 1) changes what another file owns",
    ),
    "an attribute of what was imported": (
        {"torchrec/types.py": "import torch\ntorch.backends.allow = True"},
        "types.py:2: torch.backends.allow changes what another file owns",
    ),
    "a hook on every optimizer": (
        {"torchrec/types.py": "from torch.optim.optimizer import register_optimizer_step_pre_hook"},
        "types.py:1: register_optimizer_step_pre_hook is for the whole process",
    ),
    "a hook on every module": (
        {"torchrec/types.py": "import torch\ntorch.nn.modules.module.register_module_forward_hook"},
        "types.py:2: register_module_forward_hook is for the whole process",
    ),
    "a cast": ({"torchrec/types.py": "from typing import Any, cast"}, "types.py:1: typing.cast"),
    "a cast by its module": (
        {"torchrec/types.py": "import typing\nx = typing.cast(int, y)"},
        "types.py:2: typing.cast",
    ),
    "a list of collections": (
        {
            "torchrec/types.py": "def f(x):\n    return isinstance(\n        x, EmbeddingCollection "
            "| a.EmbeddingBagCollection | QuantEmbeddingBagCollection | None)"
        },
        "types.py:3: EmbeddingCollection, a.EmbeddingBagCollection, QuantEmbeddingBagCollection are",
    ),
    "a tuple of collections": (
        {
            "torchrec/types.py": "KINDS = (EmbeddingCollection, EmbeddingBagCollectionInterface, "
            "ManagedCollisionEmbeddingCollection)"
        },
        "types.py:1: EmbeddingCollection, EmbeddingBagCollectionInterface, ManagedCollision",
    ),
}


@pytest.mark.parametrize("files", OWNED.values(), ids=OWNED)
def test_passes_what_is_owned(tmp_path: Path, files: dict[str, str]) -> None:
    assert check(tmp_path, files) == (0, "structure: holds\n")


@pytest.mark.parametrize(("files", "message"), NOT_OWNED.values(), ids=NOT_OWNED)
def test_finds_what_is_not_owned(tmp_path: Path, files: dict[str, str], message: str) -> None:
    code, printed = check(tmp_path, files)
    assert code == 1
    assert message in printed
    assert "structure: 1 violations" in printed
