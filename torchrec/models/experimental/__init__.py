"""Models whose interface may still change."""
