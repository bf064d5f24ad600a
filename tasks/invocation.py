"""One invocation of a flow: its store, its workers, and what became of each step.

Tasks find it by run id, so that only ids and small records pass through Prefect. Invariant: a step counts once,
as `run` if any of this invocation's workers computed it, else as `reused`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mot_core.artifacts import Published, Store, find_all
from mot_core.dag import Do
from mot_core.errors import Halted, StoreError
from mot_core.retention import Place, to_compute
from mot_core.steps import Step
from mot_core.workers.pool import WorkerPool
from mot_core.world import World

if TYPE_CHECKING:
    from tasks.cluster import Cluster

Watcher = Callable[[Step, dict[str, Any]], None]

# Lower runs first: what others wait for goes before what ends a path.
PRIORITY = {
    "problems": 0, "overlap": 0, "training-problems": 0, "completions": 1, "verdicts": 0, "judgements": 3, "corpora": 0, "shuffled-corpora": 0,
    "branch": 2, "on-policy": 2, "merge": 1, "evaluation": 3,
    "harness": 3, "confidence": 3, "landscape": 3,
}  # fmt: skip


class Halt:
    """A request to stop at the next published step, from any thread; kept until the invocation that heeds it is there."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.resumes = False
        """Whether whoever asked means to go on later with the very same work."""
        self._lock = threading.Lock()
        self._heeded_by: list[Callable[[str], None]] = []

    def request(self, reason: str, *, resumes: bool = False) -> None:
        """Ask for it; the first reason given is the one that is told."""
        with self._lock:
            if self.reason is not None:
                return
            self.reason, self.resumes = reason, resumes
            listeners = list(self._heeded_by)
        for listener in listeners:
            listener(reason)

    def heed(self, listener: Callable[[str], None]) -> None:
        """Call a listener with the reason once it is asked for, which may be now."""
        with self._lock:
            self._heeded_by.append(listener)
            reason = self.reason
        if reason is not None:
            listener(reason)


@dataclass
class Invocation:
    """The state that a flow run's tasks share, in this process only."""

    run_id: str
    store: Store
    pool: WorkerPool | Cluster
    world: World | None
    """Of an experiment or sweep; a study's cells have each their own."""
    watch: Watcher = lambda step, event: None
    steps: dict[str, Step] = field(default_factory=dict)
    found: dict[str, Published | None] = field(default_factory=dict)
    records: dict[str, Published] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    conclude: Callable[[], None] = lambda: None
    phases: Iterable[Callable[[Do], None]] = ()
    """Of a study: what to submit, one after the other, each once what came before is published."""
    lacking: set[str] = field(default_factory=set)
    """Steps that were reused without their weights, which a later phase reads: they are to be submitted again."""
    shards: int = 1
    """Jobs that a student's benchmarks, and a teacher's requests, are split into."""
    flow_run_id: str | None = None
    failure: BaseException | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look_up(self, steps: list[Step], drawn: list[Published], kept: Iterable[Place] = ()) -> int:
        """Find what is published already, verifying hashes; the number of steps that have to be computed: those that are
        missing, and those whose removed weights are read by them or `kept` by the spec. `drawn` are this invocation's own
        work: they count as run."""
        self.steps.update((step.identity, step) for step in steps)
        self.found.update(find_all(self.store, [step.identity for step in steps]))
        # What was removed before this invocation held the store is missing, drawn or not.
        self.found.update((record.identity, record) for record in drawn if self.found.get(record.identity) is not None)
        known = {identity: self.records.get(identity) or self.found.get(identity) for identity in self.steps}
        wanted = to_compute(list(self.steps.values()), known, kept)
        for identity in wanted:
            if identity in self.records:
                self.lacking.add(identity)
            self.found[identity] = None
        return len(wanted)

    def obtain(self, identities: list[str], watch: Watcher, shard: tuple[int, int] | None = None) -> list[Published]:
        """The published steps, computing what is missing in one worker; with `shard`, none, but a part of their work."""
        try:
            return self._obtain(identities, watch, shard)
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Keep the first cause of failure; no further step starts."""
        with self._lock:
            self.failure = self.failure or error
        self.pool.accept_no_more()

    def missing(self, identities: list[str]) -> list[Step]:
        """Those of these steps that were not published when the invocation looked them up."""
        return [self.steps[identity] for identity in identities if self.found.get(identity) is None]

    def _obtain(self, identities: list[str], watch: Watcher, shard: tuple[int, int] | None) -> list[Published]:
        computed: list[Published] = []
        if missing := self.missing(identities):
            assert isinstance(self.pool, WorkerPool), "a cluster's steps are computed in its tasks"
            computed = self.pool.run(missing, PRIORITY[missing[0].kind], watch, shard).records
        return self.note(identities, computed, watch) if shard is None else []

    def note(self, identities: list[str], computed: list[Published], watch: Watcher) -> list[Published]:
        """Count steps as done: those that a worker has just obtained, and those that were found before."""
        fresh = {record.identity: record for record in computed}
        records = [fresh.get(identity) or self.found.get(identity) for identity in identities]
        for identity, record in zip(identities, records, strict=True):
            # Prefect has handed a task another run's record before (#22259): trust identities only.
            if record is None or record.identity != identity:
                raise StoreError(f"step {identity}: a record of {record and record.identity} came back instead")
            self.records[identity] = record
            if record.reused:
                watch(self.steps[identity], {"event": "reused"})
        return [record for record in records if record is not None]

    def halt(self, reason: str) -> None:
        """Stop at the next published step: whatever waits for more than that raises `Halted`."""
        with self._lock:
            self.failure = self.failure or Halted(f"{self.run_id}: {reason}")
        self.pool.halt(reason)

    def step_counts(self) -> dict[str, int]:
        """How many steps this invocation computed, and how many it reused."""
        reused = sum(record.reused for record in self.records.values())
        return {"run": len(self.records) - reused, "reused": reused}


_INVOCATIONS: dict[str, Invocation] = {}


def register(invocation: Invocation) -> None:
    _INVOCATIONS[invocation.run_id] = invocation


def invocation_of(run_id: str) -> Invocation:
    return _INVOCATIONS[run_id]


def forget(run_id: str) -> None:
    _INVOCATIONS.pop(run_id, None)


@dataclass(frozen=True)
class Here:
    """Steps to obtain in this process's invocation, by the workers of this machine."""

    run_id: str
    identities: list[str]
    shard: tuple[int, int] | None = None

    def obtain(self, tell_log: Callable[[str], None]) -> list[bool]:
        """Obtain them, and say of each whether it was reused."""
        invocation = invocation_of(self.run_id)

        def watch(step: Step, event: dict[str, Any]) -> None:
            if "line" in event:
                tell_log(event["line"])
            invocation.watch(step, event)

        return [record.reused for record in invocation.obtain(self.identities, watch, self.shard)]
