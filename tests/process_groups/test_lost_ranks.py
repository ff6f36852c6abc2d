"""What is said of ranks that have ended, or do not answer."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401 (registers the group "fake")

from tests.distributed.ranks import run
from torchrec.process_groups.lost_ranks import lost_ranks_named

pytestmark = pytest.mark.once

LATE = "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1500ms for recv operation"


def raised(error, backend=None):
    try:
        with lost_ranks_named(dist.new_group(backend=backend)):
            raise error
    except RuntimeError as found:
        return str(found)


def test_an_error_of_gloo_says_what_has_not_come():
    (said,) = run(raised, 1, RuntimeError(LATE))
    assert said == (
        "Rank 0 should get an answer within 1.5 s, the `timeout` of its process group. Received none: another rank has "
        "stopped, or has left out what this one does."
    )


def test_other_errors_stay_as_they_are():
    assert run(raised, 1, RuntimeError("shapes differ")) == ["shapes differ"]
    assert run(raised, 1, RuntimeError(LATE), "fake") == [LATE]
