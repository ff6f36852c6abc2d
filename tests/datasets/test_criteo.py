import itertools
import math
import os
import pathlib

import numpy as np
import pytest
import torch

from torchrec.datasets.criteo import (
    DEFAULT_CAT_NAMES,
    DEFAULT_COLUMN_NAMES,
    DEFAULT_INT_NAMES,
    TOTAL_TRAINING_SAMPLES,
    BinaryCriteoUtils,
    InMemoryBinaryCriteoIterDataPipe,
    criteo_kaggle,
    criteo_terabyte,
)

pytestmark = pytest.mark.once

PARTS = {"dense": 13, "sparse": 26, "labels": 1}
ROWS = (7, 4)


def line(label=1, dense=5, category="68fd1e64"):
    return "\t".join([str(label), *[str(dense)] * 13, *[category] * 26])


@pytest.fixture
def days(tmp_path):
    """Two days; every number of row i of day d begins at 1000 d + i."""
    for day, rows in enumerate(ROWS):
        for part, width in PARTS.items():
            numbers = 1000 * day + np.arange(rows)[:, None] + np.zeros((1, width))
            dtype = np.float32 if part == "dense" else np.int64
            np.save(tmp_path / f"day_{day}_{part}.npy", numbers.astype(dtype))
    return tmp_path


def pipe(folder, stage="train", batch_size=3, rank=0, world_size=1, **kw):
    paths = [[str(folder / f"day_{day}_{part}.npy") for day in (0, 1)] for part in PARTS]
    return InMemoryBinaryCriteoIterDataPipe(stage, *paths, batch_size, rank, world_size, **kw)


ALL = [*range(7), *range(1000, 1004)]


def test_rows_of_text_by_column(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(line() + "\n" + line(0, "", "") + "\n")
    full, missing = criteo_kaggle(str(path))
    assert list(full) == DEFAULT_COLUMN_NAMES
    assert (full["label"], full["int_12"], full["cat_0"]) == (1, 5, "68fd1e64")
    assert (missing["label"], missing["int_0"], missing["cat_25"]) == (0, 0, "")
    assert next(iter(criteo_kaggle(str(path), row_mapper=None)))[:2] == ["1", "5"]


@pytest.mark.parametrize("read", [criteo_kaggle, lambda path: criteo_terabyte([path])])
def test_rows_without_a_label(tmp_path, read):
    path = tmp_path / "test.txt"
    path.write_text(line().removeprefix("1\t") + "\n" + line(0) + "\n")
    unlabelled, labelled = read(str(path))
    assert list(unlabelled) == DEFAULT_COLUMN_NAMES[1:]
    assert (unlabelled["int_0"], unlabelled["cat_0"], unlabelled["cat_25"]) == (
        5,
        *["68fd1e64"] * 2,
    )
    assert (labelled["label"], labelled["int_0"]) == (0, 5)


@pytest.mark.parametrize(
    "text", [line() + "\tx", "\t" * 37, "1", ""], ids=["41", "38", "1", "none"]
)
def test_rows_of_other_widths(tmp_path, text):
    path = tmp_path / "train.txt"
    path.write_text(text + "\n")
    with pytest.raises(
        ValueError, match=r"should have 40 columns, or 39 without the label. Received"
    ):
        list(criteo_kaggle(str(path)))


def test_samples_of_the_terabyte_log():
    assert TOTAL_TRAINING_SAMPLES == 4_195_197_692


# Python 3.12 and later warn of forks beside threads; the workers only read.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_share_the_files(tmp_path):
    for day in range(3):
        (tmp_path / f"day_{day}").write_text(line(dense=day) + "\n")
    pipe = criteo_terabyte(str(tmp_path / f"day_{day}") for day in range(3))
    loader = torch.utils.data.DataLoader(
        pipe, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert sorted(row["int_0"] for row in loader) == [0, 1, 2]


def test_text_to_arrays(tmp_path):
    (tmp_path / "train.txt").write_text(line() + "\n" + line(0, "", "") + "\n")
    paths = [str(tmp_path / f"{part}.npy") for part in PARTS]
    BinaryCriteoUtils.tsv_to_npys(str(tmp_path / "train.txt"), *paths)
    dense, sparse, labels = map(np.load, paths)
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, np.repeat([[math.log(7)], [math.log(2)]], 13, 1), rtol=1e-6)
    assert sparse.tolist() == [[0x68FD1E64] * 26, [0] * 26]
    assert (labels.dtype, labels.tolist()) == (np.int32, [[1], [0]])
    assert BinaryCriteoUtils.get_shape_from_npy(paths[1]) == (2, 26)


@pytest.mark.parametrize("least", [-3, -1, 4])
def test_dense_features_are_moved_to_where_they_have_a_logarithm(tmp_path, least):
    (tmp_path / "day_0").write_text(line(dense=least) + "\n" + line(dense=least + 100) + "\n")
    paths = [str(tmp_path / f"{part}.npy") for part in PARTS]
    BinaryCriteoUtils.tsv_to_npys(str(tmp_path / "day_0"), *paths)
    np.testing.assert_allclose(np.load(paths[0])[:, 3], [math.log(2), math.log(102)], rtol=1e-6)


def test_text_without_labels_to_arrays(tmp_path):
    (tmp_path / "test.txt").write_text((line().removeprefix("1\t") + "\n") * 2)
    paths = [str(tmp_path / f"{part}.npy") for part in PARTS]
    BinaryCriteoUtils.tsv_to_npys(str(tmp_path / "test.txt"), *paths, dataset_name="criteo_kaggle")
    dense, sparse, labels = map(np.load, paths)
    assert (dense.shape, sparse[1].tolist()) == ((2, 13), [0x68FD1E64] * 26)
    assert labels.tolist() == [[-1], [-1]]


def test_an_empty_text_is_no_rows(tmp_path):
    (tmp_path / "day_0").write_text("")
    paths = [str(tmp_path / f"{part}.npy") for part in PARTS]
    BinaryCriteoUtils.tsv_to_npys(str(tmp_path / "day_0"), *paths)
    assert [np.load(path).shape for path in paths] == [(0, 13), (0, 26), (0, 1)]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("1\t2", "criteo_1tb", "Line 1 of '.*' should have 40 columns. Received 2."),
        (line()[2:], "criteo_1tb", "Line 1 of '.*' should have 40 columns. Received 39."),
        (
            line() + "\n" + line()[2:],
            "criteo_kaggle",
            "Line 2 of '.*' should have 40 columns. Received 39.",
        ),
        (line()[2:] + "\n" + line(), "criteo_kaggle", "should have 39 columns. Received 40."),
        (
            line() + "\n" + line(dense="x"),
            "criteo_1tb",
            "Line 2 of '.*' should have integers .*Received 'x'.",
        ),
        (line(category="é"), "criteo_1tb", r"hexadecimal numbers in the last 26. Received '.*xa9'"),
        (line(), "criteo", "`dataset_name` should be 'criteo_1tb' or 'criteo_kaggle'"),
    ],
    ids=["columns", "unlabelled", "label lost", "label found", "number", "hexadecimal", "name"],
)
def test_text_that_is_no_click_log(tmp_path, text, name, message):
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    paths = [str(tmp_path / f"{part}.npy") for part in PARTS]
    with pytest.raises(ValueError, match=message):
        BinaryCriteoUtils.tsv_to_npys(str(tmp_path / "train.txt"), *paths, dataset_name=name)
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


def test_a_folder_to_write_to_that_is_not_there(days):
    nowhere, read = str(days / "nowhere"), sorted(days.iterdir())
    (days / "train.txt").write_text(line())
    with pytest.raises(FileNotFoundError, match="`out_labels_file` should be in a folder"):
        BinaryCriteoUtils.tsv_to_npys(
            str(days / "train.txt"), str(days / "a"), str(days / "b"), nowhere + "/c"
        )
    with pytest.raises(FileNotFoundError, match="`output_dir` should be in a folder"):
        BinaryCriteoUtils.sparse_to_contiguous([str(days / "day_0_sparse.npy")], nowhere)
    with pytest.raises(FileNotFoundError, match="`output_dir_full_set` should be in a folder"):
        BinaryCriteoUtils.shuffle(nowhere, nowhere, str(days), {}, nowhere)
    assert sorted(days.iterdir()) == sorted([*read, days / "train.txt"])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("first", "last"), [(0, None), (3, 9), (5, 5), (8, 7)])
def test_row_ranges_cover_all_rows_once(world_size, first, last):
    lengths = [4, 0, 6, 1]
    rows = list(itertools.chain(*([(f, r) for r in range(n)] for f, n in enumerate(lengths))))
    wanted = rows[first : None if last is None else last + 1]
    found, shares = [], []
    for rank in range(world_size):
        ranges, remainder = BinaryCriteoUtils.get_file_row_ranges_and_remainder(
            lengths, rank, world_size, first, last
        )
        share = [(f, r) for f, (low, high) in ranges.items() for r in range(low, high + 1)]
        found += share
        shares.append(len(share))
        assert remainder == len(wanted) % world_size
    assert found == wanted
    assert max(shares) - min(shares) <= 1


def test_ranges_of_rows_that_are_not_there():
    with pytest.raises(ValueError, match=r"Rows should be from 0 to 3. Received 0 to 4."):
        BinaryCriteoUtils.get_file_row_ranges_and_remainder([4], 0, 1, 0, 4)
    with pytest.raises(ValueError, match=r"`rank` should be from 0 to 1. Received 2."):
        BinaryCriteoUtils.get_file_row_ranges_and_remainder([4], 2, 2)


@pytest.mark.parametrize("mmap", [False, True], ids=["memory", "mmap"])
def test_load_range(days, mmap):
    path = str(days / "day_0_sparse.npy")
    rows = BinaryCriteoUtils.load_npy_range(path, 2, 3, mmap_mode=mmap)
    assert rows[:, 0].tolist() == [2, 3, 4]
    assert isinstance(rows, np.memmap) == mmap
    with pytest.raises(ValueError, match=r"at most the rows of '.*' \(7\). Received 5 \+ 4"):
        BinaryCriteoUtils.load_npy_range(path, 5, 4)
    with pytest.raises(ValueError, match=r"should be at least 0, .* Received 5 \+ -1"):
        BinaryCriteoUtils.load_npy_range(path, 5, -1)


def test_contiguous_ids(tmp_path):
    columns = [[9, 7, 9, 5, 7, 9], [1, 2, 3, 4, 5, 6]]
    np.save(tmp_path / "day_0.npy", np.array(columns).T[:4])
    np.save(tmp_path / "day_1.npy", np.array(columns).T[4:])
    paths = [str(tmp_path / f"day_{day}.npy") for day in (0, 1)]
    BinaryCriteoUtils.sparse_to_contiguous(paths, str(tmp_path), frequency_threshold=2, columns=2)
    new = [np.load(path.replace(".npy", "_contig_freq.npy")) for path in paths]
    assert np.concatenate(new)[:, 0].tolist() == [2, 3, 2, 1, 3, 2]
    assert np.concatenate(new)[:, 1].tolist() == [1] * 6


def test_contiguous_ids_of_files_of_one_name(days):
    (days / "b").mkdir()
    os.rename(days / "day_1_sparse.npy", days / "b" / "day_0_sparse.npy")
    paths = [str(days / "day_0_sparse.npy"), str(days / "b" / "day_0_sparse.npy")]
    with pytest.raises(ValueError, match="`in_files` should have different names"):
        BinaryCriteoUtils.sparse_to_contiguous(paths, str(days))


@pytest.mark.parametrize("renumbered", [False, True], ids=["raw", "renumbered"])
def test_shuffle_moves_rows_as_a_whole_and_leaves_the_last_day(days, renumbered):
    (days / "out").mkdir()
    if renumbered:
        os.rename(days / "day_0_sparse.npy", days / "day_0_sparse_contig_freq.npy")
    arguments = [str(days), str(days), str(days / "out"), dict(enumerate(ROWS))]
    BinaryCriteoUtils.shuffle(*arguments, str(days), days=2)
    parts = [np.load(days / "out" / f"day_0_{part}.npy")[:, 0] for part in PARTS]
    assert sorted(parts[0]) == list(range(7))
    assert parts[0].tolist() != list(range(7))
    assert all((part == parts[0]).all() for part in parts)
    last = np.load(days / "out" / "day_1_labels.npy")
    assert last[:, 0].tolist() == [1000, 1001, 1002, 1003]
    assert np.load(days / "full.npy")[:, 39].tolist() == ALL


@pytest.mark.parametrize("rows", [{0: 7}, {}, {0: 7, 1: 4, 9: 1}], ids=["training", "none", "all"])
def test_shuffle_needs_no_number_of_rows(days, rows):
    (days / "out").mkdir()
    BinaryCriteoUtils.shuffle(str(days), str(days), str(days / "out"), rows, days=2)
    found = [np.load(days / "out" / f"day_{day}_labels.npy")[:, 0].tolist() for day in (0, 1)]
    assert found == [np.random.RandomState(0).permutation(7).tolist(), [1000, 1001, 1002, 1003]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows_per_day": {0: 8}}, r"should have shape \(8, 13\). Received \(7, 13\)."),
        ({"rows_per_day": {0: 7, 1: 5}}, r"day_1_dense.* shape \(5, 13\). Received \(4, 13\)."),
        ({"sparse_columns": 25}, r"day_0_sparse.* shape \(7, 25\). Received \(7, 26\)."),
        ({"days": 3}, r"No such file or directory: '.*day_2_dense.npy'"),
        ({"days": 0}, "`days` should be at least 1. Received 0."),
        ({"output_dir_shuffled": None}, "`output_dir_shuffled` should be another folder"),
    ],
    ids=["rows", "last rows", "columns", "day", "days", "folder"],
)
def test_shuffle_checks_all_before_it_writes(days, change, message):
    (days / "out").mkdir()
    arguments = {"rows_per_day": {0: 7}, "days": 2, "output_dir_shuffled": str(days / "out")}
    arguments |= {key: str(days) if value is None else value for key, value in change.items()}
    before = {path: path.read_bytes() for path in days.glob("*.npy")}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        BinaryCriteoUtils.shuffle(str(days), str(days), **arguments)
    assert {path: path.read_bytes() for path in days.rglob("*.npy")} == before


def test_shuffle_of_parts_that_do_not_belong_together(days):
    np.save(days / "day_1_labels.npy", np.zeros((3, 1)))
    (days / "out").mkdir()
    with pytest.raises(ValueError, match=r"day_1_labels.* shape \(4, 1\). Received \(3, 1\)."):
        BinaryCriteoUtils.shuffle(str(days), str(days), str(days / "out"), {}, days=2)
    assert list((days / "out").iterdir()) == []


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [2, 3, 11, 20])
@pytest.mark.parametrize("mmap", [False, True], ids=["memory", "mmap"])
def test_ranks_share_all_rows_in_equally_many_batches(days, world_size, batch_size, mmap):
    ranks = [
        [b.labels.tolist() for b in pipe(days, "train", batch_size, r, world_size, mmap_mode=mmap)]
        for r in range(world_size)
    ]
    assert sorted(itertools.chain(*itertools.chain(*ranks))) == ALL
    assert len({len(batches) for batches in ranks}) == 1


@pytest.mark.parametrize(
    ("world_size", "drop_last", "wanted"),
    [
        (2, False, [[[0, 1, 2], [6, 1000, 1001]], [[3, 4, 5], [1002, 1003]]]),
        (2, True, [[[0, 1, 2]], [[3, 4, 5]]]),
        (3, False, [[[0, 1, 2, 3]], [[4, 5, 6, 1000]], [[1001, 1002, 1003]]]),
    ],
)
def test_what_is_left_over(days, world_size, drop_last, wanted):
    for rank, batches in enumerate(wanted):
        rows = pipe(days, "train", 3, rank, world_size, drop_last=drop_last)
        assert [batch.labels.tolist() for batch in rows] == batches


def test_validation_and_test_halve_the_rows(days):
    halves = [[b.labels.tolist() for b in pipe(days, stage, 6)] for stage in ("val", "test")]
    assert halves == [[ALL[:6]], [ALL[6:]]]


def test_a_batch(days):
    batch = next(iter(pipe(days, hashes=[2] * 26)))
    assert batch.dense_features[:, 12].tolist() == [0.0, 1.0, 2.0]
    assert batch.sparse_features.keys() == DEFAULT_CAT_NAMES
    assert batch.sparse_features["cat_25"].values().tolist() == [0, 1, 0]
    assert batch.sparse_features["cat_25"].lengths().tolist() == [1, 1, 1]


def test_shuffling_within_batches_goes_on(days):
    torch.manual_seed(0)
    rows = pipe(days, batch_size=11, shuffle_batches=True)
    first, second = next(iter(rows)), next(iter(rows))
    assert sorted(first.labels.tolist()) == ALL
    assert first.labels.tolist() != second.labels.tolist()
    assert first.dense_features[:, 3].tolist() == first.labels.tolist()


def test_shuffling_the_training_set_is_repeatable(days):
    def order(**kw):
        rows = pipe(days, shuffle_training_set=True, **kw)
        return list(itertools.chain(*(batch.labels.tolist() for batch in rows)))

    assert sorted(order()) == ALL
    assert order() == order() != ALL
    assert order(shuffle_training_set_random_seed=1) != order()
    assert order(stage="val") == ALL[:6]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stage": "tain"}, "`stage` should be one of train, val, test. Received 'tain'."),
        ({"rank": 1}, "`rank` should be from 0 to 0. Received 1."),
        ({"batch_size": 0}, "`batch_size` should be at least 1. Received 0."),
        ({"hashes": [3]}, "`hashes` should have 26 entries. Received 1."),
    ],
    ids=["stage", "rank", "batch_size", "hashes"],
)
def test_errors(days, wrong, message):
    with pytest.raises(ValueError, match=message):
        pipe(days, **wrong)


def test_files_that_do_not_belong_together(days):
    np.save(days / "day_1_labels.npy", np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"of `labels_paths` should have as many rows .*\[7, 4\]"):
        pipe(days)
    np.save(days / "day_1_dense.npy", np.zeros((4, 12)))
    with pytest.raises(ValueError, match=r"should have shape \(rows, 13\). Received \(4, 12\)."):
        pipe(days)


def test_the_sample_as_criteo_distributes_it(tmp_path):
    data = pathlib.Path(os.environ.get("ROWWISE_DATA", "../shared/data"))
    sample = data / "criteo" / "train_first_10000.txt"
    if not sample.exists():
        pytest.skip(f"no {sample}; set ROWWISE_DATA to a folder that has it")
    rows = list(criteo_kaggle(str(sample)))
    paths = [str(tmp_path / f"{part}.npy") for part in PARTS]
    BinaryCriteoUtils.tsv_to_npys(str(sample), *paths, dataset_name="criteo_kaggle")
    batches = list(
        InMemoryBinaryCriteoIterDataPipe("train", *([path] for path in paths), 4096, 0, 1)
    )
    assert [len(batch.labels) for batch in batches] == [4096, 4096, 1808]
    assert torch.cat([b.labels for b in batches]).tolist() == [row["label"] for row in rows]
    assert batches[0].sparse_features["cat_3"].values()[5] == int(rows[5]["cat_3"] or "0", 16)
    least = min(row[name] for row in rows for name in DEFAULT_INT_NAMES)
    moved = rows[5]["int_4"] - least + 2
    assert batches[0].dense_features[5, 4].item() == pytest.approx(math.log(moved))
