"""Predictions from a saved model: dicts, data frames and Arrow tables in, probabilities out."""

from torchrec.inference.predictor import Predictor, load

__all__ = ["Predictor", "load"]
