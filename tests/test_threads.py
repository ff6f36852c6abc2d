"""What the system grants, and the choice between one thread and several."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torchrec.threads import (
    ThreadChoice,
    ThreadChooser,
    cpu_quota,
    usable_processors,
    using_threads,
)

pytestmark = pytest.mark.once


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.")).write_text(text)


@pytest.mark.parametrize(
    ("text", "quota"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), ("50000 0\n", None), ("", None)],
    ids=["one_and_a_half", "none", "no_period", "empty"],
)
def test_quota_of_version_2(text: str, quota: float | None, tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/job/step\n")
    group(tmp_path, "cgroup/job/step", cpu_max=text)
    assert cpu_quota(tmp_path / "self", tmp_path / "cgroup") == quota


def test_a_group_around_may_grant_less(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/job/step\n")
    group(tmp_path, "cgroup/job/step", cpu_max="400000 100000")
    group(tmp_path, "cgroup/job", cpu_max="200000 100000")
    group(tmp_path, "", cpu_max="100000 100000")  # beyond the root: not a group
    assert cpu_quota(tmp_path / "self", tmp_path / "cgroup") == 2


def test_in_a_container_the_path_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/docker/0123\n")
    group(tmp_path, "cgroup", cpu_max="100000 100000")
    assert cpu_quota(tmp_path / "self", tmp_path / "cgroup") == 1


@pytest.mark.parametrize(("microseconds", "quota"), [("250000", 2.5), ("-1", None)])
def test_quota_of_version_1(microseconds: str, quota: float | None, tmp_path: Path) -> None:
    (tmp_path / "self").write_text("5:memory:/job\n4:cpu,cpuacct:/job\n")
    group(tmp_path, "cgroup/cpu/job", cpu_cfs_quota_us=microseconds, cpu_cfs_period_us="100000\n")
    assert cpu_quota(tmp_path / "self", tmp_path / "cgroup") == quota


def test_other_systems_have_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "absent", tmp_path) is None
    (tmp_path / "self").write_text("nonsense\n")
    assert cpu_quota(tmp_path / "self", tmp_path) is None


@pytest.mark.parametrize(("quota", "processors"), [(None, 4), (0.5, 1), (1.5, 2), (9.0, 4)])
def test_usable_processors(
    quota: float | None, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr("torchrec.threads.cpu_quota", lambda: quota)
    assert usable_processors() == processors


class Machine:
    """A clock that moves by what a step costs on the threads of PyTorch now."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.cost = cost
        self.now = 0.0
        self.counts: list[int] = []

    def make(self, chooser: ThreadChooser, steps: int, size: int = 1) -> list[int]:
        """Make steps, and return the threads that each ran on."""
        self.counts = []
        for _ in range(steps):
            with chooser.step(size):
                self.counts.append(torch.get_num_threads())
                self.now += self.cost(self.counts[-1]) * size
        return self.counts


def chooser_on(machine: Machine, most: int = 4, **options: int) -> ThreadChooser:
    return ThreadChooser(most, clock=lambda: machine.now, **options)


@pytest.mark.parametrize(
    ("costs", "threads", "said"),
    [
        ({1: 1.0, 4: 0.4}, 4, "4 threads: 2.5 times as fast as 1 here"),
        ({1: 1.0, 4: 9.0}, 1, "1 thread: 9.0 times as fast as 4 here"),
        ({1: 1.0, 4: 0.8}, 4, "4 threads: 1.2 times as fast as 1 here"),
        ({1: 1.0, 4: 0.99}, 1, "1 thread: about as fast as 4 here"),
        ({1: 1.0, 4: 1.25}, 1, "1 thread: 1.2 times as fast as 4 here"),
    ],
    ids=["much_faster", "collapse", "faster", "equal", "slower"],
)
def test_the_faster_is_kept(costs: dict[int, float], threads: int, said: str) -> None:
    machine = Machine(costs.__getitem__)
    chooser = chooser_on(machine)
    assert set(machine.make(chooser, 24)) == {1, 4}
    assert (chooser.threads, str(chooser.choice)) == (threads, said)
    assert set(machine.make(chooser, 300)) == {threads}
    with chooser.chosen():
        assert torch.get_num_threads() == threads


def test_a_clear_case_takes_a_block_each() -> None:
    machine = Machine({1: 1.0, 2: 50.0}.__getitem__)
    chooser = chooser_on(machine, most=2)
    assert machine.make(chooser, 12) == [1] * 4 + [2] * 4 + [1] * 4


def test_single_slow_steps_decide_nothing() -> None:
    slow = iter([30.0, 1, 1, 40.0] * 100)
    machine = Machine(lambda threads: next(slow) * (1.0 if threads == 1 else 0.7))
    chooser = chooser_on(machine)
    machine.make(chooser, 40)
    assert chooser.threads == 4


def test_it_is_measured_again_when_steps_become_slow() -> None:
    costs = {1: 1.0, 4: 0.4}
    machine = Machine(costs.__getitem__)
    said: list[str] = []
    chooser = ThreadChooser(4, tell=said.append, clock=lambda: machine.now)
    machine.make(chooser, 400)
    costs[4] = 10.0
    machine.make(chooser, 50)
    assert chooser.threads == 1
    assert set(machine.make(chooser, 300)) == {1}
    assert said == [
        "4 threads: 2.5 times as fast as 1 here.",
        "1 thread: 10.0 times as fast as 4 here.",
    ]


@pytest.mark.parametrize(
    ("unit", "measured", "steps"), [(1.0, 24, 20), (0.001, 270, 200)], ids=["long", "short"]
)
def test_long_steps_do_not_wait_for_200_of_them(unit: float, measured: int, steps: int) -> None:
    costs = {1: unit, 4: 0.4 * unit}
    machine = Machine(costs.__getitem__)
    chooser = chooser_on(machine)
    machine.make(chooser, measured)
    assert chooser.choice == ThreadChoice(4, 1, pytest.approx(2.5))
    costs[4] = 8 * unit
    assert machine.make(chooser, steps - 10).count(1) == 0
    assert machine.make(chooser, 24).count(1) > 0
    machine.make(chooser, measured)
    assert chooser.threads == 1


@pytest.mark.parametrize(
    ("unit", "steps"),
    [(0.00001, 270), (0.0052, 130), (0.06, 15), (1.0, 8)],
    ids=["tiny", "short", "long", "very_long"],
)
def test_it_measures_a_quarter_of_a_second_or_a_hundred_steps(unit: float, steps: int) -> None:
    machine = Machine({1: unit, 4: 9 * unit}.__getitem__)
    chooser, made = chooser_on(machine), 0
    while chooser.choice is None:
        made += len(machine.make(chooser, 1))
    assert made == steps


@pytest.mark.parametrize(("stall", "threads"), [(0.02, 1), (0.002, 4)], ids=["long", "short"])
def test_steps_that_stall_now_and_then_count_by_their_time(stall: float, threads: int) -> None:
    """Beside a neighbour most steps on several threads are as fast as ever: what they take in all is told by a few."""
    stalls = itertools.cycle([0.0] * 6 + [stall])
    machine = Machine(lambda number: 0.004 if number == 1 else 0.0025 + next(stalls))
    chooser = chooser_on(machine)
    machine.make(chooser, 200)
    assert chooser.threads == threads


def test_not_at_every_change() -> None:
    """Where all became slower, it is measured once."""
    costs = {1: 1.0, 4: 0.4}
    machine = Machine(costs.__getitem__)
    chooser = chooser_on(machine)
    machine.make(chooser, 300)
    costs |= {1: 10.0, 4: 4.0}
    assert machine.make(chooser, 600).count(1) <= 12


def test_now_and_then_it_is_measured_again() -> None:
    costs = {1: 1.0, 4: 3.0}
    machine = Machine(costs.__getitem__)
    chooser = chooser_on(machine)
    machine.make(chooser, 50)
    costs[4] = 0.3  # what kept the processors busy has ended, which no step on one thread tells
    machine.make(chooser, 5_100)
    assert chooser.threads == 4


def test_sizes_are_compared_by_time_a_unit() -> None:
    machine = Machine({1: 1.0, 4: 0.5}.__getitem__)
    chooser = chooser_on(machine, least=8)
    assert machine.make(chooser, 20, size=7) == [1] * 20
    assert chooser.choice is None
    for size in (8, 100, 8, 50) * 6:
        machine.make(chooser, 1, size)
    assert str(chooser.choice) == "4 threads: 2.0 times as fast as 1 here"


def test_one_processor_leaves_no_choice() -> None:
    machine = Machine(float)
    chooser = chooser_on(machine, most=1)
    assert machine.make(chooser, 50) == [1] * 50
    assert chooser.choice is None


def test_the_default_heeds_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrec.threads.usable_processors", lambda: 2)
    with using_threads(8):
        assert ThreadChooser().most == 2
    with using_threads(1):
        assert ThreadChooser().most == 1


def test_a_step_that_fails_leaves_the_threads_as_they_were() -> None:
    chooser = ThreadChooser(4)
    before = torch.get_num_threads()
    for _ in range(8):
        with pytest.raises(ValueError, match="broken"), chooser.step():
            raise ValueError("broken")
    assert torch.get_num_threads() == before
    assert chooser.choice is None


def test_most_is_at_least_one() -> None:
    with pytest.raises(ValueError, match=r"`most` should be at least 1\. Received 0\."):
        ThreadChooser(0)
