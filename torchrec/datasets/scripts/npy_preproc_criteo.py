"""Make arrays of the text files of the Criteo click logs."""

from __future__ import annotations

import argparse
import os
import sys

from torchrec.datasets.criteo import DAYS, BinaryCriteoUtils

_FILES = {
    "criteo_1tb": [f"day_{day}" for day in range(DAYS)],
    "criteo_kaggle": ["train.txt", "test.txt"],
}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Return the options of this program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input_dir",
        required=True,
        help="folder of the text: day_0 to day_23, or train.txt and test.txt; those of them that are "
        "there",
    )
    parser.add_argument("--output_dir", required=True, help="folder of the arrays, which exists")
    parser.add_argument(
        "--dataset_name",
        choices=list(_FILES),
        default="criteo_1tb",
        help="which of the two logs. Default: criteo_1tb",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Write ``<name>_dense.npy``, ``<name>_sparse.npy`` and ``<name>_labels.npy`` of each file.

    What is in them says :meth:`torchrec.datasets.criteo.BinaryCriteoUtils.tsv_to_npys`.

    Args:
        argv: options of the command line, without the name of the program.

    Raises:
        ValueError: there is no file to read, or one is no click log.
        FileNotFoundError: the folder to write to is not there.
    """
    args = parse_args(argv)
    names = _FILES[args.dataset_name]
    found = [name for name in names if os.path.exists(os.path.join(args.input_dir, name))]
    if not found:
        raise ValueError(
            f"`--input_dir` should have files named {names[0]} to {names[-1]}. "
            f"Received '{args.input_dir}', which has none."
        )
    for name in found:
        stem = os.path.join(args.output_dir, os.path.splitext(name)[0])
        dense, sparse, labels = (f"{stem}_{part}.npy" for part in ("dense", "sparse", "labels"))
        source = os.path.join(args.input_dir, name)
        BinaryCriteoUtils.tsv_to_npys(source, dense, sparse, labels, args.dataset_name)
        print(f"{source}: {dense}, {sparse}, {labels}")


if __name__ == "__main__":
    main(sys.argv[1:])
