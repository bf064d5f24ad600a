"""Processes that end with the one that started them, and know no secret of it; which process is meant, among those of several
machines. Standard library only: it is imported before torch, and in forks."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mot_core.secrets import is_secret

_PR_SET_PDEATHSIG = 1
_PASSED = re.compile(
    r"(PATH|HOME|LANG|LANGUAGE|TMPDIR|TZ|USER|LOGNAME|CC|CXX|CPATH|LIBRARY_PATH|DO_NOT_TRACK"
    r"|(LC|LD|XDG|HF|TRANSFORMERS|VLLM|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|CUDA|NVIDIA|NCCL|GLOO|UCX|FLASHINFER|HIP|HSA"
    r"|ROCR|ROCM|OMP|GOMP|KMP|MKL|OPENBLAS)_\w+)"
)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; leave at once if that ended before it was asked."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def clean_environment(defaults: Mapping[str, str], forced: Mapping[str, str]) -> dict[str, str]:
    """What a process of other people's code may know: paths and settings of its libraries, and nothing that looks like a
    secret."""
    passed = {
        name: value for name, value in os.environ.items() if value and _PASSED.fullmatch(name) and not is_secret(name)
    }
    return {**defaults, **passed, **forced}


@dataclass(frozen=True)
class Process:
    """A process among those of several machines, by more than its number, which another one may have by now."""

    host: str
    machine: str
    """This start of the machine and this space of process numbers (a container has its own); empty if neither is known."""
    pid: int
    started: int
    """Clock ticks after the machine's start."""

    @classmethod
    def current(cls) -> Process:
        return cls(socket.gethostname(), _machine(), os.getpid(), int(_stat(os.getpid())[19]))

    def is_gone(self) -> bool:
        """Whether it is known to have ended: only its own machine knows, and never says so too early."""
        if not self.machine or (self.host, self.machine) != (socket.gethostname(), _machine()):
            return False
        try:
            os.kill(self.pid, 0)
            facts = _stat(self.pid)
        except ProcessLookupError:
            return True
        except OSError:  # another user's, or hidden
            return False
        ended = (
            facts[0] in ("Z", "X") and int(facts[17]) <= 1
        )  # the first thread may end before a last write of another
        return ended or int(facts[19]) != self.started


@functools.cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: proc(5) counts it as the third."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
