"""The command line: one function per verb; `show` and `tables` put together what they print."""

from mixtune.cli import claims, data, init, machine, study, systems
from mixtune.cli.app import main

__all__ = ["claims", "data", "init", "machine", "main", "study", "systems"]
