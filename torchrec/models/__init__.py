"""Whole models, and the parts that they are made of.

- :mod:`torchrec.models.dlrm`: DLRM, and its variants with a projection and with a cross network;
- :mod:`torchrec.models.deepfm`: DeepFM, as in the API and as in the paper;
- :mod:`torchrec.models.lr` and :mod:`torchrec.models.fm`: logistic regression and factorization
  machines, the baselines;
- :mod:`torchrec.models.tower`: the network on top, with normalisation and dropout;
- :mod:`torchrec.models.multi_task`: in its place, what several tasks share and what each has alone;
- :mod:`torchrec.models.registry`: those that an experiment file can name, each with its options;
- :mod:`torchrec.models.experimental`: what may still change.

All of them take dense features, a tensor, and sparse features, a ``KeyedJaggedTensor``; a part
can be used on its own. Letters: B samples, F sparse features, D their embedding dimension.
"""

from torchrec.models import deepfm, dlrm

__all__ = ["deepfm", "dlrm"]
