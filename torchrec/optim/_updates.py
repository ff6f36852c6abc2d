"""The update rules, which the operators own (temporary name; import torchrec.ops.embedding.updates)."""

from torchrec.ops.embedding.updates import *  # noqa: F403
from torchrec.ops.embedding.updates import _ADAM, _LAMB, _ADAGRAD  # noqa: F401
