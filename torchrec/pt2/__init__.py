"""What code asks and says while PyTorch traces it: `torch.compile` and `torch.export`."""
