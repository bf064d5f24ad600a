"""`mot generate`, `mot grade`, `mot corpus` on files, one after the other, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from mot_core.files import read_jsonl
from mot_core.lab.families import draw_problems
from tests.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def mot(*arguments: str, cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_problems_to_corpora_on_files(
    pico_models: Path, tmp_path: Path, drive_environment: dict[str, Any]
) -> None:
    environment = {**drive_environment, "PYTHONPATH": str(ROOT)}
    problems = draw_problems("sums", "train", 12, 1)
    rows = [{"question": p.question, "answer": p.answer, "family": p.family} for p in problems]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []
    for teacher, completer in (("ann", "Scripted"), ("bob", "ScriptedTens")):
        command = (
            "generate", "problems.jsonl", f"{teacher}.jsonl", "--teacher", str(pico_models / teacher), "--set",
            f"completer=tests.pico:{completer}", "--answer-type", "math", "--store", "kept",
        )  # fmt: skip
        asked += [mot(*command, cwd=tmp_path, environment=environment) for _ in range(2)]
        mot("grade", f"{teacher}.jsonl", f"{teacher}-graded.jsonl", cwd=tmp_path, environment=environment)
    assert ["asked now 12" in asked[0], "asked now 0" in asked[1], "asked now 12" in asked[2]] == [True] * 3
    graded = read_jsonl(tmp_path / "ann-graded.jsonl")
    assert [row["id"] for row in graded] == [row["id"] for row in read_jsonl(tmp_path / "ann.jsonl")]
    assert {"verdict", "extracted", "seconds", "completion", "gold", "answer_type"} <= set(graded[0])
    right = {
        teacher: {
            row["question"] for row in read_jsonl(tmp_path / f"{teacher}-graded.jsonl") if row["verdict"] == "correct"
        }
        for teacher in ("ann", "bob")
    }
    told = mot(
        "corpus", "corpora", "--graded", "ann=ann-graded.jsonl", "--graded", "bob=bob-graded.jsonl", "--license", "ann=mit",
        "--set", "num_rationales=5", cwd=tmp_path, environment=environment,
    )  # fmt: skip
    size = min(5, len(right["ann"] & right["bob"]))
    assert f"ann {size} rationales, bob {size} rationales" in told
    loaded = {
        teacher: load_dataset(str(tmp_path / "corpora"), teacher, split="train", cache_dir=str(tmp_path / "cache"))
        for teacher in ("ann", "bob")
    }
    assert loaded["ann"]["problem_id"] == loaded["bob"]["problem_id"]
    assert set(loaded["ann"]["question"]) <= right["ann"] & right["bob"]
    assert loaded["ann"][0]["messages"][1]["role"] == "assistant"


def test_generate_tells_a_wrong_teacher_field(tmp_path: Path, drive_environment: dict[str, Any]) -> None:
    (tmp_path / "problems.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    done = subprocess.run(
        [sys.executable, "-m", "flows", "generate", "problems.jsonl", "out.jsonl", "--teacher", "lab:running-total",
         "--set", "completor=vllm"],
        cwd=tmp_path, env={**drive_environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "completor: unknown field (value 'vllm'); did you mean 'completer'?" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
