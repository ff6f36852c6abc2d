"""The command line of the distribution, apart from the package `torchrec`, whose import loads PyTorch."""

__version__ = "0.1.0"
