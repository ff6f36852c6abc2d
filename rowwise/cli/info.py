"""``torchrec info``: what is installed, and what runs where."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Annotated

import typer

from rowwise import __version__
from rowwise.cli.console import console, table

_PACKAGES = ("torch", "numpy", "pyarrow", "pydantic", "safetensors")


def info(
    operators: Annotated[bool, typer.Option("--operators", help="List every operator.")] = False,
) -> None:
    """Show versions, kernels, threads and devices.

    Worth a look when something is slow, and worth copying into a report of an error.

    $ torchrec info
    $ torchrec info --operators
    """
    import torch

    from torchrec import ops

    backends = ops.backends()
    kernels: dict[tuple[str, str], int] = {}
    for devices in backends.values():
        cpu = devices["cpu"]
        kernels[cpu.name, cpu.why] = kernels.get((cpu.name, cpu.why), 0) + 1
    out = console()
    rows = [
        ("rowwise", version()),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((package, _version(package)) for package in _PACKAGES),
        *(
            (f"operators, {name}", f"{count}: {why}")
            for (name, why), count in sorted(kernels.items(), key=lambda item: -item[1])
        ),
        ("instruction set", torch.backends.cpu.get_cpu_capability()),
        ("threads", _threads()),
        ("devices", ", ".join(_devices())),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out.print(f"[dim]{name:{width}}[/]  {value}")
    if operators:
        out.print()
        out.print(
            table(
                ("operator", "cpu", "other devices"),
                [
                    (name, devices["cpu"].name, devices["other"].name)
                    for name, devices in sorted(backends.items())
                ],
            )
        )


def version() -> str:
    """Return the version of this package, and whether it runs from where it is written."""
    return __version__ if _version("rowwise") == __version__ else f"{__version__}, from a checkout"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _threads() -> str:
    """Return how many there are, what limits them, and what was measured."""
    import torch

    from torchrec.threads import cpu_quota, measured_choice

    parts = [f"{torch.get_num_threads()} of {os.cpu_count()} processors"]
    if (quota := cpu_quota()) is not None:
        parts.append(f"a quota of {quota:g}")
    if (choice := measured_choice()) is not None:
        parts.append(str(choice))
    return "; ".join(parts)


def _devices() -> list[str]:
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [
            f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices
