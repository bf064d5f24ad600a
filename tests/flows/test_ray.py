"""A real Ray cluster, a head and a second node as processes on loopback: the same steps as on threads, wherever they run,
and in however many shards (the driver makes two on a cluster, one on threads)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.run import RunOptions, pool_of
from mot_core.artifacts import Store
from mot_core.errors import SpecError
from mot_core.steps import Step
from tests.clusters import RayCluster, ray_cluster
from tests.pico import pico_document
from tests.processes import ROOT, start_driver, wait_until, write_spec
from tests.servers import free_port, prefect_server

SECONDS = 600.0
METHODS = [{"name": "std"}, {"name": "mot"}]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayCluster, dict[str, str]]]:
    with (
        prefect_server(tmp_path_factory.mktemp("prefect-server")) as (_, environment),
        ray_cluster(environment) as started,
    ):
        yield started, environment


def small_document(models: Path, **changes: Any) -> dict[str, Any]:
    document = {**pico_document(models), "methods": METHODS, **changes}
    document["evaluation"]["path"]["rounds"] = "last"
    return document


def finished(spec: Path, store: Path, environment: dict[str, str], *more: str) -> dict[str, Any]:
    """What the driver told of a run that ended well."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.drive", str(spec), str(store), *more]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def published(store: Path) -> dict[str, dict[str, Any]]:
    return {manifest.identity: manifest.files for manifest in Store(store).manifests()}


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_publishes_what_threads_do_from_both_nodes(
    cluster: tuple[RayCluster, dict[str, str]], pico_models: Path, tmp_path: Path, drive_environment: dict[str, str]
) -> None:
    ray, environment = cluster
    spec = write_spec(tmp_path / "spec.yaml", small_document(pico_models))
    told = finished(spec, tmp_path / "ray", environment, ray.address)
    here = finished(spec, tmp_path / "threads", drive_environment)
    assert published(tmp_path / "ray") == published(tmp_path / "threads")
    assert len(published(tmp_path / "ray")) > 15
    branches = {label: nodes for label, nodes in told["nodes"].items() if label.startswith("finetune ")}
    assert len(branches) > 3
    assert len({node for nodes in branches.values() for node in nodes}) == 2
    assert len(told["nodes"]["generate ann"]) == 3, "two shards, and the step that takes them up"
    assert told["torch"] is False and here["nodes"] == {}
    of_ray, of_threads = (json.loads((Path(one["run_dir"]) / "summary.json").read_text()) for one in (told, here))
    assert of_ray["step_counts"] == of_threads["step_counts"]
    assert of_ray["budgets"] == of_threads["budgets"]
    again = finished(spec, tmp_path / "ray", environment, ray.address)
    assert again["nodes"] == {}
    counts = json.loads((Path(again["run_dir"]) / "summary.json").read_text())["step_counts"]
    assert counts == {"run": 0, "reused": sum(of_ray["step_counts"].values())}


@pytest.mark.slow
@pytest.mark.ray
def test_a_failing_branch_ends_the_run_with_its_own_error(
    cluster: tuple[RayCluster, dict[str, str]], pico_models: Path, tmp_path: Path
) -> None:
    ray, environment = cluster
    document = small_document(pico_models)
    document["training"]["learning_rate"] = 1e30
    spec, log = write_spec(tmp_path / "spec.yaml", document), tmp_path / "log"
    process = start_driver(spec, tmp_path / "store", environment, log, ray.address)
    assert process.wait(SECONDS) == 1
    assert re.search(r"^mot_core\.errors\.TrainingError: finetune ", log.read_text(), re.MULTILINE), log.read_text()[
        -4000:
    ]
    kinds = {manifest.kind for manifest in Store(tmp_path / "store").manifests()}
    assert "corpora" in kinds and not kinds & {"branch", "merge", "evaluation"}


@pytest.mark.slow
@pytest.mark.ray
def test_a_lost_worker_costs_a_step_its_start_and_no_more(
    cluster: tuple[RayCluster, dict[str, str]], pico_models: Path, tmp_path: Path
) -> None:
    ray, environment = cluster
    spec = write_spec(tmp_path / "spec.yaml", small_document(pico_models, methods=[METHODS[0]], steps_per_round=60))
    log, store = tmp_path / "log", tmp_path / "store"
    process = start_driver(spec, store, environment, log, ray.address)
    wait_until(lambda: any(store.glob("tmp/*/.checkpoint/state.json")), SECONDS, "a branch's first checkpoint")
    killed = [pid for node in (ray.head, ray.second) for pid in node.workers()]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert killed
    assert process.wait(SECONDS) == 0, log.read_text()[-4000:]
    told = json.loads(log.read_text().splitlines()[-1])
    branches = [nodes for label, nodes in told["nodes"].items() if label.startswith("finetune ")]
    assert max(map(len, branches)) == 2, "no branch was under way when its Ray worker was lost"
    for manifest in Store(store).manifests():
        if manifest.kind == "branch":
            rows = (Store(store).object_dir(manifest.identity) / "training.jsonl").read_text().splitlines()
            assert [json.loads(row)["step"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_cluster_that_cannot_serve_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    store = Store(tmp_path / "store")
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(SpecError, match="set PREFECT_API_URL="):
        pool_of(store, RunOptions(ray="auto"))
    nobody = f"127.0.0.1:{free_port()}"
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        with pytest.raises(SpecError, match=f"--ray {nobody}: no Ray cluster answers"):
            pool_of(store, RunOptions(ray=nobody))
        with pytest.raises(SpecError, match="expected auto, HOST:PORT or ray://HOST:PORT"):
            pool_of(store, RunOptions(ray="somewhere"))
    with pytest.raises(SpecError, match="--workers is for this machine's workers"):
        pool_of(store, RunOptions(ray="auto", workers=2))
    monkeypatch.setitem(sys.modules, "prefect_ray.context", None)
    monkeypatch.delitem(sys.modules, "tasks.cluster", raising=False)
    with pytest.raises(SpecError, match=r"--ray needs the package prefect-ray .*pip install 'mot\[ray\]'"):
        pool_of(store, RunOptions(ray="auto"))
    assert not store.root.exists()


def test_a_benchmark_is_in_one_shard_and_each_shard_has_some() -> None:
    from flows.orchestrate import shards_of

    panel = [
        Step("evaluation", {"n": index}, facts={"benchmark": name, "split": split})
        for index, (split, name) in enumerate((s, n) for s in ("dev", "test") for n in ("a", "b", "c"))
    ]
    assert shards_of(panel, 1) == [panel]
    dealt = [[step.facts["benchmark"] for step in job] for job in shards_of(panel, 2)]
    assert dealt == [["a", "c", "a", "c"], ["b", "b"]]
    assert len(shards_of(panel, 9)) == 3
    others = [Step("problems", {"n": index}) for index in range(3)]
    assert shards_of(others, 9) == [others]
    assert shards_of([], 2) == []


def test_what_a_job_takes_of_nodes() -> None:
    from tasks.cluster import cpus_of_a_job, largest_devices, num_jobs

    cores = [{"CPU": 4.0}, {"CPU": 8.0}]
    assert (largest_devices(cores), cpus_of_a_job(cores), num_jobs(cores, 1)) == ([], 1, 12)
    gpus = [{"CPU": 0.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 96.0, "GPU": 8.0}]
    assert largest_devices(gpus) == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert (cpus_of_a_job(gpus), num_jobs(gpus, 8)) == (8, 12)
