"""Commands whose flags read as flags, and which say what was meant by an option that there is not."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

from rowwise.cli.ranks import require_one_process


def _flags(params: list[Any]) -> list[Any]:
    """Return the parameters of a command, of which flags show no type and are False by default.

    Without a default, as `--help` is made, Typer asks pydantic what None means, whose import takes
    longer than all of the help.
    """
    for param in params:
        if isinstance(param, TyperOption) and param.is_bool_flag:
            param.metavar = ""
            param.default = bool(param.default)
    return params


class Command(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, flags as such."""
        return _flags(super().get_params(ctx))


class LoneCommand(Command):
    """A command that does not share its work among processes."""

    def invoke(self, ctx: Any) -> Any:
        """Run it, if this is the only process."""
        require_one_process(ctx.command_path)
        return super().invoke(ctx)


class Group(TyperGroup):
    """A group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, flags as such."""
        return _flags(super().get_params(ctx))
