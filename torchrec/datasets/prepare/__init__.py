"""Data sets as their owners distribute them, made into Parquet."""
