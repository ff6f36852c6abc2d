"""``torchrec serve``: a trained model over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rowwise.cli.console import console


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN...",
            help="Folders of runs, or of their versions.",
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option(help="The port; 0: one that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="The address; the default is this machine alone.")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="A file with the token that requests bring.", show_default="none"
        ),
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidates",
            "-c",
            metavar="[NAME=]FILE",
            help="Parquet: what a model recommends.",
            show_default="requests bring them",
        ),
    ] = None,
    keep: Annotated[int, typer.Option(help="Versions of each model that are loaded.")] = 1,
    poll: Annotated[
        float, typer.Option(help="Seconds between looks for new versions; 0: none.")
    ] = 2.0,
    batch: Annotated[
        int, typer.Option(help="Rows that are computed at once, of small requests.")
    ] = 64,
    gather: Annotated[
        float, typer.Option(help="Milliseconds that a batch waits for more rows.")
    ] = 0.0,
    queue: Annotated[int, typer.Option(help="Requests that wait for a model, at most.")] = 1000,
    wait: Annotated[float, typer.Option(help="Seconds that a request waits, at most.")] = 10.0,
    rows: Annotated[int, typer.Option(help="Rows of a request, at most.")] = 1_000_000,
    body: Annotated[float, typer.Option(help="Megabytes of a request, at most.")] = 16.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log only what fails.")] = False,
) -> None:
    """Answer requests for predictions and recommendations over HTTP.

    The page at / has a form for each model; /v1/models lists them, /openapi.json describes the paths, /metrics counts.
    A folder of runs whose names are numbers has the versions of a model: the largest answers, and a new one takes over
    without a request being lost. So does a model that is trained anew. Logs go to standard error, a JSON object a line.

    $ torchrec serve runs/experiment
    $ torchrec serve clicks=models/clicks ratings=runs/ratings --candidates ratings=movies.parquet
    $ curl localhost:8000/v1/models/experiment:predict -H 'content-type: application/json' -d '{"rows": [...]}'
    """
    _require_packages()
    from torchrec.heap import keep_freed_memory
    from torchrec.serve import Limits, application, listen, run

    paths = _named(runs, "RUN", None)
    limits = Limits(
        body=round(body * 1e6),
        pending=max(256 << 20, round(body * 1e6)),
        rows=rows,
        queue=queue,
        wait=wait,
        batch=batch,
        gather=gather / 1e3,
    )
    secret = None if token_file is None else _token(token_file)
    is_open = secret is None and host not in ("127.0.0.1", "::1", "localhost")
    keep_freed_memory()
    with listen(host, port) as bound:
        app = application(
            paths,
            limits,
            token=secret,
            candidates=_named(candidates or [], "--candidates", list(paths)),
            keep=keep,
            poll=poll,
            log_all=not quiet,
        )
        address = f"{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
        run(app, bound, started=lambda: say(f"{', '.join(paths)} on http://{address}", is_open))


def say(where: str, is_open: bool) -> None:
    """Print where a server listens, and whether anybody may ask.

    Args:
        where: models and address.
        is_open: other machines may, without a token.
    """
    out = console()
    out.print(f"{where}; Ctrl-C stops", markup=False)
    if is_open:
        out.print(
            "Others than this machine may ask, and no token is asked of them: see `--token-file`.",
            style="yellow",
            markup=False,
        )


def _named(given: list[str], what: str, models: list[str] | None) -> dict[str, str]:
    """Return paths by the name of their model: what stands before a path, or what is clear without."""
    from torchrec.serve.versions import default_name

    found: dict[str, str] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if not sign or os.path.exists(text):
            name, path = "", text
        if not name and models is not None:
            if len(models) > 1:
                raise ValueError(
                    f"`{what}` should name the model, as {models[0]}={path}. Received '{text}', with models "
                    f"{', '.join(models)}."
                )
            name = models[0]
        name = name or default_name(path)
        if name in found:
            raise ValueError(
                f"Each {what} should have a name of its own, as in other={path}. Received '{name}' twice."
            )
        if not name or set(name) & set(":/?#%"):
            raise ValueError(
                f"The name of a model should be one that may stand in a URL. Received '{name}': give another, as "
                f"in clicks={path}."
            )
        found[name] = path
    return found


def _token(file: Path) -> str:
    text = file.read_text(encoding="utf-8").strip()
    if not text:
        raise ValueError(f"'{file}' should hold a token. Received nothing in it.")
    return text


def _require_packages() -> None:
    import importlib.util

    missing = [
        name
        for name in ("starlette", "uvicorn", "httptools", "prometheus_client")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ImportError(
            f"To serve, `pip install 'rowwise[serve]'`. Received no {', no '.join(missing)}."
        )
