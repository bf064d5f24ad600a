"""Processes that end with the one that started them, and know no secret of it. Standard library only: it is imported before torch, and in forks."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from collections.abc import Mapping

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
