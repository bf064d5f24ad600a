"""Workers: steps run in processes of their own, and a death or an error there is told with its step and remedy."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Store
from mot_core.errors import CompletionError, Halted, MotError, SpecError, WorkerError
from mot_core.steps import Step
from mot_core.workers.parent import Parent
from mot_core.workers.pool import WorkerPool, union_seconds, visible_devices
from tests.processes import descendants, is_alive, wait_until

PROBLEMS = Step(
    "problems",
    {
        "families": ["products"],
        "table": None,
        "splits": None,
        "role": "training",
        "grader": "family",
        "import_path": None,
        "num_problems": 3,
        "split": "train",
        "seed": 1,
    },
    label="problems",
)


def completions(completer: str, seed: int = 1) -> Step:
    spec = {
        "teacher": {"model": "m"}, "completer": f"tests.pico:{completer}",
        "sampling": {"temperature": 0.7, "top_p": 1.0, "max_completion_tokens": 8}, "num_samples": 1, "seed": seed,
        "batch_size": 8, "max_failed_share": 0.05,
    }  # fmt: skip
    return Step(
        "completions", spec, (("problems", PROBLEMS),), label=f"generate {completer}", locators={"teacher": "/none"}
    )


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    pool = WorkerPool(Store(tmp_path_factory.mktemp("store")).open(), num_workers=2)
    yield pool
    pool.close()


def listen(seen: list[tuple[str, dict[str, Any]]]) -> Any:
    return lambda step, event: seen.append((step.label, event))


def test_steps_of_one_job_run_in_order_in_one_worker(pool: WorkerPool) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    job = pool.run([PROBLEMS, completions("Scripted")], 0, listen(seen))
    assert [record.kind for record in job.records] == ["problems", "completions"]
    assert [record.reused for record in job.records] == [False, False]
    published = [label for label, event in seen if event.get("event") == "published"]
    assert len(published) == 2
    again = pool.run([PROBLEMS], 0, listen([]))
    assert again.records[0].reused


def test_a_worker_that_is_killed_is_told_with_step_signal_log_and_remedy(pool: WorkerPool) -> None:
    step = completions("KilledByKernel")
    with pytest.raises(
        WorkerError, match=r"generate KilledByKernel: its worker died \(killed by signal 9; memory\?\)"
    ) as caught:
        pool.run([PROBLEMS, step], 0, listen([]))
    assert "run the same command again: it goes on" in str(caught.value)
    assert pool.store.find(step.identity) is None
    # The pool serves on.
    assert pool.run([completions("Scripted", seed=2)], 0, listen([])).records


def test_an_unexpected_error_is_told_with_its_type_and_the_output_is_kept(pool: WorkerPool) -> None:
    step = completions("Chatty")
    seen: list[tuple[str, dict[str, Any]]] = []
    with pytest.raises(MotError, match="generate Chatty: ZeroDivisionError: no such luck"):
        pool.run([step], 0, listen(seen))
    assert ("generate Chatty", {"line": "half way"}) in seen
    log = pool.store.log_path(step.identity).read_text()
    assert "half way" in log and "ZeroDivisionError" in log and "Traceback" in log


@pytest.mark.parametrize("log", ["/dev/full", "/dev/null/no-folder"])
def test_a_log_that_cannot_be_written_costs_no_worker(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    pool.start()
    process = pool._process
    monkeypatch.setattr(Store, "log_path", lambda store, identity: Path(log))
    seen: list[tuple[str, dict[str, Any]]] = []
    with pytest.raises(MotError, match="generate Chatty: ZeroDivisionError: no such luck"):
        pool.run([completions("Chatty", seed=len(log))], 0, listen(seen))
    assert ("generate Chatty", {"line": "half way"}) in seen
    assert pool.run([completions("Scripted", seed=len(log))], 0, listen([])).records
    assert pool._process is process


def test_half_an_event_of_a_killed_worker_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
    monkeypatch.setattr(Parent, "tell", lambda parent, message: told.append(message))
    parent = Parent()
    for rest in (b'{"event": "publ', b'{"event": "published"}'):
        events, end = os.pipe()
        os.close(end)
        parent.selector.register(events, selectors.EVENT_READ, ("events", "job"))
        parent.open_pipes["job"] = {events, -1}  # its output is still open
        parent.buffers[events] = rest
        parent.close_pipe(events, "job")
    assert told == [{"job": "job", "event": "published"}]


def test_an_error_of_ours_keeps_its_type(pool: WorkerPool) -> None:
    with pytest.raises(CompletionError, match="generate Failing: 3 of 3 requests failed"):
        pool.run([completions("Failing")], 0, listen([]))


def test_closing_ends_everything_and_refuses_more(tmp_path: Path) -> None:
    pool = WorkerPool(Store(tmp_path).open(), num_workers=1)
    pool.run([PROBLEMS], 0, listen([]))
    process = pool._process
    assert process is not None
    below = [process.pid, *descendants(process.pid)]
    pool.close()
    wait_until(lambda: not any(map(is_alive, below)), 60.0, "workers end with their pool")
    with pytest.raises(WorkerError, match="stopped before this step ran; run the same command again"):
        pool.run([PROBLEMS], 0, listen([]))


def test_the_most_urgent_job_goes_first(tmp_path: Path) -> None:
    pool = WorkerPool(Store(tmp_path).open(), num_workers=1)
    try:
        pool.run([PROBLEMS], 0, listen([]))
        order: list[int] = []
        with pool._condition:
            pool._slots.enter((0, -1), 0)
            taken = pool._slots.take((0, -1))  # the only place is taken while the three queue up
        threads = []
        for priority, seed in ((3, 11), (1, 12), (2, 13)):
            step = completions("Scripted", seed)

            def go(priority: int = priority, step: Step = step) -> None:
                pool.run(
                    [step],
                    priority,
                    lambda step, event: order.append(priority) if event.get("event") == "started" else None,
                )

            threads.append(threading.Thread(target=go))
            threads[-1].start()
            wait_until(lambda: len(pool._slots._waiting) == len(threads), 60.0, "the job queues up")
        with pool._condition:
            assert taken == ()
            pool._slots.give_back(taken)
            pool._condition.notify_all()
        for thread in threads:
            thread.join(60)
        assert order == [1, 2, 3]
    finally:
        pool.close()


def test_a_job_of_more_devices_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    pool = WorkerPool(Store(tmp_path).open())
    assert pool.num_workers == 2
    step = completions("Scripted")
    wide = replace(step, locators={**step.locators, "teacher_settings": {"tensor_parallel_size": 4}})
    try:
        with pytest.raises(
            SpecError, match=r"generate Scripted: the job needs 4 devices, but there are 2 \(3, 5\); lower"
        ):
            pool.run([PROBLEMS, wide], 0, listen([]))
        assert not pool._slots._waiting
        # A job that needs no device runs beside those that do, and sees none.
        assert pool.run([PROBLEMS], 0, listen([])).devices == ()
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("visible", "names"),
    [("", []), ("-1", []), ("0,1", ["0", "1"]), ("2, GPU-ab ", ["2", "GPU-ab"]), ("1,-1,0", ["1"])],
)
def test_devices_are_as_the_variable_names_them(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices() == names


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [
        ([], 0.0),
        ([(1.0, 3.0)], 2.0),
        ([(0.0, 2.0), (1.0, 3.0)], 3.0),
        ([(4.0, 5.0), (0.0, 1.0)], 2.0),
        ([(0.0, 9.0), (1.0, 2.0)], 9.0),
    ],
)
def test_union_of_intervals(intervals: list[tuple[float, float]], seconds: float) -> None:
    assert union_seconds(intervals) == seconds


def test_halted_workers_end_the_step_that_they_compute_and_start_no_other(tmp_path: Path) -> None:
    pool = WorkerPool(Store(tmp_path).open(), num_workers=1)
    steps = [PROBLEMS, completions("Unhurried"), completions("Scripted")]

    def listener(step: Step, event: dict[str, Any]) -> None:
        if event.get("event") == "computing" and event["on"] and step is steps[1]:
            pool.halt("somebody else's turn")

    try:
        with pytest.raises(
            Halted, match="generate Scripted: stopped before this step .somebody else's turn.; run the same"
        ):
            pool.run(steps, 0, listener)
        assert [pool.store.find(step.identity) is not None for step in steps] == [True, True, False]
        with pytest.raises(Halted, match="generate Scripted: the workers were stopped before this step ran"):
            pool.run(steps[2:], 0, listener)
    finally:
        pool.close()


def test_a_halt_before_any_step_needs_no_parent(tmp_path: Path) -> None:
    pool = WorkerPool(Store(tmp_path).open(), num_workers=1)
    pool.halt("too early")
    with pytest.raises(Halted, match="too early"):
        pool.run([PROBLEMS], 0, listen([]))
    assert pool.store.find(PROBLEMS.identity) is None


def test_a_listener_whose_terminal_is_gone_does_not_leave_its_job_waiting(pool: WorkerPool) -> None:
    def listener(step: Step, event: dict[str, Any]) -> None:
        raise SystemExit(1)  # rich does, on a broken pipe

    for seed in (3, 4):
        job = pool.run([PROBLEMS, completions("Scripted", seed=seed)], 0, listener)
        assert [record.kind for record in job.records] == ["problems", "completions"]
