"""Memory before an engine starts and after it has ended, with a driver's tool that is a script."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mot_core.completers import memory
from mot_core.completers.memory import (
    Gpu,
    available_bytes,
    await_gpu_return,
    gpus,
    held_by,
    largest_processes,
    require_gpu_memory,
    require_memory,
    weight_bytes,
)
from mot_core.errors import WorkerError

FIRST, SECOND = Gpu("0", "GPU-aa", 80000, 79000), Gpu("1", "GPU-bb", 80000, 20000)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], list[str]], None]:
    """Set what nvidia-smi shows: rows of devices, rows of processes."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\ncase "$1" in --query-gpu=*) cat {tmp_path}/devices;; --query-compute-apps=*) cat {tmp_path}/processes;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")

    def show(devices: list[str], processes: list[str]) -> None:
        (tmp_path / "devices").write_text("\n".join(devices) + "\n")
        (tmp_path / "processes").write_text("\n".join(processes) + "\n")

    show(
        ["0, GPU-aa, 80000, 79000", "1, GPU-bb, 80000, 20000", "2, GPU-cc, [N/A], [N/A]"],
        ["GPU-bb, 41, python, train.py, 50000", "GPU-bb, 42, [Not Found], [N/A]"],
    )
    return show


def test_a_device_without_room_is_refused_with_its_holders(driver: Callable[[list[str], list[str]], None]) -> None:
    assert require_gpu_memory(["0"], 0.9) == [FIRST]
    assert require_gpu_memory(["GPU-aa"], 0.9) == [FIRST]
    with pytest.raises(WorkerError) as caught:
        require_gpu_memory(["0", "1"], 0.9)
    assert str(caught.value) == (
        "vLLM on device 1 (GPU-bb): gpu_memory_utilization 0.9 of 80000 MiB needs 72000 MiB, but 20000 MiB are free; "
        "held by python, train.py (pid 41): 50000 MiB; [Not Found] (pid 42): [N/A] MiB; end it, lower "
        "engine.gpu_memory_utilization, or choose other devices by CUDA_VISIBLE_DEVICES"
    )
    assert require_gpu_memory(["1"], 0.25) == [SECOND]
    assert gpus(["2", "3"]) == []  # no figure, no such device: unchecked, and logged


def test_memory_that_stays_held_is_an_error_with_a_name(driver: Callable[[list[str], list[str]], None]) -> None:
    before = [Gpu("1", "GPU-bb", 80000, 70000)]
    assert held_by(before, [41])
    assert not held_by(before, [7])
    with pytest.raises(WorkerError, match="device 1 has 20000 MiB free, 70000 MiB before .*held by python, train.py"):
        await_gpu_return(before, [41], named=True, seconds=0.3)
    driver(["1, GPU-bb, 80000, 20000"], ["GPU-bb, 9, other, 50000"])
    await_gpu_return(before, [41], named=True, seconds=0.3)  # ours is gone; the rest is another's
    with pytest.raises(WorkerError, match="held by other \\(pid 9\\): 50000 MiB"):
        await_gpu_return(before, [41], named=False, seconds=0.3)  # ours was never named, so only what is free tells
    driver(["1, GPU-bb, 80000, 69500"], [])
    await_gpu_return(before, [41], named=False, seconds=0.3)


def test_without_the_drivers_tool_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert require_gpu_memory(["0"], 0.9) == []
    assert not held_by([FIRST], [1])


def test_the_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 30)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 12)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 99)
    assert weight_bytes(tmp_path) == 42
    assert 0 < available_bytes() < 1 << 44
    sizes = [size for _, _, size in largest_processes(3)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 3
    require_memory(42, 0, 0, 1)
    monkeypatch.setattr(memory, "available_bytes", lambda: 5 << 30)
    monkeypatch.setattr(memory, "largest_processes", lambda count: [(7, "python", 3 << 30)])
    require_memory(1 << 30, 3 << 30, 1, 1)
    with pytest.raises(WorkerError) as caught:
        require_memory(1 << 30, 4 << 30, 1, 2)
    assert str(caught.value) == (
        "vLLM on the CPU: 2 engine(s) of 1.00 GiB weights, 4 GiB cache and 1 × 0.75 GiB for the program need 11.5 GiB, "
        "but 5.0 GiB are available; the largest processes: python (pid 7): 3.0 GiB; end one of them, lower "
        "VLLM_CPU_KVCACHE_SPACE (GiB), or run with fewer --workers"
    )
