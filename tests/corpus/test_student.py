"""What the student measures, against the same computed the long way: tokens as trained on, log-probabilities one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mot_core.artifacts import Store
from mot_core.corpus.student import Student
from mot_core.corpus.tables import read_corpus
from mot_core.files import write_jsonl
from mot_core.models import load_model, load_tokenizer
from mot_core.prompts import render_example
from mot_core.reasoning import parse_completion
from mot_core.steps import Step
from tests.contexts import publish, run
from tests.corpus.graded import Built, row

ANSWERS = ["<think>1+1=2</think>\\boxed{2}", "<think>so</think>\\boxed{2}", "<think>1+1 is 2, is 2</think>\\boxed{2}"]


@pytest.fixture(scope="module")
def student(pico_models: Path) -> Student:
    return Student(str(pico_models / "student"), None)


def by_hand(directory: Path, question: str, text: str) -> tuple[int, float]:
    """The completion's tokens and their mean log-probability, one forward pass for one example."""
    tokenizer, model = load_tokenizer(str(directory)), load_model(str(directory), None, "cpu")
    prompt, completion = render_example(tokenizer, question, parse_completion(text))
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    scores = [float(log_probs[place - 1, ids[place]]) for place in range(start, len(ids))]
    return len(scores), sum(scores) / len(scores)


def test_tokens_and_log_probs_are_those_of_training_examples(student: Student, pico_models: Path) -> None:
    expected = [by_hand(pico_models / "student", "1+1", text) for text in ANSWERS]
    assert [student.measure("1+1", text) for text in ANSWERS] == [(tokens, "") for tokens, _ in expected]
    told: list[tuple[float, float, str]] = []
    scores = student.mean_log_probs(
        [student.encode("1+1", text) for text in [*ANSWERS, ANSWERS[0]]], lambda *event: told.append(event)
    )
    assert scores[:3] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert scores[3] == scores[0] and told == [(3, 3, "rationales scored")]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<think>a<|end|>b</think>\\boxed{2}", "its reasoning holds the control token '<|end|>'"),
        ("<think>a</think>", "it holds no answer"),
        ("<think>a", "it was cut: what was opened in it is not closed"),
        ("<think>Σ</think>\\boxed{2}", "it holds characters that the student's tokenizer cannot write"),
    ],
)
def test_what_it_cannot_be_trained_on(student: Student, text: str, fault: str) -> None:
    assert student.measure("1+1", text) == (0, fault)


def graded(*texts: str) -> list[dict[str, Any]]:
    return [row("ann", "p0", index, text=text) for index, text in enumerate(texts)]


def test_long_and_unrenderable_rationales_are_left_out(student: Student, tmp_path: Path) -> None:
    lengths = [student.measure("what is p0", text)[0] for text in ANSWERS]
    shortest = min(lengths)
    rows = {"ann": graded(*ANSWERS, "<think><|user|></think>\\boxed{2}")}
    built = Built(tmp_path, rows, student=student, max_rationale_tokens=shortest)
    [kept] = built.corpus("ann")
    assert (kept["sample_index"], kept["student_tokens"]) == (1, shortest)
    assert built.fell("ann-p0-0") == ("max_rationale_tokens", f"{lengths[0]} tokens, over {shortest}")
    assert built.fell("ann-p0-3") == ("renderable", "its reasoning holds the control token '<|user|>'")


def test_the_stage_takes_the_student_from_its_locators(pico_models: Path, tmp_path: Path) -> None:
    directory = pico_models / "student"
    scores = [by_hand(directory, "what is p0", text)[1] for text in ANSWERS]
    store = Store(tmp_path / "store").open()
    problem = {"problem_id": "p0", "family": "sums", "question": "what is p0", "answer": "2"}
    made = [
        ("problems", publish(store, Step("problems", {}), lambda to: write_jsonl(to / "problems.jsonl", [problem]))),
        ("verdicts/ann", publish(store, Step("verdicts", {}), lambda to: write_jsonl(to / "verdicts.jsonl", graded(*ANSWERS)))),
    ]  # fmt: skip
    events: list[dict[str, Any]] = []
    spec = {"choice": "likeliest", "num_rationales": 5, "student": "s", "licenses": {"teachers": {}, "problems": None}}
    locators = {"student": str(directory), "student_revision": None}
    published = run(store, "corpora", spec, tuple(made), locators, events=events)
    [chosen] = read_corpus(published.path / "ann.parquet")
    assert chosen["sample_index"] == scores.index(max(scores))
    assert {event["unit"] for event in events if event["event"] == "progress"} == {
        "rationales measured",
        "rationales scored",
    }
