"""A corpus as a teacher: which row answers which request, in what form, and what is counted as absent."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Store
from mot_core.completers.base import Completion, Request, Source
from mot_core.completers.corpus_completer import CorpusCompleter
from mot_core.errors import ProblemError
from mot_core.files import read_jsonl
from mot_core.problems import Problem
from mot_core.spec import Rationales, Sampling
from mot_core.steps import Step
from mot_core.world import rationales_identity
from tests.contexts import publish, run


def settings_of(rows: Rationales) -> dict[str, Any]:
    """As `dag` hands them on: with what the rows were when the run was planned."""
    return {**rows.model_dump(mode="json"), "identity": rationales_identity(rows, "rationales")}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(question: str, index: int = 0) -> Request:
    return Request.of({"teacher": "corpus"}, Problem.of("f", question, "1").problem_id, question, index)


def answers(
    file: Path | str, requests: list[Request], loaded: list[Any] | None = None, **table: Any
) -> tuple[list[Completion], dict[str, Any], list[int]]:
    """The completions, the facts, and the sizes of the groups."""
    settings = settings_of(Rationales(file=str(file), **table))

    def load(key: Any, make: Any) -> Any:
        if loaded is None:
            return make()
        if not loaded:
            loaded.append(make())
        return loaded[0]

    completer = CorpusCompleter(Source(str(file), None, Sampling(), settings=settings, load=load))
    taken: list[Completion] = []
    groups: list[int] = []
    tokens: list[int] = []

    def accept(completions: list[Completion]) -> None:
        groups.append(len(completions))
        taken.extend(completions)

    completer.complete(requests, accept, tokens.append)
    assert sum(tokens) == sum(one.num_tokens for one in taken)
    return taken, completer.facts(), groups


def test_samples_are_a_questions_rows_in_order(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [
        {"question": "What is $1 + 1$?", "rationale": "<think>first try</think>\\boxed{2}"},
        {"question": "other", "rationale": "no marks \\boxed{5}"},
        {"question": "what is 1+1", "rationale": "<think>\nsecond\n</think>\n\nso \\boxed{2}"},
        {"question": "What is 1+1?", "rationale": "<think>first try</think>\\boxed{2}"},
    ])  # fmt: skip
    requests = [request("What is 1+1?", index) for index in range(3)] + [request("other"), request("unknown")]
    taken, facts, groups = answers(path, requests)
    assert [(one.text, one.finish_reason, one.num_tokens, one.prompt) for one in taken] == [
        ("<think>first try</think>\\boxed{2}", "stop", 2, "What is $1 + 1$?"),
        ("<think>second</think>so \\boxed{2}", "stop", 2, "what is 1+1"),
        ("", "absent", 0, ""),
        ("<think></think>no marks \\boxed{5}", "stop", 3, "other"),
        ("", "absent", 0, ""),
    ]
    assert [one.key for one in taken] == [one.key for one in requests] and groups == [5]
    assert taken[2].reason == "no row of a.jsonl for this question and sample index"
    assert facts == {
        "engine": "corpus", "source": "a.jsonl", "revision": None, "format": None, "license": None, "unverified": "",
        "num_rows": 4, "num_questions": 2, "max_samples": 2, "num_duplicates": 1, "num_unreadable": 0,
        "tokens": "words between white space", "num_asked": 5, "num_matched": 3,
    }  # fmt: skip


def test_parts_lengths_and_tokens_of_the_rows_own(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [
        {"question": "a", "reasoning": "r", "response": "\\boxed{1}", "tokens": 12},
        {"question": "b", "reasoning": "r", "response": "", "tokens": 13.0},
        {"question": "c", "rationale": "<think>cut", "tokens": 14},
        {"question": "d", "rationale": "<think>r</think>\\boxed{1", "tokens": 15, "finish_reason": "length"},
    ])  # fmt: skip
    taken, facts, _ = answers(path, [request(q) for q in "abcd"], columns={"num_tokens": "tokens"})
    assert [(one.text, one.finish_reason, one.num_tokens) for one in taken] == [
        ("<think>r</think>\\boxed{1}", "stop", 12), ("<think>r", "length", 13), ("<think>cut", "length", 14),
        ("<think>r</think>\\boxed{1", "length", 15),
    ]  # fmt: skip
    assert facts["tokens"] == "the rows' own"


def test_chats(tmp_path: Path) -> None:
    thought = (
        "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n\\boxed{2}\n\n<|end_of_solution|>"
    )
    path = write_rows(tmp_path / "a.jsonl", [{"system": "s", "conversations": [
        {"from": "user", "value": "Return your final response within \\boxed{}. What is 1+1?"},
        {"from": "assistant", "value": thought}]}])  # fmt: skip
    taken, facts, _ = answers(path, [request("What is 1+1?")], format="openthoughts")
    assert [one.text for one in taken] == ["<think>hm</think>\\boxed{2}"]
    assert (facts["format"], facts["license"]) == ("openthoughts", "apache-2.0")
    assert facts["unverified"].startswith("columns are from a sample's card")
    path = write_rows(tmp_path / "b.jsonl", [{"messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "reasoning_content": "r", "content": "a"}]}])  # fmt: skip
    assert [one.text for one in answers(path, [request("q")])[0]] == ["<think>r</think>a"]


def test_a_row_can_be_found_by_id(tmp_path: Path) -> None:
    wanted = request("1+1")
    path = write_rows(tmp_path / "a.jsonl", [
        {"question": "1+1", "rationale": "by question", "id": "x"},
        {"question": "reworded", "rationale": "by id", "id": wanted.problem_id},
    ])  # fmt: skip
    assert [one.text for one in answers(path, [wanted])[0]] == ["<think></think>by id"]
    path = write_rows(tmp_path / "b.jsonl", [{"text": "only an id", "problem_id": wanted.problem_id}])
    taken, facts, _ = answers(path, [wanted], columns={"rationale": "text", "id": "problem_id"})
    assert [one.text for one in taken] == ["<think></think>only an id"] and facts["num_questions"] == 1


def test_a_mapped_sample_index_is_kept_to(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [
        {"question": "q", "rationale": "two", "n": 2}, {"question": "q", "rationale": "zero", "n": 0},
        {"question": "q", "rationale": "zero again", "n": 0},
    ])  # fmt: skip
    taken, facts, _ = answers(path, [request("q", n) for n in range(3)], columns={"sample_index": "n"})
    assert [one.text.removeprefix("<think></think>") for one in taken] == ["zero", "", "two"]
    assert [one.finish_reason for one in taken] == ["stop", "absent", "stop"] and facts["num_duplicates"] == 1


def test_nemo_skills_seeds_are_sample_indexes(tmp_path: Path) -> None:
    for seed, text in ((0, "a"), (10, "c"), (2, "b")):
        row = {
            "problem": "q",
            "expected_answer": "1",
            "generation": f"<think>{text}</think>\\boxed{{1}}",
            "num_generated_tokens": seed + 5,
        }
        write_rows(tmp_path / f"output-rs{seed}.jsonl", [row])
    taken, facts, _ = answers(
        tmp_path / "output-rs*.jsonl", [request("q", n) for n in (0, 1, 2, 10)], format="nemo-skills"
    )
    assert [(one.text, one.num_tokens) for one in taken] == [
        ("<think>a</think>\\boxed{1}", 5), ("", 0), ("<think>b</think>\\boxed{1}", 7), ("<think>c</think>\\boxed{1}", 15),
    ]  # fmt: skip
    assert facts["source"] == "output-rs*.jsonl" and facts["num_matched"] == 3


def test_rows_without_a_rationale_are_counted_and_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"question": "a", "rationale": " "}, {"question": "b", "rationale": "x"}])
    with caplog.at_level(logging.WARNING, "mot.corpus"):
        taken, facts, _ = answers(path, [request("a")])
    assert taken[0].finish_reason == "absent" and facts["num_unreadable"] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "a.jsonl:1 cannot be read: it holds no rationale; further such rows are only counted",
        "a.jsonl: none of 1 requests has a row; do its questions come from another data set?",
    ]


@pytest.mark.parametrize(
    ("row", "table", "phrase"),
    [
        ({"question": "q", "text": "t"}, {}, r"rationales of a\.jsonl: no column for rationale or reasoning or response or messages: no row has 'rationale' or .*there are question, text"),
        ({"q": "q", "rationale": "t"}, {}, r"no column for question or id or messages: no row has 'question' or 'id' or 'messages'"),
        ({"question": "q", "rationale": ""}, {}, r"none of its 1 rows holds a rationale"),
        ({"question": "q", "rationale": "t"}, {"filters": {"question": "z"}}, r"filters left none of 1 rows"),
    ],
)  # fmt: skip
def test_tables_that_cannot_serve(tmp_path: Path, row: dict[str, Any], table: dict[str, Any], phrase: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(ProblemError, match=phrase):
        answers(path, [request("q")], **table)


def test_rows_come_in_groups_and_the_table_is_kept_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = write_rows(tmp_path / "a.jsonl", [{"question": f"{n}+0", "rationale": f"r{n}"} for n in range(600)])
    loaded: list[Any] = []
    taken, _, groups = answers(path, [request(f"{n}+0") for n in range(600)], loaded)
    assert groups == [256, 256, 88] and taken[599].text == "<think></think>r599"
    again, _, _ = answers(path, [request("7+0")], loaded)
    assert again[0].text == "<think></think>r7"
    assert len(list(scratch.iterdir())) == 1
    loaded[0].close()
    assert list(scratch.iterdir()) == []


def test_through_the_stage(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [
        {"question": "1+1", "rationale": "<think>r</think>\\boxed{2}"}, {"question": "2 + 2", "rationale": "<think>cut"},
    ])  # fmt: skip
    store = Store(tmp_path / "store").open()
    problems = [Problem.of("f", question, "1").to_json() for question in ("1+1", "2+2", "3+3")]
    parent = publish(
        store, Step("problems", {"made": "here"}), lambda work_dir: write_rows(work_dir / "problems.jsonl", problems)
    )
    spec = {
        "teacher": {"model": "rows"}, "completer": "corpus", "sampling": Sampling().record(), "num_samples": 1, "seed": 0,
        "batch_size": 8, "max_failed_share": 0.0,
    }  # fmt: skip
    settings = settings_of(Rationales(file=str(path)))
    locators = {"teacher": str(path), "teacher_revision": None, "teacher_settings": settings}
    step = run(store, "completions", spec, (("problems", parent),), locators)
    rows = read_jsonl(step.path / "completions.jsonl")
    assert [(row["text"], row["finish_reason"]) for row in rows] == [
        ("<think>r</think>\\boxed{2}", "stop"), ("<think>cut", "length"), ("", "absent"),
    ]  # fmt: skip
    assert (step.counts["num_requests"], step.counts["num_absent"], step.counts["num_failed"]) == (3, 1, 0)
    assert step.counts["engines"][0]["num_matched"] == 2


def test_rows_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1+1", "rationale": "<think>a</think>2"}\n')
    settings = settings_of(Rationales(file=str(path)))
    path.write_text('{"question": "1+1", "rationale": "<think>a</think>3"}\n')
    completer = CorpusCompleter(Source(str(path), None, Sampling(), settings=settings))
    with pytest.raises(ProblemError, match="has changed since this run was planned"):
        completer.complete([Request.of({}, "p", "1+1", 0)], lambda rows: None, lambda tokens: None)
