"""Command lines of the on-device side."""
