"""Kill anywhere: an experiment that is killed again and again ends with the same students, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Store
from mot_core.completers.journal import whole_lines
from tests.pico import pico_document
from tests.processes import count_published, descendants, is_alive, start_driver, wait_until, write_spec

NUM_KILLS = 10
START_SECONDS = 800.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def spec_of(pico_models: Path, path: Path, **changes: Any) -> Path:
    document = {**pico_document(pico_models), "methods": [{"name": "std"}, {"name": "mot"}], "steps_per_round": 12}
    document["evaluation"]["path"]["rounds"] = "last"
    document["evaluation"]["benchmarks"] = document["evaluation"]["benchmarks"][:1]
    return write_spec(path, {**document, **changes})


def published(store: Store) -> dict[str, float]:
    """The published steps, with when each was started."""
    objects = store.root / "objects"
    if not objects.is_dir():
        return {}
    return {manifest.identity: manifest.started for manifest in store.manifests()}


def summary_of(store: Store) -> dict[str, Any]:
    """The newest summary (killed runs have none)."""
    paths = sorted((store.root / "runs").glob("*/summary.json"))
    document: dict[str, Any] = json.loads(paths[-1].read_text())
    return document


def weight_hashes(summary: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {
        (method, seed): row["sha256"] for method, seeds in summary["students"].items() for seed, row in seeds.items()
    }


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    code = process.wait(timeout=START_SECONDS)
    assert code == 0, log.read_text()[-4000:]


def kill_when(process: subprocess.Popen[bytes], due: Callable[[], bool], delay: float, log: Path) -> bool:
    """Kill -9 the main process only, some seconds after something is seen; False if it finished before."""
    wait_until(lambda: due() or process.poll() is not None, START_SECONDS, f"progress ({log.read_text()[-2000:]})")
    time.sleep(delay)
    below = descendants(process.pid)
    if process.poll() is not None:
        assert process.returncode == 0, log.read_text()[-4000:]
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    guarded = any(" guard " in command for command in below.values())
    # Prefect's server starts a moment before its guard; a kill in between is the one that leaves it behind.
    bound = {pid: command for pid, command in below.items() if guarded or "prefect.server" not in command}
    wait_until(lambda: not any(map(is_alive, bound)), 60.0, f"something outlives its flow process: {bound}")
    for pid in set(below) - set(bound):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    return True


@pytest.mark.usefixtures("prefect_api")
def test_ten_kills_change_nothing(pico_models: Path, tmp_path: Path, drive_environment: dict[str, str]) -> None:
    log, spec_file = tmp_path / "log", spec_of(pico_models, tmp_path / "spec.yaml")
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    finish(start_driver(spec_file, whole.root, drive_environment, log), log)
    total = count_published(whole.root)
    assert total > 15

    chance = random.Random(2024)
    # Spread over the whole run: one threshold in each tenth of it, then a moment after.
    thresholds = [chance.randrange(total * i // NUM_KILLS, total * (i + 1) // NUM_KILLS) for i in range(NUM_KILLS)]
    first_started: dict[str, float] = {}
    num_kills = 0
    for threshold in thresholds:
        process = start_driver(spec_file, broken.root, drive_environment, log)
        killed = kill_when(
            process, lambda limit=threshold: count_published(broken.root) > limit, chance.uniform(0.0, 0.2), log
        )
        num_kills += killed
        for identity, started in published(broken).items():
            assert first_started.setdefault(identity, started) == started, "a published step ran again"
    finish(start_driver(spec_file, broken.root, drive_environment, log), log)

    assert num_kills >= NUM_KILLS - 1
    ours, theirs = summary_of(broken), summary_of(whole)
    assert weight_hashes(ours) == weight_hashes(theirs)
    assert ours["budgets"].keys() == theirs["budgets"].keys()
    for budget, methods in theirs["budgets"].items():
        for method, result in methods.items():
            assert ours["budgets"][budget][method]["benchmarks"] == result["benchmarks"]
    broken_steps = {manifest.identity: manifest for manifest in broken.manifests()}
    whole_steps = {manifest.identity: manifest for manifest in whole.manifests()}
    assert broken_steps.keys() == whole_steps.keys()
    for identity, manifest in whole_steps.items():
        assert broken_steps[identity].files == manifest.files, f"{manifest.kind} {manifest.label} differs"
    for identity, started in first_started.items():
        assert broken_steps[identity].started == started, f"{broken_steps[identity].label} ran again"
    assert ours["step_counts"]["run"] + ours["step_counts"]["reused"] > 0
    # Each journal holds each request once: an answer that was written down was never asked for again.
    for journal in (whole.root / "requests").iterdir():
        keys = [row["key"] for row in whole_lines(broken.root / "requests" / journal.name / "rows.jsonl")]
        assert len(keys) == len(set(keys))
        assert set(keys) == {row["key"] for row in whole_lines(journal / "rows.jsonl")}


def test_a_branch_killed_between_two_steps_goes_on_from_its_checkpoint(
    pico_models: Path, tmp_path: Path, drive_environment: dict[str, str]
) -> None:
    """Beside a temporary Prefect server of its own, as a run on a laptop has."""
    log = tmp_path / "log"
    drive_environment.pop("PREFECT_API_URL", None)
    # So many steps that a branch is not over before the kill.
    spec_file = spec_of(pico_models, tmp_path / "spec.yaml", methods=[{"name": "mot"}], steps_per_round=60)
    store = Store(tmp_path / "store")

    def inside_a_branch() -> bool:
        return any(store.root.glob("tmp/*/.checkpoint/state.json"))

    process = start_driver(spec_file, store.root, drive_environment, log)
    assert kill_when(process, inside_a_branch, 0.0, log)
    left = {
        path.parent.parent.stem: json.loads(path.read_text())["step"]
        for path in store.root.glob("tmp/*/.checkpoint/state.json")
    }
    finish(start_driver(spec_file, store.root, drive_environment, log), log)
    assert left, "the kill came between two branches"
    for identity, steps_done in left.items():
        rows = [json.loads(line) for line in (store.object_dir(identity) / "training.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(rows[0]["step"], rows[0]["step"] + len(rows)))
        assert 0 < steps_done < len(rows)
    assert not list(store.root.glob("tmp/*/.checkpoint"))
