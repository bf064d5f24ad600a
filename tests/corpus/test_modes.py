"""Which problems each corpus holds, in every mode, and that whatever is in none is accounted for exactly once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from mot_core.errors import CorpusError
from mot_core.files import read_jsonl
from tests.corpus.graded import Built, rows

# ann is right on p0, p1, p2 (twice on p1), bob on p1, p2, p3 and p4 (twice on p1 and p3); p5 nobody.
ANN = {"p0": "ci", "p1": "cc", "p2": "ic", "p3": "ii", "p4": "it", "p5": "ii"}
BOB = {"p0": "ii", "p1": "cc", "p2": "ci", "p3": "cc", "p4": "ic", "p5": "uu"}
# carl is always wrong, on p2 he never ends, and on p4 once.
CARL = {"p0": "ii", "p1": "ii", "p2": "tt", "p3": "ii", "p4": "ti", "p5": "ii"}


def graded(**verdicts: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    return {teacher: rows(teacher, by_problem) for teacher, by_problem in verdicts.items()}


def entries(built: Built) -> list[tuple[str, int, int]]:
    document = json.loads((built.path / "ledger.json").read_text())
    return [(one["filter"], one["num_dropped"], one["num_left"]) for one in document["ledger"]]


def test_matched_takes_the_problems_that_all_solved(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, bob=BOB))
    assert built.chosen("ann") == ["p1-0", "p2-1"] and built.chosen("bob") == ["p1-0", "p2-0"]
    assert entries(built) == [
        ("problems drawn", 0, 6), ("ann has a correct rationale", 3, 3), ("bob has a correct rationale", 1, 2),
        ("limit of 200", 0, 2),
    ]  # fmt: skip
    assert built.fell("ann-p0-0") == ("matched", "bob has no correct rationale")
    assert built.fell("p0") == ("matched", "bob has no correct rationale")
    assert built.fell("p3") == ("matched", "ann has no correct rationale")
    assert built.fell("bob-p3-1") == ("matched", "ann has no correct rationale")
    assert built.fell("ann-p1-1") == ("choice", "first: 1 of 2 enter")
    assert built.fell("ann-p4-1") == ("complete", "truncated")
    assert built.fell("bob-p5-0") == ("correct", "unparseable")
    assert built.counts == {
        "num_rationales": 2, "num_by_teacher": {"ann": 2, "bob": 2}, "num_problems": 2, "num_problems_wanted": 200,
        "tokens": {"ann": 39, "bob": 40},
    }  # fmt: skip


def test_several_rationales_a_problem_need_as_many_of_every_teacher(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, bob=BOB), rationales_per_problem=2, num_rationales=9)
    assert built.chosen("ann") == built.chosen("bob") == ["p1-0", "p1-1"]
    assert entries(built)[1:] == [
        ("ann has 2 correct rationales", 5, 1), ("bob has 2 correct rationales", 0, 1), ("limit of 9, 2 a problem", 0, 1),
    ]  # fmt: skip
    assert built.fell("ann-p0-0") == ("matched", "ann has 1 correct rationale of 2")
    assert built.fell("p5") == ("matched", "ann has no correct rationale of 2")
    assert built.counts["num_rationales"] == 2 and built.counts["num_problems_wanted"] == 4


def test_the_limit_counts_rationales_not_problems(tmp_path: Path) -> None:
    all_right = {f"p{index}": "ccc" for index in range(8)}
    built = Built(tmp_path, graded(ann=all_right, bob=all_right), rationales_per_problem=3, num_rationales=7)
    assert built.counts["num_by_teacher"] == {"ann": 6, "bob": 6}
    assert [key[:2] for key in built.chosen("ann")] == [key[:2] for key in built.chosen("bob")]
    assert Counter(name for _, name, _ in built.rejected()) == {"limit": 2 * 6 * 3 + 6}


def test_a_teacher_that_is_wrong_on_purpose_comes_unfiltered(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, bob=BOB, carl=CARL), match_over=("ann", "bob"))
    # p2 drops although ann and bob are right there: carl never ended, and all corpora stay on the same problems.
    assert built.chosen("ann") == ["p1-0"] and built.chosen("bob") == ["p1-0"] and built.chosen("carl") == ["p1-0"]
    assert built.corpus("carl")[0]["verdict"] == "incorrect"
    assert entries(built)[1:] == [
        ("ann has a correct rationale", 3, 3), ("bob has a correct rationale", 1, 2),
        ("carl has a usable rationale", 1, 1), ("limit of 200", 0, 1),
    ]  # fmt: skip
    assert built.fell("p2") == ("matched", "carl has no usable rationale")
    assert built.fell("ann-p2-1") == ("matched", "carl has no usable rationale")
    assert built.fell("carl-p2-0") == ("complete", "truncated")


def test_without_the_filter_wrong_ones_stay_and_unfinished_ones_do_not(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, carl=CARL), filter_correct=False)
    assert built.chosen("ann") == ["p0-0", "p1-0", "p3-0", "p4-0", "p5-0"]
    assert built.chosen("carl") == ["p0-0", "p1-0", "p3-0", "p4-1", "p5-0"]
    assert entries(built)[1:3] == [("ann has a usable rationale", 0, 6), ("carl has a usable rationale", 1, 5)]


def test_per_teacher_gives_each_its_own(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, bob=BOB), mode="per_teacher", num_rationales=3)
    assert built.chosen("ann") == ["p0-0", "p1-0", "p2-1"]
    assert len(built.chosen("bob")) == 3
    assert entries(built)[1:] == [
        ("ann has a correct rationale", 3, 3), ("ann: limit of 3", 0, 3),
        ("bob has a correct rationale", 2, 4), ("bob: limit of 3", 1, 3),
    ]  # fmt: skip
    assert built.fell("p5") == ("per_teacher", "ann has no correct rationale")
    document = json.loads((built.path / "ledger.json").read_text())
    assert document["selected_by_teacher"]["ann"] == ["p0", "p1", "p2"]
    assert document["selected"] == sorted(
        {*document["selected_by_teacher"]["ann"], *document["selected_by_teacher"]["bob"]}
    )


def test_a_problem_that_any_corpus_holds_is_no_rejected_problem(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, bob=BOB), mode="per_teacher")
    assert {one["problem_id"] for one in read_jsonl(built.path / "rejections.jsonl") if not one["key"]} == {"p5"}
    assert built.counts["num_rationales"] == {"ann": 3, "bob": 4} and built.counts["num_problems"] == 5


def test_union_takes_what_each_has_of_what_any_solved(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, bob=BOB), mode="union", rationales_per_problem=2)
    assert built.chosen("ann") == ["p0-0", "p1-0", "p1-1", "p2-1"]
    assert built.chosen("bob") == ["p1-0", "p1-1", "p2-0", "p3-0", "p3-1", "p4-1"]
    assert entries(built)[1:] == [
        ("any of ann, bob has a correct rationale", 1, 5),
        ("limit of 200, 2 a problem", 0, 5),
    ]
    assert built.fell("p5") == ("union", "none of ann, bob has a correct rationale")


def test_union_over_some_teachers_brings_the_others_to_their_problems(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, carl=CARL), mode="union", match_over=("ann",))
    assert built.chosen("ann") == ["p0-0", "p1-0", "p2-1"] and built.chosen("carl") == ["p0-0", "p1-0"]
    assert built.fell("carl-p3-0") == ("union", "none of ann has a correct rationale")


def test_size_matched_cuts_to_the_smallest(tmp_path: Path) -> None:
    seen = set()
    for seed in range(8):
        built = Built(tmp_path, graded(ann=ANN, bob=BOB), mode="size_matched", selection_seed=seed)
        assert built.chosen("ann") == ["p0-0", "p1-0", "p2-1"] and built.counts["num_rationales"] == 3
        assert {key[:2] for key in built.chosen("bob")} < {"p1", "p2", "p3", "p4"}
        seen.add(tuple(built.chosen("bob")))
        assert entries(built)[3:] == [("bob has a correct rationale", 2, 4), ("bob: cut to the smallest", 1, 3)]
    assert len(seen) > 1
    below = Built(tmp_path, graded(ann=ANN, bob=BOB), mode="size_matched", num_rationales=2)
    assert below.counts["num_rationales"] == 2 and entries(below)[-1] == ("bob: limit of 2", 2, 2)


def test_naming_and_listing_teachers_otherwise_changes_no_problem(tmp_path: Path) -> None:
    one = Built(tmp_path, graded(ann=ANN, bob=BOB), num_rationales=1)
    other = Built(tmp_path, graded(zoe=BOB, ann=ANN), num_rationales=1)
    assert one.chosen("ann") == other.chosen("ann") and len(one.chosen("ann")) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "the matched corpora are empty: no problem was answered correctly by every teacher (problems drawn: −0, 6 left; "
             "ann has a correct rationale: −3, 3 left; carl has a correct rationale: −3, 0 left; limit of 200: −0, 0 left; "
             "rationales: ann complete −1, ann correct −7, carl complete −3, carl correct −9); draw more problems or samples"),
        ({"mode": "per_teacher"}, "in mode per_teacher the corpus of carl is empty"),
        ({"mode": "size_matched"}, "in mode size_matched the corpus of ann, carl is empty"),
        ({"mode": "union"}, "in mode union the corpus of carl is empty"),
        ({"difficulty": (0.9, 1.0)}, "the student's pass rate is 0.9 to 1: −6, 0 left"),
        ({"difficulty": (0.9, 1.0)}, "; widen corpus.difficulty, or draw more problems"),
    ],
)  # fmt: skip
def test_an_empty_corpus_says_where_everything_fell(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(CorpusError) as caught:
        Built(tmp_path, graded(ann=ANN, carl=CARL), pass_rates={f"p{index}": 0.5 for index in range(6)}, **changes)
    assert told in str(caught.value)


def test_difficulty_keeps_the_band_and_says_why_the_others_fell(tmp_path: Path) -> None:
    rates = {"p0": 0.25, "p1": 0.5, "p2": 0.75}
    built = Built(tmp_path, graded(ann=ANN), pass_rates=rates, difficulty=(0.5, 0.75))
    assert built.chosen("ann") == ["p1-0", "p2-1"]
    assert entries(built)[1] == ("the student's pass rate is 0.5 to 0.75", 4, 2)
    assert (
        built.fell("p0")
        == built.fell("ann-p0-0")
        == ("difficulty", "the student's pass rate is 0.25, outside 0.5 to 0.75")
    )
    assert built.fell("p4") == ("difficulty", "no answer of the student could be graded")


def test_coverage_counts_samples_right_kept_and_selected(tmp_path: Path) -> None:
    built = Built(tmp_path, graded(ann=ANN, bob=BOB))
    table = {
        (one["teacher"], one["problem_id"]): one for one in pq.read_table(built.path / "coverage.parquet").to_pylist()
    }
    assert list(table) == [(teacher, f"p{index}") for teacher in ("ann", "bob") for index in range(6)]
    assert table["ann", "p1"] == {
        "teacher": "ann", "problem_id": "p1", "family": "sums", "num_samples": 2, "num_correct": 2, "num_kept": 2,
        "selected": True,
    }  # fmt: skip
    assert [table["bob", f"p{index}"]["num_correct"] for index in range(6)] == [0, 2, 1, 2, 1, 0]
    assert [table["bob", f"p{index}"]["selected"] for index in range(6)] == [False, True, True, False, False, False]


# Mostly right ones: otherwise most draws would leave a corpus empty, and be rejected.
VERDICTS = st.lists(st.text("ccccccciutg", min_size=2, max_size=4), min_size=4, max_size=4)


@pytest.mark.parametrize("mode", ["matched", "per_teacher", "union", "size_matched"])
@settings(max_examples=25, deadline=None)
@given(
    teachers=st.lists(VERDICTS, min_size=1, max_size=3),
    choice=st.sampled_from(["first", "shortest", "longest", "random"]),
    number=st.integers(1, 2), limit=st.integers(2, 6), filter_correct=st.booleans(), over_all=st.booleans(),
    band=st.sampled_from([None, (0.0, 0.6)]), same_text=st.booleans(),
)  # fmt: skip
def test_everything_is_in_a_corpus_or_rejected_once(
    mode: str, teachers: list[list[str]], choice: str, number: int, limit: int, filter_correct: bool, over_all: bool,
    band: tuple[float, float] | None, same_text: bool,
) -> None:  # fmt: skip
    made = {f"t{n}": rows(f"t{n}", {f"p{i}": letters for i, letters in enumerate(v)}) for n, v in enumerate(teachers)}
    for one in (one for rows_ in made.values() for one in rows_ if same_text):
        one["text"] = "<think>so</think>\\boxed{1}"
    with TemporaryDirectory() as root:
        try:
            built = Built(
                Path(root), made, mode=mode, choice=choice, rationales_per_problem=number, num_rationales=limit,
                filter_correct=filter_correct, match_over=None if over_all else ("t0",), difficulty=band,
                pass_rates={"p0": 0.2, "p1": 0.7, "p2": 0.6},
            )  # fmt: skip
        except CorpusError:  # some corpus is empty
            reject()
        rejections = read_jsonl(built.path / "rejections.jsonl")
        held = [(teacher, one["completion_key"]) for teacher in made for one in built.corpus(teacher)]
        fell = [(one["teacher"], one["key"]) for one in rejections if one["key"]]
        assert Counter(held) + Counter(fell) == Counter(built.keys)
        used = {one["problem_id"] for teacher in made for one in built.corpus(teacher)}
        problems = [one["problem_id"] for one in rejections if not one["key"]]
        assert Counter([*used, *problems]) == Counter(built.problems.keys())
        document = json.loads((built.path / "ledger.json").read_text())
        assert sum(one["num_rejected"] for one in document["rejections"]) == len(rejections)
        per_problem = Counter((one["teacher"], one["problem_id"]) for teacher in made for one in built.corpus(teacher))
        sizes = {teacher: len(built.corpus(teacher)) for teacher in made}
        assert max(per_problem.values()) <= number and max(sizes.values()) <= limit and min(sizes.values()) > 0
        if mode in ("matched", "size_matched"):
            assert len(set(sizes.values())) == 1 and set(per_problem.values()) == {number}
        if mode == "matched":
            assert len({tuple(one["problem_id"] for one in built.corpus(teacher)) for teacher in made}) == 1
        if filter_correct:
            asked = list(made) if over_all else ["t0"]
            assert {one["verdict"] for teacher in asked for one in built.corpus(teacher)} == {"correct"}
