"""A Ray cluster in place of this machine's workers: the one place that imports Ray.

    flow process ──prefect-ray──► Ray worker on some node ──► clean parent ──fork──► worker
      records, ids, live view       one task run                as on one machine (mot_core.workers)
         ▲─────────── Desk (an actor) ◄── events, records, failures

A task carries its steps as records, the store's path and the desk; no node knows the flow process's memory. Invariant: what
is done is what the shared store holds; the desk only tells of it. Longer than most: Ray is imported in no other file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from prefect.settings import get_current_settings
from prefect_ray.context import remote_options
from prefect_ray.task_runners import RayTaskRunner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mot_core.artifacts import Published, Store
from mot_core.errors import SpecError, StoreError, WorkerError, described, raised
from mot_core.runner import RunSettings
from mot_core.steps import RemoteStep, Step
from mot_core.workers.pool import WorkerPool
from mot_core.workers.slots import devices_needed

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

    from tasks.invocation import Invocation

MAX_LOST_WORKERS = 3
"""How often a task starts again, on whichever node has room, after its Ray worker or its node was lost. A step that fails,
or whose own worker dies, is not among these: it ends the run, as on one machine."""
CONNECT_SECONDS = 10.0
POLL_SECONDS = 1.0
log = logging.getLogger("mot.cluster")


class Desk:
    """Where tasks tell the flow process what happens, and ask whether they may start. One a run; it ends with it."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.open = True
        self.news = asyncio.Event()

    async def tell(self, message: dict[str, Any]) -> None:
        self.open = self.open and "failed" not in message
        self.messages.append(message)
        self.news.set()

    async def take(self, seconds: float) -> list[dict[str, Any]]:
        """What was told since the last call, in order; waits for some, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), seconds)
        self.news.clear()
        taken, self.messages = self.messages, []
        return taken

    async def may_start(self) -> bool:
        return self.open

    async def stop(self) -> None:
        self.open = False


class Cluster:
    """The flow process's side of a Ray cluster; stands where `WorkerPool` stands."""

    def __init__(self, address: str, store: Store, checkpoint_seconds: float) -> None:
        """Connect, and find out what the nodes have.

        Raises:
            SpecError: no server of Prefect that nodes could reach is named, or no cluster answers.
        """
        check_server()
        self.address, self.store = address, store
        self._owned = connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.devices = largest_devices(nodes)
        self.cpus = cpus_of_a_job(nodes)
        self.num_workers = num_jobs(nodes, self.cpus)
        self.settings = RunSettings(self.cpus, checkpoint_seconds)
        self.compute_intervals: list[tuple[float, float]] = []
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()
        self._follower: threading.Thread | None = None
        self._settled = threading.Event()
        self._closed = False

    def start(self) -> None:
        """Nothing to load here: nodes start workers as tasks come."""

    def task_runner(self) -> RayTaskRunner[Any]:
        """Prefect's runner; it finds this process connected, and neither connects nor disconnects."""
        return RayTaskRunner(address=self.address)

    def submit(
        self, invocation: Invocation, task: Any, steps: list[Step], upstream: list[PrefectFuture[Any]],
        shard: tuple[int, int] | None,
    ) -> PrefectFuture[Any]:  # fmt: skip
        """A task run on some node, once what it needs is there. Ray waits for that; no thread does."""
        self._follow(invocation)
        gpus = max(map(devices_needed, steps)) if self.devices else 0
        missing = invocation.missing([step.identity for step in steps])
        away = Away(
            self.desk, json.dumps([step.to_json() for step in missing]), [step.identity for step in steps],
            str(self.store.root), self.settings.checkpoint_seconds, self.cpus * max(1, gpus), shard,
        )  # fmt: skip
        # A job on devices takes no CPU of Ray's, so that jobs without find room beside it, as in mot_core.workers.slots.
        # A Ray worker never touches CUDA itself, so it may serve the next task with its parent loaded (max_calls).
        with remote_options(
            num_cpus=0 if gpus else self.cpus, num_gpus=gpus, max_retries=MAX_LOST_WORKERS, max_calls=0
        ):
            future: PrefectFuture[Any] = task.submit(away, upstream)
        return future

    def settle(self) -> None:
        """Wait until everything that ended tasks have told is taken up here."""
        if self._follower is None:
            return
        self._settled.clear()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.desk.tell.remote({"settled": True}))
        while self._follower.is_alive() and not self._settled.wait(POLL_SECONDS):
            pass

    def accept_no_more(self) -> None:
        """Start no further step; those that run may end and publish."""
        if not self._closed:
            self.desk.stop.remote()

    def halt(self, reason: str) -> None:
        """The same: on a node, a task's steps are ended together."""
        self.accept_no_more()

    def close(self) -> None:
        """Leave the cluster; it ends what this process has started there."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.desk)
        if self._follower is not None:
            self._follower.join()
        if self._owned:
            ray.shutdown()

    def _follow(self, invocation: Invocation) -> None:
        if self._follower is None:
            self._follower = threading.Thread(target=self._read, args=(invocation,), name="mot-desk", daemon=True)
            self._follower.start()

    def _read(self, invocation: Invocation) -> None:
        while True:
            try:
                messages = ray.get(self.desk.take.remote(POLL_SECONDS))
            except ray.exceptions.RayError as error:
                if self._closed:
                    return
                invocation.fail(WorkerError(f"the connection to the Ray cluster ended ({type(error).__name__})"))
                return
            for message in messages:
                try:
                    self._handle(invocation, message)
                except Exception:  # a watcher's mistake must not stop the others' events
                    log.exception("message from a task: %r", str(message)[:200])

    def _handle(self, invocation: Invocation, message: dict[str, Any]) -> None:
        if "settled" in message:
            self._settled.set()
        elif "failed" in message:
            invocation.fail(raised(message["failed"]))
        elif "records" in message:
            self.compute_intervals += map(tuple, message["intervals"])
            invocation.note(
                message["identities"], [Published.from_json(one) for one in message["records"]], invocation.watch
            )
        else:
            invocation.watch(invocation.steps[message["identity"]], message["event"])


@dataclass(frozen=True)
class Away:
    """Steps to obtain on whichever node this runs, and whom to tell."""

    desk: Any
    missing: str
    """The steps that were missing when the run began, as JSON: a text, so that Prefect looks for nothing inside."""
    identities: list[str]
    store: str
    checkpoint_seconds: float
    cpus: int
    shard: tuple[int, int] | None

    def obtain(self, tell_log: Callable[[str], None]) -> list[bool]:
        """Compute what is missing, tell the flow process, and say of each step whether it was reused.

        Raises:
            MotError: what the step raised; the flow process has been told.
        """
        try:
            return self._obtain(tell_log)
        except BaseException as error:
            ray.get(self.desk.tell.remote({"failed": described(error)}))
            raise

    def _obtain(self, tell_log: Callable[[str], None]) -> list[bool]:
        steps: list[Step] = [RemoteStep.from_json(document) for document in json.loads(self.missing)]
        if not ray.get(self.desk.may_start.remote()):
            raise WorkerError(f"{steps[0].label}: the run had failed before this step ran; run the same command again")
        here = ray.get_runtime_context()
        devices = tuple(here.get_accelerator_ids()["GPU"])
        placed = {"event": "placed", "node": here.get_node_id(), "host": socket.gethostname(), "devices": devices}
        tell_log(f"on Ray node {placed['node']} ({placed['host']}), devices: {', '.join(devices) or 'none'}")
        pool = _pool(self.store, self.checkpoint_seconds, devices, self.cpus)
        num_intervals = len(pool.compute_intervals)

        def listen(step: Step, event: dict[str, Any]) -> None:
            if "line" in event:
                tell_log(event["line"])
            self.desk.tell.remote({"identity": step.identity, "event": event})

        for step in steps:
            listen(step, placed)
        records = pool.run(steps, 0, listen, self.shard).records
        # Waited for, and after this task's other messages: what it computed is known before its end is.
        told = {
            "identities": [] if self.shard else self.identities, "records": [record.to_json() for record in records],
            "intervals": pool.compute_intervals[num_intervals:],
        }  # fmt: skip
        ray.get(self.desk.tell.remote(told))
        reused = {record.identity: record.reused for record in records}
        return [reused.get(identity, True) for identity in self.identities]


_pools: dict[tuple[Any, ...], WorkerPool] = {}


def _pool(store: str, checkpoint_seconds: float, devices: tuple[str, ...], cpus: int) -> WorkerPool:
    """This Ray worker's own pool of one worker, on exactly the devices that Ray gave. It is kept for the next task, whose
    worker then has torch loaded; other devices make another pool.

    Raises:
        StoreError: this node does not see the store.
    """
    key = (store, checkpoint_seconds, devices, cpus)
    if not (Path(store) / "store.json").is_file():
        raise StoreError(
            f"node {socket.gethostname()}: there is no store at {store}; under --ray every node has to see the store, the "
            "models and the data at the paths of the machine that runs mot (a shared file system)"
        )
    if key not in _pools:
        for other in list(_pools):
            _pools.pop(other).close()
        _pools[key] = WorkerPool(Store(store), 1, checkpoint_seconds, devices=devices, cores=cpus)
    return _pools[key]


def check_server() -> None:
    """Raise `SpecError` unless a Prefect server is named: the temporary one of `mot run` serves one process only, and each
    Ray worker would start one of its own."""
    if get_current_settings().api.url is None:
        raise SpecError(
            "--ray needs a Prefect server that every node reaches, and none is named; start one (prefect server start "
            "--host ADDRESS) and set PREFECT_API_URL=http://ADDRESS:4200/api"
        )


def connect(address: str) -> bool:
    """Join a running cluster; False if this process had joined one already.

    Raises:
        SpecError: none runs there.
    """
    if ray.is_initialized():
        return False
    remedy = "start one (ray start --head), or see docs/ray.md"
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise SpecError(
                f"--ray {address}: no Ray cluster answers ({error}); expected auto, HOST:PORT or ray://HOST:PORT; {remedy}"
            ) from error
    try:
        ray.init(address, namespace="prefect", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SpecError(f"--ray {address}: cannot join the Ray cluster: {error}; {remedy}") from error
    return True


Resources = Mapping[str, float]


def largest_devices(nodes: Sequence[Resources]) -> list[str]:
    """The GPUs of the node that has most: a step's devices are on one node."""
    return [str(index) for index in range(int(max((node.get("GPU", 0) for node in nodes), default=0)))]


def cpus_of_a_job(nodes: Sequence[Resources]) -> int:
    """Threads of a job: one on nodes without GPUs, where a job a core runs; else a GPU's share of its node's cores."""
    shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    return max(1, min(shares, default=1))


def num_jobs(nodes: Sequence[Resources], cpus: int) -> int:
    """How many jobs run at once, at most: on the devices, or else on the cores."""
    devices = sum(int(node.get("GPU", 0)) for node in nodes)
    return devices or sum(int(node.get("CPU", 0)) // cpus for node in nodes)
