import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchrec

PREAMBLE = """
import json, os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from torch import nn
from torchrec.optim import *
rank = int(sys.argv[1])
dist.init_process_group(
    "gloo",
    init_method="file://" + sys.argv[2],
    rank=rank,
    world_size=int(sys.argv[3]),
    timeout=timedelta(minutes=10),
)
"""

EPILOGUE = """
print(json.dumps(result), flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # threads of the group may outlive it, and end the interpreter with an abort
"""


@pytest.fixture
def run_ranks(tmp_path):
    """Run a script on ranks, two by default; return what each put into ``result``."""

    def run(script, world=2):
        file = tmp_path / "ranks.py"
        file.write_text(PREAMBLE + script + EPILOGUE)
        root = str(Path(torchrec.__file__).parent.parent)
        env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, file, str(rank), tmp_path / "store", str(world)],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        outputs = [process.communicate() for process in ranks]  # a rank that hangs fails by itself
        assert [process.returncode for process in ranks] == [0] * world, outputs
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]

    return run
