"""A store that machines share: workers as processes whose machines, clocks and scratch folders differ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import SCRATCH, Store
from mot_core.steps import Step
from tests.processes import ROOT, wait_until
from tests.sft.branches import branch

DAY = 86_400.0
EXPIRY_SECONDS = 8.0
LONG = 240.0


@dataclass
class Worker:
    process: subprocess.Popen[str]
    at: Path
    """Made once it stands still."""
    until: Path
    """It stands still until this is made."""
    log: Path

    def stands_still(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.at.exists()

    def result(self) -> list[dict[str, Any]]:
        output, _ = self.process.communicate(timeout=LONG)
        assert self.process.returncode == 0, self.log.read_text()
        return [json.loads(line) for line in output.splitlines()]


class Cluster:
    """A shared store with workers on played machines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root / "store").open()
        timing = {"heartbeat_seconds": 0.2, "expiry_seconds": EXPIRY_SECONDS}
        (self.store.root / "store.json").write_text(json.dumps({"format": 2, "lease": timing}))
        self.workers: list[Worker] = []
        self.computed = root / "computed"
        self.computed.touch()

    def start(
        self, kind: str, steps: list[str], machine: str, clock: float, scratch: bool = False, still: bool = False
    ) -> Worker:
        at, until, log = (self.root / f"{machine}.{name}" for name in ("at", "until", "log"))
        wanted = {
            "store": str(self.store.root), "kind": kind, "steps": steps, "machine": machine, "clock": clock,
            "computed": str(self.computed), **({"at": str(at), "until": str(until)} if still else {}),
        }  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if scratch:
            environment[SCRATCH] = str(self.scratch_of(machine))
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.shared_worker", json.dumps(wanted)],
                stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment,
            )  # fmt: skip
        self.workers.append(Worker(process, at, until, log))
        return self.workers[-1]

    def scratch_of(self, machine: str) -> Path:
        return self.root / f"scratch-{machine}"

    def hashes(self) -> dict[str, str]:
        """Every file of the one branch."""
        (made,) = (manifest for manifest in self.store.manifests() if manifest.kind == "branch")
        assert self.store.damaged_files(made) == []
        return {name: facts["sha256"] for name, facts in made.files.items()}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for worker in cluster.workers:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture(scope="module")
def unbroken(pico_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the branch that nobody interrupts."""
    store = Store(tmp_path_factory.mktemp("unbroken")).open()
    made = store.manifest(branch(store, pico_models / "student").path.name)
    assert made is not None
    return {name: facts["sha256"] for name, facts in made.files.items()}


def test_two_machines_share_the_work(cluster: Cluster) -> None:
    names = ["one", "two", "three", "four"]
    forth = cluster.start("text", names, "a", +DAY, scratch=True)
    back = cluster.start("text", names[::-1], "b", -DAY, scratch=True)
    told = [*forth.result(), *back.result()]
    assert sorted(line.split()[1] for line in cluster.computed.read_text().splitlines()) == sorted(names)
    assert sorted(one["step"] for one in told if not one["reused"]) == sorted(names)
    for name in names:
        published = cluster.store.find(Step("problems", {"name": name}).identity)
        assert published is not None and (published.path / "name.txt").read_text() == name
    assert list((cluster.store.root / "tmp").iterdir()) == []
    for machine in "ab":
        assert list(cluster.scratch_of(machine).glob("*/*")) == []


def test_a_branch_goes_on_on_another_machine(cluster: Cluster, pico_models: Path, unbroken: dict[str, str]) -> None:
    student = str(pico_models / "student")
    first = cluster.start("branch", [student], "a", +DAY, still=True)
    wait_until(first.stands_still, LONG, "the first worker is in the middle of its branch")
    second = cluster.start("branch", [student], "b", -DAY)
    wait_until(lambda: "waiting for" in second.log.read_text(), LONG, "the second one waits")
    time.sleep(EXPIRY_SECONDS + 1.0)
    assert second.process.poll() is None and "b" not in cluster.computed.read_text(), "a heart that beats is waited for"
    os.kill(first.process.pid, signal.SIGKILL)
    assert [one["reused"] for one in second.result()] == [False]
    assert cluster.computed.read_text().splitlines() == ["a 1", "a 2", "a 3", "b 4", "b 5"], "from the checkpoint on"
    assert cluster.hashes() == unbroken
    assert list((cluster.store.root / "tmp").iterdir()) == []


def test_a_worker_that_wakes_up_too_late_publishes_nothing(
    cluster: Cluster, pico_models: Path, unbroken: dict[str, str]
) -> None:
    student = str(pico_models / "student")
    first = cluster.start("branch", [student], "a", +DAY, scratch=True, still=True)
    wait_until(first.stands_still, LONG, "the first worker is in the middle of its branch")
    os.kill(first.process.pid, signal.SIGSTOP)
    second = cluster.start("branch", [student], "b", -DAY, scratch=True)
    assert [one["reused"] for one in second.result()] == [False]
    (published,) = cluster.store.root.glob("objects/*/model.safetensors")
    before = (published.stat().st_ino, published.parent.stat().st_ino, published.stat().st_mtime_ns)
    first.until.touch()
    os.kill(first.process.pid, signal.SIGCONT)
    assert [one["reused"] for one in first.result()] == [True], "it found what the other one had published"
    assert "lost its lease to another one" in first.log.read_text()
    assert (published.stat().st_ino, published.parent.stat().st_ino, published.stat().st_mtime_ns) == before
    # The second one has a disk of its own, so it began anew.
    computed = cluster.computed.read_text().splitlines()
    assert [line for line in computed if line.startswith("b")] == [f"b {step}" for step in range(1, 6)]
    assert cluster.hashes() == unbroken
    for place in (cluster.store.root / "tmp", *cluster.root.glob("scratch-*/*")):
        assert list(place.iterdir()) == []


def test_one_of_several_waiters_takes_a_dead_workers_step(cluster: Cluster) -> None:
    dead = cluster.start("text", ["one"], "a", 0.0, still=True)
    wait_until(dead.stands_still, LONG, "the first worker computes")
    waiters = [
        cluster.start("text", ["one"], machine, clock) for machine, clock in {"b": DAY, "c": 0.0, "d": -DAY}.items()
    ]
    for waiter in waiters:
        wait_until(lambda waiter=waiter: "waiting for" in waiter.log.read_text(), LONG, "a waiter waits")
    os.kill(dead.process.pid, signal.SIGKILL)
    told = [waiter.result()[0]["reused"] for waiter in waiters]
    assert sorted(told) == [False, True, True]
    first, second = cluster.computed.read_text().splitlines()
    assert first == "a one" and second in ("b one", "c one", "d one")
