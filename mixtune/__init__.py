"""mixtune: which datasets to fine-tune on together, and whether the gain is real."""

__version__ = "0.1.0"
