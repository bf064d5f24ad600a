"""Decontamination: what is hit, by which rule, what is listed, and that the laboratory is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Published, Store
from mot_core.errors import CorpusError
from mot_core.files import read_jsonl
from mot_core.lab.families import draw_problems
from mot_core.overlap import Held, Hit, words_of
from mot_core.problems import Problem
from mot_core.spec_files import load_spec
from mot_core.steps import Step
from tests.contexts import publish, run

LONG = "A train leaves the station at noon and travels north at 60 miles per hour until it meets the other train"
SHORT = "Find $x$ if $x + 1 = 3$."


def test_words() -> None:
    assert words_of(r"Let $\left(x_1,\; 3.5\right)$ be ²/₃ of \dfrac{A}{B}: x2y, naïve — \text{so}!") == [
        "let", "x", "1", "3", "5", "be", "2", "3", "of", "dfrac", "a", "b", "x", "2", "y", "naïve", "so",
    ]  # fmt: skip
    assert words_of(r"\mathrm{d}x \operatorname{lcm} \leftarrow \textbf{b}") == ["d", "x", "lcm", "leftarrow", "b"]


def test_hits_and_misses() -> None:
    held = Held(5)
    held.add("first", ["one two three four five six", SHORT, "alpha beta"])
    held.add("second", ["one two three four five six", "seven eight nine ten eleven"])
    assert held.hit("ONE, two: three four -- five!") == Hit("first", "ngram", "one two three four five")
    assert held.hit("so seven eight nine ten eleven and on") == Hit("second", "ngram", "seven eight nine ten eleven")
    assert held.hit("one two three four 5") is None and held.hit("two three four five seven") is None
    assert held.hit(r"find \(x\) if x+1=3") == Hit("first", "exact", r"find \(x\) if x+1=3")
    assert held.hit("Alpha beta?") == Hit("first", "exact", "Alpha beta?")
    assert held.hit("alpha beta gamma delta epsilon zeta") is None  # too short a benchmark question for n-grams
    assert held.hit("") is None


def test_the_last_words_count_too() -> None:
    held = Held(3)
    held.add("b", ["x y a b c"])
    assert held.hit("q a b c") == Hit("b", "ngram", "a b c")
    assert held.hit("a b") is None and held.hit("x q y b c") is None


def problems_step(store: Store, name: str, questions: list[str]) -> Step:
    rows = [Problem.of("f", question, "1").to_json() for question in questions]

    def write(work_dir: Path) -> None:
        (work_dir / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return publish(store, Step("problems", {"made": name}), write)


def decontaminated(store: Store, questions: list[str], **changes: Any) -> Published:
    parents = (
        ("problems", problems_step(store, f"train {questions}", questions)),
        ("benchmark/0", problems_step(store, "dev", ["unrelated"])),
        ("benchmark/1", problems_step(store, "test", [LONG, SHORT])),
    )
    spec = {"ngram": 13, "on_hit": "remove", "benchmarks": ["aime (dev)", "aime (test)"], **changes}
    return run(store, "overlap", spec, parents)


def test_what_a_benchmark_holds_is_removed_and_listed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    part = "Suppose " + " ".join(LONG.split()[3:17]).upper() + " or so"
    step = decontaminated(store, ["keep me", part, "find x, if x+1 = 3", "and me"])
    assert step.counts == {"num_problems": 4, "num_hits": 2, "num_ngram": 1, "num_exact": 1}
    hits = read_jsonl(step.path / "hits.jsonl")
    drawn = problems_step(store, "train", ["keep me", part, "find x, if x+1 = 3", "and me"])
    rest = run(store, "training-problems", {"removed": [row["problem_id"] for row in hits]}, (("problems", drawn),))
    assert [row["question"] for row in read_jsonl(rest.path / "problems.jsonl")] == ["keep me", "and me"]
    assert rest.counts == {"num_problems": 2, "num_removed": 2}
    assert hits == [
        {
            "problem_id": Problem.of("f", part, "").problem_id, "source_row": "problems:2", "filter": "benchmark",
            "reason": "shares words with aime (test): the station at noon and travels north at 60 miles per hour until",
            "question": part, "benchmark": "aime (test)", "rule": "ngram",
            "shared": "the station at noon and travels north at 60 miles per hour until",
        },
        {
            "problem_id": Problem.of("f", "find x, if x+1 = 3", "").problem_id, "source_row": "problems:3",
            "filter": "benchmark", "reason": "the same question as in aime (test): find x, if x+1 = 3",
            "question": "find x, if x+1 = 3", "benchmark": "aime (test)", "rule": "exact", "shared": "find x, if x+1 = 3",
        },
    ]  # fmt: skip


def test_on_hit_stop_and_nothing_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    with pytest.raises(CorpusError, match=r"1 of 2 training problems are in a benchmark of the spec; take them out, or set corpus\.decontamination\.on_hit to remove:\n  f-\w+ 'find x, .*': the same question as in aime \(test\)"):  # fmt: skip
        decontaminated(store, ["keep me", "find x, if x+1 = 3"], on_hit="stop")
    assert decontaminated(store, ["keep me"], on_hit="stop").counts == {"num_problems": 1, "num_hits": 0}
    with pytest.raises(CorpusError, match=r"1 of 1 training problems are .* none is left to train on"):
        decontaminated(store, [LONG])


@pytest.mark.parametrize("preset", ["lab", "smoke"])
def test_the_laboratory_loses_no_problem(preset: str) -> None:
    """Its questions are short, and train, dev and test never share one: any hit would be a false one."""
    spec = load_spec(preset)
    held = Held(spec.corpus.decontamination.ngram)
    for benchmark in spec.evaluation.benchmarks:
        for split, number in (("dev", spec.evaluation.path.num_problems), (benchmark.split, benchmark.num_problems)):
            for family in benchmark.families or ():
                assert number is not None
                held.add(
                    benchmark.name,
                    (problem.question for problem in draw_problems(family, split, number, benchmark.seed)),
                )
    families, number = spec.problems.families, spec.problems.num_problems
    assert families is not None and number is not None and len(held.forms) > 20
    hits = [
        held.hit(problem.question)
        for family in families
        for problem in draw_problems(family, "train", number, spec.problems.seed)
    ]
    assert len(hits) == number * len(families) and set(hits) == {None}
