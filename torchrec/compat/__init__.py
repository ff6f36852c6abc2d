"""What programs need that were written for the original TorchRec and its kernels."""

from torchrec.compat.install import install
from torchrec.compat.state import original_state_dict

__all__ = ["install", "original_state_dict"]
