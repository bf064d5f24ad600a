"""Corpora from graded files: the same as from a store, whole or not at all, and an error that names file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mot_core.corpus.files import build_from_files
from mot_core.corpus.tables import read_corpus
from mot_core.errors import CorpusError
from mot_core.grading.files import grade_file
from mot_core.models import load_tokenizer
from mot_core.problems import problem_id_of
from mot_core.spec import Corpus

QUESTIONS = {"p0": "1+1", "p1": "2+2", "p2": "3+3"}
GOLD = {"p0": "2", "p1": "4", "p2": "6"}


def answer(problem_id: str, value: str, index: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{problem_id}-{index}", "problem_id": problem_id, "question": QUESTIONS[problem_id], "gold": GOLD[problem_id],
        "answer_type": "integer", "completion": f"<think>{index}</think>\\boxed{{{value}}}",
        "verdict": "correct" if value == GOLD[problem_id] else "incorrect", **changes,
    }  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
    return path


@pytest.fixture
def graded(tmp_path: Path) -> dict[str, Path]:
    ann = [answer("p0", "2"), answer("p1", "5"), answer("p1", "4", 1), answer("p2", "6")]
    bob = [answer("p0", "2"), answer("p1", "4"), answer("p2", "7")]
    return {"ann": write(tmp_path / "ann.jsonl", ann), "bob": write(tmp_path / "bob.jsonl", bob)}


def test_the_files_of_an_experiment_come_out(graded: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "corpora"
    counts = build_from_files(
        graded, out, Corpus(), teacher_licenses={"ann": "mit", "bob": "mit"}, problems_license="mit"
    )
    assert counts == {
        "num_rationales": 2, "num_by_teacher": {"ann": 2, "bob": 2}, "num_problems": 2, "num_problems_wanted": 200,
        "tokens": {"ann": None, "bob": None},
    }  # fmt: skip
    assert read_corpus(out / "ann.parquet")[1] == {
        "problem_id": "p1", "family": "", "question": "2+2", "teacher": "ann", "completion_key": "p1-1",
        "completion_tokens": None, "sample_index": 1, "verdict": "correct", "extracted": None, "gold": "4",
        "student_tokens": None, "teacher_license": "mit", "problems_license": "mit",
        "messages": [
            {"role": "user", "content": "2+2", "reasoning_content": None},
            {"role": "assistant", "content": "\\boxed{4}", "reasoning_content": "1"},
        ],
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == {
        "ann.parquet", "bob.parquet", "coverage.parquet", "ledger.json", "rejections.jsonl", "README.md",
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["corpora"]


def test_what_mot_grade_writes_is_read(graded: dict[str, Path], tmp_path: Path) -> None:
    rows = [{**json.loads(line), "verdict": "?"} for line in graded["ann"].read_text().splitlines()]
    grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "graded.jsonl", num_workers=1)
    build_from_files({"ann": tmp_path / "graded.jsonl"}, tmp_path / "out", Corpus())
    made = read_corpus(tmp_path / "out" / "ann.parquet")
    assert [(one["problem_id"], one["extracted"]) for one in made] == [("p0", "2"), ("p1", "4"), ("p2", "6")]


def test_a_problems_file_gives_questions_and_what_was_drawn(graded: dict[str, Path], tmp_path: Path) -> None:
    del graded["bob"]
    rows = [json.loads(line) for line in graded["ann"].read_text().splitlines()]
    write(graded["ann"], [{k: v for k, v in one.items() if k not in ("question", "gold")} for one in rows])
    drawn = [{"id": p, "question": QUESTIONS[p], "answer": GOLD[p], "family": "sums"} for p in QUESTIONS]
    problems = write(tmp_path / "problems.jsonl", [*drawn, {"problem_id": 7, "question": "nobody was asked"}])
    build_from_files(graded, tmp_path / "out", Corpus(), problems=problems)
    [first, *_] = read_corpus(tmp_path / "out" / "ann.parquet")
    assert (first["question"], first["gold"], first["family"]) == ("1+1", "2", "sums")
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())["ledger"]
    assert ledger[0]["num_left"] == 4


def test_without_ids_equal_questions_are_one_problem(tmp_path: Path) -> None:
    rows = [{"id": n, "question": "1+1", "text": f"\\boxed{{{n}}}", "verdict": "correct"} for n in range(3)]
    build_from_files({"ann": write(tmp_path / "a", rows)}, tmp_path / "out", Corpus(rationales_per_problem=2))
    made = read_corpus(tmp_path / "out" / "ann.parquet")
    assert [(one["problem_id"], one["sample_index"]) for one in made] == [
        (problem_id_of("problem", "1+1"), n) for n in (0, 1)
    ]


def test_the_students_answers_set_the_difficulty(graded: dict[str, Path], tmp_path: Path) -> None:
    attempts = write(
        tmp_path / "s.jsonl", [answer("p0", "2"), answer("p0", "3", 1), answer("p1", "4"), answer("p2", "6")]
    )
    build_from_files(graded, tmp_path / "out", Corpus(difficulty=(0.0, 0.5)), attempts=attempts)
    assert [one["problem_id"] for one in read_corpus(tmp_path / "out" / "ann.parquet")] == ["p0"]


def test_a_student_by_name_measures(graded: dict[str, Path], tmp_path: Path, pico_models: Path) -> None:
    corpus = Corpus(max_rationale_tokens=50, choice="likeliest")
    build_from_files(graded, tmp_path / "out", corpus, student=str(pico_models / "student"))
    made = read_corpus(tmp_path / "out" / "ann.parquet")
    tokenizer = load_tokenizer(str(pico_models / "student"))
    ids = [tokenizer(f"<think>{n}</think>\\boxed{{{n * 2 + 2}}}<|end|>")["input_ids"] for n in (0, 1)]
    assert [one["student_tokens"] for one in made] == [len(one) for one in ids]


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    rows = [answer("p0", "2", question="1+\ud8001", completion="<think>\udc00</think>\\boxed{2}")]
    build_from_files({"ann": write(tmp_path / "ann.jsonl", rows)}, tmp_path / "out", Corpus())
    [made] = read_corpus(tmp_path / "out" / "ann.parquet")
    assert (made["question"], made["messages"][1]["reasoning_content"]) == ("1+?1", "?")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("{", "ann.jsonl, line 2: not JSON"),
        ("[]", "ann.jsonl, line 2: a JSON list; expected an object"),
        ({"id": None}, "line 2: id missing; expected id, completion, verdict, and question"),
        ({"completion": None, "verdict": None}, "line 2: completion, verdict missing"),
        ({"verdict": "right"}, "line 2: verdict is 'right'; expected one of correct, incorrect, unparseable"),
        ({"verdict": 1}, "line 2: verdict is a int; expected text"),
        ({"question": None}, "line 2: question is missing"),
        ({"question": None, "problem_id": None}, "line 2: question and problem_id are missing"),
        ({"id": "p0-0"}, "line 2: id 'p0-0' occurs already in line 1"),
        ({"problem_id": "p0", "question": "1+2"}, "line 2: its question is '1+2', but problem 'p0' has '1+1' elsewhere"),
        ({"problem_id": "p0", "question": None, "gold": "3"}, "line 2: its gold is '3', but problem 'p0' has '2' elsewhere"),
        ({"problem_id": "p0", "question": "1+1", "gold": "2", "sample_index": 0}, "line 2: sample 0 of problem 'p0' occurs already in line 1"),
        ({"sample_index": -1}, "line 2: sample_index is -1; expected a whole number from 0"),
        ({"num_tokens": 1.5}, "line 2: num_tokens is 1.5"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_serve_is_named(tmp_path: Path, changes: Any, told: str) -> None:
    second = changes if isinstance(changes, str) else {**answer("p1", "4"), **changes}
    path = write(tmp_path / "ann.jsonl", [answer("p0", "2"), second])
    with pytest.raises(CorpusError) as caught:
        build_from_files({"ann": path}, tmp_path / "out", Corpus())
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("teacher", "settings", "told"),
    [
        ("../ann", {}, "teacher '../ann': expected letters, digits and . _ - only"),
        ("coverage", {}, "a teacher is named 'coverage'"),
        ("ann", {"match_over": ("bob",)}, "match_over names ['bob']"),
        ("ann", {"choice": "likeliest"}, "choice likeliest is measured with the student, and none was given"),
        ("ann", {"max_rationale_tokens": 9}, "max_rationale_tokens is measured with the student"),
        ("ann", {"difficulty": (0.0, 0.5)}, "give the graded file of its own answers"),
        ("ann", {"choice": "shortest"}, "ann.jsonl, line 1: num_tokens is missing; the choices shortest and longest need it"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(
    graded: dict[str, Path], tmp_path: Path, teacher: str, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(CorpusError) as caught:
        build_from_files({teacher: graded["ann"]}, tmp_path / "out", Corpus(**settings))
    assert told in str(caught.value)


def test_a_student_that_does_not_exist(graded: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="student: unknown laboratory model 'nobody'"):
        build_from_files(graded, tmp_path / "out", Corpus(max_rationale_tokens=9), student="lab:nobody")


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no such file"):
        build_from_files({"ann": tmp_path / "none.jsonl"}, tmp_path / "out", Corpus())
    with pytest.raises(CorpusError, match="no rows; expected graded rationales of ann"):
        build_from_files({"ann": write(tmp_path / "empty.jsonl", [])}, tmp_path / "out", Corpus())
    problems = write(tmp_path / "problems.jsonl", [{"id": "p0", "question": "1+1"}])
    with pytest.raises(CorpusError, match=r"line 1: problem 'p1' is not in .*problems.jsonl; expected one of its 1"):
        path = write(tmp_path / "ann.jsonl", [answer("p1", "4")])
        build_from_files({"ann": path}, tmp_path / "out", Corpus(), problems=problems)


def test_only_what_was_made_here_is_replaced(graded: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    build_from_files(graded, out, Corpus())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    build_from_files({"ann": graded["ann"]}, out, Corpus())
    assert not (out / "bob.parquet").exists() and len(read_corpus(out / "ann.parquet")) == 3
    build_from_files(graded, out, Corpus())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(CorpusError, match="holds files that were not made here"):
        build_from_files(graded, out, Corpus())
    assert (out / "thesis.txt").read_text() == "mine"
    with pytest.raises(CorpusError, match="is a file"):
        build_from_files(graded, graded["ann"], Corpus())


def test_a_building_that_fails_leaves_what_was_there(graded: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_from_files(graded, out, Corpus())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    wrong = write(tmp_path / "carl.jsonl", [answer("p0", "9")])
    with pytest.raises(CorpusError, match="the matched corpora are empty"):
        build_from_files({**graded, "carl": wrong}, out, Corpus())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ann.jsonl", "bob.jsonl", "carl.jsonl", "out"]
