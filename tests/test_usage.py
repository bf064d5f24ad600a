"""What a step takes of the machine: seen in real processes, bounded, and never in the way of the step."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mot_core import usage
from mot_core.artifacts import Store
from mot_core.prepare import world_of
from mot_core.spec import Experiment
from mot_core.usage import MAX_ROWS, read_usage, watched
from mot_core.workers.pool import WorkerPool
from tests.processes import wait_until


def test_a_worker_leaves_its_use_beside_its_log_and_not_in_what_it_publishes(
    tmp_path: Path, pico_spec: Experiment
) -> None:
    from flows.run import outline_of

    store = Store(tmp_path / "store").open()
    _, steps = outline_of(pico_spec, world_of(pico_spec))
    branch = next(step for step in steps if step.kind == "branch")
    needed: list[Any] = []

    def collect(step: Any) -> None:
        for _, parent in step.parents:
            collect(parent)
        if step not in needed:
            needed.append(step)

    collect(branch)
    pool = WorkerPool(store, 1)
    started = time.time()
    try:
        pool.run(needed, 0, lambda step, event: None)
    finally:
        pool.close()
    for step in needed:
        rows = read_usage(store.usage_path(step.identity))
        assert 1 <= len(rows) <= MAX_ROWS
        assert all(started <= row["time"] <= time.time() for row in rows)
        assert all(0.0 <= row["cpu_percent"] <= 100.0 for row in rows)
        assert all(50e6 < row["memory_bytes"] < 20e9 for row in rows)  # torch is loaded in a worker
        manifest = store.manifest(step.identity)
        assert manifest is not None and not [name for name in manifest.files if "usage" in name]
    last = read_usage(store.usage_path(branch.identity))[-1]
    assert (last["done"], last["unit"]) == (branch.spec["num_steps"], "steps") and last["tokens_per_second"] > 0
    assert "gpus" not in last


def test_the_whole_tree_of_processes_is_seen(tmp_path: Path) -> None:
    """A child that works and holds 200 MB shows in both numbers while it lives, and its seconds stay once it has ended."""
    before = usage._tree()
    code = "held = bytearray(200_000_000)\nimport time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass\n"
    child = subprocess.Popen([sys.executable, "-c", f"{code}print(1, flush=True)\ninput()"], stdin=-1, stdout=-1)
    assert child.stdout is not None and child.stdin is not None
    child.stdout.readline()
    seconds, memory = usage._tree()
    assert seconds - before[0] >= 0.6 and memory - before[1] >= 200_000_000
    child.communicate(b"\n")
    assert usage._tree()[0] - before[0] >= 0.6
    assert usage._tree()[1] - before[1] < 150_000_000


def test_a_busy_process_is_seen_as_busy(tmp_path: Path) -> None:
    started = time.monotonic()
    with watched(tmp_path / "usage.jsonl", ()):
        end = time.process_time() + 1.0
        while time.process_time() < end:
            pass
    rows = read_usage(tmp_path / "usage.jsonl")
    share = 100.0 / len(os.sched_getaffinity(0)) / (time.monotonic() - started)
    assert max(row["cpu_percent"] for row in rows) >= 0.8 * share


def test_a_long_step_is_looked_at_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "FIRST_INTERVAL", 0.001)
    monkeypatch.setattr(usage, "MAX_ROWS", 8)
    with watched(tmp_path / "usage.jsonl", ()):
        time.sleep(1.0)
    rows = read_usage(tmp_path / "usage.jsonl")
    assert 4 <= len(rows) <= 9
    gaps = [later["time"] - earlier["time"] for earlier, later in itertools.pairwise(rows)]
    assert max(gaps) > 0.015  # from a thousandth of a second on


def test_the_last_row_says_how_far_the_step_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the step ends so soon after a row that another would stand for next to no time."""
    monkeypatch.setattr(usage, "FIRST_INTERVAL", 0.001)
    monkeypatch.setattr(usage, "SHORTEST", 1_000.0)
    with watched(tmp_path / "usage.jsonl", ()) as note:
        rows = note.__self__.rows  # type: ignore[attr-defined]
        wait_until(lambda: len(rows) >= 1, 60.0, "a row")
        monkeypatch.setattr(usage._Watch, "_look", lambda watch: None)
        note({"event": "progress", "done": 8, "unit": "steps"})
    assert read_usage(tmp_path / "usage.jsonl")[-1]["done"] == 8


def test_gpus_are_read_through_the_driver_in_the_jobs_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def handle(name: object) -> str:
        asked.append(str(name))
        return str(name)

    driver = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=handle, nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu={"3": 70, "GPU-a": 20}[handle]),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3_000, total=12_000),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    with watched(tmp_path / "usage.jsonl", ("3", "GPU-a")):
        pass
    (row,) = read_usage(tmp_path / "usage.jsonl")
    assert asked == ["3", "GPU-a"]
    assert row["gpus"] == [
        {"utilization_percent": percent, "memory_bytes": 3_000, "memory_percent": 25.0} for percent in (70, 20)
    ]


def test_without_the_drivers_package_torch_says_what_memory_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setitem(sys.modules, "pynvml", None)
    with watched(tmp_path / "idle.jsonl", ("0",)):
        pass
    assert "gpus" not in read_usage(tmp_path / "idle.jsonl")[0]  # CUDA was not touched: nor does this touch it
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (250, 1_000))
    with watched(tmp_path / "usage.jsonl", ("0",)):
        pass
    assert read_usage(tmp_path / "usage.jsonl")[0]["gpus"] == [{"memory_bytes": 750, "memory_percent": 75.0}]


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_a_failure_of_the_watch_is_not_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    looks = []

    def fail() -> tuple[float, int]:
        looks.append(when)
        if when == "at the start" or len(looks) > 1:
            raise RuntimeError("no counters here")
        return 0.0, 0

    monkeypatch.setattr(usage, "_tree", fail)
    with watched(tmp_path / "usage.jsonl", ()) as note:
        note({"event": "progress", "done": 1})
    assert "no counters here" in caplog.text
    assert read_usage(tmp_path / "usage.jsonl") == []


def test_a_step_that_fails_ends_its_watch(tmp_path: Path) -> None:
    with pytest.raises(KeyError), watched(tmp_path / "away" / "usage.jsonl", ()):
        raise KeyError("the step's own")
    assert "mot-usage" not in {thread.name for thread in threading.enumerate()}
    assert not (tmp_path / "away").exists()  # nowhere to write: nothing is said


def test_damaged_files_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    for text in ("", "{", "[]\n", '{"time": 1.0}\n'):
        path.write_text(text)
        assert read_usage(path) == []
    path.write_text(json.dumps({"time": 1.0, "cpu_percent": 1.0, "memory_bytes": os.getpid()}) + "\n")
    assert len(read_usage(path)) == 1
