"""The command line: one function per verb; `show` puts together what they print."""

from mixtune.cli import claims, data, init, leaks, machine, pack, study, systems
from mixtune.cli.app import main

__all__ = ["claims", "data", "init", "leaks", "machine", "main", "pack", "study", "systems"]
