"""Confidence on teachers' tokens: classes by hand, values by plain torch, through a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mot_core.artifacts import Published, Store
from mot_core.corpus.tables import write_corpus
from mot_core.dag import StudentAt
from mot_core.errors import CorpusError, SpecError
from mot_core.files import write_jsonl
from mot_core.models import load_model, load_tokenizer
from mot_core.probes.nodes import confidence_step
from mot_core.probes.rows import confidence_rows, confidence_rows_by_problem
from mot_core.probes.tokens import span_of, token_classes
from mot_core.sft.tokens import tokenize
from mot_core.steps import ModelRef, Step
from tests.contexts import publish, run
from tests.pico import example_row

QUESTIONS = ["12+34", "56+7-20", "8+9", "3*11+4"]


def corpora_in(store: Store, *, extra: str = "") -> Step:
    """Two teachers' corpora on the same problems, in another order; one of them has a problem of its own, if asked."""

    def write(to: Path) -> None:
        write_corpus(to / "ann.parquet", [example_row(question) for question in QUESTIONS])
        others = [*reversed(QUESTIONS), *([extra] if extra else [])]
        write_corpus(to / "bob.parquet", [example_row(question, "bob", "tens-and-ones") for question in others])

    return publish(store, Step("corpora", {"of": "probe", "extra": extra}), write)


def student(models: Path, identity: str = "s") -> StudentAt:
    return StudentAt(ModelRef(identity, str(models / "student")))


def step_of(models: Path, corpora: Step, **given: Any) -> Step:
    asked: dict[str, Any] = {"num_examples": 9, "name": "MoT", "label": "confidence", "facts": {}, **given}
    teachers = asked.pop("teachers", ["ann", "bob"])
    return confidence_step(asked.pop("student", student(models)), corpora, teachers, **asked)


def compute(store: Store, step: Step, **more: Any) -> Published:
    return run(store, step.kind, step.spec, step.parents, step.locators, **more)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def test_classes_of_two_rationales_by_hand() -> None:
    # prompt 9 9 | rationale | answer from the last 0 on
    ann = ([9, 9, 1, 2, 3, 4, 0, 5], 2, 6)
    bob = ([9, 9, 1, 2, 7, 3, 4, 0], 2, 7)
    bigrams = token_classes({"ann": ann, "bob": bob}, 2)
    # 9 1 and 1 2 are bob's too, 2 3 is not, 3 4 is his (elsewhere).
    assert bigrams["ann"] == ["shared", "shared", "specific", "shared", "answer", "answer"]
    assert bigrams["bob"] == ["shared", "shared", "specific", "specific", "shared", "answer"]
    unigrams = token_classes({"ann": ann, "bob": bob}, 1)
    assert unigrams["ann"] == ["shared"] * 4 + ["answer"] * 2
    assert unigrams["bob"] == ["shared", "shared", "specific", "shared", "shared", "answer"]
    trigrams = token_classes({"ann": ann, "bob": bob}, 3)
    assert trigrams["ann"] == ["shared", "shared", "specific", "specific", "answer", "answer"]
    # Of three teachers, what one other writes is no longer of one teacher.
    three = token_classes({"ann": ann, "bob": bob, "cat": ([9, 9, 2, 3], 2, 4)}, 2)
    assert three["ann"] == ["shared", "shared", "shared", "shared", "answer", "answer"]
    assert three["cat"] == ["specific", "shared"]


def test_the_answer_begins_at_the_last_box(pico_models: Path) -> None:
    tokenizer = load_tokenizer(str(pico_models / "student"))

    def answer_of(content: str, reasoning: str | None = "1+1=2") -> str:
        row = example_row("12+34")
        row["messages"][-1] = {"role": "assistant", "reasoning_content": reasoning, "content": content}
        ids, first, answer = span_of(tokenizer, row, tokenize(tokenizer, row))
        assert tokenizer.decode(ids[first - 1]) == "<|assistant|>"
        return str(tokenizer.decode(ids[answer:]))

    assert answer_of("\\boxed{46}") == "\\boxed{46}<|end|>"
    assert answer_of("see \\boxed{1}, no, \\boxed{46}") == "\\boxed{46}<|end|>"
    assert answer_of("46", "46, so 46") == "46<|end|>"
    assert answer_of("end") == "end<|end|>"
    assert answer_of("\\boxed{46}", "") == "\\boxed{46}<|end|>"


def test_values_are_those_of_plain_torch(store: Store, pico_models: Path) -> None:
    made = compute(store, step_of(pico_models, corpora_in(store, extra="1+1")))
    assert made.counts["num_problems"] == 4, "the problem that only bob has is not read"
    tokenizer, model = (
        load_tokenizer(str(pico_models / "student")),
        load_model(str(pico_models / "student"), None, "cpu"),
    )
    by_problem = confidence_rows_by_problem(made.path, step_of(pico_models, corpora_in(store)))
    for question in QUESTIONS:
        rows = {"ann": example_row(question), "bob": example_row(question, "bob", "tens-and-ones")}
        examples = {name: tokenize(tokenizer, row) for name, row in rows.items()}
        classes = token_classes({name: span_of(tokenizer, rows[name], one) for name, one in examples.items()}, 3)
        for name, example in examples.items():
            with torch.no_grad():
                probabilities = model(torch.tensor([example.input_ids])).logits[0].double().softmax(-1)
            for group in ("shared", "specific", "answer"):
                values = []
                for at in range(example.prompt_length, len(example.input_ids)):
                    if classes[name][at - example.prompt_length] == group:
                        p = probabilities[at - 1]
                        values.append((p[example.input_ids[at]].log(), p.max(), -(p * p.log()).sum()))
                (row,) = [
                    row for row in by_problem
                    if (row["problem_id"], row["teacher"], row["class"]) == (f"p-{question}", name, group)
                ]  # fmt: skip
                expected = torch.tensor(values, dtype=torch.float64).mean(dim=0).tolist()
                found = [row["mean_log_prob"], row["mean_confidence"], row["mean_entropy"]]
                assert row["num_tokens"] == len(values) and found == pytest.approx(expected, rel=1e-5)


def test_results_are_what_they_were(store: Store, pico_models: Path) -> None:
    """Pinned: if a value changes, raise the kind's version in `mot_core.identity`."""
    step = step_of(pico_models, corpora_in(store))
    counts = compute(store, step).counts
    assert step.identity == "4bd8cc1628eed673428e056f683ebffd"
    for kind, num_tokens, *means in (
        ("shared", 40, -4.400109, 0.0366416, 4.559208), ("specific", 113, -4.652586, 0.0336202, 4.565351),
        ("answer", 40, -4.694236, 0.0339479, 4.561042),
    ):  # fmt: skip
        assert counts[f"num_tokens/{kind}"] == num_tokens
        found = [counts[f"{measure}/{kind}"] for measure in ("mean_log_prob", "mean_confidence", "mean_entropy")]
        assert found == pytest.approx(means, rel=1e-4)


def test_means_are_over_tokens(store: Store, pico_models: Path) -> None:
    step = step_of(pico_models, corpora_in(store))
    made = compute(store, step)
    total = sum(row["num_tokens"] for row in confidence_rows(made.path, step))
    tokenizer = load_tokenizer(str(pico_models / "student"))
    rows = [example_row(q, *style) for q in QUESTIONS for style in (("ann", "running-total"), ("bob", "tens-and-ones"))]
    assert total == sum(tokenize(tokenizer, row).num_targets for row in rows)
    write_jsonl(
        made.path / "confidence.jsonl",
        [
            {"problem_id": p, "teacher": "ann", "class": "shared", "num_tokens": n, "mean_log_prob": v,
             "mean_confidence": 2 * v, "mean_entropy": 3 * v}
            for p, n, v in (("p", 1, -4.0), ("q", 3, 0.0))
        ],
    )  # fmt: skip
    assert confidence_rows(made.path, step) == [
        {"student": "MoT", "teacher": "ann", "class": "shared", "num_tokens": 4, "mean_log_prob": -1.0,
         "mean_confidence": -2.0, "mean_entropy": -3.0}
    ]  # fmt: skip


def test_the_same_problems_for_all_teachers_and_progress(store: Store, pico_models: Path) -> None:
    events: list[dict[str, Any]] = []
    corpora = corpora_in(store)
    seen = set()
    for seed in range(6):
        step = step_of(pico_models, corpora, num_examples=1, seed=seed)
        made = compute(store, step, events=events)
        rows = confidence_rows_by_problem(made.path, step)
        assert {row["teacher"] for row in rows} == {"ann", "bob"}
        (problem,) = {row["problem_id"] for row in rows}
        seen.add(problem)
    assert len(seen) > 1, "the seed draws the problems"
    assert {"event": "progress", "done": 2, "total": 2, "unit": "rationales"} in events


def test_what_enters_identity(store: Store, pico_models: Path) -> None:
    corpora = corpora_in(store)
    own = step_of(pico_models, corpora)
    assert "max_example_tokens" not in own.spec
    same = [
        step_of(pico_models, corpora, name="x", label="y", facts={"z": 1}),
        step_of(pico_models, corpora, teachers=["bob", "ann"]),
    ]
    assert {step.identity for step in same} == {own.identity}
    others = [
        step_of(pico_models, corpora, num_examples=8), step_of(pico_models, corpora, seed=1),
        step_of(pico_models, corpora, ngram=2), step_of(pico_models, corpora, max_example_tokens=50),
        step_of(pico_models, corpora, student=student(pico_models, "other")),
        step_of(pico_models, corpora_in(store, extra="1+1")),
    ]  # fmt: skip
    assert len({own.identity, *(step.identity for step in others)}) == 7
    snapshot = StudentAt(corpora, "snapshots/step-2")
    assert step_of(pico_models, corpora, student=snapshot).spec["student_subdirectory"] == "snapshots/step-2"


def test_bad_requests_are_refused_before_anything_runs(store: Store, pico_models: Path) -> None:
    corpora = corpora_in(store)
    for given, message in (
        ({"teachers": ["ann"]}, "needs two teachers or more"), ({"teachers": ["ann", "ann"]}, "each once"),
        ({"ngram": 0}, "ngram is 0"), ({"num_examples": 0}, "num_examples is 0"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=message):
            step_of(pico_models, corpora, **given)
    known = Step("corpora", {}, (("verdicts/ann", corpora), ("verdicts/bob", corpora)))
    with pytest.raises(SpecError, match=r"there is no corpus 'bop'; did you mean 'bob'\?"):
        step_of(pico_models, known, teachers=["ann", "bop"])
    with pytest.raises(CorpusError, match=r"there is no corpus 'cat'; the corpora step holds \['ann', 'bob'\]"):
        compute(store, step_of(pico_models, corpora, teachers=["ann", "cat"]))
    with pytest.raises(
        CorpusError, match="they share 4 problems, none with every rationale within max_example_tokens = 3"
    ):
        compute(store, step_of(pico_models, corpora, max_example_tokens=3))
