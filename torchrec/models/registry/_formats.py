"""Sections of models as earlier versions wrote them."""

from __future__ import annotations

from collections.abc import Mapping

# What format 1 wrote for every model, in this order: its section was the union of three models'.
_FORMAT_1 = (
    "name",
    "dim",
    "dense_layers",
    "layers",
    "dropout",
    "batch_norm",
    "cross_layers",
    "cross_rank",
)
_ONLY_DLRM_DCN = ("cross_layers", "cross_rank")


def upgraded_section(section: Mapping[str, object]) -> dict[str, object]:
    """Return the section of a model without what format 1 wrote of other models.

    Format 1 wrote all keys of all models, in one order; its files say no format. Whoever writes a
    section by hand does not write eight keys in that order, so an option that a model does not have
    is still refused there: only what has exactly this form loses the two keys that meant nothing.

    Args:
        section: as a file has it.

    Example:
        >>> upgraded_section({"name": "deepfm", "cross_layers": 3})
        {'name': 'deepfm', 'cross_layers': 3}
    """
    if tuple(section) != _FORMAT_1 or section["name"] == "dlrm_dcn":
        return dict(section)
    return {key: value for key, value in section.items() if key not in _ONLY_DLRM_DCN}


def completed_section(section: Mapping[str, object]) -> dict[str, object]:
    """Return the section of a bundle with the options that came later, as they were before.

    A bundle has all options of its model, so one that is missing is younger than the bundle, and may
    be another by default than what the bundle was trained with.

    Args:
        section: as a bundle has it.

    Example:
        >>> completed_section({"name": "dlrm", "dim": 4})
        {'vectors': False, 'name': 'dlrm', 'dim': 4}
    """
    before = {"vectors": False} if section.get("name") == "dlrm" else {}
    return {**before, **section}
