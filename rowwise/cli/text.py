"""Text that comes from files of others, before it is shown."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """Return text with escapes for what steers a terminal (`torchrec.checks.printable`).

    What needs none is returned without the import, which loads PyTorch: help, version and mistakes
    in a command are said at once.

    Args:
        text: with names in it.
        keep: characters that stay.
    """
    if text.translate(dict.fromkeys(map(ord, keep))).isprintable():
        return text
    from torchrec.checks import printable as escaped

    return escaped(text, keep)
