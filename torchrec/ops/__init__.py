"""Functions on plain tensors: the only package that touches the native library."""

from torchrec.ops._library import Backend, are_held, backends, held, is_readable, is_transformed
from torchrec.ops._private import is_wrapped, outside_transforms

__all__ = [
    "Backend",
    "are_held",
    "backends",
    "held",
    "is_readable",
    "is_transformed",
    "is_wrapped",
    "outside_transforms",
]
