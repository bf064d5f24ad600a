"""Leases: one holder at any moment, whatever the order of steps, pauses and deaths; clocks that agree on nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mot_core.artifacts
from mot_core import locks, processes
from mot_core.artifacts import MANIFEST, Store
from mot_core.completers.base import Completion, Request
from mot_core.completers.journal import Journal, locked_journal
from mot_core.errors import LeaseLost, StoreError
from mot_core.locks import Lease, LeaseTiming, Record
from mot_core.processes import Process
from mot_core.steps import Step

TIMING = LeaseTiming(heartbeat_seconds=10.0, expiry_seconds=60.0)
STEP = Step("problems", {"seed": 1}, label="a step")
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Time:
    """The world's clock, which no machine knows: each counts from its own start, one faster than another."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock_of(self, machine: int) -> Callable[[], float]:
        return lambda: 1e6 * machine + self.now * (1.0 + 0.02 * machine)


def holds(lease: Lease) -> bool:
    if lease._record is None:
        return False
    try:
        lease.check()
    except LeaseLost:
        return False
    return True


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fresh_directory(tmp_path: Path) -> Path:
    """A hypothesis test's examples share the fixture, so each takes a place of its own."""
    directory = tmp_path / f"locks-{len(list(tmp_path.iterdir()))}"
    directory.mkdir()
    return directory


def test_a_lease_by_hand(tmp_path: Path) -> None:
    time = Time()
    first, second = (Lease(tmp_path, TIMING, time.clock_of(machine)) for machine in (1, 2))
    assert first.take() and not first.earlier_may_run and first.number == 1
    assert not second.take()
    for _ in range(20):  # three times the expiry in all
        time.now += 9.0
        first.beat()
        assert not second.take()
    time.now += 57.0
    assert not second.take(), "58.1 s of its clock are within the expiry"
    time.now += 3.0
    assert second.take() and second.number == 2 and second.earlier_may_run
    with pytest.raises(LeaseLost, match="showed no sign of life for 60 s and lost its lease to another one"):
        first.beat()
    first.release()
    second.check()
    assert names_in(tmp_path) == ["2"]
    second.release()
    assert first.take() and first.number == 3 and not first.earlier_may_run


def test_a_wait_starts_when_the_waiter_first_looks(tmp_path: Path) -> None:
    time = Time()
    first, second = (Lease(tmp_path, TIMING, time.clock_of(0)) for _ in range(2))
    assert first.take()
    time.now += 1e5
    assert not second.take(), "silence counts from the first look: a file's own age is the server's clock"
    time.now += 60.0
    assert second.take()


def test_a_holder_that_fails_passes_its_doubt_on(tmp_path: Path) -> None:
    time = Time()
    lost, failed, next_one, last = (Lease(tmp_path, TIMING, time.clock_of(0)) for _ in range(4))
    assert lost.take() and not failed.take()
    time.now += 60.0
    assert failed.take()
    failed.release(in_order=False)
    assert next_one.take() and next_one.earlier_may_run
    next_one.release()
    assert last.take() and not last.earlier_may_run


@SLOW
@given(st.lists(st.tuples(st.sampled_from(["look", "look", "beat", "release", "wait", "wait"]), st.integers(0, 2), st.floats(0.1, 40.0))))  # fmt: skip
def test_nobody_takes_over_from_a_heart_that_beats(tmp_path: Path, events: list[tuple[str, int, float]]) -> None:
    time, directory = Time(), fresh_directory(tmp_path)
    leases = [Lease(directory, TIMING, time.clock_of(machine)) for machine in range(3)]
    beaten, numbers = 0.0, [0]
    for kind, index, seconds in events:
        lease, holder = leases[index], next(filter(holds, leases), None)
        if kind == "wait":
            time.now += seconds
        elif kind == "look" and lease is not holder and lease.take():
            assert holder is None or time.now - beaten >= 60.0 / 1.04, "taken over within the expiry"
            assert holder is None or lease.earlier_may_run
            assert lease.number > numbers[-1]
            numbers.append(lease.number)
            beaten = time.now
        elif kind == "beat" and lease is holder:
            lease.beat()
            beaten = time.now
        elif kind == "release" and lease is holder:
            lease.release()
        assert sum(map(holds, leases)) <= 1
    # Whatever happened, a waiter that keeps looking gets it.
    if not any(map(holds, leases)):
        return
    patient = Lease(directory, TIMING, time.clock_of(0))
    assert not patient.take()
    time.now += 60.1
    assert patient.take() and sum(map(holds, leases)) == 0


class Interleaving:
    """Threads that go on one at a time, from one use of the file system to the next, in an order that is drawn."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.turn = threading.Condition()
        self.at_gate: set[int] = set()
        self.going: int | None = None
        self.names: dict[int, int] = {}
        for owner, name in ((Lease, "_names"), (Lease, "_path"), (locks, "_link")):
            patch.setattr(owner, name, self._gated(getattr(owner, name)))

    def _gated(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*arguments: Any) -> Any:
            name = self.names.get(threading.get_ident())
            if name is not None:  # the main thread looks whenever it likes
                self._pass(name)
            return call(*arguments)

        return gated

    def _pass(self, name: int) -> None:
        with self.turn:
            self.at_gate.add(name)
            self.going = None if self.going == name else self.going
            self.turn.notify_all()
            self.turn.wait_for(lambda: self.going == name)
            self.at_gate.discard(name)

    def run(
        self, actors: list[Callable[[], None]], choose: Callable[[list[int]], int], after: Callable[[], None]
    ) -> None:
        living, errors = set(range(len(actors))), list[BaseException]()

        def act(name: int, actor: Callable[[], None]) -> None:
            self.names[threading.get_ident()] = name
            try:
                self._pass(name)
                actor()
            except BaseException as error:
                errors.append(error)
            finally:
                with self.turn:
                    living.discard(name)
                    self.going = None if self.going == name else self.going
                    self.turn.notify_all()

        threads = [threading.Thread(target=act, args=one, daemon=True) for one in enumerate(actors)]
        for thread in threads:
            thread.start()
        while True:
            with self.turn:
                assert self.turn.wait_for(lambda: self.going is None and self.at_gate >= living, 60.0)
                if not living:
                    break
                after()
                self.going = choose(sorted(living))
                self.turn.notify_all()
        for thread in threads:
            thread.join(60.0)
        assert errors == []


@SLOW
@given(st.data())
def test_one_holder_in_any_order_of_their_steps(tmp_path: Path, data: st.DataObject) -> None:
    """Three that take, beat, fall silent and release; silence ends a lease after a few looks."""
    directory, ticks = fresh_directory(tmp_path), iter(range(10**9))
    leases = [Lease(directory, LeaseTiming(1.0, 4.0), lambda: float(next(ticks))) for _ in range(3)]
    won: list[int] = []

    def actor(lease: Lease, manners: list[str]) -> Callable[[], None]:
        def act() -> None:
            for manner in manners:
                if not any(lease.take() for _ in range(6)):
                    continue
                won.append(lease.number)
                with contextlib.suppress(LeaseLost):
                    if manner == "beats":
                        lease.beat()
                    if manner != "falls silent":
                        lease.release()

        return act

    manners = st.lists(st.sampled_from(["beats", "releases", "falls silent"]), min_size=1, max_size=3)
    with pytest.MonkeyPatch.context() as patch:
        Interleaving(patch).run(
            [actor(lease, data.draw(manners)) for lease in leases],
            lambda living: data.draw(st.sampled_from(living)),
            lambda: None if sum(map(holds, leases)) <= 1 else pytest.fail("two hold the lock"),
        )
    assert won == sorted(set(won)), "numbers rise, and nobody shares one"
    assert [int(name) for name in names_in(directory) if name.isdigit()] == won[-1:]


def test_a_late_claim_of_a_number_that_was_used_sees_so(tmp_path: Path) -> None:
    late, others = Lease(tmp_path, TIMING), [Lease(tmp_path, TIMING) for _ in range(3)]
    others[0].take()
    others[0].release()
    for other in others[1:]:  # while the late one stands between its look and its claim
        assert other.take()
        if other is others[1]:
            other.release()
    assert not late._claim(2, False), "number 2 is free again, but 3 holds the lock"
    assert names_in(tmp_path) == ["3"] and holds(others[2])


def test_a_reply_that_got_lost_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_without_reply(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)  # sent again by the client: the server has done it before

    monkeypatch.setattr(os, "link", link_without_reply)
    lease = Lease(tmp_path, TIMING)
    assert lease.take() and holds(lease)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"holder": "x"}', b"\x00" * 512])
def test_a_torn_lease_ends_by_silence(tmp_path: Path, text: bytes) -> None:
    time = Time()
    (tmp_path / "4").write_bytes(text)
    lease = Lease(tmp_path, TIMING, time.clock_of(0))
    assert not lease.take()
    time.now += 60.0
    assert lease.take() and lease.number == 5 and lease.earlier_may_run


# -- processes -----------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_which_process_is_gone(sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(Process.current(), pid=sleeper.pid, started=int(processes._stat(sleeper.pid)[19]))
    assert not Process.current().is_gone() and not one.is_gone()
    assert replace(one, started=one.started - 1).is_gone(), "its number belongs to another one now"
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert one.is_gone(), "nobody has waited for it yet, but it does nothing more"
    sleeper.wait()
    assert one.is_gone()
    assert not replace(one, host="another").is_gone() and not replace(one, machine="another").is_gone()
    monkeypatch.setattr(processes, "_machine", lambda: "")
    assert not replace(one, machine="").is_gone(), "machines without a name are not the same one"


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    dead = Lease(tmp_path, TIMING)
    assert dead.take()
    record = Record.parse((tmp_path / "1").read_bytes())
    assert record is not None
    gone = Process(record.process.host, record.process.machine, sleeper.pid, record.process.started)
    (tmp_path / "1").write_bytes(replace(record, process=gone).to_bytes())
    heir = Lease(tmp_path, TIMING)
    assert heir.take() and not heir.earlier_may_run


# -- settings ------------------------------------------------------------------------------------------


def test_a_store_says_how_long_its_leases_last(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    assert store._lease_timing == LeaseTiming(10.0, 60.0)
    timing = {"heartbeat_seconds": 1, "expiry_seconds": 5}
    (tmp_path / "store.json").write_text(json.dumps({"format": 2, "lease": timing}))
    with Store(tmp_path).open().lock("x") as lock:
        (record,) = [Record.parse(path.read_bytes()) for path in (tmp_path / "locks" / "x").iterdir()]
        assert record is not None and record.expiry_seconds == 5.0 and lock.number == 1


@pytest.mark.parametrize(
    ("lease", "told"),
    [
        ({"expiry": 5}, "'lease' is {'expiry': 5}; expected {'heartbeat_seconds': 10.0, 'expiry_seconds': 60.0}"),
        ({"expiry_seconds": "soon"}, "could not convert string to float"),
        ([1], "'lease' is"),
        ({"expiry_seconds": 20}, "ends by a late heartbeat; expected an expiry of at least three heartbeats"),
        ({"heartbeat_seconds": 0}, "ends by a late heartbeat"),
    ],
)
def test_settings_that_cannot_serve_are_refused(tmp_path: Path, lease: Any, told: str) -> None:
    Store(tmp_path).open()
    (tmp_path / "store.json").write_text(json.dumps({"format": 2, "lease": lease}))
    with pytest.raises(StoreError) as caught:
        Store(tmp_path).lock("x")
    assert told in str(caught.value)


# -- what a holder does after it lost its lease --------------------------------------------------------


class Shared:
    """A store with a slow holder, and one that takes the step over from it at any moment."""

    def __init__(self, root: Path) -> None:
        self.slow, self.other = Store(root).open(), Store(root)

    @staticmethod
    def work(by: str) -> Callable[[Path], dict[str, Any]]:
        def compute(work_dir: Path) -> dict[str, Any]:
            (work_dir / "by.txt").write_text(by)
            return {"by": by}

        return compute

    def take_over(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Lease, "_silent", lambda *_: True)
            assert not self.other.obtain(STEP, self.work("other")).reused

    def published_by(self) -> str:
        """Who wrote the step, which all of it has to agree on."""
        manifest = self.slow.manifest(STEP.identity)
        assert manifest is not None and self.slow.damaged_files(manifest) == []
        assert sorted(path.name for path in self.slow.object_dir(STEP.identity).iterdir()) == ["by.txt", MANIFEST]
        text = (self.slow.object_dir(STEP.identity) / "by.txt").read_text()
        assert manifest.counts == {"by": text}
        assert list((self.slow.root / "tmp").iterdir()) == []
        return text


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path / "store")


def once(call: Callable[[], None]) -> Callable[..., None]:
    """The call, the first time only; what it does may come by here itself."""
    left = [call]
    return lambda *_: left.pop()() if left else None


@pytest.mark.parametrize("moment", ["computing", "hashing", "checked", "renamed", "published"])
def test_a_step_taken_over_at_any_moment_is_whole_and_its_takers(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    lose = once(shared.take_over)

    def compute(work_dir: Path) -> dict[str, Any]:
        counts = shared.work("slow")(work_dir)
        if moment == "computing":
            lose()
        return counts

    for name, owner, attribute in (
        ("hashing", mot_core.artifacts, "sha256_of"),
        ("checked", Store, "_put"),
        ("renamed", mot_core.artifacts, "sync_directory"),
    ):
        if name == moment:
            real = getattr(owner, attribute)
            monkeypatch.setattr(owner, attribute, lambda *arguments, real=real: (lose(), real(*arguments))[1])
    made = shared.slow.obtain(STEP, compute)
    if moment == "published":
        assert not made.reused and shared.published_by() == "slow"
        assert shared.other.obtain(STEP, shared.work("other")).reused
    else:
        assert made.reused and made.counts == {"by": "other"} and shared.published_by() == "other"


def test_who_lost_a_lease_writes_nothing_into_the_takers_work(shared: Shared) -> None:
    """The taker is in the middle of the step when the other one wakes up."""
    taken, awake = threading.Event(), threading.Event()

    def slow(work_dir: Path) -> dict[str, Any]:
        (work_dir / ".checkpoint").write_text("after step 3")
        with (work_dir / ".checkpoint").open("r+") as still_open:
            thread.start()
            assert taken.wait(60.0)
            still_open.write("SCRIBBLE")
        try:
            (work_dir / "by.txt").write_text("slow")
        finally:
            awake.set()
        return {"by": "slow"}

    def other(work_dir: Path) -> dict[str, Any]:
        taken.set()
        assert awake.wait(60.0)
        assert (work_dir / ".checkpoint").read_text() == "after step 3"
        return shared.work("other")(work_dir)

    def take_over() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Lease, "_silent", lambda *_: not taken.is_set())
            shared.other.obtain(STEP, other)

    thread = threading.Thread(target=take_over)
    assert shared.slow.obtain(STEP, slow).reused
    thread.join(60.0)
    assert shared.published_by() == "other"


def test_a_step_that_fails_still_says_why(shared: Shared) -> None:
    def fail(work_dir: Path) -> dict[str, Any]:
        raise ZeroDivisionError("no such luck")

    with pytest.raises(ZeroDivisionError, match="no such luck"):
        shared.slow.obtain(STEP, fail)
    assert not shared.other.obtain(STEP, shared.work("other")).reused


def test_work_on_a_disk_of_its_own_is_published_and_resumed(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mot_core.artifacts.SCRATCH, str(tmp_path / "disk"))

    def half(work_dir: Path) -> dict[str, Any]:
        assert work_dir.is_relative_to(tmp_path / "disk")
        (work_dir / ".checkpoint").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shared.slow.obtain(STEP, half)

    def rest(work_dir: Path) -> dict[str, Any]:
        assert [path.name for path in work_dir.iterdir()] == [".checkpoint"]
        return shared.work("slow")(work_dir)

    shared.slow.obtain(STEP, rest)
    assert shared.published_by() == "slow"
    assert list((tmp_path / "disk").glob("*/*")) == []


@pytest.mark.parametrize("on_disk_of_its_own", [False, True])
def test_a_kill_while_files_are_hashed_leaves_the_checkpoint(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk_of_its_own: bool
) -> None:
    if on_disk_of_its_own:
        monkeypatch.setenv(mot_core.artifacts.SCRATCH, str(tmp_path / "disk"))

    def compute(work_dir: Path) -> dict[str, Any]:
        found.append(sorted(path.name for path in work_dir.iterdir()))
        (work_dir / ".checkpoint").mkdir(exist_ok=True)
        (work_dir / ".checkpoint" / "state.json").write_text("{}")
        return shared.work("slow")(work_dir)

    def die(path: Path) -> str:
        raise KeyboardInterrupt

    found: list[list[str]] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mot_core.artifacts, "sha256_of", die)
        shared.slow.obtain(STEP, compute)
    assert not shared.slow.obtain(STEP, compute).reused
    assert found == [[], [".checkpoint"]]
    assert shared.published_by() == "slow"
    assert list(tmp_path.glob("disk/*/*")) == []


def test_a_copy_that_does_not_fit_into_the_store_is_removed_and_told(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mot_core.artifacts.SCRATCH, str(tmp_path / "disk"))

    def compute(work_dir: Path) -> dict[str, Any]:
        (work_dir / ".checkpoint").write_text("1")
        (work_dir / "more").mkdir()
        (work_dir / "more" / "weights").write_text("w")
        return shared.work("slow")(work_dir)

    real, tmp = shutil.copyfile, shared.slow.root / "tmp"

    def fail(how: type[BaseException], *arguments: object) -> None:
        def copy(source: Path, target: Path) -> None:
            if target.name == "weights":
                raise how(*arguments, *((str(source), None, str(target)) if arguments else ()))
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", copy)
            shared.slow.obtain(STEP, compute)

    with pytest.raises(StoreError, match=rf"the disk is full; free some space.*\({tmp}/.*/weights\)"):
        fail(OSError, errno.ENOSPC, "No space left on device")
    assert list(tmp.iterdir()) == []
    assert [path.name for path in tmp_path.glob("disk/*/*/*")] == [".checkpoint"]
    for _ in range(2):  # killed in the middle of the copy
        with pytest.raises(KeyboardInterrupt):
            fail(KeyboardInterrupt)
        assert len(list(tmp.iterdir())) == 1, "the last one's copy alone"
    shared.slow.obtain(STEP, shared.work("slow"))
    assert shared.published_by() == "slow"


# -- the journal ---------------------------------------------------------------------------------------

SCOPE = {"model": {"model": "m"}, "sampling": {}, "completer": "c"}
REQUESTS = [Request.of({"test": 1}, f"p{index}", f"question {index}", 0) for index in range(6)]


def answer(index: int, text: str) -> Completion:
    return Completion.of(REQUESTS[index], f"{text} {index}", 3, "stop", prompt="", prompt_tokens=5)


def texts(journal: Journal) -> dict[int, str]:
    return {
        index: journal.read(one.key)["text"] for index, one in enumerate(REQUESTS) if journal.answered(one.key)
    }  # fmt: skip


def test_rows_of_who_lost_the_journal_do_not_reach_it(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked_journal(shared.slow, SCOPE) as slow:
        slow.append([answer(0, "slow"), answer(1, "slow")], {"engine": "e"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Lease, "_silent", lambda *_: True)
            taken = contextlib.ExitStack()
            other = taken.enter_context(locked_journal(shared.other, SCOPE))
        with taken:
            other.append([answer(2, "other")], {"engine": "e"})
            with pytest.raises(LeaseLost):
                slow.append([answer(3, "slow")], {"engine": "e"})
            monkeypatch.setattr(slow, "_check", lambda: None)  # it was asked a moment too early
            slow.append([answer(4, "slow")], {"engine": "e"})
            other.append([answer(5, "other")], {"engine": "e"})
            expected = {0: "slow 0", 1: "slow 1", 2: "other 2", 5: "other 5"}
            assert texts(other) == expected
    with locked_journal(shared.slow, SCOPE) as journal:
        assert texts(journal) == expected


def test_a_row_that_was_moved_is_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SCOPE)
    with (tmp_path / "rows.jsonl").open("ab") as stranger:
        stranger.write(b'{"x": 1}\n')
    journal.append([answer(0, "a")], {"engine": "e"})
    with pytest.raises(StoreError, match="another process has written to the journal"):
        journal.read(REQUESTS[0].key)
    journal.close()
