"""The checks of ``tools/check_structure.py``, one module a subject."""
