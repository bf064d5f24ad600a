"""The client's side of grading: many answers, from any thread, each with a wall-clock and a memory limit.

Invariant: every item gets a verdict, in order. What hangs, grows or dies in a worker is `grader_failed` with its reason;
it neither stops the others nor outlives this process. Nothing is started until an answer needs a worker: a
laboratory's graders are answered here (see `IN_PROCESS`).
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import IO, Any

from mot_core.errors import WorkerError
from mot_core.grading.answers import integer_of
from mot_core.grading.extraction import extract
from mot_core.grading.verdicts import (
    IN_PROCESS,
    Graded,
    GradeItem,
    Verdict,
    gold_fault,
    grader_named,
    judge_answer,
)

SECONDS = 5.0
MEMORY_BYTES = 1 << 30
# Requests of one call on their way at once, a worker: enough to keep it busy, few enough to be fair to other threads.
_WINDOW = 4

Progress = Callable[[int], None]
_Question = dict[str, Any]
_Reply = dict[str, Any]


class GradingPool:
    """`num_workers` killable processes behind one warden; a context manager, usable from any thread."""

    def __init__(self, num_workers: int, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self.num_workers = max(1, num_workers)
        self.seconds = seconds
        self.memory_bytes = memory_bytes
        self._lock = threading.Lock()  # over everything below
        self._write_lock = threading.Lock()
        self._ids = itertools.count()
        self._waiting: dict[int, tuple[queue.SimpleQueue[tuple[int, _Reply | None]], int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the warden and every worker; calls still running in other threads fail with `WorkerError`."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
            reader, errors = self._reader, self._errors
        if process is not None:
            with self._write_lock:
                assert process.stdin is not None
                process.stdin.close()
            process.wait()
        if reader is not None:
            reader.join()
        if errors is not None:
            errors.close()

    def grade(self, items: Sequence[GradeItem], on_done: Progress | None = None) -> list[Graded]:
        """A verdict for each item, in order; `on_done(number of items done)` is called in this thread.

        An answer that occurs more than once against the same gold is asked once.

        Raises:
            WorkerError: the warden died, or the pool was closed meanwhile.
        """
        graded: list[Graded | None] = [None] * len(items)
        asked: dict[tuple[str, str, str, str], list[int]] = {}
        for index, item in enumerate(items):
            settled, answer = extract(item.text, item.finish_reason)
            if settled is not None or answer is None:
                graded[index] = Graded(settled or Verdict.UNPARSEABLE, None)
            else:
                asked.setdefault((item.grader, item.family, item.gold, answer), []).append(index)
        done = len(items) - sum(map(len, asked.values()))
        for key, verdict in self._judge(list(asked)):
            for index in asked[key]:
                graded[index] = verdict
            done += len(asked[key])
            if on_done is not None:
                on_done(done)
        if on_done is not None and not asked:
            on_done(done)
        return [verdict for verdict in graded if verdict is not None]

    def check_golds(self, golds: Sequence[tuple[str, str, str]]) -> list[str | None]:
        """For each `(grader, family, gold)` what is wrong with the reference answer, or None."""
        faults: dict[tuple[str, str, str], str | None] = {}
        remote = []
        for gold in dict.fromkeys(golds):
            if gold[0] in IN_PROCESS:
                faults[gold] = gold_fault(grader_named(gold[0]), gold[1], gold[2])
            elif gold[0] == "math" and _same_integers(gold[2], gold[2]):
                faults[gold] = None
            else:
                remote.append(gold)
        questions = [{"op": "gold", "grader": g, "family": f, "gold": text} for g, f, text in remote]
        for index, reply in self._ask(questions):
            faults[remote[index]] = reply.get("fault") or (
                f"the grader failed on the reference answer {remote[index][2][:80]!r}: {reply['failed']}"
                if "failed" in reply
                else None
            )
        return [faults[gold] for gold in golds]

    def _judge(self, keys: list[tuple[str, str, str, str]]) -> Iterator[tuple[tuple[str, str, str, str], Graded]]:
        remote = []
        for key in keys:
            grader, family, gold, answer = key
            if grader in IN_PROCESS:
                started = time.perf_counter()
                verdict, detail = judge_answer(grader_named(grader), family, gold, answer)
                yield key, Graded(verdict, answer, time.perf_counter() - started, detail)
            elif grader == "math" and (same := _same_integers(gold, answer)) is not None:
                yield key, Graded(Verdict.CORRECT if same else Verdict.INCORRECT, answer)
            else:
                remote.append(key)
        questions = [
            {"op": "grade", "grader": grader, "family": family, "gold": gold, "answer": answer}
            for grader, family, gold, answer in remote
        ]
        for index, reply in self._ask(questions):
            if "failed" in reply:
                verdict = Verdict.GRADER_FAILED
            else:
                verdict = Verdict.CORRECT if reply["right"] else Verdict.INCORRECT
            yield remote[index], Graded(verdict, remote[index][3], reply["seconds"], reply.get("failed", ""))

    def _ask(self, questions: list[_Question]) -> Iterator[tuple[int, _Reply]]:
        """`(index, reply)` of each question as the replies come."""
        replies: queue.SimpleQueue[tuple[int, _Reply | None]] = queue.SimpleQueue()
        mine: set[int] = set()
        sent = 0
        try:
            for received in range(len(questions)):
                while sent < len(questions) and sent - received < _WINDOW * self.num_workers:
                    mine.add(self._send(questions[sent], replies, sent))
                    sent += 1
                index, reply = replies.get()
                if reply is None:
                    raise WorkerError(self._obituary())
                yield index, reply
        finally:
            # An error here or in the caller leaves replies that nobody waits for: the reader drops them.
            with self._lock:
                for identifier in mine:
                    self._waiting.pop(identifier, None)

    def _send(self, question: _Question, replies: queue.SimpleQueue[tuple[int, _Reply | None]], index: int) -> int:
        with self._lock:
            process = self._start()
            identifier = next(self._ids)
            self._waiting[identifier] = (replies, index)
        line = json.dumps({"id": identifier, **question}).encode() + b"\n"
        try:
            with self._write_lock:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise WorkerError(self._obituary()) from error
        return identifier

    def _start(self) -> subprocess.Popen[bytes]:
        """The warden, started by `exec` at the first question; the lock is held."""
        if self._closed:
            raise WorkerError("the grading pool is closed; open another one")
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the pool)
            settings = {"num_workers": self.num_workers, "seconds": self.seconds, "memory_bytes": self.memory_bytes}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mot_core.grading.warden", json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            )  # fmt: skip
            assert self._process.stdout is not None
            self._reader = threading.Thread(
                target=self._read, args=(self._process.stdout,), name="mot-grading", daemon=True
            )
            self._reader.start()
        return self._process

    def _read(self, stream: IO[bytes]) -> None:
        """The reader thread: each reply to the call that waits for it; at the warden's end, None to all."""
        with stream:
            for line in stream:
                reply = json.loads(line)
                with self._lock:
                    waiting = self._waiting.pop(reply["id"], None)
                if waiting is not None:
                    waiting[0].put((waiting[1], reply))
        with self._lock:
            self._closed = True
            orphans, self._waiting = list(self._waiting.values()), {}
        for replies, index in orphans:
            replies.put((index, None))

    def _obituary(self) -> str:
        said = ""
        with self._lock:
            if self._errors is not None and not self._errors.closed:
                self._errors.seek(0)
                said = self._errors.read().decode(errors="replace").strip()[-500:]
        return "the grading warden ended while answers were graded; run the same command again" + (
            f"; it said: {said}" if said else ""
        )


def _same_integers(gold: str, answer: str) -> bool | None:
    """Whether two plain integers are equal; None if either is anything else. Exact, and needs no algebra."""
    plain = (gold.strip(), answer.strip())
    if not all(text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() for text in plain):
        return None
    left, right = map(integer_of, plain)
    return None if left is None or right is None else left == right
