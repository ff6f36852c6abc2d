"""``torchrec plan``: where the tables of a model would be on many ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowwise.cli.console import console

if TYPE_CHECKING:
    from torchrec.distributed.types import ShardingPlan
    from torchrec.experiment.schema import Experiment

_CALIBRATE = "calibrate"
_RATES = Path("rates.json")


def plan(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT|calibrate",
            help="Experiment file; or the word calibrate, to measure this machine.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the file with other values."),
    ] = None,
    world_size: Annotated[
        int, typer.Option(min=1, help="How many ranks, or processes to measure with at most.")
    ] = 2,
    device: Annotated[
        str, typer.Option(help="What they compute on: cpu, v100, a100, h100 or h200.")
    ] = "cpu",
    ranks_a_host: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks a host has.", show_default="8, or all on the CPU"),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1e6, help="Memory of a rank in GiB.", show_default="that of the device"
        ),
    ] = None,
    rates: Annotated[
        Path | None,
        typer.Option(
            help="File of `torchrec plan calibrate`.",
            show_default="`distributed.rates`, or bandwidths",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File of the plan, or of the rates.",
            show_default="none, or rates.json",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page as well.")] = None,
    processor_time: Annotated[
        bool,
        typer.Option(
            "--processor-time",
            help="With calibrate: count the time that processes compute, as on a machine that others use as well.",
        ),
    ] = False,
) -> None:
    """Say where the tables of a model would be on many ranks, and what a step would take them.

    Neither the ranks nor the devices need to be there. For each rank there is its memory and time, for
    each table why it is where it is and what the next best way would take. The plan is a JSON file that
    `plan_from_json` reads.

    `calibrate` measures how long look-ups, updates and exchanges take on this machine, in about a minute;
    --rates takes the file. Nothing else should run meanwhile; where something does, --processor-time leaves
    out how long processes wait for it, and for one another.

    $ torchrec plan calibrate -o rates.json
    $ torchrec plan experiment.yaml --world-size 4 --rates rates.json -o plan.json
    $ torchrec plan experiment.yaml --world-size 16 --device h100 --html plan.html
    """
    if experiment == _CALIBRATE:
        others = {
            "KEY=VALUE": " ".join(overrides or ()) or None,
            "--device": None if device == "cpu" else device,  # which it measures
            "--ranks-a-host": ranks_a_host,
            "--memory": memory,
            "--rates": rates,
            "--html": html,
        }
        _calibrate(world_size, _RATES if output is None else output, processor_time, others)
        return
    if processor_time:
        raise ValueError(
            "`--processor-time` should be given to `torchrec plan calibrate`, whose file a plan takes. "
            f"Received it with {experiment}."
        )
    from torchrec.training.plan import plan_experiment, read_rates, topology_for

    described = _described(experiment, overrides or (), rates, output, html)
    measured = None if rates is None else read_rates(rates, "`--rates`")
    num_bytes = None if memory is None else int(memory * 2**30)
    section = described.distributed
    topology = topology_for(section, world_size, ranks_a_host, device, num_bytes, measured)
    found = plan_experiment(described, topology)
    _explain(found, section.plan)
    _write(found, output, html, Path(experiment).stem)


def _described(
    file: str, overrides: Sequence[str], rates: Path | None, output: Path | None, html: Path | None
) -> Experiment:
    """Return an experiment whose plan can be written, over nothing that it is made from."""
    from torchrec.experiment.files import load_experiment
    from torchrec.experiment.tables import files_of

    found = load_experiment(file, overrides)
    given = (file, rates, found.distributed.rates)
    data = [each.path for each in files_of(found.data)]
    _check_outputs({"--output": output, "--html": html}, [*given, *data])
    return found


def _explain(plan: ShardingPlan, chosen: str) -> None:
    if chosen != "auto":
        _print(f"What `distributed.plan` auto finds, not the plan of {chosen}:")
    _print(*plan.explain().splitlines())


def _write(plan: ShardingPlan, output: Path | None, html: Path | None, title: str) -> None:
    from torchrec.distributed.sharding_plan import plan_to_json
    from torchrec.files import write_file
    from torchrec.report.plan_page import write_plan

    if output is not None:
        write_file(output, plan_to_json(plan))
        _print(f"\nThe plan is in {output}.")
    if html is not None:
        _print(f"\nThe page is {write_plan(plan, html, title)}.")


def _print(*lines: str) -> None:
    out = console()
    for line in lines:
        out.print(line, markup=False)


def _check_outputs(outputs: Mapping[str, Path | None], read: Iterable[str | Path | None]) -> None:
    """Refuse to write to a file that is read, or to one twice, and find out whether all can be written."""
    from torchrec.files import check_writable

    taken = {os.path.realpath(path): "a file that is read" for path in read if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        what = taken.setdefault(os.path.realpath(path), f"that of `{option}`")
        if what != f"that of `{option}`":
            raise ValueError(f"`{option}` should be a file of its own. Received '{path}', {what}.")
        check_writable(path)


def _calibrate(
    world_size: int, output: Path, processor_time: bool, others: Mapping[str, object]
) -> None:
    from torchrec.distributed.planner.calibrate import calibrate
    from torchrec.files import write_file

    given = [f"{name} {value}" for name, value in others.items() if value is not None]
    if given:
        raise ValueError(
            "`torchrec plan calibrate` should be given --world-size, --output and --processor-time alone. "
            f"Received {', '.join(given)}."
        )
    if world_size < 2:
        raise ValueError(
            "`--world-size` should be 2 or more for `torchrec plan calibrate`: it measures how processes exchange. "
            f"Received {world_size}."
        )
    _check_outputs({"--output": output}, [])
    sizes = [size for size in (2, 4, 8, 16, 32) if size <= world_size]
    measured = calibrate(sizes, processor_time=processor_time)
    write_file(output, measured.to_json())
    _print(f"{measured.machine}: the rates are in {output}.")
