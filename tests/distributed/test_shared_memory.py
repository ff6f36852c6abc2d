"""Ranks of one host that exchange through memory which they share, beside `all_to_all_single`."""

from __future__ import annotations

import gc
import os
import time
from contextlib import suppress
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import Workers, run
from torchrec.distributed.shared_memory import ENVIRONMENT_VARIABLE, share_memory
from torchrec.ops.signals import can_signal

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not can_signal(), reason="there is no native library, or no Linux"),
]
SOON, LONG = timedelta(seconds=0.05), timedelta(seconds=20)


@pytest.fixture(scope="module")
def workers():
    with Workers() as started:
        yield started


def shared():
    memory = share_memory(dist.group.WORLD, LONG)
    assert memory is not None
    return memory


def sizes_of(step, sender, world_size):
    """How many elements a rank sends each: none, few, many, by turns."""
    sizes = (0, 3, 7000, 1, 250_000, 64)
    return [sizes[(step * 5 + sender * 3 + reader) % len(sizes)] for reader in range(world_size)]


def exchanged(steps):
    """Send random parts both ways, and compare; return how many buffers it took."""
    memory, rank, ranks = shared(), dist.get_rank(), dist.get_world_size()
    dtypes = [torch.float32, torch.int32, torch.bfloat16, torch.int64, torch.uint8]
    for step in range(steps):
        sizes = sizes_of(step, rank, ranks)
        expected = [sizes_of(step, sender, ranks)[rank] for sender in range(ranks)]
        dtype = dtypes[step % len(dtypes)]
        generator = torch.Generator().manual_seed(step * ranks + rank)
        made = torch.randint(-100, 100, (sum(sizes),), generator=generator).to(dtype)
        wanted = made.new_empty(sum(expected))
        dist.all_to_all_single(wanted, made, expected, sizes)
        packed = memory.message(len(made), made)
        packed.copy_(made)
        work = memory.start(packed if step % 2 else made, sizes, expected, None)
        assert work.done_within(LONG)
        for found, part in zip(work.parts(), wanted.split(expected), strict=True):
            assert found.dtype == dtype
            assert torch.equal(found, part)
        assert torch.equal(work.whole(), wanted)
    return True


@pytest.mark.parametrize("world_size", [2, 3])
def test_it_brings_what_all_to_all_single_brings(workers, world_size):
    assert all(workers.run(exchanged, world_size, 70))


def the_same_to_all():
    """Between messages of a part for each rank: of every size, packed or not, read late."""
    memory, rank, ranks = shared(), dist.get_rank(), dist.get_world_size()
    works = []
    for step, size in enumerate((0, 3, 128, 129, 7000, 250_000) * 3):
        sent = torch.full((size,), float(100 * step + rank))
        if step % 2:
            packed = memory.message(size, sent)
            sent = packed.copy_(sent)
        works.append((step, size, memory.start_all_gather(sent)))
        sizes = [2 + r for r in range(ranks)]
        own = memory.start(torch.arange(sum(sizes)), sizes, [2 + rank] * ranks, None)
        assert own.done_within(LONG)
        starts = [sum(sizes[:rank]) + i for i in range(2 + rank)]
        assert [part.tolist() for part in own.parts()] == [starts] * ranks
        if step % 4 == 3:
            for number, length, work in works:
                assert work.done_within(LONG)
                expected = [torch.full((length,), float(100 * number + r)) for r in range(ranks)]
                assert all(map(torch.equal, work.parts(), expected))
            works.clear()
    return True


@pytest.mark.parametrize("world_size", [2, 3])
def test_what_all_ranks_get_is_sent_once(workers, world_size):
    assert all(workers.run(the_same_to_all, world_size))


def kept():
    """Messages of many exchanges, all kept: nobody writes where another still reads."""
    memory, rank = shared(), dist.get_rank()
    parts = []
    for step in range(100):
        sent = memory.message(2000, torch.empty(0))
        sent.fill_(1000 * rank + step)
        work = memory.start(sent, [1000, 1000], [1000, 1000], None)
        assert work.done_within(LONG)
        parts.append(work.parts()[1 - rank])
    for step, part in enumerate(parts):
        assert torch.equal(part, torch.full((1000,), 1000.0 * (1 - rank) + step))
    return True


def test_what_somebody_reads_is_not_written_anew(workers):
    assert workers.run(kept, 2) == [True, True]


def forked():
    """A forked process lets go of a message that this one still reads."""
    memory, rank = shared(), dist.get_rank()
    sizes = [1000, 1000]

    def received(value):
        sent = memory.message(2000, torch.empty(0))
        sent.fill_(value)
        work = memory.start(sent, sizes, sizes, None)
        assert work.done_within(LONG)
        return work.parts()[1 - rank]

    part = received(1)
    child = os.fork()
    if not child:
        del part
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    dist.barrier()
    later = [received(value) for value in (2, 3, 4)]
    return [each.unique().tolist() for each in (part, *later)]


def test_what_a_forked_process_lets_go_of_is_kept(workers):
    assert workers.run(forked, 2) == [[[1.0], [2.0], [3.0], [4.0]]] * 2


def called_in_a_child():
    """What a forked process is told that sends something, as its parent's rank."""
    memory, (reading, writing) = shared(), os.pipe()
    child = os.fork()
    if not child:
        try:
            memory.start(torch.zeros(2), [1, 1], [1, 1], None)
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    with os.fdopen(reading) as file:
        return file.read()


def test_a_forked_process_sends_nothing_in_the_name_of_its_parent(workers):
    for rank, said in enumerate(workers.run(called_in_a_child, 2)):
        assert said.startswith(f"A process that was forked from rank {rank} should call no sharded")


def addresses():
    """Where messages are that nobody keeps."""
    memory, found = shared(), set()
    for _ in range(50):
        sent = memory.message(20_000, torch.empty(0))
        found.add(sent.data_ptr())
        work = memory.start(sent, [10_000, 10_000], [10_000, 10_000], None)
        assert work.done_within(LONG)
        work.parts()
    return len(found)


def test_memory_that_nobody_reads_is_taken_again(workers):
    # One for what is sent, one while the other rank has not yet let go of it, or two.
    assert all(count <= 3 for count in workers.run(addresses, 2))


def out_of_order():
    """Begin several, and wait for them in another order; leave some without waiting, more than the ring has."""
    memory, rank = shared(), dist.get_rank()
    works = []
    for step in range(150):
        sent = torch.full((600,), float(1000 * rank + step))
        work = memory.start(sent, [300, 300], [300, 300], None)
        if step % 3 == 0:
            works.append((step, work))
    for step, work in reversed(works):
        assert work.done_within(LONG)
        assert work.parts()[1 - rank].unique().tolist() == [1000.0 * (1 - rank) + step]
    return True


def test_exchanges_may_be_waited_for_in_any_order_or_not_at_all(workers):
    assert workers.run(out_of_order, 2) == [True, True]


def late():
    memory, rank = shared(), dist.get_rank()
    if rank:
        time.sleep(0.3)
    work = memory.start(torch.ones(2), [1, 1], [1, 1], None)
    return work.done_within(SOON), work.done_within(LONG)


def test_it_says_when_nothing_has_come_in_time(workers):
    assert workers.run(late, 2) == [(False, True), (True, True)]


def unlike():
    memory, rank = shared(), dist.get_rank()
    size = 3 - rank
    work = memory.start(torch.ones(2 * size), [size] * 2, [size] * 2, None)
    assert work.done_within(LONG)
    with pytest.raises(
        RuntimeError, match=rf"a message of {4 * (2 + rank)} bytes from rank {1 - rank} "
    ):
        work.parts()
    return True


def test_a_message_of_another_size_is_refused(workers):
    assert workers.run(unlike, 2) == [True, True]


def left(how):
    memory, rank = shared(), dist.get_rank()
    first = memory.start(torch.full((20_000,), float(rank)), [10_000] * 2, [10_000] * 2, None)
    if rank and how == "exit":
        os._exit(3)
    if rank:
        if how == "leave":
            memory.leave()
        else:
            del memory, first
            gc.collect()
        return True
    time.sleep(0.2)
    assert first.done_within(LONG)  # what was sent before
    assert first.parts()[1].sum() == 10_000
    second = memory.start(torch.ones(2), [1, 1], [1, 1], None)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="nothing more from rank 1, which has ended"):
        second.done_within(LONG)
    if how == "exit":
        print("named", flush=True)
    return time.monotonic() - start < 5


@pytest.mark.parametrize("how", ["leave", "free"])
def test_a_rank_that_leaves_is_named_and_its_last_message_read(how):
    assert run(left, 2, how) == [True, True]


def test_a_rank_that_ends_is_named(tmp_path):
    with pytest.raises(ChildProcessError, match="Rank 1"):
        run(reported, 2, str(tmp_path))
    assert (tmp_path / "0").read_text() == "True"


def reported(folder):
    found = left("exit")
    with open(f"{folder}/{dist.get_rank()}", "w") as file:
        file.write(str(found))
    return found


def switched_off(value):
    if dist.get_rank():
        os.environ[ENVIRONMENT_VARIABLE] = value
    try:
        return share_memory(dist.group.WORLD, LONG) is None
    finally:
        os.environ.pop(ENVIRONMENT_VARIABLE, None)


def test_no_rank_shares_memory_unless_all_do(workers):
    assert workers.run(switched_off, 2, "0") == [True, True]
    assert workers.run(switched_off, 2, "1") == [False, False]


def without(name):
    """Share memory on a Python of which one rank's lacks a call of the system."""
    lacking = pytest.MonkeyPatch()
    if dist.get_rank():
        lacking.delattr(os, name)
    try:
        return share_memory(dist.group.WORLD, LONG) is None
    finally:
        lacking.undo()


@pytest.mark.parametrize("name", ["memfd_create", "pidfd_open"])
def test_a_python_built_for_older_systems_shares_none(workers, name):
    assert workers.run(without, 2, name) == [True, True]


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "yes")
    with pytest.raises(ValueError, match=r"should be '0' or '1'. Received 'yes'"):
        share_memory(None, LONG)


def open_files():
    """How many files of memory and of processes are open more than before: while memory is shared, and after."""
    gc.collect()  # what other tests have left
    before = files_of_sharing()
    memory = shared()
    memory.start(torch.ones(4000), [2000] * 2, [2000] * 2, None).done_within(LONG)
    dist.barrier()
    while_shared = files_of_sharing() - before
    del memory
    gc.collect()
    return while_shared, files_of_sharing() - before


def files_of_sharing():
    links = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum("rowwise-" in link or "pidfd" in link for link in links)


def test_it_leaves_no_files_open(workers):
    # Open are both segments, and what tells that the other process has ended.
    assert workers.run(open_files, 2) == [(3, 0)] * 2


def resident():
    """Return how much of the memory that ranks share is there."""
    with open("/proc/self/smaps") as lines:
        return sum(
            1024 * int(line.split()[1]) for line in _of_sharing(lines) if line.startswith("Rss:")
        )


def _of_sharing(lines):
    inside = False
    for line in lines:
        if "-" in line.split(" ", 1)[0]:  # addresses: another mapping begins
            inside = "rowwise-" in line
        if inside:
            yield line


def after_a_large_message():
    memory, found = shared(), []
    for size, times in ((1 << 20, 1), (2, 3 * 1024), (1 << 20, 1)):
        for _ in range(times):
            sent = torch.full((2 * size,), float(size))
            work = memory.start(sent, [size] * 2, [size] * 2, None)
            assert work.done_within(LONG)
            last = work.whole()
        found.append(resident())
    return found, last.eq(float(1 << 20)).all().item()


def test_memory_that_nobody_has_needed_for_long_is_given_back(workers):
    for (large, small, again), arrived in workers.run(after_a_large_message, 2):
        assert arrived
        assert min(large, again) > 8 << 20  # a message is written here, and another one read
        assert small < 1 << 20
