import json

import pytest
import torch.distributed as dist

from tests.distributed.ranks import Workers

PREAMBLE = """
import torch, torch.distributed as dist
from torch import nn
from torchrec.optim import *
"""


def execute(script):
    names = {"rank": dist.get_rank()}
    exec(compile(PREAMBLE + script, "ranks.py", "exec"), names)
    return json.loads(json.dumps(names["result"]))


@pytest.fixture(scope="package")
def workers():
    with Workers() as found:
        yield found


@pytest.fixture
def run_ranks(workers):
    """Run a script on ranks, two by default; return what each put into ``result``."""

    def run(script, world=2):
        results = workers.run(execute, world, script)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    return run
