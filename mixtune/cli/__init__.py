"""The command line: one function per verb; what they show is put together in terminal.py."""

from mixtune.cli import claims, data, leaks, machine, pack, study
from mixtune.cli import claims as questions
from mixtune.cli import init as write
from mixtune.cli import systems as adapters
from mixtune.cli import systems as judge
from mixtune.cli import systems as probe
from mixtune.cli import systems as strength
from mixtune.cli.app import main

__all__ = [
    "adapters",
    "claims",
    "data",
    "judge",
    "leaks",
    "machine",
    "main",
    "pack",
    "probe",
    "questions",
    "strength",
    "study",
    "write",
]
