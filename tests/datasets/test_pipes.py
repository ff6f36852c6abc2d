import pytest
import torch
from torch.utils.data.datapipes.iter import IterableWrapper

from torchrec.datasets.utils import (
    Limit,
    LoadFiles,
    ParallelReadConcat,
    ReadLinesFromCSV,
    idx_split_train_val,
    rand_split_train_val,
    safe_cast,
    train_filter,
    val_filter,
)

pytestmark = pytest.mark.once


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("x\ty\n1\t2\n3\t\n")
    return str(path)


@pytest.mark.parametrize("limit", [0, 1, 4, 9])
def test_limit_gives_the_first_elements(limit):
    assert list(IterableWrapper(range(4)).limit(limit)) == list(range(4))[:limit]


def test_limit_does_not_ask_for_more_than_it_gives():
    def once():
        yield 1
        raise RuntimeError("one element too many")

    assert list(Limit(IterableWrapper(once(), deepcopy=False), 1)) == [1]


def test_limit_refuses_a_negative_number():
    with pytest.raises(ValueError, match=r"`limit` should be at least 0. Received -1."):
        Limit(IterableWrapper([]), -1)


@pytest.mark.parametrize(("mode", "kind"), [("b", bytes), ("rb", bytes), ("t", str), ("r", str)])
def test_load_files_opens_in_the_mode_asked_for(lines, mode, kind):
    ((path, text),) = [(p, f.read()) for p, f in LoadFiles([lines], mode=mode)]
    assert path == lines
    assert isinstance(text, kind)


def test_load_files_closes_a_file_before_the_next(lines):
    first, second = (file for _, file in LoadFiles([lines, lines]))
    assert first.closed
    assert second.closed


def test_load_files_knows_its_length_only_when_told(lines):
    assert len(LoadFiles([lines], length=1)) == 1
    with pytest.raises(TypeError, match="no `length` was given"):
        len(LoadFiles([lines]))


def test_load_files_does_not_write(lines):
    with pytest.raises(ValueError, match="`mode` should be one to read in"):
        LoadFiles([lines], mode="w")


@pytest.mark.parametrize("skip", [False, True], ids=["all", "skip-first"])
def test_lines_are_split(lines, skip):
    rows = list(ReadLinesFromCSV(LoadFiles([lines], mode="r"), skip, delimiter="\t"))
    assert rows == [["x", "y"], ["1", "2"], ["3", ""]][skip:]


# Python 3.12 and later warn of forks beside threads; the workers only read.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_parallel_read_gives_every_element_to_one_worker():
    pipes = [IterableWrapper([10 * i, 10 * i + 1]) for i in range(3)]
    loader = torch.utils.data.DataLoader(
        ParallelReadConcat(*pipes), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert sorted(loader) == [0, 1, 10, 11, 20, 21]


def test_parallel_read_takes_a_selector():
    pipes = [IterableWrapper([1]), IterableWrapper([2])]
    assert list(ParallelReadConcat(*pipes, dp_selector=lambda all_: all_[1:])) == [2]


def test_parallel_read_needs_a_pipe():
    with pytest.raises(ValueError, match="at least one data pipe"):
        ParallelReadConcat()


@pytest.mark.parametrize("share", [0.1, 0.57, 0.99])
def test_index_split_divides_every_hundred(share):
    train, valid = idx_split_train_val(IterableWrapper(range(300)), share)
    train, valid = list(train), list(valid)
    assert sorted(train + valid) == list(range(300))
    assert train == [i for i in range(300) if i % 100 < round(share * 100)]
    assert [train_filter(lambda i: i, share, 2, i) for i in range(300)] == [
        not val_filter(lambda i: i, share, 2, i) for i in range(300)
    ]


def test_index_split_keeps_elements_of_one_key_together():
    train, _ = idx_split_train_val(IterableWrapper(range(40)), 0.5, 1, key_fn=lambda i: i // 4)
    assert list(train) == list(range(20))


def test_random_split_is_repeatable_and_complete():
    pipes = rand_split_train_val(IterableWrapper(range(500)), 0.7, 3)
    again = rand_split_train_val(IterableWrapper(range(500)), 0.7, 3)
    train, valid = map(list, pipes)
    assert (train, valid) == tuple(map(list, pipes)) == tuple(map(list, again))
    assert sorted(train + valid) == list(range(500))
    assert 300 < len(train) < 400
    other, _ = rand_split_train_val(IterableWrapper(range(500)), 0.7, 4)
    assert list(other) != train


@pytest.mark.parametrize("split", [idx_split_train_val, rand_split_train_val])
@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_splits_refuse_other_shares(split, share):
    with pytest.raises(ValueError, match="`train_perc` should be between 0 and 1"):
        split(IterableWrapper([]), share)


def test_safe_cast_falls_back_on_values_only():
    assert safe_cast("7", int, 0) == 7
    assert safe_cast("x", int, -1) == -1
    with pytest.raises(TypeError):
        safe_cast(None, int, 0)
