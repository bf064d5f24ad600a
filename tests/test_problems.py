"""When two questions are one, and which problems a source gives: duplicates, contradictions, bad golds, too few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mot_core.artifacts import Store
from mot_core.errors import ProblemError
from mot_core.files import read_jsonl
from mot_core.problems import Problem, normal_question, problem_id_of
from mot_core.stages import problems_from
from mot_core.world import files_identity
from tests.contexts import run

HARD_ALPHABET = "aA1 .,;:?!$\\{}()^_lefthspacdr~\"'~−İß²"


@given(st.one_of(st.text(), st.text(alphabet=HARD_ALPHABET)))
@settings(max_examples=500, deadline=None)
def test_the_normal_form_is_final(text: str) -> None:
    assert normal_question(normal_question(text)) == normal_question(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12 + 30 - 5", "12+30−5"),
        (r"Find $\left( x + 1 \right)^{2}$ where $x=\dfrac{1}{2}$.", r"find (x+1)^2 where x = \frac{1}{2}?"),
        ("Let (a, b) be a pair;  what is\n“a”?", 'let (a,b) be a pair what is "a"'),
        ("ﬁnd ｘ²", "find x2"),  # NFKC: ligature, full width, superscript
        (r"\(x\) \quad \[y\]", "x y"),
    ],
)
def test_two_spellings_of_one_question(one: str, other: str) -> None:
    assert normal_question(one) == normal_question(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12+5", "12-5"), ("5!", "5"), ("1.5", "15"), ("3:4", "34"), ("x^{12}", "x^{1}2"), ("f'(x)", "f(x)"),
        ("1 2", "12"), (r"\leftarrow x", "arrow x"), (r"\{1\}", "1"),
    ],
)  # fmt: skip
def test_different_questions_stay_apart(one: str, other: str) -> None:
    assert normal_question(one) != normal_question(other)


def test_golden_normal_form() -> None:
    question = r"Let $ABC$ be a triangle: $AB = 5$, $\angle A = 60^{\circ}$. Find $\tfrac{a}{b}$!"
    assert normal_question(question) == r"let abc be a triangle ab=5\angle a=60^{\circ}find\frac{a}{b}!"


# -- the problems step -----------------------------------------------------------------------------------

SPEC: dict[str, Any] = {
    "families": None, "import_path": None, "table": None, "split": "train", "splits": None, "num_problems": None, "seed": 0,
    "role": "training", "grader": "integer",
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"question": "1+1", "answer": 2},
    {"question": "1 + 1", "answer": "2"},
    {"question": " ", "answer": "3"},
    {"question": "X is?", "answer": "3"},
    {"question": "x is", "answer": "4"},
    {"question": "2+2", "answer": "four"},
    {"question": "3+3", "answer": "06", "family": "other"},
    {"question": "4+4", "answer": "8", "split": "dev"},
    {"question": "3+3.", "answer": "6"},
    {"question": "5+5", "answer": "10"},
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_of(path: Path, **changes: Any) -> dict[str, Any]:
    table = {"file": files_identity(str(path), "test"), **changes.pop("table", {})}
    return {**SPEC, "table": table, **changes}


def test_what_cannot_be_trained_on_is_dropped_and_listed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", ROWS)
    store = Store(tmp_path / "store").open()
    step = run(store, "problems", spec_of(path), locators={"file": str(path)})
    problems = read_jsonl(step.path / "problems.jsonl")
    assert problems == [
        Problem.of("mine", "1+1", "2").to_json(),
        Problem.of("other", "3+3", "06").to_json(),
        Problem.of("mine", "5+5", "10").to_json(),
    ]
    assert problems[1]["problem_id"] == problem_id_of("other", "3+3")
    rejected = [(row["source_row"], row["filter"], row["reason"]) for row in read_jsonl(step.path / "rejected.jsonl")]
    assert rejected == [
        ("mine.jsonl:3", "empty", "question is empty or absent"),
        ("mine.jsonl:2", "duplicate", "the same question, written otherwise, as in row mine.jsonl:1"),
        ("mine.jsonl:4", "contradictory", "contradictory answers in rows mine.jsonl:4, mine.jsonl:5"),
        ("mine.jsonl:5", "contradictory", "contradictory answers in rows mine.jsonl:4, mine.jsonl:5"),
        ("mine.jsonl:9", "duplicate", "the same question, written otherwise, as in row mine.jsonl:7"),
        ("mine.jsonl:6", "gold", "the reference answer 'four' is no integer; expected digits, such as 042 or 1,234"),
    ]
    assert step.counts == {
        "num_problems": 3, "num_rejected": 6, "num_empty": 1, "num_duplicate": 2, "num_contradictory": 2, "num_gold": 1,
    }  # fmt: skip
    assert read_jsonl(step.path / "rejected.jsonl")[1]["problem_id"] == problem_id_of("mine", "1 + 1")


def test_the_first_that_serve_are_taken_and_no_more_is_checked(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", ROWS)
    drawn = problems_from(spec_of(path, num_problems=1), str(path))
    assert [problem.question for problem in drawn.problems] == ["1+1"]
    assert "gold" not in {row["filter"] for row in drawn.rejected}
    drawn = problems_from(spec_of(path, num_problems=2), str(path))
    assert [problem.question for problem in drawn.problems] == ["1+1", "3+3"]


@pytest.mark.parametrize(
    ("rows", "phrase"),
    [
        (ROWS[:4], r"1 row\(s\) cannot serve as benchmark problems; .*\n  mine\.jsonl:3: question is empty or absent: ' '"),
        ([ROWS[3], ROWS[4]], r"2 row\(s\) cannot serve .*\n  mine\.jsonl:1: contradictory answers in rows mine\.jsonl:1, mine\.jsonl:2"),
        ([ROWS[0], ROWS[5]], r"1 row\(s\) cannot serve .*\n  mine\.jsonl:2: the reference answer 'four' is no integer"),
        ([{**ROWS[0], "answer": [1]}], r"mine\.jsonl:1: expected text, got a list: \[1\]"),
    ],
)  # fmt: skip
def test_a_benchmark_is_whole_or_refused(tmp_path: Path, rows: list[dict[str, Any]], phrase: str) -> None:
    path = write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(ProblemError, match=phrase):
        problems_from(spec_of(path, role="benchmark"), str(path))


def test_a_benchmark_lists_a_repeated_problem_once(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", ROWS[:2])
    drawn = problems_from(spec_of(path, role="benchmark"), str(path))
    assert [problem.answer for problem in drawn.problems] == ["2"] and drawn.counts() == {"num_duplicate": 1}


def test_math_knows_equal_answers_from_contradictions(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "answer": r"\frac{1}{2}"}, {"question": "A", "answer": "0.5"},
        {"question": "b", "answer": "2"}, {"question": "B", "answer": "3"},
    ]  # fmt: skip
    path = write_rows(tmp_path / "mine.jsonl", rows)
    drawn = problems_from(spec_of(path, grader="math"), str(path))
    assert [problem.question for problem in drawn.problems] == ["a"]
    assert drawn.counts() == {"num_duplicate": 1, "num_contradictory": 2}


def test_one_id_for_two_questions_is_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 7, "question": "1+1", "answer": "2"},
        {"id": 7, "question": "2+2", "answer": "4"},
    ]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(ProblemError, match=r"the id '7' names two questions, in rows mine\.jsonl:1 and mine\.jsonl:2"):
        problems_from(spec_of(path), str(path))
    path = write_rows(tmp_path / "mine.jsonl", [rows[0], {**rows[0], "question": "1 + 1"}])
    assert len(problems_from(spec_of(path), str(path)).problems) == 1


def test_too_few_say_what_was_dropped(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", ROWS[:3])
    phrase = (
        r"the source has 1 problems of split 'train', num_problems asks for 5 \(dropped: empty 1, duplicate 1, the last: "
        r"the same question, written otherwise, .*\); lower it, or give more \(rows of a file without a split count as train"
    )
    with pytest.raises(ProblemError, match=phrase):
        problems_from(spec_of(path, num_problems=5), str(path))
    with pytest.raises(
        ProblemError, match=r"has 0 problems of split 'test', num_problems asks for all, and at least 1;"
    ):
        problems_from(spec_of(path, split="test"), str(path))


def test_our_splits_are_theirs_where_the_spec_says_so(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+0", "answer": str(n), "split": "train"} for n in range(10)]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    splits = {"dev": "train[:3]", "test": "train[3:]"}

    def answers(split: str) -> list[str]:
        drawn = problems_from(spec_of(path, split=split, splits=splits), str(path))
        return [problem.answer for problem in drawn.problems]

    assert (answers("dev"), answers("test")) == (["0", "1", "2"], ["3", "4", "5", "6", "7", "8", "9"])
    with pytest.raises(ProblemError, match=r"splits has no entry for 'train'; it has dev, test"):
        answers("train")


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", ROWS)
    spec = spec_of(path)
    write_rows(path, ROWS[:1])
    with pytest.raises(ProblemError, match="the file has changed since this run was planned"):
        problems_from(spec, str(path))


def made_problems(split: str, num_problems: int, seed: int) -> list[Problem]:
    return [Problem.of("made", f"{seed}+{n}", str(seed + n)) for n in range(num_problems + 1)]


def no_problems(split: str, num_problems: int, seed: int) -> list[str]:
    return ["1+1"]


def test_a_function_of_the_users() -> None:
    spec = {**SPEC, "import_path": "tests.test_problems:made_problems", "num_problems": 2, "seed": 3}
    assert [problem.answer for problem in problems_from(spec, None).problems] == ["3", "4"]
    with pytest.raises(ProblemError, match=r"expected mot_core\.problems\.Problem, got str"):
        problems_from({**spec, "import_path": "tests.test_problems:no_problems"}, None)


def test_families_are_shared_evenly_as_before() -> None:
    spec = {**SPEC, "families": ["sums", "reverse", "products"], "num_problems": 5, "grader": "family", "seed": 1}
    drawn = problems_from(spec, None)
    assert [problem.family for problem in drawn.problems] == ["sums", "sums", "reverse", "reverse", "products"]
    assert drawn.rejected == []
    assert [p.family for p in problems_from({**spec, "num_problems": 1}, None).problems] == ["sums"]
