"""What `mot up` refuses before it starts anything, and how it finds what it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.serving.authentication import MLFLOW_AUTH, PREFECT_AUTH, check_address
from flows.serving.deploy import prefect_file
from flows.serving.services import Service, found_with, free_port, port_again, start, start_of, stop_all, wait_for
from flows.serving.up import (
    HOME_OF,
    State,
    UpOptions,
    down,
    read_state,
    up,
    write_state,
)
from flows.studies import STUDIES
from mot_core.errors import SpecError, StoreError, WorkerError
from tests.processes import wait_until


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1"])
def test_loopback_needs_no_authentication(host: str) -> None:
    check_address(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_an_address_that_others_reach_needs_authentication_of_both(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (PREFECT_AUTH, *MLFLOW_AUTH)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SpecError, match=f"{PREFECT_AUTH}, {MLFLOW_AUTH[0]}, {MLFLOW_AUTH[1]} are not set"):
        check_address(host)
    for missing in names:
        for name in names:
            monkeypatch.setenv(name, "" if name == missing else "admin:secret-of-a-test")
        with pytest.raises(SpecError, match=f"{missing} is not set"):
            check_address(host)
    monkeypatch.setenv(missing, "secret-of-a-test")
    check_address(host)


def test_a_name_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="--host 'localhost' is no address; expected one such as 127.0.0.1"):
        check_address("localhost")


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
def test_servers_of_ones_own_are_not_started_over(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1/api")
    with pytest.raises(SpecError, match=f"{name} is set to a server of your own.*mot deploy --pool NAME"):
        up(UpOptions(tmp_path / "home", tmp_path / "store"))
    assert not (tmp_path / "home").exists() and not (tmp_path / "store").exists()


def test_a_busy_port_moves_to_the_next() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port


def test_a_server_that_was_killed_comes_back_at_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = Service("prefect", 1, 1, f"http://127.0.0.1:{port}", "")
        released = threading.Timer(0.5, taken.close)  # as by a child of it that ends a moment later
        released.start()
        assert port_again("127.0.0.1", port - 1, before) == port
        released.join()
    with socket.socket() as taken:
        monkeypatch.setattr("flows.serving.services.RELEASE_SECONDS", 0.1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert port_again("127.0.0.1", port, before) > port  # somebody else has it


def test_only_what_was_started_is_ended(tmp_path: Path) -> None:
    service = start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], os.environ, tmp_path / "log")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        try:
            recycled = Service("recycled", other.pid, 1, None, "")  # the pid was given again: another start time
            assert service.is_alive and not recycled.is_alive
            assert stop_all([service, recycled]) == [service]
            assert not service.is_alive and other.poll() is None
        finally:
            other.kill()
    assert start_of(service.pid) is None


def test_one_that_hears_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.serving.services.STOP_SECONDS", 0.2)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    service = start("deaf", [sys.executable, "-c", deaf], os.environ, tmp_path / "log")
    wait_until(lambda: "deaf" in (tmp_path / "log").read_text(), 30, "the process's start")
    assert stop_all([service]) == [service] and not service.is_alive


def test_a_service_that_ends_at_its_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nraise SystemExit('no such port')"
    service = start("broken", [sys.executable, "-c", code], os.environ, tmp_path / "log")
    go.touch()
    with pytest.raises(WorkerError, match=r"broken has ended; the end of .*log:\nno such port"):
        wait_for(service, lambda: False, 30)


def test_what_runs_is_on_record_and_down_forgets_it(tmp_path: Path) -> None:
    assert down(tmp_path) == []
    service = start("worker mot", [sys.executable, "-c", "import time; time.sleep(600)"], os.environ, tmp_path / "log")
    write_state(tmp_path, State({service.name: service}, "this code"))
    assert read_state(tmp_path) == State({service.name: service}, "this code")
    assert down(tmp_path) == ["worker mot"] and down(tmp_path) == []
    assert read_state(tmp_path) == State({}, "this code")
    service.signal(signal.SIGTERM)  # of one that is gone, nothing
    (tmp_path / "up.json").write_text("{")
    with pytest.raises(StoreError, match="up.json is damaged"):
        down(tmp_path)


def test_what_a_killed_service_left_in_another_session_is_ended(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    script = f"import subprocess, sys; subprocess.Popen({sleep!r}, start_new_session=True); print('on', flush=True); {sleep[2]}"
    environment = {**os.environ, HOME_OF: f"{tmp_path} worker mot"}
    service = start("worker mot", [sys.executable, "-c", script], environment, tmp_path / "log")
    wait_until(lambda: "on" in (tmp_path / "log").read_text(), 30, "the process's child")
    write_state(tmp_path, State({service.name: service}))
    os.kill(service.pid, signal.SIGKILL)
    mark = f"\0{HOME_OF}={tmp_path} worker mot\0".encode()
    wait_until(lambda: not service.is_alive and len(found_with(mark)) == 1, 30, "the service's end")
    assert down(tmp_path) == ["1 process(es) that were left of runs or of killed services"]
    assert found_with(mark) == []


def test_other_options_are_refused_while_something_runs(tmp_path: Path) -> None:
    service = start("prefect", [sys.executable, "-c", "import time; time.sleep(600)"], os.environ, tmp_path / "log")
    served = {
        "host": "127.0.0.1",
        "store": str(tmp_path / "a"),
        "limit": 4,
        "authentication": {"Prefect": False, "MLflow": False},
    }
    write_state(tmp_path, State({service.name: service}, None, served))
    with pytest.raises(SpecError, match=f"store is {tmp_path}/a, asked for is {tmp_path}/b.*mot down first"):
        up(UpOptions(tmp_path, tmp_path / "b"))
    assert service.is_alive and down(tmp_path) == ["prefect"]


def test_every_study_has_a_deployment() -> None:
    import yaml

    listed = {one["name"] for one in yaml.safe_load(prefect_file().read_text())["deployments"]}
    assert listed == {
        "experiment", "nightly-ablation", "generate", "evaluate", "merge", "explain-failure",
        *(f"study-{name}" for name in STUDIES),
    }  # fmt: skip
