"""Teachers of every kind in one experiment: an endpoint, rows that exist already, a program; and a judge."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flows.run import RunOptions, outline_of, run
from mot_core.artifacts import Store
from mot_core.files import read_jsonl
from mot_core.prepare import world_of
from mot_core.spec import Experiment
from mot_core.tables import load_results
from tests.endpoint import Call, Endpoint, Reply, reply
from tests.pico import pico_document, style_of

pytestmark = pytest.mark.slow
KEY = "a-key-that-nobody-may-see-4711"


def answer(call: Call) -> Reply:
    """Right, with its reasoning apart; as judge it finds every second answer wrong."""
    if "boxed{yes}" in call.question:
        judged = re.search(r"<ANSWER \w+>\n(.*)\n</ANSWER", call.question)
        assert judged is not None
        return reply("\\boxed{yes}" if int(judged.group(1)) % 2 else "\\boxed{no}")
    text = style_of(call.question, "running-total")
    reasoning, _, content = text.removeprefix("<think>").partition("</think>")
    return reply(content, reasoning_content=reasoning)


def document_of(models: Path, url: str, rows: Path) -> dict[str, Any]:
    document = pico_document(models)
    endpoint = {"base_url": url, "api_key_env": "MOT_TEST_KEY", "price_per_million_prompt_tokens": 1000.0,
                "price_per_million_completion_tokens": 2000.0}  # fmt: skip
    document["teachers"] = [
        document["teachers"][0],
        {"name": "served", "model": "tiny", "completer": "openai", "endpoint": endpoint, "license": "mit"},
        {"name": "written", "model": "r1", "completer": "corpus", "rationales": {"file": str(rows)}},
    ]
    document["corpus"] = {
        "num_rationales": 4, "difficulty": [0.0, 1.0], "difficulty_samples": 1, "match_over": ["ann", "served"],
        "judge": {"name": "judge", "model": "tiny", "completer": "openai", "endpoint": endpoint},
    }  # fmt: skip
    document["methods"] = [{"name": "mot"}]
    document["rounds"] = 1
    document["evaluation"]["benchmarks"] = document["evaluation"]["benchmarks"][:1]
    document["evaluation"]["path"]["rounds"] = "last"
    return document


def test_an_experiment_of_all_kinds_of_teachers_pays_once(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOT_TEST_KEY", KEY)
    store = tmp_path / "store"
    rows = tmp_path / "rows.jsonl"
    questions = [row["question"] for row in drawn_problems(pico_models)]
    # The existing rationales lack one problem, and are wrong on another, which match_over lets pass.
    written = [{"question": q, "rationale": style_of(q, "tens-and-ones")} for q in questions[1:]]
    written[0]["rationale"] = "<think>a guess</think>\\boxed{-7}"
    rows.write_text("".join(json.dumps(row) + "\n" for row in written))
    with Endpoint(answer) as endpoint:
        document = document_of(pico_models, endpoint.url, rows)
        first = run(Experiment.model_validate(document), RunOptions(store, workers=2))
        paid = endpoint.answered
        again = run(Experiment.model_validate(document), RunOptions(store, workers=2))
        document["training_seeds"], document["corpus"]["num_rationales"] = [2], 3
        run(Experiment.model_validate(document), RunOptions(store, workers=2))
        assert endpoint.answered == paid, "another training seed and another limit buy nothing again"
    assert load_results(again).summary["step_counts"]["run"] == 0

    results = load_results(first)
    teachers = results.teachers.set_index("teacher")
    assert teachers.loc["served", ["num_requests", "num_failed", "correct"]].tolist() == [12, 0, 12]
    assert teachers.loc["served", "cost"] == pytest.approx((12 * 7 * 1000 + 12 * 3 * 2000) / 1e6)
    assert teachers["cost"].isna().tolist() == [True, False, True]
    assert teachers.loc["written", ["num_absent", "correct", "incorrect"]].tolist() == [1, 10, 1]
    assert 0.0 < teachers.loc["served", "judge_disagreement"] < 1.0
    # Twelve rationales, and one judgement for each different question to the judge.
    judged = {
        (row["problem_id"], row["extracted"])
        for node in json.loads((first / "index.json").read_text())["nodes"]["verdicts"].values()
        for row in read_jsonl(Store(store).object_dir(node) / "verdicts.jsonl")
        if row["extracted"] is not None
    }
    assert paid == 12 + len(judged)

    # The corpora: matched over two teachers; the third comes unfiltered, so a wrong rationale of its may be in.
    corpora = results.corpus_ledger
    assert corpora["num_left"].iloc[-1] == 4
    assert set(results.rationales.query("selected")["teacher"]) == {"ann", "served", "written"}
    assert not any(KEY.encode() in path.read_bytes() for path in store.rglob("*") if path.is_file())


def drawn_problems(models: Path) -> list[dict[str, Any]]:
    from mot_core.lab.families import draw_problems

    source = pico_document(models)["problems"]
    return [problem.to_json() for problem in draw_problems("sums", "train", source["num_problems"], source["seed"])]


def test_a_missing_key_is_told_before_anything_runs(pico_models: Path, tmp_path: Path) -> None:
    from mot_core.errors import SpecError

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1", "rationale": "<think>2</think>2"}\n')
    spec = Experiment.model_validate(document_of(pico_models, "http://127.0.0.1:9/v1", rows))
    with pytest.raises(
        SpecError, match=r"teachers\.served\.endpoint\.api_key_env: the environment variable MOT_TEST_KEY"
    ):
        run(spec, RunOptions(tmp_path / "store", workers=1))
    assert not (tmp_path / "store").exists()


def test_an_address_is_no_identity(pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOT_TEST_KEY", KEY)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1", "rationale": "<think>2</think>2"}\n')

    def identities(url: str) -> set[str]:
        spec = Experiment.model_validate(document_of(pico_models, url, rows))
        return {step.identity for step in outline_of(spec, world_of(spec))[1]}

    assert identities("http://127.0.0.1:9/v1") == identities("https://elsewhere.example/v1")
