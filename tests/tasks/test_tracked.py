"""Runs compared from a real tracker alone: the store may be gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from mot_core.errors import StoreError
from mot_core.tables import load_results
from tasks.tracked import tracked_runs


def test_runs_are_found_by_three_kinds_of_names(two_runs: tuple[str, list[Path]], tmp_path: Path) -> None:
    uri, (first, second) = two_runs
    by_id = tracked_runs(uri, [first.name, second.name], tmp_path / "a")
    assert [run.name for run in by_id] == [first.name, second.name]
    assert [run.settings["training.learning_rate"] for run in by_id] == ["0.001", "0.01"]
    (newest,) = tracked_runs(uri, ["pico"], tmp_path / "b")
    assert newest.name == second.name
    assert {path.name for path in newest.tables.glob("*.csv")} == {"scores.csv", "problem_scores.csv"}
    twice = tracked_runs(uri, [first.name, first.name], tmp_path / "c")
    assert [run.name for run in twice] == [first.name, f"{first.name} (2)"]


def test_a_comparison_needs_the_tracker_alone(
    two_runs: tuple[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, run_dirs = two_runs
    shares = []
    for run_dir in run_dirs:
        frame = load_results(run_dir).problem_scores
        rows = frame[
            (frame["method"] == "mot") & frame["is_final"] & (frame["split"] == "test") & (frame["benchmark"] == "sums")
        ]
        shares.append((rows["num_correct"] / rows["num_samples"]).mean())
    shutil.move(run_dirs[0].parent.parent, tmp_path / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("COLUMNS", "400")
    said = CliRunner().invoke(app, ["compare", *(path.name for path in run_dirs), "--out", str(tmp_path / "both.png")])
    shutil.move(tmp_path / "elsewhere", run_dirs[0].parent.parent)
    assert said.exit_code == 0, said.output
    assert (tmp_path / "both.png").read_bytes()[:4] == b"\x89PNG"
    (rate,) = [line.split() for line in said.output.splitlines() if line.startswith("training.learning_rate")]
    assert rate[1:] == ["0.001", "0.01"]
    (mot,) = [line for line in said.output.splitlines() if " home " in line and " MoT " in line]
    assert f" {100 * shares[0]:.1f} % " in mot and f" {100 * shares[1]:.1f} % " in mot
    assert "adjusted p = " in mot


def test_what_is_not_there_is_told(two_runs: tuple[str, list[Path]], tmp_path: Path) -> None:
    uri, (first, _) = two_runs
    with pytest.raises(StoreError, match=f"no finished run of an experiment named 'pico-x'; .*{first.name}"):
        tracked_runs(uri, ["pico-x"], tmp_path / "a")
    with pytest.raises(StoreError, match="is not there: nothing was tracked to it yet"):
        tracked_runs(f"sqlite:///{tmp_path / 'none.db'}", ["pico"], tmp_path / "b")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(
        StoreError, match=r"the tracker http://\*\*\*@127.0.0.1:9 cannot be used: .*; set MLFLOW_TRACKING_URI"
    ) as caught:
        tracked_runs("http://someone:hunter2@127.0.0.1:9", ["pico"], tmp_path / "c")
    assert "hunter2" not in str(caught.value)
