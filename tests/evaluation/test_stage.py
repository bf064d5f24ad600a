"""One student on one benchmark: equal weights are asked once, whatever made them; and a score is what a hand count says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Published, Store
from mot_core.evaluation.metrics import problem_scores
from mot_core.evaluation.stage import student_content
from mot_core.files import read_jsonl, write_jsonl
from mot_core.lab import lab_model_path
from mot_core.lab.families import draw_problems
from mot_core.runner import ModelCache, RunSettings, StepContext
from mot_core.steps import ModelRef, RemoteStep, Step
from mot_core.world import content_identity
from tests.contexts import publish, run
from tests.pico import write_pico_model

SPEC = {
    "k": 2, "num_samples": 2, "sampling": {"temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 6},
    "grader": "family", "completer": "transformers", "seed": 3, "batch_size": 8, "max_failed_share": 0.05,
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def problems_in(store: Store, number: int) -> Step:
    drawn = [problem.to_json() for problem in draw_problems("sums", "test", number, 1)]
    step = Step("problems", {"num_problems": number})
    return publish(store, step, lambda path: write_jsonl(path / "problems.jsonl", drawn))


def student_in(store: Store, name: str, source: Path, place: str = ".", changed: bool = False) -> Step:
    """A step that publishes a copy of a model, and what else such a step has beside it."""

    def write(path: Path) -> None:
        shutil.copytree(source, path / place, dirs_exist_ok=True)
        (path / "diagnostics.json").write_text(json.dumps({"of": name}))
        write_jsonl(path / "training.jsonl", [{"step": name}])
        if changed:
            config = path / place / "generation_config.json"
            config.write_text(config.read_text().replace("}", ', "no_repeat_ngram_size": 3}'))

    return publish(store, Step("merge", {"name": name}), write)


def evaluated(
    store: Store, problems: Step, student: Step | ModelRef, place: str | None = None, **changes: Any
) -> Published:
    own = {"student_subdirectory": place} if place else {}
    if isinstance(student, ModelRef):
        own, parents, locators = {"student": student.identity}, (), {"student": student.locator}
    else:
        parents, locators = (("student", student),), {}
    return run(store, "evaluation", {**own, **SPEC, **changes}, (("problems", problems), *parents), locators)


def test_equal_weights_are_asked_once_whatever_made_them(store: Store, tmp_path: Path) -> None:
    model = write_pico_model(tmp_path / "model", 1)
    problems = problems_in(store, 3)
    first = evaluated(store, problems, student_in(store, "one", model))
    same = evaluated(store, problems, student_in(store, "two", model))
    snapshot = evaluated(
        store, problems, student_in(store, "three", model, "snapshots/step-4"), "snapshots/step-4"
    )  # fmt: skip
    outside = evaluated(store, problems, ModelRef(content_identity(model), str(model)))
    assert [one.counts["num_asked"] for one in (first, same, snapshot, outside)] == [6, 0, 0, 0]
    assert len({one.identity for one in (first, same, snapshot, outside)}) == 4
    texts = [(one.path / "completions.jsonl").read_bytes() for one in (first, same, snapshot, outside)]
    assert len(set(texts)) == 1 and len({one.counts["avg_at_k"] for one in (first, same)}) == 1


def test_other_files_are_another_student(store: Store, tmp_path: Path) -> None:
    problems = problems_in(store, 2)
    model = write_pico_model(tmp_path / "model", 1)
    asked = [
        evaluated(store, problems, student_in(store, name, source, changed=changed)).counts["num_asked"]
        for name, source, changed in (
            ("one", model, False), ("other weights", write_pico_model(tmp_path / "other", 2), False), ("config", model, True),
        )
    ]  # fmt: skip
    assert asked == [4, 4, 4]


def test_more_samples_of_an_equal_student_ask_for_the_new_ones_only(store: Store, tmp_path: Path) -> None:
    model = write_pico_model(tmp_path / "model", 1)
    problems = problems_in(store, 3)
    evaluated(store, problems, student_in(store, "one", model))
    more = evaluated(store, problems, student_in(store, "two", model), num_samples=4)
    assert (more.counts["num_asked"], more.counts["num_requests"]) == (6, 12)


def test_a_merge_of_one_branch_is_the_branch(store: Store, tmp_path: Path) -> None:
    """The merge writes files of its own; what they hold is the branch's weights."""
    start, trained = (write_pico_model(tmp_path / name, seed) for seed, name in enumerate(("start", "trained"), 1))
    branch = publish(
        store, Step("branch", {"name": "b"}), lambda path: shutil.copytree(trained, path, dirs_exist_ok=True)
    )
    spec = {"student": content_identity(start), "rule": "mean", "weights": [1.0]}
    locators = {"student": str(start)}
    run(store, "merge", spec, (("branch/b", branch),), locators)
    merged = Step("merge", spec, (("branch/b", branch),), locators=locators)
    problems = problems_in(store, 2)
    assert evaluated(store, problems, branch).counts["num_asked"] == 4
    assert evaluated(store, problems, merged).counts["num_asked"] == 0


def test_the_manifests_hashes_give_the_identity_of_the_directory(store: Store, tmp_path: Path) -> None:
    model = write_pico_model(tmp_path / "model", 1)
    step = Step("evaluation", SPEC, (("problems", problems_in(store, 1)), ("student", student_in(store, "s", model))))
    remote = RemoteStep.from_json(step.to_json())
    context = StepContext(remote, store, RunSettings(), tmp_path, lambda event: None, ModelCache())
    assert student_content(context) == content_identity(model)


def test_a_hand_count_of_the_raw_texts_gives_the_same_score(store: Store) -> None:
    """A laboratory model's published answers, recounted by plain regular expressions and sums done here."""
    model = lab_model_path("running-total")
    problems = problems_in(store, 40)
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 48}
    found = evaluated(store, problems, ModelRef(content_identity(model), str(model)), sampling=sampling)
    questions = {
        row["problem_id"]: row["question"] for row in read_jsonl(store.object_dir(problems.identity) / "problems.jsonl")
    }
    right: dict[str, list[bool]] = {}
    lengths, cut, silent = [], 0, 0
    for row in read_jsonl(found.path / "completions.jsonl"):
        numbers = re.findall(r"[+-]?\d+", questions[row["problem_id"]].replace(" ", ""))
        whole = row["finish_reason"] == "stop" and "</think>" in row["text"]
        stated = re.findall(r"\\boxed\{\s*([+-]?\d+)\s*\}\s*$", row["text"].split("</think>")[-1]) if whole else []
        right.setdefault(row["problem_id"], []).append(bool(stated) and int(stated[-1]) == sum(map(int, numbers)))
        lengths.append(row["num_tokens"])
        cut += not whole
        silent += whole and not stated
    shares = [sum(answers) / len(answers) for answers in right.values()]
    counts = found.counts
    assert counts["avg_at_k"] == pytest.approx(sum(shares) / 40)
    assert 0.2 < counts["avg_at_k"] < 0.99  # neither all nor none: the count could have gone wrong
    assert counts["pass_at_k"] == pytest.approx(sum(any(answers) for answers in right.values()) / 40)
    assert counts["mean_completion_tokens"] == pytest.approx(sum(lengths) / 80)
    assert (counts["truncated_share"], counts["unparseable_share"]) == pytest.approx((cut / 80, silent / 80))
    graded = read_jsonl(found.path / "graded.jsonl")
    assert [score["num_correct"] for score in problem_scores(graded, 2)] == [sum(answers) for answers in right.values()]
