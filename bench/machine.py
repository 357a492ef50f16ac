"""What a number was measured on: processor, cores, versions, commit; and a process's memory.

Knows: /proc, git, installed packages. Does not know: models, cases. Imports torch only where a
worker asks for something that only torch knows.
"""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_OURS = (":!bench/results", ":!docs/performance.md")
"""What a benchmark itself writes: no change of what is measured."""

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "lm_eval", "numpy", "tokenizers")


def cores() -> int:
    """Cores that this process may use; every worker runs as many threads."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, object]:
    """Facts about this machine and what is installed on it; no names, no paths."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The commit of the working tree, with "+changes" where it is not clean."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_OURS)
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return f"{head}+changes" if changed else head


def provenance(command: str) -> dict[str, object]:
    """What makes a number repeatable: what was typed, when, at which commit, on what."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
    }


def typed(path: Path) -> str:
    """A path as it was typed; of an absolute one the name, since folders are the machine's own."""
    return path.name if path.is_absolute() else path.as_posix()


def use_threads() -> None:
    """Let torch use all cores of this process."""
    import torch

    torch.set_num_threads(cores())


def device_name(device: str) -> str:
    """What a device calls itself."""
    import torch

    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def synchronise(device: str) -> None:
    """Wait until a device has done what it was given; a CPU always has."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


class Memory:
    """Peak memory of this process from now on, beyond what it holds now (imports).

    On a CPU: resident memory, the kernel's own high-water mark, set back at the start. On a GPU:
    what torch allocated there at most.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.start = _status("VmRSS")
        else:
            self.start = 0

    def peak(self) -> int:
        """Bytes at most so far, less those at the start."""
        if self._device == "cpu":
            return _status("VmHWM") - self.start
        import torch

        return torch.cuda.max_memory_allocated()


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {key}")


def _cpu() -> str:
    """The processor's name and what it has for matrix products."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    there = [flag for flag in wanted if flag in named.get("flags", "").split()]
    return f"{named.get('model name', platform.processor())} ({', '.join(there)})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    here = Path(__file__).parent.parent
    return subprocess.run(
        ["git", *arguments], cwd=here, check=True, capture_output=True, text=True
    ).stdout.strip()
