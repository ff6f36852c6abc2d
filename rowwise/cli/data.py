"""``torchrec data``: Parquet files to train on, generated or from what has been downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rowwise.cli.console import console, table

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


def synthetic(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A folder for train, valid and test; or one .parquet file."
        ),
    ] = Path("clicks"),
    rows: Annotated[
        int, typer.Option(min=1, help="Impressions, in all files together.")
    ] = 1_000_000,
    users: Annotated[int, typer.Option(min=1, help="Distinct users.")] = 5_000,
    items: Annotated[int, typer.Option(min=1, help="Distinct items.")] = 2_000,
    valid: Annotated[
        float, typer.Option(help="Share of the rows for validation, before those of the test.")
    ] = 0.1,
    test: Annotated[
        float, typer.Option(help="Share of the rows for the test, the last in time.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another log.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Generate a click log whose true click probabilities are known.

    It has skewed ids, strings, lists, missing prices, and a drift over two weeks. What is printed is
    the best that any model can reach. The column click_probability holds the true probabilities: keep
    it out of the features.

    $ torchrec data synthetic -o clicks --rows 1000000
    $ torchrec init clicks/train.parquet --label click --exclude click_probability
    """
    from torchrec.datasets.synthetic import ClickLog, write_click_log

    _check_new(
        [output]
        if output.suffix == ".parquet"
        else [output / f"{part}.parquet" for part in ("train", "valid", "test")],
        overwrite,
    )
    log = ClickLog(rows=rows, users=users, items=items, seed=seed)
    files = write_click_log(log, output, valid, test)
    console().print(
        table(
            ("file", "rows", "click rate", "best possible AUC", "and NE"),
            [
                (
                    str(path),
                    f"{limits.rows:,}",
                    f"{limits.click_rate:.4f}",
                    f"{limits.auc:.4f}",
                    f"{limits.ne:.4f}",
                )
                for path, limits in files.items()
            ],
        )
    )


def movielens(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="MovieLens-1M, unpacked: ratings.dat, users.dat, movies.dat.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder, or a .parquet file.")
    ] = Path("movielens.parquet"),
    drop_neutral: Annotated[
        bool, typer.Option("--drop-neutral", help="Leave out ratings of 3.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Make MovieLens-1M a click problem: a rating of 4 or 5 is a click.

    Get ml-1m.zip from https://grouplens.org/datasets/movielens/1m/ and unpack it first.

    $ torchrec data movielens ml-1m -o movielens.parquet --drop-neutral
    $ torchrec init movielens.parquet --label label --exclude rating
    """
    from torchrec.datasets.prepare.movielens import prepare_movielens

    path = _file(output, "movielens.parquet")
    _check_new([path], overwrite)
    _say_rows(prepare_movielens(folder, path, drop_neutral=drop_neutral), path)


def criteo(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Raw files, tab-separated; .gz as well.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder, or a .parquet file.")
    ] = Path("criteo.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Make Parquet of the raw Criteo display advertising log.

    Its lines have no header: a label, 13 integers and 26 categories, separated by tabs. They become
    the columns label, int_1 … int_13, cat_1 … cat_26; without a label, as in test.txt, all but that.

    $ torchrec data criteo train.txt -o criteo.parquet
    $ torchrec init criteo.parquet --label label
    """
    from torchrec.datasets.prepare.criteo import prepare_criteo

    path = _file(output, "criteo.parquet")
    _check_new([path], overwrite)
    _say_rows(prepare_criteo(files, path), path)


def _file(output: Path, name: str) -> Path:
    return output if output.suffix == ".parquet" else output / name


def _check_new(paths: list[Path], overwrite: bool) -> None:
    """Refuse to write over a file that nobody offered."""
    for path in paths:
        if path.exists() and not overwrite:
            raise ValueError(
                f"`--output` should be new. Received '{path}', which exists: --overwrite replaces it."
            )


def _say_rows(rows: int, path: Path) -> None:
    console().print(f"{rows:,} rows in {path}", markup=False)
