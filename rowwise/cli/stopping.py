"""Ctrl-C and SIGTERM while a run is trained: its end, with what is left of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERRUPTED, TERMINATED = 130, 143


class Stopped(BaseException):
    """A command was told to stop.

    Args:
        code: exit code.
        message: one line.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def stopping(run: Path, left_of: Callable[[Path], str] | None = None) -> Iterator[None]:
    """Take SIGTERM for Ctrl-C while inside, and say from where the run can go on.

    Args:
        run: its folder.
        left_of: says what is left of what is in the folder. Default: of a run, its last checkpoint.

    Raises:
        Stopped: by either.
    """
    code = INTERRUPTED

    def terminate(*_: object) -> None:
        nonlocal code
        code = TERMINATED
        raise KeyboardInterrupt

    # Elsewhere than in the main thread, signals are not this program's to handle.
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if is_main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(code, (left_of or _left_of)(run)) from stop
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _left_of(run: Path) -> str:
    from torchrec.runs import RunFolder
    from torchrec.training.checkpoint import Checkpoints

    folder = RunFolder(run)
    begun = [member for member in folder.members() if not member.has_ended()]
    if begun:
        return f"in {begun[0].path.name}: {_left_of(begun[0].path)}"
    step = Checkpoints(folder.checkpoints).latest()
    if step is None:
        return "stopped before the first checkpoint; `--resume` begins anew."
    return f"stopped; `--resume` goes on from step {step:,}, the last checkpoint."
