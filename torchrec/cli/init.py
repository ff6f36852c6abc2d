def init() -> None:
    """Stub."""
