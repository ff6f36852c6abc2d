"""What is used of PyTorch's private API gives what it should."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401 (registers the group "fake")

from tests.distributed.ranks import run
from torchrec.process_groups import _private

pytestmark = pytest.mark.once


def timeouts():
    given = [timedelta(seconds=seconds) for seconds in (7, 70)]
    groups = [dist.new_group(timeout=timeout) for timeout in given]
    return [_private.timeout_of(group) for group in groups] == given


def test_the_timeout_of_a_group_is_the_one_that_it_was_given():
    assert run(timeouts, 1) == [True]


def stored():
    store = _private.default_store()
    store.set(f"of {dist.get_rank()}", "here")
    dist.barrier()
    found = store.get(f"of {1 - dist.get_rank()}"), store.check(["of 2"])
    return *found, store.compare_set("first", "", "told"), store.compare_set("first", "", "late")


def test_the_store_is_one_for_all_ranks():
    assert run(stored, 2) == [(b"here", False, b"told", b"told")] * 2


def groups_of_gloo():
    return [
        _private.is_gloo(dist.new_group(backend=backend)) for backend in (None, "cpu:gloo", "fake")
    ]


def test_groups_of_gloo_are_told_from_others():
    assert run(groups_of_gloo, 1) == [[True, True, False]]
