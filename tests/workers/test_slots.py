"""Who runs when on which devices, on lists of names that stand for GPUs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mot_core.artifacts import Store
from mot_core.errors import SpecError
from mot_core.spec import Engine
from mot_core.steps import Step
from mot_core.workers.parent import bind
from mot_core.workers.pool import WorkerPool
from mot_core.workers.slots import Slots, Turn, devices_needed

EIGHT = [str(index) for index in range(8)]


def started(slots: Slots, waiting: list[Turn]) -> dict[Turn, tuple[str, ...]]:
    """Whoever starts when every waiting job looks, the last one first; each looks again after every start."""
    running: dict[Turn, tuple[str, ...]] = {}
    again = True
    while again:
        again = False
        for turn in sorted(set(waiting) - running.keys(), reverse=True):
            devices = slots.take(turn)
            if devices is not None:
                running[turn], again = devices, True
    return running


def queue(slots: Slots, *jobs: tuple[int, int]) -> list[Turn]:
    """Jobs `(urgency, devices)` in the queue."""
    turns = [(urgency, number) for number, (urgency, _) in enumerate(jobs)]
    for turn, (_, devices) in zip(turns, jobs, strict=True):
        slots.enter(turn, devices)
    return turns


def test_four_branches_of_two_devices_run_at_once_on_eight() -> None:
    slots = Slots(EIGHT, 8, shared=False)
    turns = queue(slots, *[(2, 2)] * 5)
    running = started(slots, turns)
    assert sorted(running) == turns[:4]
    assert sorted(name for devices in running.values() for name in devices) == EIGHT
    slots.give_back(running[turns[1]])
    assert slots.take(turns[4]) == running[turns[1]]


def test_branches_of_all_devices_run_in_turn() -> None:
    slots = Slots(EIGHT, 8, shared=False)
    turns = queue(slots, (2, 8), (2, 8))
    running = started(slots, turns)
    assert list(running) == turns[:1] and running[turns[0]] == tuple(EIGHT)
    slots.give_back(running[turns[0]])
    assert slots.take(turns[1]) == tuple(EIGHT)


def test_a_large_job_that_waits_is_not_overtaken_by_small_ones() -> None:
    slots = Slots(EIGHT[:4], 4, shared=False)
    (first,) = queue(slots, (3, 1))
    small = slots.take(first)
    assert small == ("0",)
    large, later, host = (2, 1), (3, 2), (3, 3)
    slots.enter(large, 4)
    slots.enter(later, 1)
    slots.enter(host, 0)
    assert slots.take(large) is None and slots.take(later) is None, "three are free, but kept for the large one"
    assert slots.take(host) == (), "it takes nothing that the large one waits for"
    slots.give_back(small)
    assert slots.take(later) is None
    assert slots.take(large) == tuple(EIGHT[:4])


def test_a_smaller_job_of_greater_urgency_goes_before_a_large_one() -> None:
    slots = Slots(EIGHT[:2], 2, shared=False)
    turns = queue(slots, (2, 2), (1, 1))
    assert list(started(slots, turns)) == [turns[1]]


def test_a_number_of_workers_caps_both_kinds_together() -> None:
    slots = Slots(EIGHT, 2, shared=True)
    turns = queue(slots, (1, 1), (1, 0), (1, 1))
    assert sorted(started(slots, turns)) == turns[:2]
    apart = Slots(EIGHT, 2, shared=False)
    turns = queue(apart, (1, 1), (1, 0), (1, 1), (1, 0), (1, 1))
    assert sorted(started(apart, turns)) == turns[:4]


def test_without_devices_any_need_is_a_place() -> None:
    slots = Slots([], 2, shared=False)
    turns = queue(slots, (1, 4), (1, 0), (1, 1))
    assert started(slots, turns) == {turns[0]: (), turns[1]: ()}


def test_more_devices_than_there_are_are_refused() -> None:
    slots = Slots(["0", "GPU-ab"], 2, shared=False)
    with pytest.raises(SpecError, match=r"needs 3 devices, but there are 2 \(0, GPU-ab\)"):
        slots.enter((0, 0), 3)
    assert not slots._waiting


JOBS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=25)


@given(jobs=JOBS, count=st.integers(1, 4), places=st.integers(1, 5), shared=st.booleans(), draw=st.data())
def test_no_device_is_in_two_jobs_and_every_job_ends(
    jobs: list[tuple[int, int]], count: int, places: int, shared: bool, draw: st.DataObject
) -> None:
    """Jobs arrive and end in any order; what runs, and in which order it started, obeys the rules at each moment."""
    slots = Slots(EIGHT[:count], places, shared=shared)
    needs = {(urgency, number): min(needed, count) for number, (urgency, needed) in enumerate(jobs)}
    to_come, waiting = list(needs), set[Turn]()
    running: dict[Turn, tuple[str, ...]] = {}
    ended = 0
    while ended < len(jobs):
        if to_come and (not running or draw.draw(st.booleans())):
            turn = to_come.pop(0)
            slots.enter(turn, needs[turn])
            waiting.add(turn)
        elif running:
            turn = draw.draw(st.sampled_from(sorted(running)))
            slots.give_back(running.pop(turn))
            ended += 1
        fresh = started(slots, sorted(waiting))
        waiting -= fresh.keys()
        running |= fresh
        for turn, devices in fresh.items():
            assert len(devices) == needs[turn]
            # Nobody ahead still waits for what this one took: devices, or the last places.
            ahead = [other for other in waiting if other < turn]
            assert all(bool(needs[other]) != bool(needs[turn]) for other in ahead), f"{turn} went before {ahead}"
            assert not shared or not ahead or len(running) + len(ahead) <= places
        used = [name for devices in running.values() for name in devices]
        assert len(used) == len(set(used)) <= count
        on_devices = sum(bool(devices) for devices in running.values())
        assert max(on_devices, len(running) - on_devices) <= places
        assert not shared or len(running) <= places
        assert running or not waiting, "jobs wait though nothing runs"
    assert not slots._waiting


def step(kind: str, spec: dict[str, Any] | None = None, **locators: Any) -> Step:
    return Step(kind, spec or {}, locators=locators)


def test_what_each_kind_of_step_needs() -> None:
    wide = Engine(tensor_parallel_size=2, pipeline_parallel_size=2, data_parallel_size=2).model_dump(mode="json")
    assert devices_needed(step("branch", layout={"devices": 4})) == 4
    assert devices_needed(step("branch")) == 1
    vllm = {"completer": "vllm"}
    assert devices_needed(step("completions", vllm, teacher_settings=wide)) == 8
    assert devices_needed(step("judgements", vllm, judge_settings=wide)) == 8
    assert devices_needed(step("evaluation", vllm, student_settings=wide)) == 8
    assert devices_needed(step("evaluation", vllm)) == 1
    assert devices_needed(step("completions", {"completer": "transformers"})) == 1
    assert devices_needed(step("completions", {"completer": "openai"}, teacher_settings={"base_url": "x"})) == 0
    assert devices_needed(step("completions", {"completer": "corpus"})) == 0
    assert [devices_needed(step(kind)) for kind in ("problems", "overlap", "verdicts", "merge")] == [0, 0, 0, 0]
    assert devices_needed(step("merge", {"barrier": {}})) == 1
    assert devices_needed(step("corpora", {"choice": "first"})) == 0
    assert devices_needed(step("corpora", {"choice": "likeliest"})) == 1


def test_the_pool_runs_what_fits_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's own threads and lock, over workers that are played: none is started."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(EIGHT))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(24)))
    pool = WorkerPool(Store(tmp_path).open())
    monkeypatch.setattr(pool, "start", lambda: None)
    sent: list[dict[str, Any]] = []
    told = threading.Condition()

    def send(command: dict[str, Any]) -> None:
        with told:
            sent.append(command)
            told.notify_all()

    monkeypatch.setattr(pool, "_send", send)
    branches = [step("branch", {"number": number}, layout={"devices": 2}) for number in range(6)]
    threads = [threading.Thread(target=pool.run, args=([one], 2, lambda *_: None)) for one in branches]
    for thread in threads:
        thread.start()
    with told:
        assert told.wait_for(lambda: len(sent) == 4, 20.0)
        assert not told.wait_for(lambda: len(sent) > 4, 0.3), "eight devices hold four branches of two"
    first = [name for command in sent for name in command["settings"]["devices"]]
    assert sorted(first) == EIGHT
    assert [command["settings"]["threads"] for command in sent] == [6] * 4, "two eighths of 24 cores"
    for command in list(sent):
        pool._handle(command["job"], {"exit": 0})
    with told:
        assert told.wait_for(lambda: len(sent) == 6, 20.0)
    for command in sent[4:]:
        pool._handle(command["job"], {"exit": 0})
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()


def test_a_worker_sees_its_devices_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    from mot_core.runner import RunSettings

    chosen: list[int] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert bind(["2", "GPU-ab"]) == ("2", "GPU-ab")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,GPU-ab" and chosen == [0]
    assert bind([]) == () and os.environ["CUDA_VISIBLE_DEVICES"] == "" and chosen == [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bind(["2"]) == () and "sees none of the devices 2: this job runs on the CPU" in caplog.text
    assert RunSettings(devices=("2", "GPU-ab")).device == "cuda:0" and RunSettings().device == "cpu"
