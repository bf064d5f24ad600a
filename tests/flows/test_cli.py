"""The command `mot` end to end, in real processes, on the preset `smoke`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["base", "std/running-total", "std/tens-and-ones", "mtd", "merge_once", "mot", "shuffled", "ensemble"]


def mot(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m flows` with warnings as Python's defaults have them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prefect_api: None) -> Path:
    """A store that holds one finished run of `smoke`."""
    store = tmp_path_factory.mktemp("cli") / "store"
    done = mot("run", "smoke", "--store", str(store))
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    return store


def newest_run(store: Path) -> Path:
    return max((store / "runs").iterdir(), key=lambda path: path.name)


def summary_of(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def test_every_subcommand_has_help_with_an_example() -> None:
    for command in (["run"], ["plan"], ["tune"], ["show"], ["report"], ["logs"], ["doctor"], ["lab", "forge"]):
        done = mot(*command, "--help")
        assert done.returncode == 0
        assert f"Example: mot {' '.join(command)}" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_the_summary_has_the_promised_form(finished: Path) -> None:
    summary = summary_of(newest_run(finished))
    entry = summary["budgets"]["matched_path"]
    assert list(summary["budgets"]) == ["matched_path"]
    assert sorted(entry) == sorted(METHODS)
    for method in METHODS:
        scores = entry[method]["benchmarks"]["sums"]
        assert scores["k"] == 2 and scores["num_problems"] == 24
        assert scores["ci95"][0] <= scores["avg_at_k"] <= scores["ci95"][1]
        assert scores["avg_at_k"] <= scores["pass_at_k"] <= 1.0
        assert list(scores["per_seed"]) == ["1"] and scores["per_seed"]["1"] == pytest.approx(scores["avg_at_k"])
    assert [row["round"] for row in entry["mot"]["rounds"]] == [1, 2]
    assert [row["round"] for row in entry["merge_once"]["rounds"]] == [2]
    assert entry["mot"]["cost"]["branch_steps"] == 2 * 2 * 3
    assert entry["std/running-total"]["cost"]["branch_steps"] == 2 * 3
    assert entry["ensemble"]["cost"]["num_students_at_inference"] == 2
    for method in ("base", "mtd", "mot", "merge_once", "shuffled", "std/tens-and-ones"):
        student = summary["students"][method]["1"]
        assert (Path(student["path"]) / "model.safetensors").is_file()
        assert len(student["sha256"]) == 64
    assert "ensemble" not in summary["students"]
    assert summary["best_single_teacher"]["dev"].startswith("std/")
    pairs = {(row["a"], row["b"]) for row in summary["comparisons"]}
    assert {("mot", "mtd"), ("mot", "shuffled"), ("mot", "base")} <= pairs
    assert summary["step_counts"]["run"] > 60 and summary["step_counts"]["reused"] == 0
    assert 0 < summary["compute_seconds"] < summary["wall_seconds"]


@pytest.mark.slow
def test_the_union_trained_with_one_teacher_each_is_what_the_vote_is_made_of(finished: Path) -> None:
    """The ensemble's dev score lies within what its voters can reach: right only where some voter was right."""
    from mot_core import load_results

    results = load_results("smoke", finished)
    rows = results.problem_scores.query("split == 'test' and benchmark == 'sums'")
    right = {method: rows[rows.method == method].set_index("problem_id").num_correct for method in METHODS}
    voters = right["std/running-total"] + right["std/tens-and-ones"]
    assert (right["ensemble"] <= voters).all()


@pytest.mark.slow
def test_again_nothing_runs_and_plan_show_report_logs_read_it(finished: Path) -> None:
    first = summary_of(newest_run(finished))
    done = mot("run", "smoke", "--store", str(finished))
    assert done.returncode == 0, done.stderr[-2000:]
    second = summary_of(newest_run(finished))
    assert second["step_counts"]["run"] == 0 and second["step_counts"]["reused"] > 60
    assert second["compute_seconds"] == 0.0
    assert second["students"] == first["students"] and second["budgets"] == first["budgets"]

    plan = mot("plan", "smoke", "--store", str(finished), "--steps", "--set", "evaluation.seed=9")
    assert "seed: 0 → 9" in plan.stdout and "published as" in plan.stdout
    shown = mot("show", "smoke", "--store", str(finished))
    assert "mot − shuffled" in shown.stdout and "0 run" in shown.stdout
    report = mot("report", "smoke", "--store", str(finished))
    assert Path(report.stdout.strip()).read_text().startswith("<!")
    logs = mot("logs", "smoke", "finetune running-total", "--store", str(finished))
    assert "published after" in logs.stdout


@pytest.mark.slow
def test_a_damaged_file_is_found_by_its_hash_and_redone(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    index = json.loads((newest_run(store) / "index.json").read_text())
    victim = next(step for step in index["steps"] if step["kind"] == "merge" and step["round"] == 1)
    weights = store / "objects" / victim["identity"] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    done = mot("run", "smoke", "--store", str(store))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "does not match its hash" in done.stderr and "will be redone" in done.stderr
    assert summary_of(newest_run(store))["step_counts"]["run"] == 1
    content[len(content) // 2] ^= 1
    assert weights.read_bytes() == bytes(content)


@pytest.mark.slow
def test_tune_chooses_by_dev_and_a_preset_can_carry_its_identity(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    few = ["--set", "tuning.learning_rates=[0.0003, 0.002]", "--set", "methods=[{name: std}, {name: mot}]"]
    done = mot("tune", "smoke", "--store", str(store), *few)
    assert done.returncode == 0, done.stderr[-2000:]
    (record_path,) = (store / "tuning").iterdir()
    record = json.loads(record_path.read_text())
    assert set(record["scores"]) == {"std", "mot"}
    for method, scores in record["scores"].items():
        assert set(scores) == {"0.0003", "0.002"}
        assert scores[str(record["chosen"][method])] == max(scores.values())
    carried = [*few, "--set", f"tuning.record={record['identity']}"]
    assert f"from sweep {record['identity']} of this spec" in mot("plan", "smoke", *carried).stdout
    other = mot("plan", "smoke", *carried, "--set", "steps_per_round=4").stdout
    assert "run mot tune again" in " ".join(other.split())


def test_errors_end_in_one_message_and_status_one(tmp_path: Path) -> None:
    for arguments, said in (
        (["run", "smok"], "did you mean 'smoke'?"),
        (["run", "smoke", "--set", "rouns=3"], "did you mean 'rounds'?"),
        (["show", "lab", "--store", str(tmp_path)], "no run 'lab'"),
    ):
        done = mot(*arguments)
        assert done.returncode == 1
        assert said in done.stderr and "Traceback" not in done.stderr


def test_doctor_names_versions_devices_and_room() -> None:
    done = mot("doctor")
    assert done.returncode == 0
    for what in ("python", "torch", "GPUs", "free disk", "Prefect server"):
        assert what in done.stdout


def test_what_needs_more_devices_than_there_are_is_refused_first(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.run import RunOptions, check_devices, run
    from flows.tune import tune
    from mot_core.errors import SpecError
    from tests.pico import pico_document, pico_experiment

    teachers = pico_document(pico_models)["teachers"]
    big = {**teachers[0], "completer": "vllm", "engine": {"tensor_parallel_size": 2, "data_parallel_size": 2}}
    spec = pico_experiment(pico_models, teachers=[big, teachers[1]])
    with pytest.raises(SpecError, match="teacher 'ann': its engine takes 4 devices, but there are 2 \\(4, 5\\); lower"):
        check_devices(spec, ["4", "5"])
    judged = pico_experiment(pico_models, corpus={"num_rationales": 6, "judge": {**big, "name": "judge"}})
    with pytest.raises(SpecError, match="teacher 'judge': its engine"):
        check_devices(judged, ["0"])
    check_devices(spec, ["0", "1", "2", "3"])
    check_devices(spec, [])
    sharded = pico_experiment(pico_models, training={**pico_document(pico_models)["training"], "devices": 4})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for begin in (run, tune):
        with pytest.raises(SpecError, match="training.devices takes 4 devices, but there are 2"):
            begin(sharded, RunOptions(tmp_path / "store"))
    assert not (tmp_path / "store").exists()
