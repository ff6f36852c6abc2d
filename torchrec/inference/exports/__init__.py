"""Trained models as files that run without this package."""

from torchrec.inference.exports.formats import export

__all__ = ["export"]
