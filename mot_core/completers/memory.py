"""Is there memory for an engine, and has it come back: asked before an engine starts and after it has ended.

vLLM's own message names neither who holds a device nor, on a CPU, how much is missing where. Invariant: a figure in an
error was read from the machine in that moment; nothing is assumed to be free.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mot_core.errors import WorkerError

GIB = 1 << 30
INTERPRETER_BYTES = int(0.75 * GIB)
"""A process that has imported vLLM, beside weights and cache: measured 0.6 GiB (0.32 on a CPU)."""
RETURN_SLACK_BYTES = GIB
"""How much less than before may be free on a device whose driver shows no processes; contexts of others come and go."""
log = logging.getLogger("mot.memory")


# --- the CPU's -------------------------------------------------------------------------------------------------------


def weight_bytes(directory: Path) -> int:
    """The size of a model's weights as they are stored."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def require_memory(weights: int, cache: int, processes: int, num_engines: int) -> None:
    """Raise `WorkerError` if the machine has no room for engines of so many bytes and processes each."""
    needed = num_engines * (weights + cache + processes * INTERPRETER_BYTES)
    available = available_bytes()
    if needed > available:
        held = "; ".join(f"{name} (pid {pid}): {size / GIB:.1f} GiB" for pid, name, size in largest_processes(3))
        raise WorkerError(
            f"vLLM on the CPU: {num_engines} engine(s) of {weights / GIB:.2f} GiB weights, {cache / GIB:.0f} GiB cache "
            f"and {processes} × {INTERPRETER_BYTES / GIB:.2f} GiB for the program need {needed / GIB:.1f} GiB, but "
            f"{available / GIB:.1f} GiB are available; the largest processes: {held}; end one of them, lower "
            "VLLM_CPU_KVCACHE_SPACE (GiB), or run with fewer --workers"
        )


def available_bytes() -> int:
    """What can be taken without swapping: the kernel's estimate, or what the control group still allows if less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    statistics = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    return min(available, limit - used + int(statistics.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def largest_processes(count: int) -> list[tuple[int, str, int]]:
    """`(pid, name, resident bytes)` of the largest processes."""
    found = []
    page = os.sysconf("SC_PAGE_SIZE")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                resident = int((entry / "statm").read_text().split()[1]) * page
                found.append((int(entry.name), (entry / "comm").read_text().strip(), resident))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return sorted(found, key=lambda process: -process[2])[:count]


# --- GPUs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """A device's memory in MiB."""

    index: str
    uuid: str
    total: int
    free: int


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a device; `used` is the driver's text, MiB where it tells."""

    uuid: str
    pid: int
    name: str
    used: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}): {self.used} MiB"


def gpus(devices: Collection[str]) -> list[Gpu]:
    """The devices among these (indices or UUIDs, as in CUDA_VISIBLE_DEVICES) that the driver shows; none without one."""
    rows = [line.split(", ") for line in _query("--query-gpu=index,uuid,memory.total,memory.free")]
    # Devices that share the host's memory show no figure of their own.
    shown = [Gpu(index, uuid, int(total), int(free)) for index, uuid, total, free in rows if total.isdigit()]
    found = [gpu for gpu in shown if gpu.index in devices or gpu.uuid in devices]
    if len(found) < len(devices):
        log.warning("nvidia-smi shows %d of the devices %s; the rest is unchecked", len(found), ",".join(devices))
    return found


def device_uuids() -> dict[str, str]:
    """Every device that this process may use, by index; none without a driver."""
    return dict(line.split(", ") for line in _query("--query-gpu=index,uuid"))


def holders(gpu: Gpu) -> list[Holder]:
    """Who holds memory of a device."""
    found = []
    for line in _query("--query-compute-apps=gpu_uuid,pid,process_name,used_memory"):
        uuid, pid, rest = line.split(", ", 2)
        name, _, used = rest.rpartition(", ")
        found.append(Holder(uuid, int(pid), name, used))
    return [holder for holder in found if holder.uuid == gpu.uuid]


def require_gpu_memory(devices: Collection[str], share: float) -> list[Gpu]:
    """The devices as they are now; `WorkerError` if one has less free than an engine will take of it."""
    found = gpus(devices)
    for gpu in found:
        needed = share * gpu.total
        if gpu.free < needed:
            held = "; ".join(map(str, holders(gpu))) or "no process that the driver shows"
            raise WorkerError(
                f"vLLM on device {gpu.index} ({gpu.uuid}): gpu_memory_utilization {share:g} of {gpu.total} MiB needs "
                f"{needed:.0f} MiB, but {gpu.free} MiB are free; held by {held}; end it, lower "
                "engine.gpu_memory_utilization, or choose other devices by CUDA_VISIBLE_DEVICES"
            )
    return found


def held_by(before: Collection[Gpu], pids: Collection[int]) -> bool:
    """Whether the driver names one of these processes as a holder. It may not, in a container."""
    return any(holder.pid in pids for gpu in before for holder in holders(gpu))


def await_gpu_return(before: Collection[Gpu], pids: Collection[int], named: bool, seconds: float) -> None:
    """Return when devices are free of these processes: by name if the driver named them, else by what is free.

    Raises:
        WorkerError: not within this time; the message names who holds what.
    """
    deadline = time.monotonic() + seconds
    for gpu in before:
        while True:
            current = next(iter(gpus([gpu.uuid])), gpu)
            held = [holder for holder in holders(gpu) if holder.pid in pids]
            if not held and (named or current.free >= gpu.free - RETURN_SLACK_BYTES // 2**20):
                break
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"vLLM's processes have ended, but device {gpu.index} has {current.free} MiB free, {gpu.free} "
                    f"MiB before they started, {seconds:g} s later; held by "
                    f"{'; '.join(map(str, held or holders(gpu))) or 'no process that the driver shows'}"
                )
            time.sleep(0.2)


def _query(query: str) -> list[str]:
    """A table of the driver's, a line a row; empty without the driver's tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    done = subprocess.run(
        [tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode:
        log.warning("nvidia-smi %s failed: %s", query, (done.stderr or done.stdout).strip()[:300])
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]
