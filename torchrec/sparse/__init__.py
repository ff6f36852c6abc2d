"""Sparse types."""
