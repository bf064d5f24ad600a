"""Problem families: disjoint splits, stable draws, answers checked without trusting the text."""

from __future__ import annotations

import re

import pytest

from mot_core.lab.expressions import evaluate, parse_expression, render_expression
from mot_core.lab.families import (
    FAMILIES,
    HOME,
    LATER_HOME,
    LATER_PRIMERS,
    PANEL,
    PRIMERS,
    SPLITS,
    check_answer,
    clock_draft,
    draw_problems,
    expression_draft,
    split_of,
)
from mot_core.lab.times import parse_times, render_time, render_times, running_times

# Drawn once and written down: a change here changes every benchmark, and needs a new FORGE_VERSION.
GOLDEN = {
    "sums": [("41+34+14-10-35+96", "140"), ("90+90-38+52-42", "152")],
    "products": [("77+5*16-53", "104"), ("4*18+88+3*40", "280")],
    "reverse": [("reverse pommel", "lemmop"), ("reverse gluma", "amulg")],
    "sort": [("sort 28 86 14", "14 28 86"), ("sort 99 66 32 39", "32 39 66 99")],
    "count": [("count e in he has", "1"), ("count s in he seats", "2")],
    "largest": [("largest 17 24 28 75", "75"), ("largest 23 71 25", "71")],
    "short-sums": [("62-57", "5"), ("50+24+39", "113")],
    "short-products": [("5*38", "190"), ("2*29-39", "19")],
    "clock": [("11:30+1:20-0:30", "12:20"), ("2:50+3:40-4:00", "2:30")],
    "short-clock": [("7:40-3:55", "3:45"), ("13:55+1:25", "15:20")],
}


def test_every_family_is_a_home_a_panel_or_a_primer_family() -> None:
    named = [*HOME, *PANEL, *PRIMERS, *LATER_HOME, *LATER_PRIMERS]
    assert sorted(FAMILIES) == sorted(named) == sorted(GOLDEN)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_draws_are_the_golden_ones(family: str) -> None:
    assert [(problem.question, problem.answer) for problem in draw_problems(family, "test", 2, 7)] == GOLDEN[family]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_splits_are_disjoint_across_seeds(family: str) -> None:
    def drawn_ids(split: str) -> set[str]:
        return {problem.problem_id for seed in (1, 2) for problem in draw_problems(family, split, 150, seed)}

    train, dev, test = (drawn_ids(split) for split in SPLITS)
    assert not train & dev and not train & test and not dev & test
    assert min(len(train), len(dev), len(test)) >= 150


def test_a_reordered_sum_stays_in_its_split() -> None:
    for problem in draw_problems("sums", "test", 100, 3):
        terms = parse_expression(problem.question)
        positive = [term for term in terms if term.sign == 1]
        reordered = [*positive[::-1], *(term for term in terms if term.sign == -1)]
        assert split_of("sums", expression_draft(reordered).key) == "test"


def test_a_short_draw_is_a_prefix_of_a_long_one() -> None:
    long_draw = draw_problems("products", "dev", 60, 5)
    assert draw_problems("products", "dev", 20, 5) == long_draw[:20]
    assert len({problem.problem_id for problem in long_draw}) == 60
    assert draw_problems("products", "dev", 20, 6) != long_draw[:20]


@pytest.mark.parametrize("family", [*HOME, *PRIMERS])
def test_questions_read_back_to_their_answers(family: str) -> None:
    for problem in draw_problems(family, "train", 200, 9):
        terms = parse_expression(problem.question)
        assert render_expression(terms) == problem.question
        assert str(evaluate(terms)) == problem.answer


def test_reordered_times_stay_in_their_split() -> None:
    for problem in draw_problems("clock", "test", 100, 3):
        terms = parse_times(problem.question)
        assert split_of("clock", clock_draft([terms[0], *terms[:0:-1]]).key) == "test"


@pytest.mark.parametrize(("family", "lengths"), [("clock", {3, 4}), ("short-clock", {2})])
def test_times_read_back_to_their_answers_within_one_day(family: str, lengths: set[int]) -> None:
    seen = set()
    for problem in draw_problems(family, "train", 500, 9):
        terms = parse_times(problem.question)
        seen.add(len(terms))
        assert render_times(terms) == problem.question
        assert render_time(sum(term.value for term in terms)) == problem.answer
        assert min(running_times(terms)) >= 0 and max(running_times(terms)) < 24 * 60
        # By another road: hours and minutes are added apart.
        signed = [
            (part[0], *map(int, part[1:].split(":"))) for part in re.findall(r"[+-][0-9:]+", f"+{problem.question}")
        ]
        hours = sum(h if sign == "+" else -h for sign, h, _ in signed)
        minutes = sum(m if sign == "+" else -m for sign, _, m in signed)
        carry, rest = divmod(minutes, 60)
        assert problem.answer == f"{hours + carry}:{rest:02d}"
    assert seen == lengths


def test_clock_problems_do_not_run_out() -> None:
    for split in ("dev", "test"):
        assert len({problem.problem_id for problem in draw_problems("clock", split, 2000, 1)}) == 2000
        assert len(draw_problems("short-clock", split, 1000, 1)) == 1000


def test_panel_answers_are_right() -> None:
    for problem in draw_problems("sort", "dev", 50, 1):
        numbers = [int(word) for word in problem.question.split()[1:]]
        assert problem.answer == " ".join(map(str, sorted(numbers)))
    for problem in draw_problems("largest", "dev", 50, 1):
        assert int(problem.answer) == max(int(word) for word in problem.question.split()[1:])
    for problem in draw_problems("count", "dev", 50, 1):
        _, letter, _, *words = problem.question.split()
        assert int(problem.answer) == sum(word.count(letter) for word in words)
    for problem in draw_problems("reverse", "dev", 50, 1):
        assert problem.answer == problem.question.removeprefix("reverse ")[::-1]


@pytest.mark.parametrize("family", [*HOME, *PRIMERS])
def test_no_running_total_falls_below_zero(family: str) -> None:
    for problem in draw_problems(family, "test", 100, 11):
        terms = parse_expression(problem.question)
        assert min(evaluate(terms[: end + 1]) for end in range(len(terms))) >= 0


def test_no_constant_count_passes() -> None:
    answers = [problem.answer for problem in draw_problems("count", "test", 400, 4)]
    assert max(answers.count(answer) for answer in set(answers)) < 240


@pytest.mark.parametrize(
    ("family", "split", "num_problems", "message"),
    [
        ("sum", "test", 5, "unknown family 'sum': expected one of sums, products"),
        ("sums", "validation", 5, "unknown split 'validation': expected one of train, dev, test"),
        ("sums", "test", 0, "expected a positive whole number, got 0"),
        ("sums", "test", True, "expected a positive whole number, got True"),
        ("short-products", "test", 20_000, "found only .* ask for fewer"),
    ],
)
def test_impossible_draws_are_refused(family: str, split: str, num_problems: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_problems(family, split, num_problems, 1)


@pytest.mark.parametrize(
    ("family", "gold", "answer", "expected"),
    [
        ("sums", "87", "87", True),
        ("sums", "87", " +087 ", True),
        ("sums", "-12", "\u221212", True),
        ("sums", "87", "87.0", False),
        ("sums", "87", "88", False),
        ("sums", "87", "", False),
        ("sums", "87", "43+44", False),
        ("sums", "87", "87 87", False),
        ("sums", "87", "__import__('os').system('true')", False),
        ("sums", "87", "9" * 5_000_000, False),
        ("sums", "87", "٨٧", False),
        ("sums", "87", "87\n", True),
        ("sums", "87", "8\x007", False),
        ("reverse", "tenalp", "Tenalp ", True),
        ("reverse", "tenalp", "ten alp", False),
        ("sort", "7 41 93", "7, 41, 93", True),
        ("sort", "7 41 93", "7 93 41", False),
        ("sort", "7 41 93", "7 41", False),
        ("sort", "7 41 93", "7 41 93 93", False),
        ("clock", "8:25", "8:25", True),
        ("clock", "8:25", " 08:25\n", True),
        ("clock", "0:05", "0:05", True),
        ("clock", "8:25", "8:26", False),
        ("clock", "8:25", "18:25", False),
        ("clock", "8:05", "8:5", False),
        ("clock", "8:25", "8:25:00", False),
        ("clock", "8:25", "-8:25", False),
        ("clock", "8:25", "505", False),
        ("clock", "8:25", "7:85", False),
        ("clock", "8:25", "8.25", False),
        ("clock", "8:25", "", False),
        ("clock", "8:25", "8:25 8:25", False),
        ("clock", "8:25", "٨:٢٥", False),
        ("clock", "8:25", "8:25" * 2_000_000, False),
        ("clock", "8:25", "008:25", False),
    ],
)
def test_answers_are_compared_as_values(family: str, gold: str, answer: str, expected: bool) -> None:
    assert check_answer(family, gold, answer) is expected


def test_a_family_that_does_not_exist_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match="unknown family 'riddles'"):
        check_answer("riddles", "1", "1")
