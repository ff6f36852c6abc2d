"""``torchrec export``: a trained model as a file that runs without this package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rowwise.cli.console import console


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)
    ],
    format: Annotated[str, typer.Option(help="torch-export, aoti or onnx.")] = "torch-export",
) -> None:
    """Write a trained model as a file that runs without this package.

    The folder gets the model and model.json, which says what goes in: numbers as they are in the data, and ids as
    integers, strings hashed. Any number of rows may be asked for at once. torch-export is read by PyTorch's
    torch.export.load; aoti is the same, compiled for this kind of processor; onnx is read by ONNX Runtime and others
    (pip install 'rowwise[export]').

    $ torchrec export runs/experiment -o exported --format onnx
    """
    from torchrec.inference import export as export_model

    with _quiet():
        path = export_model(run, output, format)  # type: ignore[arg-type]  # refused if it is none
    size = sum(file.stat().st_size for file in path.parent.glob("model*"))
    console().print(f"{path}: {size / 1e6:,.1f} MB with what is beside it", markup=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what PyTorch's exporters say of their own insides, in some ten lines; what is wrong they raise."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
