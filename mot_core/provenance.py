"""What a result was made with: package versions, host facts, the program's commit. Never part of identity."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "mot",
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "reasoning-gym",
)


@functools.cache
def package_versions() -> dict[str, str]:
    """Installed versions of what changes numbers."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def host_facts() -> dict[str, Any]:
    """The machine and thread settings of this process."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        "pid": os.getpid(),
    }


@functools.cache
def processor() -> str:
    """The processor as the kernel names it. Kernels are chosen by its model, which its name alone need not tell: the machines
    of one cloud share a name."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    except OSError:
        return platform.processor()
    numbers = [f"{name} {facts[name]}" for name in ("cpu family", "model", "stepping") if name in facts]
    return ", ".join([facts.get("model name", platform.processor()), *numbers])


@functools.cache
def git_commit() -> str | None:
    """The commit of the program's checkout, with '+' if it has uncommitted changes; None outside one."""
    root = Path(__file__).resolve().parent.parent

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if ask("rev-parse", "--show-toplevel") != str(root):
            return None
        commit = ask("rev-parse", "HEAD")
        return f"{commit}+" if commit and ask("status", "--porcelain", "--untracked-files=no") else commit or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def code_version() -> str:
    """The program that runs here: its commit, or where it is installed without a checkout, its release."""
    return git_commit() or f"mot {package_versions()['mot']}"


def without_credentials(url: str) -> str:
    """A URL with user, password and query masked, fit for logs and reports."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"***@{host}" if "@" in parts.netloc else host
    return urlunsplit((parts.scheme, netloc, parts.path, "***" if parts.query else "", ""))
