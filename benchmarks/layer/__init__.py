"""The layer beside its peers, and both beside what the machine can do: docs/benchmarks.md."""
