"""``torchrec recommend``: the best candidates of a trained model for each user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rowwise.cli.console import console
from rowwise.cli.predict import writer_of
from rowwise.cli.reading import open_beside, say_counts


def recommend(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)
    ],
    users: Annotated[
        list[str],
        typer.Option("--users", "-u", help="A row a user: files, patterns.", show_default=False),
    ],
    candidates: Annotated[
        list[str],
        typer.Option(
            "--candidates", "-c", help="A row a candidate: files, patterns.", show_default=False
        ),
    ],
    k: Annotated[int, typer.Option("-k", help="How many for each user.")] = 10,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: Parquet, CSV or TSV.")
    ] = Path("recommendations.parquet"),
    seen: Annotated[
        list[str] | None,
        typer.Option("--seen", help="Pairs to leave out, such as a log.", show_default="none"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Of several tasks, which to go by.", show_default="the only"),
    ] = None,
    user_key: Annotated[
        str | None,
        typer.Option("--user-key", help="The column that names users.", show_default="the first"),
    ] = None,
    candidate_key: Annotated[
        str | None,
        typer.Option(
            "--candidate-key", help="The column that names candidates.", show_default="the first"
        ),
    ] = None,
) -> None:
    """Rank candidates for each user, and write the best of each.

    Every candidate is scored for every user, in memory that does not grow with their number but by a key
    a candidate. Users have some of the columns of the features, candidates the others. The file has the
    key of the user, that of the candidate, rank and score; of equal scores the candidate that comes first
    in its file is first.

    $ torchrec recommend runs/ratings --users users.csv --candidates movies.csv -k 10
    $ torchrec recommend runs/ratings -u users.csv -c movies.csv --seen ratings.csv -o best.csv
    """
    from torchrec.heap import keep_freed_memory
    from torchrec.inference import load
    from torchrec.inference.recommend import Keys
    from torchrec.inference.recommend import recommend as best_of
    from torchrec.training.world import ALONE

    writer = writer_of(output)
    keep_freed_memory()
    predictor = load(run)
    of_users, of_candidates = (open_beside(files, predictor, run) for files in (users, candidates))
    pairs = open_beside(seen, predictor, run) if seen else None
    keys = Keys(user_key or of_users.names[0], candidate_key or of_candidates.names[0])
    with writer as file:
        for table in best_of(
            predictor, of_users, of_candidates, k, task=task, seen=pairs, keys=keys
        ):
            file.write(table)
    say_counts(predictor, of_users, ALONE)
    console().print(f"{file.rows:,} recommendations in {output}", markup=False)
