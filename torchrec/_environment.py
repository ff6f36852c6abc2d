"""Refuse to run in an environment where another distribution owns the same import name."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

_OTHERS = ("torchrec", "torchrec-nightly", "torchrec-cpu", "torchrec-nightly-cpu")


def refuse_other_distributions() -> None:
    """Raise if a distribution is installed whose files lie where ours do.

    Two distributions with the import name ``torchrec`` overwrite each other's files; what remains
    is a mixture that fails later and elsewhere.

    Raises:
        ImportError: another such distribution is installed beside this one.
    """
    for name in _OTHERS:
        try:
            other = distribution(name)
        except PackageNotFoundError:
            continue
        raise ImportError(
            f"`import torchrec` should find one distribution. Received two: 'rowwise' and "
            f"'{name}' {other.version}, whose files overwrite each other. To use this one: "
            f"`pip uninstall {name}`, then `pip install --force-reinstall --no-deps rowwise`."
        )
