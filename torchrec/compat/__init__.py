"""What programs need that were written for the original TorchRec and its kernels."""

from torchrec.compat.state import original_state_dict

__all__ = ["original_state_dict"]
