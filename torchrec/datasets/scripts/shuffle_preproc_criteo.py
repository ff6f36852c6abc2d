"""Bring the training days of the Criteo click logs, as arrays, into one random order."""

from __future__ import annotations

import argparse
import sys

from torchrec.datasets.criteo import DAYS, BinaryCriteoUtils


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Return the options of this program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input_dir_labels_and_dense", required=True, help="folder of labels and dense features"
    )
    parser.add_argument("--input_dir_sparse", required=True, help="folder of the ids")
    parser.add_argument(
        "--output_dir_full_set",
        help="folder of full.npy, all days in their order. Default: it is not written",
    )
    parser.add_argument(
        "--output_dir_shuffled", required=True, help="folder of the result, which exists"
    )
    parser.add_argument(
        "--random_seed", type=int, default=0, help="another seed, another order. Default: 0"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Write ``day_<number>_{dense,sparse,labels}.npy`` of each day.

    What is in them says :meth:`torchrec.datasets.criteo.BinaryCriteoUtils.shuffle`.

    Args:
        argv: options of the command line, without the name of the program.

    Raises:
        ValueError: arrays of a day do not fit together.
        FileNotFoundError: a file or a folder to write to is not there.
    """
    args = parse_args(argv)
    BinaryCriteoUtils.shuffle(
        args.input_dir_labels_and_dense,
        args.input_dir_sparse,
        args.output_dir_shuffled,
        rows_per_day={},
        output_dir_full_set=args.output_dir_full_set,
        days=DAYS,
        random_seed=args.random_seed,
    )
    print(f"{DAYS} days in {args.output_dir_shuffled}")


if __name__ == "__main__":
    main(sys.argv[1:])
