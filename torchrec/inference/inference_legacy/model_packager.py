"""See `torchrec.inference.model_packager`."""

from __future__ import annotations

from torchrec.inference.model_packager import (
    PredictFactoryPackager,
    load_config_text,
    load_pickle_config,
)

__all__ = ["PredictFactoryPackager", "load_config_text", "load_pickle_config"]
