"""A report that is written anew while its run trains."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torchrec.files import write_file
from torchrec.report.page import render, write_report
from torchrec.runs import Run, RunFolder, read_run


def watch_report(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    every: float = 5.0,
    predictions: bool = True,
) -> Path:
    """Write the report of a run again and again until the run has ended.

    The browser needs no server: the page tells it to read the file again, and the file is whole at
    any moment. The last page does no more; an interrupt (Ctrl-C) writes one, too.

    Args:
        folder: of a run that trains, or is about to.
        output: the file to write; by default ``report.html`` in the folder.
        every: seconds between pages. Default 5.
        predictions: whether the last page shows what the model predicts. Default True.

    Returns:
        The file.

    Raises:
        ValueError: there is no such folder, or ``every`` is not positive.
    """
    if not every > 0:
        raise ValueError(f"`every` should be a number of seconds above 0. Received {every}.")
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise ValueError(
            f"'{folder}' should be the folder of a run that trains. Received no such folder."
        )
    path = run.page if output is None else Path(output)
    try:
        while not run.has_ended():
            write_file(path, render(_read(run), run, refresh=every))
            time.sleep(every)
    except KeyboardInterrupt:
        write_file(path, render(_read(run), run))
        raise
    return write_report(folder, path, predictions=predictions)


def _read(run: RunFolder) -> Run:
    """Return a run as far as it has come, which may be nowhere yet."""
    if run.metrics.is_file() or run.has_ended():
        return read_run(run.path)
    notes = ["This run has not ended: there is no result yet."]
    return Run(run.path.resolve().name, [], {}, {}, [], {}, "", notes)
