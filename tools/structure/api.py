"""What the TorchRec API prescribes, so that the limits count only what is ours to choose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Api:
    """Facts of the API.

    Attributes:
        parameters: class -> names of its constructor parameters, for the classes with many.
        bases: class -> names of classes that it derives from, for the classes with many ancestors.
        modules: dotted paths whose names would not be allowed otherwise.
    """

    parameters: dict[str, frozenset[str]]
    bases: dict[str, frozenset[str]]
    modules: frozenset[str]


def read_api(path: Path) -> Api:
    """Read the lines ``class Name(Base, Base): parameter ...`` and ``module dotted.path``."""
    parameters, bases, modules = {}, {}, set()
    for line in path.read_text().splitlines():
        if found := re.fullmatch(r"class (\w+)\((.*?)\):(.*)", line):
            name, ancestors, names = found.groups()
            bases[name] = frozenset(part for part in ancestors.split(", ") if part)
            parameters[name] = frozenset(names.split())
        elif found := re.fullmatch(r"module ([\w.]+)", line):
            modules.add(found[1])
        elif line and not line.startswith("#"):
            raise ValueError(
                f"{path}: lines should start with 'class' or 'module'. Received {line!r}."
            )
    return Api(parameters, bases, frozenset(modules))
