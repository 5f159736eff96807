"""Whole models of real sizes: what exporting them costs, what opening them takes, how fast they answer. docs/benchmarks.md."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
