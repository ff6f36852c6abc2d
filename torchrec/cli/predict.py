def predict() -> None:
    """Stub."""
