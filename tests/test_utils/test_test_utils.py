"""What programs of the API use in their tests."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import unittest

import pytest
import torch
from torch import nn

from torchrec import test_utils
from torchrec.test_utils import _sanitizers


def test_a_free_port_can_be_listened_on():
    ports = {test_utils.get_free_port() for _ in range(3)}
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", port))


def test_no_sanitizer_here(monkeypatch):
    monkeypatch.setattr(_sanitizers, "_has_symbol", lambda name: False)
    assert (test_utils.is_asan(), test_utils.is_tsan(), test_utils.is_asan_or_tsan()) == (
        False,
    ) * 3
    assert test_utils.skip_if_asan(lambda a, b=2: (a, b))(1, b=3) == (1, 3)
    assert test_utils.skip_if_asan_class(nn.Linear) is nn.Linear


@pytest.mark.parametrize("symbol", ["__asan_init", "__tsan_init"])
def test_tests_are_left_out_under_a_sanitizer(monkeypatch, symbol):
    monkeypatch.setattr(_sanitizers, "_has_symbol", lambda name: name == symbol)
    assert test_utils.is_asan() is (symbol == "__asan_init")
    assert test_utils.is_tsan() is (symbol == "__tsan_init")
    assert test_utils.is_asan_or_tsan()
    assert test_utils.skip_if_asan_class(nn.Linear) is None
    with pytest.raises(unittest.SkipTest):
        test_utils.skip_if_asan(lambda: 1)()


def test_symbols_of_this_process_are_seen():
    assert _sanitizers._has_symbol("malloc")
    assert not _sanitizers._has_symbol("no_such_symbol_anywhere")


def test_gpus_are_counted():
    assert test_utils.cuda_device_count() == torch.cuda.device_count()


def test_a_seed_is_printed_and_gives_the_same_numbers(capsys, monkeypatch):
    np = pytest.importorskip("numpy")
    monkeypatch.setattr("time.time", lambda: 12.345)

    @test_utils.seed_and_log
    def draw(scale: int) -> list[float]:
        """Draw."""
        return [scale * x for x in (torch.rand(1).item(), random.random(), np.random.rand())]

    assert draw(2) == draw(scale=2)
    assert capsys.readouterr().out == "Using random seed: 12345\n" * 2
    assert draw.__doc__ == "Draw."
    torch.manual_seed(12345)
    assert torch.rand(1).item() == draw(1)[0]


class Buffers(nn.Module):
    """A parameter and two buffers, one of which is not saved."""

    def __init__(
        self, saved: str = "saved", unsaved: str = "unsaved", weight: str = "weight"
    ) -> None:
        super().__init__()
        self.register_parameter(weight, nn.Parameter(torch.ones(2)))
        self.register_buffer(saved, torch.zeros(1))
        self.register_buffer(unsaved, torch.zeros(1), persistent=False)


def test_all_tensors_of_a_model():
    tensors = test_utils.get_state_buffers_parameters(Buffers())
    assert {kind: sorted(named) for kind, named in tensors.items()} == {
        "state_dict": ["saved", "weight"],
        "named_buffers": ["saved", "unsaved"],
        "named_parameters": ["weight"],
    }


@pytest.mark.parametrize(
    ("other", "checks", "message"),
    [
        ({"weight": "w"}, {}, r"each named parameter should be the same\..*'w', 'weight'"),
        ({"unsaved": "u"}, {}, r"each named buffer should .*'u', 'unsaved'"),
        (
            {"saved": "s"},
            {"check_named_buffers": False},
            r"each tensor of the state should .*'s', 'saved'",
        ),
        ({"saved": "s"}, {"check_named_buffers": False, "check_state_dict": False}, None),
        ({"weight": "w"}, {"check_named_parameters": False, "check_state_dict": False}, None),
    ],
)
def test_models_are_compared_by_names(other, checks, message):
    one, changed = Buffers(), Buffers(**other)
    test_utils.assert_state_buffers_parameters_equal(one, Buffers().double())
    if message is None:
        test_utils.assert_state_buffers_parameters_equal(one, changed, **checks)
        return
    with pytest.raises(AssertionError, match=message):
        test_utils.assert_state_buffers_parameters_equal(one, changed, **checks)


GROUP = """
import os, torch.distributed as dist
from torchrec.test_utils import init_distributed_single_host
group = init_distributed_single_host(0, 1, "gloo")
assert group is dist.group.WORLD
print([os.environ[n] for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")], dist.get_world_size())
dist.destroy_process_group()
"""


@pytest.mark.once
def test_a_group_of_one_process():
    environment = {**os.environ, "MASTER_ADDR": "localhost"}
    environment["MASTER_PORT"] = str(test_utils.get_free_port())
    run = subprocess.run(
        [sys.executable, "-c", GROUP], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout == "['0', '1', '0', '1'] 1\n", run.stderr


@pytest.mark.parametrize(
    ("rank", "local_size"), [(-1, None), (2, None), (0, 0), (0, 3)], ids=lambda value: str(value)
)
def test_ranks_that_do_not_fit(rank, local_size):
    with pytest.raises(
        ValueError, match=rf"`rank` should be in .* Received rank {rank}, world_size 2"
    ):
        test_utils.init_distributed_single_host(rank, 2, "gloo", local_size)
