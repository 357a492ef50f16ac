"""The command line: one function per verb; what they show is put together in terminal.py."""

from mixtune.cli import (
    adapters,
    claims,
    data,
    judge,
    leaks,
    machine,
    pack,
    probe,
    questions,
    strength,
    study,
    write,
)
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
