"""The command line: ``torchrec …`` or ``python -m torchrec …``. One file a command.

A mistake of the user is one line that says what to do, and exit code 2; Ctrl-C is 130, and SIGTERM
while training 143. What no message was written for is 1, and asks for ``--debug``, which shows the
traceback of anything.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr

from rowwise.cli.error_stream import PrintableStream
from rowwise.cli.ranks import is_first_rank, says_first_rank
from rowwise.cli.stopping import INTERRUPTED, Stopped

MISTAKE, UNEXPECTED = 2, 1
# PyTorch has no type for it on a CPU.
_NO_MEMORY = re.compile(
    "can't allocate memory|out of memory|Storage size calculation overflowed"
    "|Overflow when unpacking long"  # a size of more than 64 bits
)
# Turns that a thread waits for others awake, of libgomp: a tenth of a millisecond. Its default is several: as long as
# a time slice, which whoever is waited for would need where another program has its processor.
_SPIN_COUNT = "4000"
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # what a user may have set
_LONGEST = 2_000  # characters of a message, which may quote what it received
_MISTAKES = (ValueError, TypeError, IndexError, OSError, MemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: what follows ``torchrec`` on the command line; by default that of the process.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT  # read when PyTorch is loaded
    # Warnings and logs have names in them, too.
    with redirect_stderr(PrintableStream(sys.stderr)):
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments  # anywhere: it is remembered when a command has failed
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        from rowwise.cli.application import application

        code = application()(arguments, prog_name="torchrec", standalone_mode=False)
        if code == INTERRUPTED:  # Typer turns Ctrl-C into this, or into Abort, by its version
            raise KeyboardInterrupt
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # as in `torchrec info | head -1`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        code, message = _explain(error)
        if debug:
            traceback.print_exception(error)
        elif message:
            _print_error(message)
        return code


def _print_error(message: str) -> None:
    """Print an error; of ranks that torchrun has started, those that meet what another has met say nothing."""
    if is_first_rank():
        print(f"torchrec: {message}", file=sys.stderr, flush=True)
        says_first_rank(message)
    elif not message.startswith("On rank ") and not says_first_rank(message):
        print(f"torchrec, rank {os.environ['RANK']}: {message}", file=sys.stderr)


def _explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code for an error, and one line."""
    if isinstance(error, Stopped):
        return error.code, str(error)
    cause = error.__cause__ or error.__context__
    if isinstance(error, KeyboardInterrupt) or (
        type(error).__name__ == "Abort" and isinstance(cause, KeyboardInterrupt)
    ):
        return INTERRUPTED, "stopped."
    format_message = getattr(error, "format_message", None)  # how Typer and click say it
    if callable(format_message):
        text = _one_line(_meant(error) or format_message())
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "torchrec"
        if not text:  # a group of commands on its own, which has printed its help
            return MISTAKE, ""
        return MISTAKE, f"{text}{'' if text[-1] in '.?' else '.'} See `{command} --help`."
    if isinstance(error, ImportError) and not error.name:  # written by us, not by Python
        return MISTAKE, _one_line(str(error))
    if isinstance(error, ImportError) and not f"{error.name}.".startswith(
        ("rowwise.", "torchrec.")
    ):
        return MISTAKE, f"{_one_line(str(error))}: install it with `pip install 'rowwise[train]'`."
    if isinstance(error, OSError) and error.filename is not None:
        return MISTAKE, f"'{error.filename}': {error.strerror}."
    if isinstance(error, MemoryError) and not str(error):
        return MISTAKE, "not enough memory. Smaller tables or batches need less."
    text = _one_line(f"{error} {_advice(error)}") or type(error).__name__
    if isinstance(error, (RuntimeError, TypeError)) and _NO_MEMORY.search(text):
        asked = re.search(r"allocate (\d+) bytes", text)
        amount = f" ({int(asked[1]):,} bytes at once)" if asked else ""
        return MISTAKE, f"not enough memory{amount}. Smaller tables or batches need less."
    if isinstance(error, OSError) and error.strerror:
        return MISTAKE, f"{_one_line(error.strerror)}."
    if isinstance(error, _MISTAKES):
        return MISTAKE, text
    return UNEXPECTED, f"{type(error).__name__}: {text} (run again with --debug to see where)"


def _meant(error: BaseException) -> str | None:
    """Return a message with the options that may have been meant, for one that there is not."""
    possible = getattr(error, "possibilities", None)
    if not possible:
        return None
    near = ", ".join(f"'{name}'" for name in possible)
    return f"No such option: {getattr(error, 'option_name', '')}. Did you mean {near}?"


def _advice(error: BaseException) -> str:
    """Return which keys of the experiment file mend an error in data."""
    if (
        "torchrec.datasets.data_error" not in sys.modules
    ):  # as in `torchrec info`: no data were read
        return ""
    from torchrec.experiment.advice import advice

    return advice(error)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= _LONGEST:
        return line
    return f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
