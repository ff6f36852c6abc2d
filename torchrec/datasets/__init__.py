"""Readers and generators of recommendation data, and the batch that they make."""
