"""Command lines: each module has `main(argv) -> int`, the exit code."""
