"""The pool: limits hold, deaths are told, nothing hangs, nothing is lost, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mot_core.errors import WorkerError
from mot_core.grading.pool import GradingPool
from mot_core.grading.verdicts import Graded, GradeItem, Verdict
from tests.processes import ROOT, descendants, is_alive, wait_until

MOODY = "tests.grading.graders:moody"
SLOW = "tests.grading.graders:slow"
MEET = "tests.grading.graders:meet"
PARENT = "tests.grading.graders:parent"


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    """Nothing that it is asked takes as long as its limit, on however busy a machine."""
    with GradingPool(num_workers=2, seconds=60.0, memory_bytes=1 << 29) as pool:
        yield pool


def boxed(answer: str, gold: str = "ok", grader: str = MOODY) -> GradeItem:
    return GradeItem(grader, "", gold, f"\\boxed{{{answer}}}")


def told(graded: list[Graded]) -> list[tuple[str, str]]:
    return [(one.verdict.value, one.detail) for one in graded]


def below(pool: GradingPool) -> set[int]:
    """Every process below a pool's warden."""
    assert pool._process is not None
    return set(descendants(pool._process.pid))


def both_workers(pool: GradingPool, meeting: Path) -> set[int]:
    """The two workers of a pool, which have just been busy at the same time."""
    assert told(pool.grade([boxed(str(meeting), name, MEET) for name in ("one", "two")])) == [("correct", "")] * 2
    return below(pool)


def test_every_misbehaviour_is_told_and_the_rest_is_graded(pool: GradingPool, tmp_path: Path) -> None:
    answers = ["ok", "no", "hog", "grow", "die", "exit", "leave", "raise", "print", "ok"]
    assert told(pool.grade([boxed(answer) for answer in answers])) == [
        ("correct", ""),
        ("incorrect", ""),
        ("grader_failed", "memory limit"),
        ("grader_failed", "memory limit"),
        ("grader_failed", "worker died (signal 9)"),
        ("grader_failed", "SystemExit"),
        ("grader_failed", "worker died (exit code 4)"),
        ("grader_failed", "ZeroDivisionError"),
        ("correct", ""),
        ("correct", ""),
    ]
    assert len(both_workers(pool, tmp_path)) == 2


def test_what_never_ends_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    with GradingPool(num_workers=2, seconds=1.0, memory_bytes=1 << 29) as hasty:
        items = [boxed("hang"), boxed(str(tmp_path), grader=PARENT), boxed("5^{5^{5^{5^5}}}", "4", "math")]
        assert told(hasty.grade(items)) == [("grader_failed", "1 s limit")] * 3
        wait_until(lambda: len(below(hasty)) == 2, 60.0, "two workers")
        # On a busy machine a worker may get no core before it is ended: then another is asked.
        while not any(tmp_path.iterdir()):
            hasty.grade([items[1]])
        started = [int(path.name) for path in tmp_path.iterdir()]
        wait_until(lambda: not any(map(is_alive, started)), 60.0, "what a grader started ends with its worker")
        wait_until(lambda: told(hasty.grade([boxed("ok")])) == [("correct", "")], 60.0, "an answer in time")


def test_math_meets_the_memory_limit(pool: GradingPool) -> None:
    items = [boxed(answer, "4", "math") for answer in ("10^{10^{10}}!", "2+2")]
    assert told(pool.grade(items)) == [("grader_failed", "memory limit"), ("correct", "")]


def test_a_killed_worker_is_replaced(pool: GradingPool, tmp_path: Path) -> None:
    before = both_workers(pool, tmp_path)
    assert len(before) == 2
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(below(pool) - before) == 2, 60.0, "two new workers")
    assert told(pool.grade([boxed("ok"), boxed("no")])) == [("correct", ""), ("incorrect", "")]


def test_order_is_kept_and_equal_answers_are_asked_once() -> None:
    with GradingPool(num_workers=3, seconds=60.0) as pool:
        delays = ["0.3", "0.1", "0.2", "0", "0.3", "0.1"] * 5
        graded = pool.grade([boxed(delay, grader=SLOW) for delay in delays])
    assert [one.extracted for one in graded] == delays
    assert {one.verdict for one in graded} == {Verdict.CORRECT}
    assert 0.25 <= graded[0].seconds < 10.0
    assert graded[0] is graded[4] is graded[24]


def test_eight_threads_share_a_pool(pool: GradingPool) -> None:
    results: dict[int, list[Graded]] = {}

    def go(thread: int) -> None:
        results[thread] = pool.grade(
            [boxed(f"\\frac{{{n}}}{{{thread + 2}}}", f"{n}/{thread + 2}", "math") for n in range(1, 16)]
            + [boxed(f"{n}.5", f"{n}", "math") for n in range(15)]
        )

    threads = [threading.Thread(target=go, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert sorted(results) == list(range(8))
    for graded in results.values():
        assert [one.verdict.value for one in graded] == ["correct"] * 15 + ["incorrect"] * 15


def test_progress_counts_every_item_once(pool: GradingPool) -> None:
    seen: list[int] = []
    items = [boxed("ok"), boxed("no"), GradeItem(MOODY, "", "ok", "no box"), boxed("ok")]
    pool.grade(items, seen.append)
    assert sorted(seen) == [2, 4] or sorted(seen) == [3, 4]
    assert seen[-1] == 4
    pool.grade([GradeItem(MOODY, "", "ok", "no box")], seen.append)
    assert seen[-1] == 1
    assert pool.grade([]) == []


def test_an_error_in_the_caller_leaves_the_pool_usable(pool: GradingPool) -> None:
    def fail(done: int) -> None:
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        pool.grade([boxed(str(n)) for n in range(20)], fail)
    assert pool._waiting == {}
    assert told(pool.grade([boxed("ok")])) == [("correct", "")]


def test_laboratory_graders_and_plain_integers_start_no_process() -> None:
    with GradingPool(num_workers=2) as pool:
        items = [
            GradeItem("family", "sums", "7", "\\boxed{07}"), GradeItem("integer", "", "7", "\\boxed{8}"),
            GradeItem("text", "", "a", "\\boxed{A}"), GradeItem("choice", "", "a", "\\boxed{A}"),
            GradeItem("exact", "", "a", "\\boxed{A}"), GradeItem("math", "", "7", "\\boxed{7}"),
            GradeItem("math", "", "007", "\\boxed{8}"), GradeItem("family", "nowhere", "7", "\\boxed{7}"),
        ]  # fmt: skip
        assert told(pool.grade(items)) == [
            ("correct", ""), ("incorrect", ""), ("correct", ""), ("correct", ""), ("incorrect", ""), ("correct", ""),
            ("incorrect", ""), ("grader_failed", "ValueError"),
        ]  # fmt: skip
        golds = [("math", "", gold) for gold in ("7", "-12", "007", "9" * 500)]
        golds += [("integer", "", "042"), ("choice", "", "(C)"), ("family", "sums", "3")]
        assert pool.check_golds(golds) == [None] * 7
        assert pool.check_golds([("integer", "", "4.5")]) == [
            "the reference answer '4.5' is no integer; expected digits, such as 042 or 1,234"
        ]
        assert pool._process is None


def test_a_grader_that_cannot_be_imported_fails_every_answer(pool: GradingPool) -> None:
    items = [boxed("1", grader="tests.grading.graders:missing"), boxed("1", grader="no.such.module:grader")]
    assert told(pool.grade(items)) == [("grader_failed", "SpecError")] * 2


def test_workers_have_no_torch_and_no_terminal(pool: GradingPool) -> None:
    assert told(pool.grade([boxed("x", grader="tests.grading.graders:where")])) == [("correct", "")]


def test_golds_are_checked_before_compute(pool: GradingPool) -> None:
    picky = "tests.grading.graders:picky"
    faults = pool.check_golds(
        [("math", "", "\\frac12"), ("math", "", "x^{2"), ("math", "", "\\frac{1}{0}"), ("math", "", "1,2,\\ldots"),
         ("integer", "", "4.5"), ("choice", "", "none"), ("exact", "", " "), ("family", "sums", "x"),
         (picky, "", "fine"), (picky, "", "bad"), (picky, "", "odd"), ("math", "", "x^{2")]
    )  # fmt: skip
    assert [fault is None for fault in faults] == [True] + [False] * 7 + [True, False, False, False]
    assert faults[1] == faults[11] == "the reference answer 'x^{2' cannot be parsed as mathematics or read as words"
    assert faults[7] == "the grader does not accept the reference answer 'x' as an answer to itself"
    assert faults[9] == "the reference answer is bad"
    assert pool.check_golds([("integer", "", "042")]) == [None]
    hang = pool.check_golds([(MOODY, "", "leave")])[0]
    assert hang == "the grader failed on the reference answer 'leave': worker died (exit code 4)"


def test_a_closed_pool_refuses_and_a_dead_warden_is_told() -> None:
    pool = GradingPool(num_workers=1)
    pool.grade([boxed("ok")])
    assert pool._process is not None
    warden = pool._process.pid
    alive = [warden, *below(pool)]
    os.kill(warden, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, alive)), 60.0, "workers end with their warden")
    with pytest.raises(WorkerError, match="the grading (warden ended|pool is closed)"):
        pool.grade([boxed("no")])
    pool.close()
    with pytest.raises(WorkerError, match="the grading pool is closed; open another one"):
        pool.grade([boxed("ok")])


def test_a_call_that_waits_is_told_when_the_warden_dies(tmp_path: Path) -> None:
    with GradingPool(num_workers=1, seconds=600.0) as pool:

        def kill() -> None:
            wait_until(lambda: any(tmp_path.iterdir()), 60.0, "the answer is being graded")
            assert pool._process is not None
            os.kill(pool._process.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(WorkerError, match="the grading warden ended while answers were graded"):
            pool.grade([boxed(str(tmp_path), grader=MEET)])
        killer.join()


_CLIENT = """
import json, os, sys, threading
from mot_core.grading.pool import GradingPool
from mot_core.grading.verdicts import GradeItem
pool = GradingPool(2, seconds=600.0)
item = GradeItem("tests.grading.graders:slow", "", "x", "\\\\boxed{0.0}")
# The pool is first used in a thread that ends: the warden must outlive that thread, but not this process.
thread = threading.Thread(target=pool.grade, args=([item],))
thread.start(); thread.join()
print(json.dumps(pool._process.pid), flush=True)
pool.grade([GradeItem("tests.grading.graders:slow", "", "x", "\\\\boxed{%d}" % (500 + n)) for n in range(4)])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_killed_client(tmp_path: Path, how: signal.Signals) -> None:
    client = subprocess.Popen([sys.executable, "-c", _CLIENT], stdout=subprocess.PIPE, cwd=ROOT)
    assert client.stdout is not None
    warden = json.loads(client.stdout.readline())
    wait_until(lambda: len(descendants(warden)) == 2, 60.0, "two busy workers")
    time.sleep(1.5)  # longer than the warden's look at its client
    assert is_alive(warden)
    alive = [warden, *descendants(warden)]
    client.send_signal(how)
    client.wait()
    client.stdout.close()
    wait_until(lambda: not any(map(is_alive, alive)), 60.0, "warden and workers end with their client")


def test_closing_ends_everything_even_a_worker_that_hangs() -> None:
    pool = GradingPool(num_workers=2, seconds=600.0)
    failed: list[type[BaseException]] = []

    def go() -> None:
        try:
            pool.grade([boxed("hang"), boxed("grow")])
        except WorkerError as error:
            failed.append(type(error))

    pool.grade([boxed("ok")])
    assert pool._process is not None
    thread = threading.Thread(target=go)
    thread.start()
    wait_until(lambda: len(below(pool)) == 2, 60.0, "two busy workers")
    alive = [pool._process.pid, *below(pool)]
    pool.close()
    thread.join(60)
    assert failed == [WorkerError]
    assert not any(map(is_alive, alive))
