"""Predictions from a saved model: dicts, data frames and Arrow tables in, probabilities out; and models as files."""

from torchrec.inference.exports import export
from torchrec.inference.predictor import Predictor, load

__all__ = ["Predictor", "export", "load"]
