"""Runnable studies: `python -m experiments.train` first."""
