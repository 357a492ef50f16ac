"""A command of mixtune in a process of its own: what it printed, how long it took, its memory.

Knows: how to start the command line. Does not know: what is asked of it.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_CODE = """
import resource, sys
from mixtune.cli import main
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


@dataclass(frozen=True, slots=True)
class Took:
    """What a command printed, seconds by the clock from start to exit, its largest memory."""

    printed: str
    seconds: float
    bytes: float


def run(folder: Path, *words: str) -> Took:
    """Run `mixtune` with these words in a folder.

    Raises:
        SystemExit: it failed; what it said is the message.
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = next(line for line in done.stderr.splitlines() if line.startswith("peak "))
    return Took(done.stdout, seconds, 1024.0 * int(peak.split()[1]))
