"""`mot gc` on real runs: what it leaves, what is computed again, and that a run in progress keeps it out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.run import RunOptions, run
from mot_core.artifacts import Store
from mot_core.errors import StoreError
from mot_core.export import export_student
from mot_core.removal import remove_unwanted
from mot_core.report.html import write_report
from mot_core.runs import read_index
from mot_core.spec import Experiment
from mot_core.tables import load_results
from tests.pico import pico_document, pico_experiment
from tests.processes import ROOT, descendants, is_alive, start_driver, wait_until, write_spec

pytestmark = pytest.mark.slow


def evaluation(models: Path, k: int = 2, path_k: int = 1) -> dict[str, Any]:
    """One benchmark, with k samples of final students on test, and `path_k` of every round's on dev."""
    document: dict[str, Any] = pico_document(models)["evaluation"]
    document["path"]["k"] = path_k
    return {**document, "benchmarks": [{**document["benchmarks"][0], "k": k}]}


def spec_of(models: Path, **changes: Any) -> Experiment:
    methods = [{"name": name} for name in ("std", "mot")]
    return pico_experiment(models, **{"methods": methods, "keep": "last", "evaluation": evaluation(models), **changes})


def counts(run_dir: Path) -> dict[str, int]:
    counted: dict[str, int] = json.loads((run_dir / "summary.json").read_text())["step_counts"]
    return counted


def weights(store: Store) -> set[str]:
    objects = store.root / "objects"
    return {str(path.relative_to(objects)) for path in objects.rglob("*.safetensors")}


def hashes(store: Store) -> dict[str, dict[str, Any]]:
    return {manifest.identity: manifest.files for manifest in store.manifests()}


def started(store: Store) -> dict[str, tuple[float, str]]:
    return {manifest.identity: (manifest.started, manifest.label) for manifest in store.manifests()}


def test_after_a_removal_a_run_is_read_as_before_and_computes_the_least(pico_models: Path, tmp_path: Path) -> None:
    store, options = Store(tmp_path / "store"), RunOptions(tmp_path / "store", workers=2)
    first = run(spec_of(pico_models), options)
    index, before, files = read_index(first), load_results(first), hashes(store)
    finals = {row["student"]["identity"] for row in index["students"] if row["is_final"]}
    sizes = {
        f"{identity}/{name}": facts["size"]
        for identity, own in files.items() for name, facts in own.items() if name.endswith(".safetensors")
    }  # fmt: skip
    assert weights(store) == set(sizes)
    said = CliRunner().invoke(app, ["gc", "--dry-run", "--store", str(store.root)])
    assert said.exit_code == 0 and weights(store) == set(sizes), said.output
    kept = {name for name in sizes if re.fullmatch(rf"({'|'.join(finals)})/model.safetensors", name)}
    going = sum(size for name, size in sizes.items() if name not in kept)
    assert f"{going / 1000:.1f} kB would be removed" in said.output or f"{going / 1000:.0f} kB would" in said.output
    assert "merge, mot round 1, seed 1" in said.output and "keeps last" in said.output

    removed = remove_unwanted(store)
    assert removed.num_bytes == going and weights(store) == kept and len(kept) == 3
    # What is read of a run is what it was.
    assert hashes(store) == files
    after = load_results(first)
    for name in ("scores", "training", "merge_drift", "problem_scores", "branches"):
        assert getattr(after, name).equals(getattr(before, name)), name
    assert write_report(after, first).is_file()
    for command in (["show", first.name], ["report", first.name], ["logs", first.name, "merge"]):
        assert CliRunner().invoke(app, [*command, "--store", str(store.root)]).exit_code == 0, command
    export_student(store, first, "mot", tmp_path / "mot")

    # The same spec again: nothing is computed, and the same students are named.
    again = run(spec_of(pico_models), options)
    assert counts(again)["run"] == 0 and weights(store) == kept
    assert load_results(again).summary["students"] == before.summary["students"]

    # More samples of final students, and a method that merges STD's branches, read only what is there.
    at = started(store)
    methods = [{"name": name} for name in ("std", "mot", "merge_once")]
    run(spec_of(pico_models, evaluation=evaluation(pico_models, k=3), methods=methods), options)
    now = started(store)
    assert all(now[identity] == when for identity, when in at.items())
    fresh = {now[identity][1] for identity in set(now) - set(at)}
    assert {label for label in fresh if not label.startswith("evaluate")} == {"merge once, seed 1"}

    # More samples of every round ask for the first round's students: these are computed, to the same bytes.
    at = started(store)
    asked = spec_of(pico_models, evaluation=evaluation(pico_models, path_k=2))
    spec_file = write_spec(tmp_path / "asked.yaml", asked.model_dump(mode="json"))
    told = CliRunner().invoke(app, ["plan", str(spec_file), "--steps", "--store", str(store.root)])
    assert "its weights were removed by mot gc" in told.output, told.output
    run(asked, options)
    redone = {label for identity, (when, label) in started(store).items() if identity in at and at[identity][0] != when}
    assert redone == {
        "merge, mot round 1, seed 1", "finetune ann, mot round 1, seed 1", "finetune bob, mot round 1, seed 1",
        "finetune ann, 8 steps, seed 1", "finetune bob, 8 steps, seed 1",  # for their snapshots
    }  # fmt: skip
    now = hashes(store)
    assert {identity: now[identity] for identity in files} == files


def test_keep_all_brings_back_what_was_removed_and_a_forgotten_run_goes(pico_models: Path, tmp_path: Path) -> None:
    spec = {"methods": [{"name": "mot"}], "rounds": 2}
    store, options = Store(tmp_path / "store"), RunOptions(tmp_path / "store", workers=2)
    first = run(spec_of(pico_models, **spec), options)
    everything, files = weights(store), hashes(store)
    remove_unwanted(store)
    # A final student is never removed; one that is not there on record is told with its remedy.
    (final,) = weights(store)
    data = (store.root / "objects" / final).read_bytes()
    (store.root / "objects" / final).unlink()
    store.removed_path(final.split("/")[0]).write_text(json.dumps({"files": ["model.safetensors"]}))
    with pytest.raises(
        StoreError, match=r"model.safetensors removed by mot gc; run the experiment again with keep=last"
    ):
        export_student(store, first, "mot", tmp_path / "out")
    (store.root / "objects" / final).write_bytes(data)

    merged = run(spec_of(pico_models, **spec, keep="merged"), options)
    assert counts(merged)["run"] == 3  # round 1: its merge, and the branches that this reads
    remove_unwanted(store)
    assert weights(store) < everything and len(weights(store)) == 2
    back = run(spec_of(pico_models, **spec, keep="all"), options)
    assert counts(back)["run"] == 4 and weights(store) == everything and hashes(store) == files
    assert {first.name[:-4], merged.name[:-4]} == {back.name[:-4]}, "one spec, whatever it keeps"

    said = CliRunner().invoke(app, ["gc", "--forget", back.name[:-4], "--store", str(store.root)])
    assert said.exit_code == 0, said.output
    assert not list((store.root / "runs").iterdir()) and not list((store.root / "objects").iterdir())
    assert list((store.root / "requests").iterdir()), "answers were paid for"


@pytest.mark.usefixtures("prefect_api")
def test_a_run_in_progress_keeps_removals_out_and_a_killed_one_goes_on(
    pico_models: Path, tmp_path: Path, drive_environment: dict[str, str]
) -> None:
    document = {**pico_document(pico_models), "methods": [{"name": "mot"}], "keep": "last", "steps_per_round": 12}
    spec_file, log, store = write_spec(tmp_path / "spec.yaml", document), tmp_path / "log", Store(tmp_path / "store")
    process = start_driver(spec_file, store.root, drive_environment, log)
    wait_until(lambda: any(one.kind == "merge" for one in store.manifests()), 600.0, "the first merge")
    os.kill(process.pid, signal.SIGSTOP)  # so that it is not over before the other process has begun
    refused = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "flows", "gc", "--store", str(store.root)],
        capture_output=True, text=True, cwd=ROOT, env=drive_environment, timeout=600,
    )  # fmt: skip
    assert refused.returncode == 1 and process.poll() is None, log.read_text()[-2000:]
    assert re.search(rf"is in use: .*pico-\w+-001 \(process {process.pid} on ", refused.stderr), refused.stderr
    below = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # Its workers end with it; Prefect's server has a guard.
    wait_until(lambda: not any(is_alive(pid) for pid, of in below.items() if "prefect" not in of), 60.0, f"{below}")
    files = hashes(store)
    there = weights(store)
    # The killed run has not finished: it goes on from what it has.
    assert not [one for one in remove_unwanted(store).removals if one.what in ("weights", "step")]
    assert weights(store) == there and hashes(store) == files
    process = start_driver(spec_file, store.root, drive_environment, log)
    assert process.wait(timeout=900) == 0, log.read_text()[-4000:]
    assert {identity: now for identity, now in hashes(store).items() if identity in files} == files
    removed = remove_unwanted(store)
    assert {one.what for one in removed.removals} <= {"weights", "unfinished work"} and len(weights(store)) == 1
    for pid in below:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
