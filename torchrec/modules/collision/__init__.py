"""Managed collision: which id holds which row. The public paths are ``mc_modules`` and its kin."""
