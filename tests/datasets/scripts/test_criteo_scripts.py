import numpy as np
import pytest

from torchrec.datasets.criteo import DAYS
from torchrec.datasets.scripts import (
    contiguous_preproc_criteo,
    npy_preproc_criteo,
    shuffle_preproc_criteo,
)

pytestmark = pytest.mark.once


def line(label, dense, category):
    return "\t".join(
        [*([] if label is None else [str(label)]), *[str(dense)] * 13, *[category] * 26]
    )


@pytest.fixture
def folders(tmp_path):
    for name in ("text", "arrays", "contiguous", "shuffled"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_from_text_to_shuffled_days(folders, capsys):
    for day in range(DAYS):  # day d has one row more than d % 2, and all ids of a day are one
        rows = [line(row % 2, 100 * day + row, f"{day % 3:08x}") for row in range(1 + day % 2)]
        (folders / "text" / f"day_{day}").write_text("\n".join(rows) + "\n")
    text, arrays, contiguous, shuffled = (
        str(folders / name) for name in ("text", "arrays", "contiguous", "shuffled")
    )
    npy_preproc_criteo.main(["--input_dir", text, "--output_dir", arrays])
    contiguous_preproc_criteo.main(["--input_dir", arrays, "--output_dir", contiguous])
    shuffle_preproc_criteo.main(
        f"--input_dir_labels_and_dense {arrays} --input_dir_sparse {contiguous} --random_seed 3 "
        f"--output_dir_shuffled {shuffled} --output_dir_full_set {folders}".split()
    )
    assert np.load(folders / "contiguous" / "day_4_sparse_contig_freq.npy").tolist() == [[3] * 26]
    full = np.load(folders / "full.npy")
    assert full.shape == (36, 40)
    parts = [
        np.concatenate(
            [np.load(folders / "shuffled" / f"day_{day}_{part}.npy") for day in range(DAYS)]
        )
        for part in ("dense", "sparse", "labels")
    ]
    order = np.random.RandomState(3).permutation(34)  # the last day, of two rows, stays
    assert (np.concatenate(parts, axis=1) == full[[*order, 34, 35]]).all()
    assert "24 days in" in capsys.readouterr().out


def test_kaggle_has_a_file_without_labels(folders):
    (folders / "text" / "train.txt").write_text(line(1, 5, "0a") + "\n")
    (folders / "text" / "test.txt").write_text(line(None, 5, "0b") + "\n")
    arguments = ["--input_dir", str(folders / "text"), "--output_dir", str(folders / "arrays")]
    npy_preproc_criteo.main([*arguments, "--dataset_name", "criteo_kaggle"])
    assert np.load(folders / "arrays" / "train_labels.npy").tolist() == [[1]]
    assert np.load(folders / "arrays" / "test_labels.npy").tolist() == [[-1]]
    assert np.load(folders / "arrays" / "test_sparse.npy").tolist() == [[11] * 26]


def test_a_folder_without_the_log(folders):
    with pytest.raises(ValueError, match=r"should have files named day_0 to day_23. Received '.*'"):
        npy_preproc_criteo.main(["--input_dir", str(folders), "--output_dir", str(folders)])
    with pytest.raises(FileNotFoundError, match=r"day_0_sparse.npy"):
        contiguous_preproc_criteo.main(["--input_dir", str(folders), "--output_dir", str(folders)])
    with pytest.raises(SystemExit):
        shuffle_preproc_criteo.main(["--input_dir_sparse", str(folders)])
