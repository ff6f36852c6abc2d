"""TorchRec, written anew: jagged sparse types, embedding collections and fused optimizers on PyTorch alone."""

__version__ = "0.1.0"
