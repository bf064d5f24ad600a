"""reasoning-gym as a source of problems: three of its data sets, right, wrong and hostile answers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mot_core import gym
from mot_core.artifacts import Store
from mot_core.dag import problems_step
from mot_core.errors import ProblemError, SpecError
from mot_core.grading.pool import GradingPool
from mot_core.grading.verdicts import GradeItem, UngradableGold
from mot_core.gym import check_gym, draw_problems, gym_record, is_right
from mot_core.problems import Problem
from mot_core.spec import Benchmark, Experiment, Gym
from mot_core.spec_files import load_spec
from mot_core.stages import problems_from
from mot_core.steps import Step
from mot_core.world import resolve
from tests.contexts import run
from tests.pico import pico_document

# Numbers, digits of another base, and a sentence that has no one wording.
THREE = ("chain_sum", "base_conversion", "knights_knaves")


def record_of(dataset: str, **settings: Any) -> dict[str, Any]:
    return gym_record(Gym(dataset=dataset, settings=settings))


def drawn(dataset: str, split: str = "train", num_problems: int = 6, seed: int = 1, **settings: Any) -> list[Problem]:
    """As `draw_problems` in its process, in this one, which has the package loaded."""
    pairs = gym._drawn(record_of(dataset, **settings), split, num_problems, seed)
    return [Problem.of(dataset, question, gold) for question, gold in pairs]


def answer_of(problem: Problem) -> str:
    answer: str = json.loads(problem.answer)["answer"]
    return answer


def step_of(dataset: str, split: str, num_problems: int, role: str = "benchmark") -> dict[str, Any]:
    source = Benchmark(name="gym", gym=Gym(dataset=dataset), num_problems=num_problems)
    return dict(problems_step(source, {}, role=role, grader=source.grader, label="", split=split).spec)


# -- drawing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", THREE)
def test_splits_are_disjoint_and_a_shorter_draw_is_a_prefix(dataset: str) -> None:
    by_split = {split: drawn(dataset, split, 8) for split in ("train", "dev", "test")}
    ids = {split: {problem.problem_id for problem in problems} for split, problems in by_split.items()}
    assert all(len(found) == 8 for found in ids.values())
    assert len(set.union(*ids.values())) == 24
    assert drawn(dataset, "dev", 3) == by_split["dev"][:3]
    other = drawn(dataset, "dev", 8, seed=2)
    assert other != by_split["dev"] and not {p.problem_id for p in other} & (ids["train"] | ids["test"])


def test_settings_are_the_data_sets() -> None:
    settings = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    problems = drawn("chain_sum", num_problems=20, **settings)
    for problem in problems:
        left, sign, right = problem.question.removesuffix(" =").split(": ")[1].split()
        assert answer_of(problem) == str(int(left) + int(right) if sign == "+" else int(left) - int(right))
        assert json.loads(problem.answer)["settings"] == settings
    # Ten digits, two signs: 200 questions, so every question comes once and then no more.
    with pytest.raises(
        ProblemError, match=r"gym chain_sum, split 'dev': expected 100 distinct problems, found \d+; ask for fewer"
    ):
        drawn("chain_sum", "dev", 100, **settings)


def test_the_process_that_draws_is_not_under_this_ones_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """isomorphic_strings takes letters out of a set of strings, whose order follows the hash seed."""
    made = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        made.append(draw_problems(record_of("isomorphic_strings"), "train", 3, 1))
    assert made[0] == made[1] and len({problem.problem_id for problem in made[0]}) == 3


def test_a_problems_step_draws_them(tmp_path: Path) -> None:
    spec = step_of("chain_sum", "test", 4)
    made = run(Store(tmp_path / "store").open(), "problems", spec)
    assert made.counts == {"num_problems": 4, "num_rejected": 0}
    rows = [json.loads(line) for line in (made.path / "problems.jsonl").read_text().splitlines()]
    assert [row["family"] for row in rows] == ["chain_sum"] * 4
    assert [Problem(**row) for row in rows] == drawn("chain_sum", "test", 4, seed=0)


def test_what_is_in_identity() -> None:
    spec = step_of("chain_sum", "test", 4)
    assert spec["gym"] == {"dataset": "chain_sum", "settings": {}, "version": gym.installed_version()}
    families = Benchmark(name="sums", families=("sums",), num_problems=4)
    assert "gym" not in problems_step(families, {}, role="benchmark", grader="family", label="").spec
    other = {**spec, "gym": {**spec["gym"], "version": "0.0.1"}}
    assert Step("problems", other).identity != Step("problems", spec).identity
    with pytest.raises(ProblemError, match=r"planned with reasoning-gym 0\.0\.1, and here is \d"):
        problems_from(other, None)


# -- answers ---------------------------------------------------------------------------------------------

# What a model may write, of which nothing may be right, run, or stop the others.
HOSTILE = (
    "", " ", "0" * 990, "((((((", "1/0", "nan", "\x00", "\ud83d", "None", "[1,2", "{}", "9**9**9**9**9", "a" * 990,
    "\\frac{1}{0}", "٣", "exit()", "(lambda: 1)()", "entry['answer']", "().__class__.__base__.__subclasses__()",
)  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "also_right", "wrong"),
    [
        ("chain_sum", str, ["1234567", "x"]),
        ("base_conversion", str, ["zz", "-"]),
        ("knights_knaves", lambda answer: answer.replace(", and ", " and ").upper(), ["everyone is a knight", "yes"]),
    ],
)
def test_answers_of_three_data_sets(dataset: str, also_right: Any, wrong: list[str]) -> None:
    problems = drawn(dataset, "test", 4)
    hostile = [text for text in HOSTILE if "{" not in text or text.count("{") == text.count("}")]
    said: list[tuple[Problem, str, bool]] = []
    for problem, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        right = answer_of(problem)
        said += [(problem, right, True), (problem, also_right(right), True)]
        said += [(problem, text, False) for text in wrong]
        said += [(problem, answer_of(other), False)] if answer_of(other) != right else []
    said += [(problems[0], text, False) for text in hostile]
    items = [GradeItem("gym", one.family, one.answer, f"<think>r</think>\\boxed{{{text}}}") for one, text, _ in said]
    with GradingPool(1) as pool:
        assert pool.check_golds([("gym", one.family, one.answer) for one in problems]) == [None] * len(problems)
        graded = pool.grade(items)
    for (_, text, is_so), one in zip(said, graded, strict=True):
        allowed = {"correct"} if is_so else {"incorrect", "unparseable"}
        assert one.verdict.value in allowed, (text[:60], one)


@pytest.mark.parametrize(
    ("dataset", "also_right"),
    [
        ("countdown", lambda answer: f"({answer})"),
        ("simple_integration", lambda answer: answer.replace(" + C", " + 7")),
        ("polynomial_multiplication", lambda answer: f"0 + {answer}"),
        ("string_insertion", str),
        ("n_queens", str),
    ],
)
def test_no_answer_is_evaluated(dataset: str, also_right: Any, tmp_path: Path) -> None:
    """Data sets whose scorers give answers to `eval`, or to sympy's parser, which does the same."""
    (problem,) = drawn(dataset, num_problems=1)
    right = answer_of(problem)
    assert is_right(problem.answer, right.strip()) and is_right(problem.answer, also_right(right).strip())
    target = tmp_path / "written"
    write = f"open({str(target)!r}, 'w')"
    for text in (
        write, f"[{write}]", f"__import__('os').system('touch {target}')", f"({write})!", f"{right} if {write} else 0",
        f"x.__class__({write})", "entry['answer']", "[entry['answer']]", f"eval(chr(111))({str(target)!r})", "answer",
        f"list({right!r})", "S('1')", "factorial(9)", "x_1", "1e5.real",
    ):  # fmt: skip
        assert not is_right(problem.answer, text), text
    assert not target.exists()


def test_every_scorer_that_may_evaluate_was_looked_at() -> None:
    unread = [name for name in gym._data_sets() if gym._evaluates_unread(name)]
    assert unread == [], "look at how these treat answers, and list them in mot_core.gym"
    assert gym._EVALUATION.search("re.compile(x)") is None and gym._EVALUATION.search("y = sp.sympify(x)") is not None


def test_a_scorer_that_raises_takes_the_answer_for_none_of_its_form() -> None:
    (problem,) = drawn("prime_factorization", num_problems=1)
    assert is_right(problem.answer, answer_of(problem)) and not is_right(problem.answer, "two and three")


@pytest.mark.parametrize(
    "gold", ["42", "{}", '{"answer": "1", "dataset": "nothing", "settings": {}, "metadata": {}}', "[1]"]
)
def test_other_reference_answers_are_not_graded(gold: str) -> None:
    with pytest.raises(UngradableGold):
        is_right(gold, "42")


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ({"dataset": "chain_sums"}, r"here\.dataset: reasoning-gym .* has no 'chain_sums'; did you mean 'chain_sum'\? known: ab, "),
        ({"dataset": "chain_sum", "settings": {"min_term": 2}}, r"here\.settings\.min_term: chain_sum has no such setting; did you mean 'min_terms'\?"),
        ({"dataset": "chain_sum", "settings": {"seed": 2}}, r"settings\.seed: .*it follows from the source's own seed and num_problems"),
        ({"dataset": "chain_sum", "settings": {"min_terms": 5, "max_terms": 2}}, r"chain_sum does not take .*AssertionError: max_terms must be >= min_terms"),
        ({"dataset": "chain_sum", "settings": {"min_terms": "two"}}, r"chain_sum does not take \{'min_terms': 'two'\}: TypeError"),
        ({"dataset": "composite"}, r"composite does not take \{\}: AssertionError: Must specify at least one dataset"),
    ],
)  # fmt: skip
def test_unknown_data_sets_and_settings(given: dict[str, Any], phrase: str) -> None:
    with pytest.raises(SpecError, match=phrase):
        check_gym(Gym.model_validate(given), "here")


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("rubiks_cube", "it has no reference answer in text, got None"),
        ("arc_1d", None),
        ("rearc", "its scorer does not take its own answer"),
        ("game_of_life_halting", r"its scorer takes '\?' for right"),
        ("complex_arithmetic", "its scorer takes 'nan' for right"),
    ],
)
def test_data_sets_that_cannot_serve_say_why(dataset: str, reason: str | None) -> None:
    if reason is None:
        assert len(drawn(dataset, num_problems=2)) == 2
        return
    with pytest.raises(ProblemError, match=rf"gym {dataset}, .* found 0; then 20 could not serve, the last: {reason}"):
        drawn(dataset, num_problems=2)


def test_a_failing_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ProblemError, match="the process that draws its problems ended with status 1"):
        draw_problems(record_of("chain_sum"), "train", 2, 1)


def test_a_process_that_hangs_is_ended_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mot_core.gym._DRAW_SECONDS", 0.01)
    with pytest.raises(ProblemError, match=r"drawing 2 problems with seed 1 did not end in 0\.01 s"):
        draw_problems(record_of("chain_sum"), "train", 2, 1)


def document_with(models: Path, **source: Any) -> dict[str, Any]:
    document = pico_document(models)
    document["evaluation"]["benchmarks"].append({"name": "gym", "role": "panel", "k": 1, **source})
    return document


def test_a_spec_with_a_gym_is_looked_at_before_anything_runs(pico_models: Path) -> None:
    source = {"gym": {"dataset": "chain_sum"}, "num_problems": 4}
    spec = Experiment.model_validate(document_with(pico_models, **source))
    assert spec.evaluation.benchmarks[2].grader == "gym"
    resolve(spec)
    wrong = Experiment.model_validate(document_with(pico_models, **{**source, "gym": {"dataset": "chainsum"}}))
    with pytest.raises(SpecError, match=r"evaluation\.benchmarks\.gym\.gym\.dataset: .*did you mean 'chain_sum'"):
        resolve(wrong)
    other = Experiment.model_validate(document_with(pico_models, **source, grader="integer"))
    with pytest.raises(SpecError, match=r"evaluation\.benchmarks\.gym\.grader: .*'integer'.*gym"):
        resolve(other)
    with pytest.raises(ValueError, match="gym needs num_problems"):
        Experiment.model_validate(document_with(pico_models, gym={"dataset": "chain_sum"}))


def test_the_gyms_grader_is_kept_from_other_sources(tmp_path: Path) -> None:
    """Its scorers read the reference, and some of them evaluate it."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    spec = load_spec("smoke", [f"problems={{file: {tmp_path / 'rows.jsonl'}}}", "corpus.grader=gym"])
    with pytest.raises(SpecError, match="gym reads the items of reasoning-gym only, and problems has none"):
        resolve(spec)
