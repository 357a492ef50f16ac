"""The command line: one function per verb; what they show is put together in terminal.py."""

from mixtune.cli import data, leaks, machine, study, write
from mixtune.cli.app import main

__all__ = ["data", "leaks", "machine", "main", "study", "write"]
