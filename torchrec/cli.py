"""The command line from Python, as ``main(["info"])``. It lies in `rowwise.cli`, which starts without PyTorch."""

from rowwise.cli import main

__all__ = ["main"]
