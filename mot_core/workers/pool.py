"""The flow process's side: a pool of workers, most urgent job first, each with devices of its own.

Invariant: this module never imports torch and never forks; it starts the clean parent by `exec`, at most once,
and only when a step has to be computed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mot_core.artifacts import Published, Store
from mot_core.errors import Halted, MotError, SpecError, WorkerError, raised
from mot_core.runner import RunSettings
from mot_core.secrets import PASSED, named_secrets
from mot_core.steps import Step
from mot_core.workers.devices import POLL_SECONDS, Devices
from mot_core.workers.slots import Slots, Turn, devices_needed

Listener = Callable[[Step, dict[str, Any]], None]
REMEDY = "lower its devices, let CUDA_VISIBLE_DEVICES name more, or run on a larger machine (mot plan --node)"
log = logging.getLogger("mot.workers")


@dataclass
class Job:
    """One worker's task: steps to run in order in one process."""

    steps: list[Step]
    listener: Listener
    done: threading.Event = field(default_factory=threading.Event)
    records: list[Published] = field(default_factory=list)
    error: MotError | None = None
    current: int = 0
    devices: tuple[str, ...] = ()


class WorkerPool:
    """Runs steps in worker processes; usable from any thread.

    On a CPU at most `num_workers` jobs run at once, a core each where no number is given. With GPUs as many run as find
    devices free, and beside them as many again that need none; a number given caps both together. Devices that another
    run of this machine has are waited for. `devices` and `cores` say what share of the machine is this pool's, where it
    is not all of it.
    """

    def __init__(
        self, store: Store, num_workers: int | None = None, checkpoint_seconds: float = 60.0, *,
        devices: Sequence[str] | None = None, cores: int | None = None,
    ) -> None:  # fmt: skip
        self._cores = cores = cores or len(os.sched_getaffinity(0))
        self.store = store
        self.devices = devices = visible_devices() if devices is None else list(devices)
        self.num_workers = num_workers or len(devices) or cores
        self.settings = RunSettings(max(1, cores // self.num_workers), checkpoint_seconds)
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs: dict[str, Job] = {}
        self._ids = itertools.count()
        self._slots = Slots(devices, self.num_workers, shared=num_workers is not None)
        self._devices = Devices(f"store {store.root}")
        self._condition = threading.Condition()
        self._write_lock = threading.Lock()
        self._closed = False
        self._halted: str | None = None
        self.compute_intervals: list[tuple[float, float]] = []
        self._computing: dict[str, float] = {}

    def start(self) -> None:
        """Start the clean parent, if it isn't yet; returns at once, while it loads torch."""
        with self._condition:
            if self._process is not None:
                return
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", PASSED: named_secrets(),
            }  # fmt: skip
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "mot_core.workers.parent"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
        threading.Thread(target=self._read, args=(process,), name="mot-workers", daemon=True).start()

    def run(self, steps: list[Step], priority: int, listener: Listener, shard: tuple[int, int] | None = None) -> Job:
        """Run steps in one worker and wait for it; the most urgent (lowest) priority starts first, on as many devices
        as its greediest step needs. With `shard`, only that part of their work, and no record.

        Raises:
            MotError: what the worker raised; `WorkerError` if it died; `SpecError` if it needs more devices than there
                are.
        """
        if not self._closed:
            self.start()
        job = Job(steps, listener)
        job_id = str(next(self._ids))
        turn = (priority, int(job_id))
        with self._condition:
            self._enter(turn, steps)
            devices = None
            try:
                while not self._closed and (devices := self._slots.take(turn, self._devices.claim)) is None:
                    self._condition.wait(POLL_SECONDS if self._slots.refused else None)
                if devices is None:
                    raise self._stopped(f"{steps[0].label}: the workers were stopped before this step ran")
            finally:
                self._slots.leave(turn)
                if not self._slots.refused:
                    self._devices.stop_waiting()
                self._condition.notify_all()  # the next one may fit beside it, or in its place
            job.devices = devices
            self._jobs[job_id] = job
        try:
            self._send(
                {
                    "job": job_id, "steps": [step.to_json() for step in steps], "store": str(self.store.root), "shard": shard,
                    "settings": {**vars(self.settings), "devices": job.devices, "threads": self._threads(job)},
                    "logs": [str(self.store.log_path(step.identity)) for step in steps],
                }
            )  # fmt: skip
            job.done.wait()
        except BaseException:
            self._send({"kill": job_id})
            raise
        if job.error is not None:
            raise job.error
        return job

    def _threads(self, job: Job) -> int:
        """A job on several devices has as many jobs' share of the cores."""
        return min(self._cores, self.settings.threads * max(1, len(job.devices)))

    def _enter(self, turn: Turn, steps: list[Step]) -> None:
        greediest = max(steps, key=devices_needed)
        try:
            self._slots.enter(turn, devices_needed(greediest))
        except SpecError as error:
            raise SpecError(f"{greediest.label}: {error}; {REMEDY}") from None

    def accept_no_more(self) -> None:
        """Start no further job; those that run may end and publish."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def halt(self, reason: str) -> None:
        """Start no further step; those that are being computed end and are published, then their jobs raise `Halted`."""
        self._halted = self._halted or reason
        self.accept_no_more()
        with contextlib.suppress(WorkerError):  # no parent, no steps to end
            self._send({"halt": True})

    def drain(self) -> None:
        """Wait for the steps that are being computed; what waited for a place meanwhile is not started."""
        self.accept_no_more()
        with self._condition:
            while self._jobs:
                self._condition.wait()

    def _stopped(self, what: str) -> MotError:
        again = "run the same command again: it goes on from what is published"
        return Halted(f"{what} ({self._halted}); {again}") if self._halted else WorkerError(f"{what}; {again}")

    def close(self) -> None:
        """End every worker and the parent."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.wait()
        with self._condition:
            self._devices.close()

    def _send(self, command: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise WorkerError("the worker parent is not running")
        with self._write_lock:
            try:
                process.stdin.write(json.dumps(command).encode() + b"\n")
                process.stdin.flush()
            except (BrokenPipeError, ValueError) as error:
                raise WorkerError(f"the worker parent has ended: {error}") from error

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        try:
            # Left open, the pipe would be a ResourceWarning when the pool is collected.
            with process.stdout as events:
                self._read_events(events)
        finally:  # whatever ended the reading, nobody is to wait for an event that nobody reads
            with self._condition:
                self._closed = True
                orphans, self._jobs = list(self._jobs.items()), {}
                self._condition.notify_all()
            for _, job in orphans:
                job.error = WorkerError(
                    "the worker parent died; run the same command again: it goes on from what is published"
                )
                job.done.set()

    def _read_events(self, events: IO[bytes]) -> None:
        for line in events:
            try:
                message = json.loads(line)
                if "ready" not in message:
                    self._handle(message.pop("job"), message)
            # A listener's mistake must not stop the others' events; rich exits where its terminal, or pipe, is gone.
            except (Exception, SystemExit):
                log.exception("worker event %r", line[:200])

    def _handle(self, job_id: str, message: dict[str, Any]) -> None:
        job = self._jobs[job_id]
        event = message.get("event")
        step = job.steps[min(job.current, len(job.steps) - 1)]  # before a 'published' moves on to the next
        if event == "computing":
            self._note_computing(job_id, bool(message["on"]), message["time"])
        elif event == "published":
            job.records.append(Published.from_json(message["record"]))
            job.current += 1
        elif event == "error":
            job.error = raised(message["error"], f"{step.label}: ")
        elif "exit" in message:
            self._finish(job_id, job, message["exit"])
            return
        job.listener(step, message)

    def _note_computing(self, job_id: str, on: bool, when: float) -> None:
        if on:
            self._computing[job_id] = when
        else:
            self.compute_intervals.append((self._computing.pop(job_id), when))

    def _finish(self, job_id: str, job: Job, code: int) -> None:
        step = job.steps[min(job.current, len(job.steps) - 1)]
        if code != 0 and job.error is None:
            cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            job.error = WorkerError(
                f"{step.label}: its worker died ({cause}; memory?); its output is in "
                f"{self.store.log_path(job.steps[0].identity)}; run the same command again: it goes on"
            )
        elif job.error is None and self._halted and len(job.records) < len(job.steps):
            job.error = self._stopped(f"{step.label}: stopped before this step")
        self._computing.pop(job_id, None)
        with self._condition:
            del self._jobs[job_id]
            self._slots.give_back(job.devices)
            self._devices.give_back(job.devices)
            self._condition.notify_all()
        job.done.set()


def visible_devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them. Where it names none, the driver's
    files say how many there are: torch stays unloaded."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # CUDA reads no further either
    gpus = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(list(gpus.iterdir())))] if gpus.is_dir() else []


def union_seconds(intervals: list[tuple[float, float]]) -> float:
    """The length of the union of time intervals, seconds."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        if stop > end:
            total += stop - max(start, end)
            end = stop
    return total
