"""Engines in processes of their own: started, asked, watched and ended, with a check that nothing of them is left.

    core process ──requests──► engine   fork of the watcher; imports vLLM
                 ◄──results───
                 ──lifeline──► watcher  ends the engine and all that it started when this pipe speaks or closes

Invariant: nothing is inherited but these pipes, a log and the environment that `clean_environment` lets through; a
process of an engine outlives neither `close` nor, by more than seconds, the core process, however that ended.
Longer than most: both sides of the lifeline have to be read together.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mot_core.completers.memory import Gpu, await_gpu_return, held_by
from mot_core.errors import ModelError, WorkerError

WORKER = Path(__file__).with_name("vllm_worker.py")
IN_FLIGHT = 4096
"""Requests that an engine holds at most: enough to keep it full, and a bound on memory."""
FILL = 64
"""Requests rendered between two looks at the results."""
PIPE_BYTES = 1 << 20
IDLE_SECONDS = 0.25
CLOSE_SECONDS = 20.0
LOG_LINES, LOG_WIDTH = 12, 300
log = logging.getLogger("mot.vllm")


def engine_python() -> str:
    """The interpreter that has vLLM: `MOT_VLLM_PYTHON`, or this one."""
    named = os.environ.get("MOT_VLLM_PYTHON") or sys.executable
    found = shutil.which(named)
    if found is None:
        raise WorkerError(f"MOT_VLLM_PYTHON is {named!r}: no such program; expected a Python interpreter that has vLLM")
    return found


@dataclass(frozen=True)
class Launch:
    """One engine to start: `vllm.LLM`'s arguments, its environment, its log."""

    arguments: Mapping[str, Any]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True)
class Ask:
    """A request as an engine takes it; `id` is the caller's."""

    id: int
    prompt: list[int]
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """What became of a request: tokens written, end token included, and `stop`, `length` or `failed` with a reason."""

    id: int
    tokens: list[int]
    finish_reason: str
    reason: str


class EngineProcess:
    """One engine's process and its watcher."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.in_flight = 0
        self.facts: dict[str, Any] = {}
        self._waiting = bytearray()  # commands not yet in the pipe
        self._rest = b""
        self._failure: dict[str, Any] | None = None
        python = engine_python()
        inherited_requests, self.requests = os.pipe()
        self.results, inherited_results = os.pipe()
        inherited_lifeline, self._lifeline = os.pipe()
        inherited = (inherited_requests, inherited_results, inherited_lifeline)
        for descriptor in (self.requests, self.results):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(OSError):  # a user's pipes may be limited; then the engine waits more often
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            with launch.log.open("ab") as output:
                self.process = subprocess.Popen(
                    [python, "-I", "-u", str(WORKER), *map(str, inherited)],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=inherited,
                    env=dict(launch.environment), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            self._close_pipes()
            raise
        finally:
            for descriptor in inherited:
                os.close(descriptor)
        self.put({"engine": dict(launch.arguments)})

    def put(self, command: Mapping[str, Any]) -> None:
        self._waiting += json.dumps(command).encode() + b"\n"

    def flush(self) -> bool:
        """Write as much of the waiting commands as the pipe takes; whether some still wait."""
        try:
            while self._waiting:
                del self._waiting[: os.write(self.requests, self._waiting)]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # the engine has ended; what it told says why
            self._waiting.clear()
        return False

    def events(self) -> list[dict[str, Any]]:
        """What the engine has told since last time; waits for nothing.

        Raises:
            ModelError: vLLM cannot load the model.
            WorkerError: the interpreter has no vLLM, the engine failed, or its process ended.
        """
        if self._failure is None:
            try:
                chunk = os.read(self.results, PIPE_BYTES)
            except BlockingIOError:
                return []
            if not chunk:
                raise WorkerError(self._obituary("ended"))
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            events = [json.loads(line) for line in lines]
            if events and "error" in events[-1]:
                self._failure = events.pop()
            if events or self._failure is None:
                return events  # what came before a failure counts
        raise self._error(self._failure)

    def _error(self, event: Mapping[str, Any]) -> WorkerError | ModelError:
        text = str(event["error"])
        if event["at"] == "import":
            return WorkerError(
                f"{engine_python()} cannot import vLLM: {text}; set MOT_VLLM_PYTHON to the interpreter of an "
                f"environment that has it; the log is {self.launch.log}"
            )
        if event["at"] == "start":
            return ModelError(self._obituary(f"cannot serve model {self.launch.arguments['model']}: {text}"))
        return WorkerError(self._obituary(f"failed: {text}"))

    def _obituary(self, what: str) -> str:
        """What happened, how the process ended, and the last lines of its log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSE_SECONDS / 2)
        code = self.process.returncode
        how = f" by signal {code - 128}" if code and code > 128 else ""
        return (
            f"vLLM {what}{how}; what was answered is kept, and the same command goes on from it; the log is "
            f"{self.launch.log}, its last lines:\n{last_lines(self.launch.log)}"
        )

    def pids(self) -> list[int]:
        """Every process of the engine's session that has not ended."""
        return [pid for pid, session in sessions() if session == self.process.pid]

    def close(self) -> None:
        """End the engine, and return when none of its processes is left.

        Raises:
            WorkerError: a process is left in spite of SIGKILL.
        """
        self._close_pipes()
        deadline = time.monotonic() + CLOSE_SECONDS
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSE_SECONDS / 2)
        while left := self.pids():  # the watcher ends all; this is for a watcher that was killed itself
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"vLLM's processes {left} have not ended in {CLOSE_SECONDS:g} s, in spite of SIGKILL; "
                    "a device's driver may hang"
                )
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            time.sleep(0.05)
            self.process.poll()
        self.process.wait()

    def _close_pipes(self) -> None:
        with contextlib.suppress(
            BrokenPipeError
        ):  # said, because a process forked from this one may hold the pipe open
            os.write(self._lifeline, b".")
        for descriptor in (self._lifeline, self.requests, self.results):
            os.close(descriptor)


@dataclass
class Engines:
    """Engines of one model side by side, kept from step to step; after `close` they can be started again."""

    launches: list[Launch]
    running: list[EngineProcess] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    """The devices as they were before the start."""

    def start(self, before: list[Gpu]) -> None:
        """Start every engine, and return when all are ready."""
        self.gpus = before
        for launch in self.launches:
            self.running.append(EngineProcess(launch))
        for engine in self.running:
            while not engine.facts:
                for ready in self._await(None):
                    for event in ready.events():
                        ready.facts = event.get("ready", ready.facts)

    def stream(self, sampling: Mapping[str, Any], asks: Iterator[Ask]) -> Iterator[tuple[int, list[Answer]]]:
        """Answers as they end, in whatever order, with the number of tokens written since the last; at least every
        `IDLE_SECONDS`, if only to say that nothing has come."""
        for engine in self.running:
            engine.put({"sampling": dict(sampling)})
        more = True
        while more or any(engine.in_flight for engine in self.running):
            more = more and self._fill(asks)
            # With room for more requests, only a look.
            for engine in self._await(0.0 if more and self._room() else IDLE_SECONDS):
                for event in engine.events():
                    answers = [Answer(*row) for row in event["rows"]]
                    engine.in_flight -= len(answers)
                    yield event["tokens"], answers
            yield 0, []

    def _fill(self, asks: Iterator[Ask]) -> bool:
        """Hand out the next requests, each to the engine that has the fewest; whether there may be more."""
        for _ in range(FILL):
            if not self._room():
                return True
            ask = next(asks, None)
            if ask is None:
                return False
            engine = min(self.running, key=lambda engine: engine.in_flight)
            engine.put(vars(ask))
            engine.in_flight += 1
        return True

    def _room(self) -> bool:
        return any(engine.in_flight < IN_FLIGHT for engine in self.running)

    def _await(self, seconds: float | None) -> list[EngineProcess]:
        """The engines that have told something, after this time at the latest; commands go out meanwhile."""
        poll = select.poll()
        for engine in self.running:
            poll.register(engine.results, select.POLLIN)
            if engine.flush():
                poll.register(engine.requests, select.POLLOUT)
        ready = {descriptor for descriptor, _ in poll.poll(None if seconds is None else 1000 * seconds)}
        return [engine for engine in self.running if engine.results in ready]

    def close(self) -> None:
        """End the engines; return when their processes are gone and their devices' memory has come back."""
        running, self.running = self.running, []
        pids = [pid for engine in running for pid in engine.pids()]
        named = held_by(self.gpus, pids)
        for engine in running:
            engine.close()
        await_gpu_return(self.gpus, pids, named, CLOSE_SECONDS)
        self.gpus = []
        for engine in running:
            if engine.process.returncode == 0:  # its log is of use to nobody
                engine.launch.log.unlink(missing_ok=True)


def sessions() -> Iterator[tuple[int, int]]:
    """`(pid, session)` of every process that has not ended."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state not in ("Z", "X"):
                yield int(entry.name), int(session)


def last_lines(path: Path) -> str:
    """The end of a log, long lines cut."""
    lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:] if path.exists() else []
    return "\n".join(line[:LOG_WIDTH] for line in lines)
