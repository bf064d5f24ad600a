"""lm-evaluation-harness on our students: its scores beside ours and beside a count by hand, and what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from flows.show import run_tables
from mot_core.artifacts import Published, Store
from mot_core.comparison import comparison_rows
from mot_core.dag import StudentAt, harness_step
from mot_core.errors import ProblemError, SpecError, StoreError, WorkerError
from mot_core.evaluation.harness import check_harness, folder_identity, harness_scores
from mot_core.files import read_jsonl, write_jsonl
from mot_core.models import load_model, load_tokenizer
from mot_core.prompts import render_prompt
from mot_core.report.measures import Measures
from mot_core.spec import Experiment, Harness, local_directory
from mot_core.steps import ModelRef, Step
from mot_core.tables import load_results
from mot_core.world import World, content_identity, resolve
from tests.contexts import run
from tests.pico import pico_document
from tests.processes import descendants, is_alive, wait_until
from tests.tasks.runs import computed_run

SUMS = r"""
task: lab_sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<|end|>"], do_sample: false, max_gen_toks: 96}
filter_list:
  - name: boxed
    filter:
      - {function: regex, regex_pattern: '\\boxed\{([^{}]*)\}', group_select: -1}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CHOICE = r"""
task: lab_choice
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
GROUP = """
group: lab_group
task: [lab_choice]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
"""
SPLITS = {"families": ["sums"], "table": None, "import_path": None, "seed": 3, "splits": None, "grader": "family"}


@pytest.fixture(scope="module", autouse=True)
def _hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data sets lie in a directory of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("harness") / "store").open()


@pytest.fixture(scope="module")
def problems(store: Store) -> Published:
    return run(store, "problems", {**SPLITS, "num_problems": 48, "split": "test", "role": "benchmark"})


def sum_row(question: str, answer: str) -> dict[str, Any]:
    choices = [str(int(answer) + off) for off in (0, 1, 10)]
    return {"question": question, "answer": answer, "choices": choices}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, problems: Published) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in (("sums", SUMS), ("choice", CHOICE), ("group", GROUP)):
        (folder / f"{name}.yaml").write_text(text)
    rows = read_jsonl(problems.path / "problems.jsonl")
    write_jsonl(folder / "sums.jsonl", [sum_row(row["question"], row["answer"]) for row in rows])
    return folder


def entry_of(folder: Path | None, **changes: Any) -> Harness:
    document = {"name": "own", "tasks": ["lab_sums", "lab_group"], "batch_size": 16, "model_args": {"dtype": "float32"}}
    return Harness.model_validate({**document, "include_path": str(folder) if folder else None, **changes})


def step_of(entry: Harness, folder: Path, model: str = "student-tiny", version: str = "0.4.13") -> Step:
    directory = local_directory(f"lab:{model}")
    assert directory is not None
    student = ModelRef(content_identity(directory), str(directory))
    world = World(student, "t", {}, {str(folder): folder_identity(str(folder), "tasks")}, (), version)
    return harness_step(world, entry, StudentAt(student), label="harness own", facts={})


def computed(store: Store, step: Step) -> Published:
    return run(store, step.kind, step.spec, step.parents, step.locators)


@pytest.fixture(scope="module")
def measured(store: Store, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Both tasks on `student-tiny`, after a first attempt that was killed with the harness at work."""
    step = step_of(entry_of(folder), folder)
    killed = tmp_path_factory.mktemp("killed") / "step.json"
    killed.write_text(json.dumps({**step.to_json(), "store": str(store.root)}))
    code = (
        "import json, sys; from tests.contexts import run; from mot_core.artifacts import Store\n"
        "step = json.load(open(sys.argv[1]))\n"
        "run(Store(step['store']), step['kind'], step['spec'], (), step['locators'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(killed)], stderr=subprocess.DEVNULL)

    def workers() -> list[int]:
        return [pid for pid, command in descendants(process.pid).items() if "harness_worker" in command]

    wait_until(lambda: bool(workers()) or process.poll() is not None, 600, "the harness's process")
    below = workers()
    assert below, "the step ended before its harness was seen"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(is_alive, below)), 60, "the harness to end with its step")
    assert store.find(step.identity) is None
    return computed(store, step)


# --- against ours, and against a count by hand -----------------------------------------------------------------------


@pytest.mark.slow
def test_each_problem_is_right_or_wrong_as_in_our_evaluation(
    store: Store, problems: Published, measured: Published
) -> None:
    directory = local_directory("lab:student-tiny")
    assert directory is not None
    asked = {
        "student": content_identity(directory), "k": 1, "num_samples": 1, "grader": "family", "completer": "transformers",
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_completion_tokens": 96}, "seed": 0, "batch_size": 16,
        "max_failed_share": 0.0,
    }  # fmt: skip
    parent = Step("problems", {**SPLITS, "num_problems": 48, "split": "test", "role": "benchmark"})
    assert parent.identity == problems.identity
    ours = run(
        store, "evaluation", asked, (("problems", parent),), {"student": str(directory), "student_revision": None}
    )
    verdicts = {row["problem_id"]: row["verdict"] == "correct" for row in read_jsonl(ours.path / "graded.jsonl")}
    in_order = [verdicts[row["problem_id"]] for row in read_jsonl(problems.path / "problems.jsonl")]
    (score, documents), _ = harness_scores(measured.path, "own", None)
    assert [row["problem_id"] for row in documents] == [f"lab_sums/{index}" for index in range(48)]
    assert [row["outcomes"][0] for row in documents] == in_order
    assert 0 < sum(in_order) < 48, "a student that is always right or always wrong shows nothing"
    assert score["avg_at_k"] == ours.counts["avg_at_k"] == measured.counts["lab_sums/exact_match,boxed"]
    # The texts themselves, not their verdicts alone.
    texts = [row["text"] for row in read_jsonl(ours.path / "completions.jsonl")]
    answers = [
        row["responses"][0][0] for row in read_jsonl(measured.path / "samples.jsonl") if row["task"] == "lab_sums"
    ]
    assert sum(a != b for a, b in zip(texts, answers, strict=True)) <= 1  # another batch may tip one near tie


@pytest.mark.slow
def test_likelihoods_are_those_of_torch(measured: Published, folder: Path) -> None:
    directory = str(local_directory("lab:student-tiny"))
    tokenizer, model = load_tokenizer(directory), load_model(directory, None, "cpu")
    rows = [row for row in read_jsonl(measured.path / "samples.jsonl") if row["task"] == "lab_choice"]
    right = 0
    for row, problem in zip(rows, read_jsonl(folder / "sums.jsonl"), strict=True):
        prompt = render_prompt(tokenizer, problem["question"])
        by_hand = []
        for choice in problem["choices"]:
            before = len(tokenizer.encode(prompt, add_special_tokens=False))
            ids_T = torch.tensor(tokenizer.encode(f"{prompt}{choice}", add_special_tokens=False))
            with torch.no_grad():
                logprobs_TV = model(ids_T[None]).logits[0].log_softmax(-1)
            by_hand.append(float(logprobs_TV[before - 1 : -1].gather(-1, ids_T[before:, None]).sum()))
        assert [pair[0][0] for pair in row["responses"]] == pytest.approx(by_hand, abs=1e-3)
        assert row["metrics"]["acc,none"] == (max(range(3), key=by_hand.__getitem__) == 0)
        right += row["metrics"]["acc,none"]
    assert measured.counts["lab_group/acc,none"] == pytest.approx(right / len(rows))


@pytest.mark.slow
def test_what_is_published(measured: Published) -> None:
    assert measured.counts["num_documents"] == 96
    assert {path.name for path in measured.path.iterdir()} == {
        "manifest.json", "results.json", "samples.jsonl", "versions.json"
    }  # fmt: skip
    assert json.loads((measured.path / "versions.json").read_text())["lm_eval"] == "0.4.13"
    tasks = json.loads((measured.path / "results.json").read_text())["tasks"]
    assert tasks["lab_group"]["leaves"] == tasks["lab_choice"]["leaves"] == ["lab_choice"]
    share = tasks["lab_sums"]["metrics"]["exact_match,boxed"]
    assert share["stderr"] == pytest.approx((share["value"] * (1 - share["value"]) / 47) ** 0.5)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_published_suites_are_known_and_a_wrong_name_is_not() -> None:
    suites = ["mmlu_pro", "ifeval", "bbh_cot_zeroshot"]
    entry = entry_of(None, tasks=[*suites, "mmlu_prp"])
    with pytest.raises(
        SpecError, match=r"evaluation.harness.own.tasks: 'mmlu_prp' is no task.*0\.4\.13; did you mean 'mmlu_pro'"
    ):
        check_harness(entry, "evaluation.harness.own")


def test_a_task_that_runs_a_models_code(tmp_path: Path) -> None:
    (tmp_path / "programs.yaml").write_text(SUMS.replace("task: lab_sums", "task: programs\nunsafe_code: true"))
    (tmp_path / "more.yaml").write_text("include: programs.yaml\ntask: more_programs\n")
    for name in ("programs", "more_programs"):
        with pytest.raises(SpecError, match=f"own.tasks: task '{name}' runs code that the model wrote"):
            check_harness(entry_of(tmp_path, tasks=[name]), "own")


def test_a_metric_that_a_task_lacks(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"own.metric: task 'lab_choice' has no 'exact_match'; it has acc,none"):
        check_harness(entry_of(folder, metric="exact_match"), "own")


def test_an_interpreter_without_lm_eval(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -I -S "$@"\n')  # without its site-packages
    bare.chmod(0o755)
    monkeypatch.setenv("MOT_LM_EVAL_PYTHON", str(bare))
    with pytest.raises(WorkerError, match="cannot import lm-eval: ModuleNotFoundError.*set MOT_LM_EVAL_PYTHON"):
        check_harness(entry_of(folder), "own")
    monkeypatch.setenv("MOT_LM_EVAL_PYTHON", str(tmp_path / "absent"))
    with pytest.raises(WorkerError, match="no such program"):
        check_harness(entry_of(folder), "own")
    with pytest.raises(SpecError, match=r"holds no \*.yaml"):
        check_harness(entry_of(tmp_path), "own")


def test_data_that_is_out_of_reach(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text(SUMS)  # without its rows
    with pytest.raises(ProblemError, match=r"harness: task 'lab_sums': FileNotFoundError.*HF_HUB_OFFLINE=1"):
        computed(store, step_of(entry_of(tmp_path, tasks=["lab_sums"]), tmp_path))
    with pytest.raises(WorkerError, match=r"has lm-eval 0\.4\.13, but the step was planned with 0\.4\.9"):
        computed(store, step_of(entry_of(folder), folder, version="0.4.9"))


def test_a_folder_that_changed_since_the_plan(store: Store, tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text(SUMS)
    step = step_of(entry_of(tmp_path), tmp_path)
    (tmp_path / "more.jsonl").write_text("{}\n")
    with pytest.raises(SpecError, match="have changed since the run was planned"):
        computed(store, step)


def test_the_spec_refuses(folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"model_args has \['trust_remote_code'\]; allowed: add_bos_token, dtype"):
        entry_of(folder, model_args={"trust_remote_code": True})
    with pytest.raises(ValidationError, match="duplicate 'lab_sums'"):
        entry_of(folder, tasks=["lab_sums", "lab_sums"])


# --- identity --------------------------------------------------------------------------------------------------------


def test_what_enters_identity(folder: Path, tmp_path: Path) -> None:
    own = step_of(entry_of(folder), folder).identity
    for changes in ({"name": "other"}, {"role": "home"}, {"metric": "acc"}):
        assert step_of(entry_of(folder, **changes), folder).identity == own, changes
    for changes in (
        {"num_fewshot": 2}, {"limit": 3}, {"apply_chat_template": False}, {"system_instruction": "Be brief."}, {"seed": 1},
        {"gen_kwargs": {"max_gen_toks": 9}}, {"model_args": {}}, {"batch_size": 1}, {"tasks": ["lab_sums"]},
    ):  # fmt: skip
        assert step_of(entry_of(folder, **changes), folder).identity != own, changes
    assert step_of(entry_of(folder), folder, version="0.4.12").identity != own
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert step_of(entry_of(moved), moved).identity == own
    (moved / "sums.jsonl").write_text("{}\n")
    assert step_of(entry_of(moved), moved).identity != own


# --- tables ----------------------------------------------------------------------------------------------------------


def write_results(directory: Path, tasks: dict[str, Any], samples: list[dict[str, Any]], requested: list[str]) -> Path:
    (directory / "results.json").write_text(json.dumps({"requested": requested, "tasks": tasks}))
    write_jsonl(directory / "samples.jsonl", samples)
    return directory


def task_row(leaves: list[str], better: bool = True, **metrics: float | None) -> dict[str, Any]:
    keys = {name.replace("__", ","): {"value": value, "stderr": 0.1} for name, value in metrics.items()}
    return {"leaves": leaves, "metrics": keys, "higher_is_better": {key.partition(",")[0]: better for key in keys}}


def test_which_metrics_become_scores(tmp_path: Path) -> None:
    def document(task: str, index: int, **metrics: Any) -> dict[str, Any]:
        return {
            "task": task,
            "doc_id": index,
            "metrics": {name.replace("__", ","): value for name, value in metrics.items()},
        }

    tasks = {
        "a": task_row(["a"], acc__none=0.5, f1__none=0.3), "b": task_row(["b"], acc__none=1.0),
        "both": task_row(["a", "b"], acc__none=0.75), "tag": task_row(["a", "b"]),
        "loss": task_row(["loss"], better=False, brier__none=0.2), "bits": task_row(["bits"], bits__none=3.0),
    }  # fmt: skip
    samples = [
        document("a", 0, acc__none=1.0, f1__none=0.5), document("a", 1, acc__none=0.0, f1__none=0.1),
        document("b", 0, acc__none=True), document("loss", 0, brier__none=0.2), document("bits", 0, bits__none=3.0),
    ]  # fmt: skip
    write_results(tmp_path, tasks, samples, list(tasks))
    found = {row["benchmark"]: (row, documents) for row, documents in harness_scores(tmp_path, "n", None)}
    assert list(found) == ["n/a", "n/b", "n/both", "n/tag"]  # a loss is no score, nor are bits
    assert found["n/both"][0] == {
        "benchmark": "n/both", "k": 1, "num_problems": 3, "avg_at_k": 0.75, "se_problems": 0.1
    }  # fmt: skip
    assert [(row["problem_id"], row["num_correct"]) for row in found["n/both"][1]] == [
        ("a/0", 1),
        ("a/1", 0),
        ("b/0", 1),
    ]
    assert found["n/tag"][0]["avg_at_k"] == pytest.approx(2 / 3)
    assert found["n/tag"][0]["se_problems"] is None
    write_results(tmp_path, tasks, samples, ["a"])
    ((shares, documents),) = harness_scores(tmp_path, "n", "f1,none")
    assert (shares["avg_at_k"], documents) == (0.3, [])  # shares, neither right nor wrong
    with pytest.raises(StoreError, match="no metric 'f2' among acc,none, f1,none"):
        harness_scores(tmp_path, "n", "f2")


def test_comparisons_pass_over_the_vote_where_it_was_not_asked() -> None:
    """The ensemble has no weights that the harness could be given."""
    place = {"budget": "matched_path", "seed": 1, "is_final": True, "split": "test", "num_samples": 1}
    rows = [
        {**place, "method": method, "benchmark": benchmark, "problem_id": str(index), "num_correct": int(right),
         "outcomes": (right,)}
        for benchmark, methods in (("ours", ("base", "ensemble", "mot")), ("own/x", ("base", "mot")))
        for method in methods for index, right in enumerate((method == "mot", True, False))
    ]  # fmt: skip
    found = [(row["a"], row["b"], row["benchmark"], row["delta"]) for row in comparison_rows(rows, {}, 100)]
    third = pytest.approx(1 / 3)
    assert found == [
        ("mot", "base", "ours", third), ("mot", "ensemble", "ours", third), ("ensemble", "base", "ours", 0.0),
        ("mot", "base", "own/x", third),
    ]  # fmt: skip


def test_absent_it_leaves_no_trace(pico_spec: Experiment) -> None:
    world = resolve(pico_spec)
    assert world.lm_eval is None
    assert "lm_eval" not in world.to_json()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, pico_models: Path, folder: Path) -> Path:
    document = pico_document(pico_models)
    document["methods"] = [{"name": name} for name in ("base", "mtd")]
    document["evaluation"]["harness"] = [
        {"name": "own", "tasks": ["lab_sums", "lab_choice"], "include_path": str(folder), "limit": 6,
         "gen_kwargs": {"max_gen_toks": 8}}
    ]  # fmt: skip
    root = tmp_path_factory.mktemp("run") / "store"
    return computed_run(root, Experiment.model_validate(document), f"sqlite:///{root}/mlflow.db")


@pytest.mark.slow
def test_a_whole_experiment_has_it_in_tables_summary_and_report(run_dir: Path) -> None:
    results = load_results(run_dir)
    scores = results.scores[results.scores["benchmark"].str.startswith("own/")]
    assert sorted(scores["benchmark"].unique()) == ["own/lab_choice", "own/lab_sums"]
    assert set(scores["method"]) == {"base", "mtd"}
    assert set(zip(scores["split"], scores["role"], scores["k"], scores["num_problems"], strict=True)) == {
        ("test", "panel", 1, 6)
    }
    documents = results.problem_scores[results.problem_scores["benchmark"] == "own/lab_choice"]
    shares = documents.groupby("method")["num_correct"].mean()
    for row in scores[scores["benchmark"] == "own/lab_choice"].itertuples():
        assert shares[row.method] == pytest.approx(row.avg_at_k)
    pairs = results.comparisons[results.comparisons["benchmark"] == "own/lab_choice"]
    assert list(zip(pairs["a"], pairs["b"], pairs["test"], strict=True)) == [("mtd", "base", "mcnemar")]
    assert pairs["delta"].tolist() == [pytest.approx(shares["mtd"] - shares["base"])]
    panel = Measures(results).change_from_base.query("role == 'panel' and method == 'base'")
    assert panel["num_problems"].tolist() == [4 + 6 + 6]
    summary = json.loads((run_dir / "summary.json").read_text())["budgets"]["matched_path"]["base"]["benchmarks"]
    assert summary["own/lab_choice"]["avg_at_k"] == pytest.approx(shares["base"])
    assert summary["own/lab_choice"]["pass_at_k"] is None
    assert summary["panel"]["pass_at_k"] is not None
    assert "own/lab_choice" in (run_dir / "report.html").read_text()
    assert len(list(run_tables(run_dir))) > 0
    index = json.loads((run_dir / "index.json").read_text())
    assert all(("harness" in student) == student["is_final"] for student in index["students"])
