"""Number the ids of the Criteo click logs one after the other."""

from __future__ import annotations

import argparse
import os
import sys

from torchrec.datasets.criteo import DAYS, FREQUENCY_THRESHOLD, BinaryCriteoUtils


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Return the options of this program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input_dir", required=True, help="folder of day_0_sparse.npy to day_23_sparse.npy"
    )
    parser.add_argument("--output_dir", required=True, help="folder of the result, which exists")
    parser.add_argument(
        "--frequency_threshold",
        type=int,
        default=FREQUENCY_THRESHOLD,
        help="ids that appear less often become 1. Default: %(default)s; 0: none does",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Write ``day_<number>_sparse_contig_freq.npy`` of each day.

    What is in them says :meth:`torchrec.datasets.criteo.BinaryCriteoUtils.sparse_to_contiguous`.

    Args:
        argv: options of the command line, without the name of the program.

    Raises:
        ValueError: an array has not 26 columns.
        FileNotFoundError: a day or the folder to write to is not there.
    """
    args = parse_args(argv)
    BinaryCriteoUtils.sparse_to_contiguous(
        [os.path.join(args.input_dir, f"day_{day}_sparse.npy") for day in range(DAYS)],
        args.output_dir,
        args.frequency_threshold,
    )
    print(f"{DAYS} days in {args.output_dir}")


if __name__ == "__main__":
    main(sys.argv[1:])
