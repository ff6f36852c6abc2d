"""``torchrec tune``: search for the options with which an experiment does best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rowwise.cli.console import console, table
from rowwise.cli.stopping import stopping

if TYPE_CHECKING:
    from torchrec.experiment.schema import Experiment
    from torchrec.tuning import SearchSpace, Tuning


def tune(
    experiment: Annotated[
        Path,
        typer.Argument(metavar="EXPERIMENT", help="The experiment file.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SECTION.KEY=VALUE",
            help="Values that replace those of the file, as training.epochs=3.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Trials in all; the first is the experiment as it is.")
    ] = 20,
    space: Annotated[
        Path | None,
        typer.Option(
            "--space",
            help="A YAML file with what to vary, as `tune` of the experiment.",
            show_default="`tune` of the experiment, or what suits the model",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="auc, logloss or ne of the validation data; given twice, their sum.",
            show_default="as early stopping, or auc",
        ),
    ] = None,
    pruner: Annotated[
        str, typer.Option(help="When a trial is given up: median, halving or none.")
    ] = "median",
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which no more is tried.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other trials.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the search.", show_default="that of the run and -tune"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search in the folder.")
    ] = False,
) -> None:
    """Search for the options with which an experiment does best on its validation data.

    Each trial trains with other learning rates, decays, dropout, widths and the like; one that is behind
    others is given up early. The test is never read. The folder gets best.yaml, which torchrec train
    takes, and a page of results. A search that was stopped, by Ctrl-C or a crash, goes on with --resume.

    $ torchrec tune experiment.yaml --trials 20
    $ torchrec tune experiment.yaml --space space.yaml --metric logloss --timeout 3600
    $ torchrec train runs/experiment-tune/best.yaml
    """
    from torchrec.experiment.files import load_experiment
    from torchrec.tuning import TuningOptions, read_tuning, tune, write_page

    loaded = load_experiment(experiment, overrides or ())
    folder = Path(f"{loaded.output}-tune") if output is None else output
    options = TuningOptions(trials, metric or None, pruner, timeout, seed)  # type: ignore[arg-type]
    given = _space(loaded, space, experiment.name)
    out = console()

    def say(line: str) -> None:
        out.print(line, markup=False)

    with stopping(folder, _left_of):
        try:
            found = tune(loaded, folder, options, space=given, resume=resume, say=say)
        except KeyboardInterrupt:
            stopped = read_tuning(folder)
            if stopped is not None:
                write_page(stopped)
            raise
    out.print()
    out.print(_table(found))
    page = write_page(found)
    out.print(
        f"\nThe search is in [bold]{escape(str(folder))}[/], its page is {escape(str(page))}. Next:"
    )
    out.print(f"  torchrec train {found.experiment}", markup=False)


def _space(loaded: Experiment, path: Path | None, name: str) -> SearchSpace | None:
    from torchrec.experiment.files import parse_experiment_yaml
    from torchrec.tuning import parse_space

    if path is None:
        return None if loaded.tune is None else parse_space(loaded.tune, loaded, name)
    found = parse_experiment_yaml(path.read_text(encoding="utf-8"), path.name)
    if isinstance(found, dict) and list(found) == ["tune"]:
        found = found["tune"]
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} should have a range or a list by key. Received {found!r}.")
    return parse_space(found, loaded, path.name)


def _left_of(folder: Path) -> str:
    from torchrec.tuning import read_tuning

    found = read_tuning(folder)
    made = 0 if found is None else len(found.trials)
    best = (
        ""
        if found is None or found.best is None
        else f", the best experiment so far is {found.experiment}"
    )
    return f"stopped after {made} trials{best}; `--resume` goes on."


_SHOWN = 5


def _table(found: Tuning) -> object:
    """Return the best trials."""
    from torchrec.tuning import label_of, name_of, text_of

    complete = [trial for trial in found.trials if trial.state == "complete"]
    best = sorted(complete, key=lambda trial: -(trial.value or 0.0))[:_SHOWN]
    if complete and complete[0] not in best:
        best.append(complete[0])
    # What matters most first; a terminal has room for some.
    keys = list(found.importances or found.space)[:6]
    rows = [
        (
            str(trial.number),
            f"{trial.value:.4f}",
            *(text_of(found.value_of(trial, key)) for key in keys),
        )
        for trial in best
    ]
    return table(("trial", label_of(found.metrics), *map(name_of, keys)), rows)
