"""Programs that make arrays of the Criteo click logs: `python -m torchrec.datasets.scripts.…`."""
