"""Everything that a laptop needs to run experiments from a browser: two servers, their pools, workers, deployments.

    HOME/up.json       what was started: pids, addresses, and the code that was registered
    HOME/prefect/      Prefect's home and database      HOME/logs/      what the processes print
    STORE/mlflow.db    MLflow's database, the same that `mot run` writes

Invariant: a second `up` starts only what is not running, and `down` ends exactly what `up` started; databases stay.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from flows.run import quiet_prefect
from flows.serving.authentication import (
    LOOPBACK,
    PREFECT_AUTH,
    administrator,
    check_address,
    mlflow_environment,
    take_password,
)
from flows.serving.deploy import CPU_POOL, POOL, deploy, is_registered, make_pools
from flows.serving.services import Service, end_all_with, port_again, port_of, start, stop_all, wait_for
from mot_core.artifacts import Store
from mot_core.errors import SpecError, StoreError
from mot_core.files import write_atomically
from mot_core.provenance import code_version

STATE = "up.json"
START_SECONDS = 180.0
HOME_OF = "MOT_UP_SERVICE"
"""The variable, in the environment of all that runs below a service, that says whose and which it is."""


@dataclass(frozen=True)
class UpOptions:
    """Where servers listen, and where their state and results lie."""

    home: Path = Path(".mot")
    store: Path = Path("store")
    host: str = LOOPBACK
    prefect_port: int = 4200
    mlflow_port: int = 5000
    limit: int = 4
    """Flow runs at once, at most, of a worker."""


@dataclass
class State:
    """What is running, as `up.json` has it."""

    services: dict[str, Service] = field(default_factory=dict)
    registered: str | None = None
    """The code that the deployments were registered from, and with what schedule."""
    options: dict[str, Any] = field(default_factory=dict)
    """What cannot change while something runs: where it listens, for whom, and which store it serves."""


def up(options: UpOptions) -> dict[str, str]:
    """Start what is not running and register the deployments; the links, `prefect` and `mlflow`.

    Raises:
        SpecError: an address that others reach without authentication of both servers; servers of one's own are named.
        WorkerError: a server that does not start.
    """
    check_address(options.host)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        if os.environ.get(name):
            raise SpecError(
                f"{name} is set to a server of your own, and up starts servers; unset it, or use your own servers: "
                "mot deploy --pool NAME registers the deployments there (docs/serving.md)"
            )
    quiet_prefect()
    store = Store(options.store).open()
    home = options.home.expanduser().resolve()
    with _locked(home):
        state = read_state(home)
        _check_same(home, state, _fixed(options, store))
        environment = environment_of(home)
        before = _addresses(state)
        _start_prefect(options, home, state, environment)
        _start_mlflow(options, home, store, state, environment)
        links = _addresses(state)
        if any(links[name] != address for name, address in before.items()):
            stop_all([one for one in state.services.values() if one.is_worker])  # they ask the old ones
        for name, path in (("prefect", "/api/health"), ("mlflow", "/health")):
            wait_for(state.services[name], lambda name=name, path=path: answers(links[name] + path), START_SECONDS)  # type: ignore[misc]
        if (known := administrator()) is not None:
            take_password(home, links["mlflow"], *known)
        environment |= {
            "PREFECT_API_URL": links["prefect"] + "/api", "MLFLOW_TRACKING_URI": links["mlflow"],
            "MOT_STORE": str(store.root), "MOT_DIRECTORY": str(Path.cwd()),
        }  # fmt: skip
        _register(home, state, environment)
        _start_workers(options, home, state, environment)
    return links


def down(home: Path) -> list[str]:
    """End what `up` started, workers first, and keep every database; the names of what was running."""
    home = home.expanduser().resolve()
    if not (home / STATE).is_file():
        return []
    with _locked(home):
        state = read_state(home)
        ended, left = list[str](), list[int]()
        for workers in (True, False):  # workers first, so that runs can tell the servers of their end
            group = [one for one in state.services.values() if one.is_worker is workers]
            ended += [one.name for one in stop_all(group)]
            for one in group:  # what it left if it was killed before
                left += end_all_with(HOME_OF, f"{home} {one.name}")
        write_state(home, State(registered=state.registered))
    return [*ended, *([f"{len(left)} process(es) that were left of runs or of killed services"] if left else [])]


def status(home: Path) -> dict[str, Service]:
    """What of it runs now, by name."""
    return {name: one for name, one in read_state(home.expanduser().resolve()).services.items() if one.is_alive}


def _fixed(options: UpOptions, store: Store) -> dict[str, Any]:
    asks = {"Prefect": bool(os.environ.get(PREFECT_AUTH)), "MLflow": administrator() is not None}
    return {"host": options.host, "store": str(store.root), "limit": options.limit, "authentication": asks}


def _check_same(home: Path, state: State, wanted: dict[str, Any]) -> None:
    """Raise `SpecError` if something runs with other options; take these for what is started now."""
    running = [name for name, service in state.services.items() if service.is_alive]
    other = {name: state.options[name] for name in wanted if state.options.get(name, wanted[name]) != wanted[name]}
    if running and other:
        told = "; ".join(f"{name} is {was}, asked for is {wanted[name]}" for name, was in other.items())
        raise SpecError(f"{', '.join(running)} of {home} run with other options ({told}); mot down first")
    state.options = wanted


def environment_of(home: Path) -> dict[str, str]:
    """What servers and workers know, before the servers' addresses are there."""
    prefect = home / "prefect"
    prefect.mkdir(parents=True, exist_ok=True)
    own = {
        "PREFECT_HOME": str(prefect), "PREFECT_PROFILE": "ephemeral", "PYTHONUNBUFFERED": "1",
        # A database of one's own, such as Postgres for many runs at once, is taken from the environment.
        "PREFECT_API_DATABASE_CONNECTION_URL": os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL")
        or f"sqlite+aiosqlite:///{prefect / 'prefect.db'}",
        # Prefect's workers look for runs every ten seconds: long for whoever sits in front of the page.
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS") or "5",
    }  # fmt: skip
    if os.environ.get(PREFECT_AUTH):
        own["PREFECT_API_AUTH_STRING"] = os.environ[PREFECT_AUTH]
    # `mot run` says nothing on a terminal; a server's and a worker's log is a file that somebody reads.
    return {
        **os.environ,
        **own,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }


def _start_prefect(options: UpOptions, home: Path, state: State, environment: dict[str, str]) -> None:
    if _runs(state, "prefect"):
        return
    end_all_with(HOME_OF, f"{home} prefect")  # what one that was killed has left
    port = port_again(options.host, options.prefect_port, state.services.get("prefect"))
    url = f"http://{_reached_at(options.host)}:{port}"
    own = {"PREFECT_UI_API_URL": f"{url}/api"} if ipaddress.ip_address(options.host).is_loopback else {}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", options.host, "--port", str(port)]
    _start(home, state, "prefect", command, {**environment, **own}, url)


def _start_mlflow(options: UpOptions, home: Path, store: Store, state: State, environment: dict[str, str]) -> None:
    if _runs(state, "mlflow"):
        return
    end_all_with(HOME_OF, f"{home} mlflow")
    taken = port_of(state.services["prefect"])  # by a server that may not listen yet
    port = port_again(options.host, options.mlflow_port, state.services.get("mlflow"), taken)
    url = f"http://{_reached_at(options.host)}:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", options.host, "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{store.root / 'mlflow.db'}",
        "--artifacts-destination", str(store.root / "mlflow-artifacts"),
    ]  # fmt: skip
    # Its job queues, nine processes for features that nothing here uses, are left out.
    environment = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if (known := administrator()) is not None:
        command += ["--app-name", "basic-auth"]
        environment = environment | mlflow_environment(home, *known)
    if not ipaddress.ip_address(options.host).is_loopback:
        command += ["--allowed-hosts", "*"]  # by whatever name this machine is known there: it asks who is there
    _start(home, state, "mlflow", command, environment, url)


def _start(
    home: Path, state: State, name: str, command: list[str], environment: dict[str, str], url: str | None = None
) -> None:
    """Start a service that is told from others by its environment, and put it on record at once."""
    log = home / "logs" / f"{name.removeprefix('worker ')}{'-worker' if name.startswith('worker ') else ''}.log"
    state.services[name] = start(name, command, {**environment, HOME_OF: f"{home} {name}"}, log, url)
    write_state(home, state)


def _register(home: Path, state: State, environment: dict[str, str]) -> None:
    registered = json.dumps(
        [code_version(), os.environ.get("MOT_NIGHTLY_CRON"), os.environ.get("MOT_NIGHTLY_TIMEZONE")]
    )
    if state.registered == registered and is_registered(environment):
        return
    make_pools(environment)
    deploy(POOL, CPU_POOL, environment)
    state.registered = registered
    write_state(home, state)


def _start_workers(options: UpOptions, home: Path, state: State, environment: dict[str, str]) -> None:
    for pool in (POOL, CPU_POOL):
        name = f"worker {pool}"
        if not _runs(state, name):
            command = [
                sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process",
                "--name", f"{pool}-worker", "--limit", str(options.limit), "--no-create-pool-if-not-found",
            ]  # fmt: skip
            _start(home, state, name, command, environment)


def _addresses(state: State) -> dict[str, str]:
    """Where the servers are, or were: a server that was killed is to come back there."""
    return {name: str(state.services[name].url) for name in ("prefect", "mlflow") if name in state.services}


def _runs(state: State, name: str) -> bool:
    return name in state.services and state.services[name].is_alive


def _reached_at(host: str) -> str:
    """The address at which this machine reaches a server that listens there."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return LOOPBACK if address.version == 4 else "[::1]"
    return f"[{host}]" if address.version == 6 else host


def answers(url: str) -> bool:
    """Whether a server answers; one that asks who is there does."""
    try:
        with urlopen(Request(url), timeout=2) as response:
            return bool(response.status == 200)
    except URLError as error:
        return getattr(error, "code", None) in (401, 403)
    except OSError:
        return False


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_state(home: Path) -> State:
    """What `up.json` says; of none, nothing.

    Raises:
        StoreError: it cannot be read.
    """
    path = home / STATE
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        services = {name: Service(**one) for name, one in document["services"].items()}
        return State(services, document["registered"], document["options"])
    except FileNotFoundError:
        return State()
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{path} is damaged ({error}); end the processes that it names by hand, and remove it"
        ) from None


def write_state(home: Path, state: State) -> None:
    """Say at once what was started: an `up` that is killed leaves nothing behind that `down` does not know."""
    services = {name: asdict(one) for name, one in state.services.items()}
    document = {"services": services, "registered": state.registered, "options": state.options}
    write_atomically(home / STATE, json.dumps(document, indent=1) + "\n")
