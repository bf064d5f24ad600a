"""The stages: matched corpora and their ledger by hand, the control as a partition, what a step's spec asks for."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Store
from mot_core.corpus.tables import read_corpus, write_corpus
from mot_core.errors import CorpusError
from mot_core.files import write_jsonl
from mot_core.steps import Step
from tests.contexts import publish, run

PROBLEMS = [f"p{index}" for index in range(6)]
# Teacher ann is right on p0 to p4, bob on p1 to p5 but p3.
RIGHT = {"ann": {"p0", "p1", "p2", "p3", "p4"}, "bob": {"p1", "p2", "p4", "p5"}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def verdict_rows(teacher: str, right: set[str], num_samples: int = 3) -> list[dict[str, Any]]:
    rows = []
    for problem_id in PROBLEMS:
        for index in range(num_samples):
            # Sample 0 is wrong everywhere, so that 'first' means the first correct one; sample 2 is the shortest.
            correct = problem_id in right and index > 0
            rows.append(
                {
                    "key": f"{teacher}-{problem_id}-{index}", "problem_id": problem_id, "sample_index": index, "seed": 1,
                    "family": "sums", "text": f"<think>{teacher} {index}</think>\\boxed{{{problem_id}}}",
                    "num_tokens": 20 - index, "finish_reason": "stop", "reason": "",
                    "verdict": "correct" if correct else "incorrect", "extracted": problem_id,
                }
            )  # fmt: skip
    return rows


def parents(store: Store, right: dict[str, set[str]]) -> tuple[tuple[str, Step], ...]:
    problems = [{"problem_id": p, "family": "sums", "question": f"what is {p}", "answer": p} for p in PROBLEMS]
    made = [("problems", publish(store, Step("problems", {}), lambda to: write_jsonl(to / "problems.jsonl", problems)))]
    for teacher, ids in right.items():
        step = Step("verdicts", {"of": teacher, "right": sorted(ids)})
        rows = verdict_rows(teacher, ids)
        made.append(
            (
                f"verdicts/{teacher}",
                publish(store, step, lambda to, rows=rows: write_jsonl(to / "verdicts.jsonl", rows)),
            )
        )
    return tuple(made)


def spec(**changes: Any) -> dict[str, Any]:
    """As `mot_core.dag` writes it."""
    return {
        "mode": "matched", "match_over": ["ann", "bob"], "num_rationales": 10, "rationales_per_problem": 1,
        "selection_seed": 0, "choice": "first", "filter_correct": True,
        "licenses": {"teachers": {"ann": "mit", "bob": None}, "problems": "apache-2.0"}, **changes,
    }  # fmt: skip


def test_the_matched_intersection_and_its_ledger(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mot.corpus"):
        made = run(store, "corpora", spec(), parents(store, RIGHT))
    assert "3 matched problems, fewer than the 10 asked for" in caplog.text
    ledger = json.loads((made.path / "ledger.json").read_text())
    assert ledger == {
        "ledger": [
            {"filter": "problems drawn", "num_dropped": 0, "num_left": 6},
            {"filter": "ann has a correct rationale", "num_dropped": 1, "num_left": 5},
            {"filter": "bob has a correct rationale", "num_dropped": 2, "num_left": 3},
            {"filter": "limit of 10", "num_dropped": 0, "num_left": 3},
        ],
        "selected": ["p1", "p2", "p4"],
        "selected_by_teacher": {"ann": ["p1", "p2", "p4"], "bob": ["p1", "p2", "p4"]},
        "num_drawn": {"ann": 18, "bob": 18},
        "num_by_teacher": {"ann": 3, "bob": 3},
        "rejections": [
            {"teacher": "ann", "filter": "correct", "num_rejected": 8},
            {"teacher": "bob", "filter": "correct", "num_rejected": 10},
            {"teacher": "ann", "filter": "matched", "num_rejected": 4},
            {"teacher": "bob", "filter": "matched", "num_rejected": 2},
            {"teacher": "", "filter": "matched", "num_rejected": 3},
            {"teacher": "ann", "filter": "choice", "num_rejected": 3},
            {"teacher": "bob", "filter": "choice", "num_rejected": 3},
        ],
    }
    for teacher in RIGHT:
        rows = read_corpus(made.path / f"{teacher}.parquet")
        assert [row["problem_id"] for row in rows] == ["p1", "p2", "p4"]
        assert [row["completion_key"] for row in rows] == [f"{teacher}-{p}-1" for p in ("p1", "p2", "p4")]
        assert rows[0] == {
            "problem_id": "p1", "family": "sums", "question": "what is p1", "teacher": teacher,
            "completion_key": f"{teacher}-p1-1", "completion_tokens": 19,
            "messages": [
                {"role": "user", "content": "what is p1", "reasoning_content": None},
                {"role": "assistant", "content": "\\boxed{p1}", "reasoning_content": f"{teacher} 1"},
            ],
            "sample_index": 1, "verdict": "correct", "extracted": "p1", "gold": "p1", "student_tokens": None,
            "teacher_license": "mit" if teacher == "ann" else None, "problems_license": "apache-2.0",
        }  # fmt: skip
    assert made.counts == {
        "num_rationales": 3, "num_by_teacher": {"ann": 3, "bob": 3}, "num_problems": 3, "num_problems_wanted": 10,
        "tokens": {"ann": 57, "bob": 57},
    }  # fmt: skip
    assert {path.name for path in made.path.iterdir()} == {
        "ann.parquet", "bob.parquet", "coverage.parquet", "ledger.json", "rejections.jsonl", "README.md", "manifest.json",
    }  # fmt: skip


def test_the_shortest_correct_rationale(store: Store) -> None:
    made = run(store, "corpora", spec(choice="shortest"), parents(store, RIGHT))
    assert {row["completion_key"] for row in read_corpus(made.path / "bob.parquet")} == {
        "bob-p1-2",
        "bob-p2-2",
        "bob-p4-2",
    }


def test_a_random_choice_is_a_correct_one_and_depends_on_its_seed(store: Store) -> None:
    keys = set()
    for seed in range(8):
        made = run(store, "corpora", spec(choice="random", selection_seed=seed), parents(store, RIGHT))
        rows = read_corpus(made.path / "ann.parquet")
        assert all(row["completion_key"].endswith(("-1", "-2")) for row in rows)
        keys.add(tuple(row["completion_key"] for row in rows))
    assert len(keys) > 1


def test_a_limit_selects_the_same_problems_for_everyone(store: Store) -> None:
    chosen = set()
    for seed in range(6):
        made = run(store, "corpora", spec(num_rationales=2, selection_seed=seed), parents(store, RIGHT))
        ids = [[row["problem_id"] for row in read_corpus(made.path / f"{t}.parquet")] for t in RIGHT]
        assert ids[0] == ids[1] and len(ids[0]) == 2 and set(ids[0]) <= {"p1", "p2", "p4"}
        chosen.add(tuple(ids[0]))
    assert len(chosen) > 1


def test_an_empty_corpus_names_every_filter_and_what_fell(store: Store) -> None:
    with pytest.raises(CorpusError) as caught:
        run(store, "corpora", spec(), parents(store, {"ann": {"p0", "p1"}, "bob": {"p5"}}))
    message = str(caught.value)
    assert "no problem was answered correctly by every teacher" in message
    assert (
        "problems drawn: −0, 6 left; ann has a correct rationale: −4, 2 left; bob has a correct rationale: −2, 0 left"
        in message
    )
    assert "draw more problems or samples" in message
    assert not any(manifest.kind == "corpora" for manifest in store.manifests())


def test_the_shuffled_control_is_a_partition_of_the_union(store: Store) -> None:
    corpora_parents = parents(store, RIGHT)
    run(store, "corpora", spec(), corpora_parents)
    corpora = Step("corpora", spec(), corpora_parents)
    made = [
        run(store, "shuffled-corpora", {"teachers": ["ann", "bob"], "seed": seed}, (("corpora", corpora),))
        for seed in (1, 2)
    ]
    union = Counter(f"{t}-{p}-1" for t in RIGHT for p in ("p1", "p2", "p4"))
    layouts = []
    for published in made:
        parts = [read_corpus(published.path / f"part-{n}.parquet") for n in (1, 2)]
        assert published.counts == {"num_rationales": [3, 3]}
        assert Counter(row["completion_key"] for part in parts for row in part) == union
        layouts.append([[row["completion_key"] for row in part] for part in parts])
    assert layouts[0] != layouts[1]
    assert any({key.split("-")[0] for key in part} == {"ann", "bob"} for part in layouts[0])


def test_the_control_takes_corpora_of_different_sizes(store: Store) -> None:
    settings = spec(mode="per_teacher")
    corpora = Step("corpora", settings, parents(store, RIGHT))
    assert run(store, "corpora", settings, corpora.parents).counts["num_rationales"] == {"ann": 5, "bob": 4}
    made = run(store, "shuffled-corpora", {"teachers": ["ann", "bob"], "seed": 1}, (("corpora", corpora),))
    assert made.counts == {"num_rationales": [5, 4]}


def test_too_few_rationales_for_the_control(store: Store) -> None:
    corpora = publish(
        store, Step("corpora", {}), lambda to: [write_corpus(to / f"{name}.parquet", []) for name in RIGHT]
    )
    with pytest.raises(CorpusError, match="the corpora hold 0 rationales, too few for 2 parts"):
        run(store, "shuffled-corpora", {"teachers": list(RIGHT), "seed": 1}, (("corpora", corpora),))


def test_the_students_own_answers_set_the_difficulty(store: Store) -> None:
    # Of three samples the first is always wrong: the student solves p1 and p4 in two of three.
    attempts = parents(store, {"student": {"p1", "p4"}})[1][1]
    made = run(
        store, "corpora", spec(difficulty=[0.1, 0.9]), (*parents(store, RIGHT), ("difficulty", attempts))
    )  # fmt: skip
    assert [row["problem_id"] for row in read_corpus(made.path / "ann.parquet")] == ["p1", "p4"]


def test_a_teacher_may_not_take_the_name_of_another_file(store: Store) -> None:
    right = {"coverage": {"p1"}}
    with pytest.raises(CorpusError, match="a teacher is named 'coverage'"):
        run(store, "corpora", spec(match_over=["coverage"]), parents(store, right))


def test_branches_train_on_corpora_of_different_sizes(store: Store, pico_models: Path) -> None:
    settings = spec(mode="per_teacher")
    corpora = Step("corpora", settings, parents(store, RIGHT))
    run(store, "corpora", settings, corpora.parents)
    training = {
        "learning_rate": 1e-3, "batch_size": 3, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0,
        "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0, "max_example_tokens": 192,
    }  # fmt: skip
    locators = {"student": str(pico_models / "student"), "student_revision": None}
    sizes = []
    for names in (["ann"], ["bob"], ["ann", "bob"]):
        branch = {
            "student": "s", "corpora": names, "training": training, "order_seed": 5, "first_step": 0, "num_steps": 2,
            "total_steps": 2, "snapshot_steps": [],
        }  # fmt: skip
        sizes.append(run(store, "branch", branch, (("corpora", corpora),), locators).counts["num_examples"])
    assert sizes == [5, 4, 9]
