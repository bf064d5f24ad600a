"""Devices of one machine, shared by runs: processes that know nothing of each other never get the same one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mot_core.errors import WorkerError
from mot_core.workers.devices import Devices, runtime_folder
from mot_core.workers.slots import Slots
from tests.processes import ROOT, wait_until

Run = Callable[[str], Devices]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs of this machine, by name; locks of one process exclude each other as those of several do."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    made: list[Devices] = []

    def make(name: str) -> Devices:
        made.append(Devices(name))
        return made[-1]

    yield make
    for devices in made:
        devices.close()


def test_a_device_is_one_runs_alone(run: Run) -> None:
    first, second = run("first"), run("second")
    assert first.claim(["0", "1"], 1) == ("0",)
    assert second.claim(["0", "1"], 1) == ("1",)
    assert first.claim(["1"], 1) is None
    second.give_back(["1"])
    assert first.claim(["1"], 1) == ("1",)
    first.close()
    assert second.claim(["0", "1"], 2) == ("0", "1")


def test_who_waits_holds_nothing_and_is_not_overtaken(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    busy, wide, narrow = run("store /busy"), run("store /wide"), run("store /narrow")
    assert busy.claim(["0", "1"], 1) == ("0",)
    with caplog.at_level(logging.WARNING, "mot.workers"):
        assert wide.claim(["0", "1"], 2) is None
        assert wide.claim(["0", "1"], 2) is None
        assert narrow.claim(["0", "1"], 1) is None, "device 1 is free, but the wide one waits for it"
    pid = os.getpid()
    assert [record.message for record in caplog.records] == [
        f"waiting for 2 device(s) of this machine: 0 has process {pid} (store /busy)",
        f"waiting for 1 device(s) of this machine: process {pid} (store /wide) waits for some as well, and came first",
    ]
    busy.give_back(["0"])
    assert narrow.claim(["0", "1"], 1) is None
    assert wide.claim(["0", "1"], 2) == ("0", "1")
    wide.give_back(["1"])
    assert narrow.claim(["0", "1"], 1) == ("1",)


def test_who_gives_up_waiting_lets_others_go_on(run: Run) -> None:
    busy, wide, narrow = run("busy"), run("wide"), run("narrow")
    busy.claim(["0"], 1)
    assert wide.claim(["0", "1"], 2) is None and narrow.claim(["1"], 1) is None
    wide.stop_waiting()
    assert narrow.claim(["1"], 1) == ("1",)


def test_a_device_has_many_names(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '0, GPU-aa11'\necho '1, GPU-bb22'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    first, second = run("first"), run("second")
    assert first.claim(["0"], 1) == ("0",)
    assert second.claim(["GPU-aa11"], 1) is None and second.claim(["GPU-aa"], 1) is None
    assert second.claim(["GPU-bb", "MIG-x/1/0"], 2) == ("GPU-bb", "MIG-x/1/0")
    assert sorted(path.name for path in (runtime_folder() / "mot-devices").iterdir()) == [
        "GPU-aa11.lock", "GPU-bb22.lock", "MIG-x%2F1%2F0.lock", "queue.lock",
    ]  # fmt: skip


def test_where_runs_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_folder() == tmp_path
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(os.getuid()) in str(runtime_folder())


def test_a_runtime_folder_that_cannot_be_written_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "locked" and access(path, mode))
    monkeypatch.setattr(os, "getuid", lambda: 4_242_424)  # a user without a folder under /run/user
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for named in (tmp_path / "file" / "runtime", tmp_path / "locked"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(named))
        assert runtime_folder() == tmp_path / "mot-4242424"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(WorkerError, match="expected a folder that this user can write; set XDG_RUNTIME_DIR to one"):
        Devices("a run").claim(["0"], 1)


def test_within_a_run_a_job_whose_devices_are_elsewhere_is_not_overtaken() -> None:
    slots = Slots(["0", "1"], 4, shared=False)
    for turn, needed in (((1, 0), 1), ((1, 1), 1), ((1, 2), 0)):
        slots.enter(turn, needed)
    elsewhere: Any = lambda free, count: None  # noqa: E731
    assert slots.take((1, 0), elsewhere) is None and slots.refused
    assert slots.take((1, 1)) is None, "it would take what the first one waits for"
    assert slots.take((1, 2)) == ()
    assert slots.take((1, 0)) == ("0",) and not slots.refused
    assert slots.take((1, 1)) == ("1",)
    slots.give_back(["0"])
    slots.enter((2, 0), 1)
    assert slots.take((2, 0), elsewhere) is None
    slots.leave((2, 0))
    assert not slots.refused and not slots._waiting


RUN = textwrap.dedent(
    """
    import json, sys, threading
    from mot_core.artifacts import Store
    from mot_core.steps import Step
    from mot_core.workers.pool import WorkerPool
    pool = WorkerPool(Store(sys.argv[1]).open())
    pool.start = lambda: None  # workers are played: none is started
    pool._send = lambda command: print(json.dumps([command["job"], command["settings"]["devices"]]), flush=True)
    for number in range(int(sys.argv[2])):
        step = Step("branch", {"number": number}, label="branch", locators={"layout": {"devices": int(sys.argv[3])}})
        threading.Thread(target=pool.run, args=([step], 2, lambda *_: None), daemon=True).start()
    for line in sys.stdin:
        pool._handle(line.strip(), {"exit": 0})
    """
)


class FlowProcess:
    """A run of its own process, with jobs on devices 0 and 1; each ends when it is told."""

    def __init__(self, root: Path, name: str, jobs: int, devices: int) -> None:
        self.log = root / f"{name}.log"
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0,1", "XDG_RUNTIME_DIR": str(root / "runtime"),
        }  # fmt: skip
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(root / name), str(jobs), str(devices)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment,
            )  # fmt: skip

    def next_start(self) -> tuple[str, list[str]]:
        """The next job that starts, and its devices."""
        assert self.process.stdout is not None
        job, devices = json.loads(self.process.stdout.readline())
        return job, devices

    def end(self, job: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{job}\n")
        self.process.stdin.flush()

    def is_told_to_wait(self) -> bool:
        return "waiting for" in self.log.read_text()


def test_two_runs_share_two_devices(tmp_path: Path) -> None:
    runs = [FlowProcess(tmp_path, "first", jobs=2, devices=1)]
    try:
        jobs = dict(runs[0].next_start() for _ in range(2))
        assert sorted(jobs.values()) == [["0"], ["1"]]
        runs.append(FlowProcess(tmp_path, "second", jobs=2, devices=2))
        wait_until(runs[1].is_told_to_wait, 60.0, "the second run waits")
        assert f"0 has process {runs[0].process.pid} (store {tmp_path / 'first'})" in runs[1].log.read_text()
        for job in jobs:
            runs[0].end(job)
        job, devices = runs[1].next_start()
        assert devices == ["0", "1"]
        # The third run gets both when the second one dies, without a word, and not before.
        runs.append(FlowProcess(tmp_path, "third", jobs=1, devices=2))
        wait_until(runs[2].is_told_to_wait, 60.0, "the third run waits")
        os.kill(runs[1].process.pid, signal.SIGKILL)
        assert runs[2].next_start()[1] == ["0", "1"]
    finally:
        for run in runs:
            run.process.kill()
            run.process.communicate()
