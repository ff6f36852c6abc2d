"""Paths that the API has for what is in `torchrec.inference`."""
