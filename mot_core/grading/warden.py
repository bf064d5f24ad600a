"""The grading warden: loads sympy once, forks workers, and kills those that overstay. Run by `GradingPool`.

It reads questions from standard input and writes replies to standard output, a JSON object a line:
    in   {"id": n, "op": "grade", "grader": …, "family": …, "gold": …, "answer": …}   {"id": n, "op": "gold", …}
    out  {"id": n, "seconds": s} with "right": bool, "fault": text or null, or "failed": why
One thread and a select loop, so that forking is safe and the wall clock is the kernel's, not a signal's inside sympy.
Invariant: one reply a question, whatever happens to the worker. End of input, or the client's death, ends the warden;
the kernel kills the workers with it. It never imports torch.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mot_core.grading.verdicts import FORKED_LOADED, Grader, describe_failure, gold_fault, grader_named
from mot_core.processes import die_with_parent

# A user's grader, or one of a package, is imported once a worker; that time is the import's, not the answer's.
IMPORT_SECONDS = 60.0
# Caches grew by 5 MB over 2,000 ordinary answers (measured), but odd ones may leave more; a new worker is cheap to fork.
MAX_ANSWERS_A_WORKER = 2000
_WARM_UP = (
    ("\\frac{1}{2}", "0.5"), ("\\sqrt{2}", "\\frac{2}{\\sqrt{2}}"), ("(1,2)", "[1,2)"), ("\\{1,2\\}", "1,2"),
    ("x^2+1", "1+x^{2}"), ("1<x<2", "x>1"), ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(1,2,3)"), ("\\pi", "3"),
    ("2\\sin x", "\\log_2 x"), ("5!", "e^{2}"), ("\\pm 3", "\\binom{4}{2}"), ("x=3", "50\\%"), ("3+4i", "|x|"),
)  # fmt: skip


@dataclass
class Worker:
    """A forked process with the question that it works on."""

    pid: int
    channel: socket.socket
    buffer: bytes = b""
    task: dict[str, Any] | None = None
    started: float = 0.0
    deadline: float = float("inf")
    answers: int = 0
    loaded: set[str] = field(default_factory=set)


class Warden:
    """The select loop over questions and the workers' channels."""

    def __init__(self, num_workers: int, seconds: float, memory_bytes: int) -> None:
        self.num_workers, self.seconds, self.memory_bytes = num_workers, seconds, memory_bytes
        self.client = os.getppid()
        self.questions: deque[dict[str, Any]] = deque()
        self.workers: list[Worker] = []
        self.buffer = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ, None)

    def serve(self) -> NoReturn:
        while True:
            nearest = min((worker.deadline for worker in self.workers), default=float("inf"))
            # Once a second it looks whether the client lives: a forked copy of the client could hold the pipe open.
            for key, _ in self.selector.select(max(0.0, min(1.0, nearest - time.monotonic()))):
                if key.data is None:
                    self.read_questions()
                elif key.data in self.workers:
                    self.read_worker(key.data)
            if os.getppid() != self.client:
                self.end()
            now = time.monotonic()
            for worker in [worker for worker in self.workers if worker.deadline <= now]:
                limit = self.seconds if worker.task and worker.task["grader"] in worker.loaded else IMPORT_SECONDS
                self.replace(worker, f"{limit:g} s limit")
            self.dispatch()

    def read_questions(self) -> None:
        chunk = os.read(0, 1 << 16)
        if not chunk:
            self.end()
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        self.questions.extend(map(json.loads, lines))

    def dispatch(self) -> None:
        idle = [worker for worker in self.workers if worker.task is None]
        while self.questions:
            if not idle:
                if len(self.workers) == self.num_workers:
                    return
                idle.append(self.fork())
            worker, task = idle.pop(), self.questions.popleft()
            worker.task, worker.started = task, time.monotonic()
            ready = task["grader"] in worker.loaded or task["grader"] in FORKED_LOADED
            if ready:
                worker.loaded.add(task["grader"])
            worker.deadline = worker.started + (self.seconds if ready else IMPORT_SECONDS)
            with contextlib.suppress(OSError):  # it died meanwhile; its channel's end says so
                worker.channel.sendall(json.dumps(task).encode() + b"\n")

    def read_worker(self, worker: Worker) -> None:
        try:
            chunk = worker.channel.recv(1 << 16)
        except OSError:
            chunk = b""
        if not chunk:
            self.replace(worker, "worker died")
            return
        *lines, worker.buffer = (worker.buffer + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "loaded" in message:
                worker.loaded.add(message["loaded"])
                worker.started = time.monotonic()
                worker.deadline = worker.started + self.seconds
                continue
            self.reply(worker, message)
            worker.answers += 1
            if message.pop("last", False) or worker.answers >= MAX_ANSWERS_A_WORKER:
                self.replace(worker, "")

    def reply(self, worker: Worker, message: dict[str, Any]) -> None:
        if worker.task is None:
            return
        seconds = round(time.monotonic() - worker.started, 6)
        line = json.dumps({**message, "id": worker.task["id"], "seconds": seconds}).encode() + b"\n"
        worker.task, worker.deadline = None, float("inf")
        while line:
            line = line[os.write(1, line) :]

    def replace(self, worker: Worker, why: str) -> None:
        """Kill a worker with whatever it started, tell the reason for its question's failure, fork another."""
        self.selector.unregister(worker.channel)
        worker.channel.close()
        self.workers.remove(worker)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        _, status = os.waitpid(worker.pid, 0)
        if why == "worker died":
            code = os.waitstatus_to_exitcode(status)
            why = f"worker died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
        useful = worker.answers > 0 or worker.task is not None
        # One that died before its first question would only be followed by others: the next question forks one.
        if useful:
            self.fork()
        self.reply(worker, {"failed": why})

    def fork(self) -> Worker:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            ours.close()
            for other in self.workers:
                other.channel.close()
            work(theirs, self.memory_bytes)
        with contextlib.suppress(OSError):  # the child may have done it already, or have died
            os.setpgid(pid, pid)
        theirs.close()
        worker = Worker(pid, ours)
        self.workers.append(worker)
        self.selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def end(self) -> NoReturn:
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
        for worker in self.workers:
            os.waitpid(worker.pid, 0)
        os._exit(0)


def work(channel: socket.socket, memory_bytes: int) -> NoReturn:
    """A worker's life: limits, then a reply a question until its channel ends."""
    die_with_parent()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    code = 0
    try:
        serve_questions(channel)
    except BaseException:  # a fork must never run on into the warden's own code
        code = 1
    os._exit(code)


def serve_questions(channel: socket.socket) -> None:
    graders: dict[str, Grader] = {}
    with channel.makefile("rb") as questions:
        for line in questions:
            task = json.loads(line)
            try:
                if task["grader"] not in graders:
                    graders[task["grader"]] = grader_named(task["grader"])
                    channel.sendall(json.dumps({"loaded": task["grader"]}).encode() + b"\n")
                reply = answer(graders[task["grader"]], task)
            except MemoryError:
                reply = {"failed": "memory limit", "last": True}
            except BaseException as error:  # a user's grader may call sys.exit; that is its failure, not ours
                reply = {"failed": describe_failure(error)[:500]}
            channel.sendall(json.dumps(reply).encode() + b"\n")


def answer(grader: Grader, task: dict[str, Any]) -> dict[str, Any]:
    if task["op"] == "gold":
        return {"fault": gold_fault(grader, task["family"], task["gold"])}
    return {"right": bool(grader(task["family"], task["gold"], task["answer"]))}


def warm_up() -> None:
    """Load sympy and fill the parser's tables, which every worker then has.

    Measured: 0.8 CPU seconds once; a worker's first 20 answers take 18 ms each instead of 24, later ones 12.
    """
    from mot_core.grading.equivalence import same_math

    for gold, stated in _WARM_UP:
        same_math("", gold, stated)
    gc.collect()
    gc.freeze()


def main() -> None:
    # Ctrl-C reaches the whole process group; the client decides what to end, by closing our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = json.loads(sys.argv[1])
    warm_up()
    Warden(settings["num_workers"], settings["seconds"], settings["memory_bytes"]).serve()


if __name__ == "__main__":
    main()
