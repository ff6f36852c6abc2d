"""The structure check finds each kind of violation in a tiny tree, and none where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

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
        "if TYPE_CHECKING:\n    from torchrec.sparse.a import A",
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
    "a backend outside ops": (
        {"torchrec/sparse/a.py": "def f():\n    from torchrec.ops import _native"},
        "a.py:2: only torchrec.ops imports torchrec.ops._native",
    ),
    "Triton outside ops": (
        {"torchrec/quant/a.py": "import triton.language as tl"},
        "a.py:1: only torchrec.ops imports triton",
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
