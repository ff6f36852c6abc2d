"""Functions on plain tensors: the only package that touches the native library."""

from torchrec.ops._library import Backend, backends, is_readable

__all__ = ["Backend", "backends", "is_readable"]
