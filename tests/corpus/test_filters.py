"""Each filter on rationales by itself: what it keeps, and the reason that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mot_core.corpus import filters
from mot_core.corpus.candidates import Candidate
from mot_core.corpus.choice import choose
from mot_core.spec import Corpus
from tests.corpus.graded import Built, candidates_of, row


def made(tmp_path: Path, *changes: dict[str, Any]) -> list[Candidate]:
    return candidates_of(tmp_path, "ann", [row("ann", "p0", index, **change) for index, change in enumerate(changes)])


def reasons(sifted: filters.Sifted) -> tuple[list[int], list[tuple[str, str]]]:
    """The samples kept, and `(filter, reason)` of the others."""
    kept, rejected = sifted
    return [one.sample_index for one in kept], [(one.filter, one.reason) for one in rejected]


def test_what_is_not_complete(tmp_path: Path) -> None:
    candidates = made(
        tmp_path,
        {"verdict": "unparseable", "text": "", "finish_reason": "failed", "reason": "HTTP 500"},
        {"verdict": "unparseable", "text": "", "finish_reason": "absent"},
        {"verdict": "truncated"},
        {"finish_reason": "length"},
        {"verdict": "unparseable", "text": "<think>closed</think>no box"},
        {"verdict": "grader_failed"},
        {},
    )
    assert reasons(filters.complete(candidates)) == (
        [4, 5, 6],
        [
            ("complete", "failed: HTTP 500"),
            ("complete", "absent"),
            ("complete", "truncated"),
            ("complete", "truncated"),
        ],
    )


def test_what_is_not_correct(tmp_path: Path) -> None:
    candidates = made(tmp_path, *({"verdict": v} for v in ("incorrect", "correct", "unparseable", "grader_failed")))
    assert reasons(filters.correct(candidates)) == (
        [1], [("correct", "incorrect"), ("correct", "unparseable"), ("correct", "grader_failed")],
    )  # fmt: skip


def test_what_would_not_parse_back(tmp_path: Path) -> None:
    candidates = made(
        tmp_path,
        {"text": "<think>a</think>b</think>\\boxed{1}"},
        {"text": "<think>see `</think>` there</think>\\boxed{1}"},
        {"text": "no reasoning, \\boxed{1}"},
        {"text": "<think>a\n\n</think>\n\n\\boxed{1}"},
        {"text": "<think>never closed"},
        {"text": "<think>closed</think>"},
    )
    assert reasons(filters.well_formed(candidates)) == (
        [2, 3],
        [
            *[("well_formed", "its reasoning holds the mark '</think>'")] * 2,
            ("well_formed", "it was cut: what was opened in it is not closed"),
            ("well_formed", "it holds no answer"),
        ],
    )


def test_a_repeated_text_counts_once_a_problem(tmp_path: Path) -> None:
    same = {"text": "<think>same</think>\\boxed{1}"}
    candidates = [*made(tmp_path, same, {}, same, same), *candidates_of(tmp_path, "bob", [row("ann", "p1", 0, **same)])]
    assert reasons(filters.distinct(candidates[::-1])) == ([0, 1, 0], [("distinct", "the same text as sample 0")] * 2)


def test_a_repeated_text_matters_only_where_several_enter(tmp_path: Path) -> None:
    same = {"text": "<think>same</think>\\boxed{1}"}
    graded = {"ann": [row("ann", "p0", 0, **same), row("ann", "p0", 1, **same), row("ann", "p0", 2)]}
    assert Built(tmp_path, graded).fell("ann-p0-1") == ("choice", "first: 1 of 3 enter")
    two = Built(tmp_path, graded, rationales_per_problem=2)
    assert two.chosen("ann") == ["p0-0", "p0-2"] and two.fell("ann-p0-1") == ("distinct", "the same text as sample 0")


def test_what_the_student_cannot_hold_or_not_at_that_length(tmp_path: Path) -> None:
    candidates = made(tmp_path, {}, {}, {})
    keys = [one.key for one in candidates]
    assert reasons(filters.renderable(candidates, {keys[1]: "it is odd"})) == ([0, 2], [("renderable", "it is odd")])
    tokens = dict(zip(keys, (10, 11, 9), strict=True))
    assert reasons(filters.short_enough(candidates, tokens, 10)) == (
        [0, 2], [("max_rationale_tokens", "11 tokens, over 10")],
    )  # fmt: skip


def test_pass_rates_leave_out_what_was_not_measured() -> None:
    answers = [
        ("p0", "correct", "stop"), ("p0", "incorrect", "stop"), ("p0", "truncated", "length"), ("p0", "correct", "stop"),
        ("p0", "unparseable", "failed"), ("p0", "grader_failed", "stop"), ("p1", "unparseable", "absent"),
    ]  # fmt: skip
    assert filters.pass_rates(answers) == {"p0": 0.5}


@pytest.mark.parametrize(
    ("band", "kept"),
    [((0.0, 1.0), ["p0", "p1", "p2"]), ((0.5, 0.5), ["p1"]), ((0.5, 1.0), ["p1", "p2"]), ((0.1, 0.4), [])],
)
def test_the_band_includes_its_ends(band: tuple[float, float], kept: list[str]) -> None:
    rates = {"p0": 0.0, "p1": 0.5, "p2": 1.0}
    assert filters.within_difficulty(["p0", "p1", "p2", "p3"], rates, band)[0] == kept


@pytest.mark.parametrize(
    ("choice", "number", "chosen"),
    [
        ("first", 1, [0]), ("first", 2, [0, 1]), ("first", 9, [0, 1, 2, 3]), ("shortest", 1, [1]), ("shortest", 3, [0, 1, 3]),
        ("longest", 1, [2]), ("longest", 2, [0, 2]), ("likeliest", 1, [3]), ("likeliest", 2, [0, 3]),
    ],
)  # fmt: skip
def test_choices_and_their_ties(tmp_path: Path, choice: str, number: int, chosen: list[int]) -> None:
    candidates = made(tmp_path, *({"num_tokens": length} for length in (7, 3, 9, 7)))
    log_probs = dict(zip([one.key for one in candidates], (-1.0, -1.5, -1.0, -0.5), strict=True))
    corpus = Corpus(choice=choice, rationales_per_problem=number)
    taken, others = choose(candidates[::-1], corpus, log_probs)
    assert [one.sample_index for one in taken] == chosen
    assert sorted([*chosen, *(one.sample_index for one in others)]) == [0, 1, 2, 3]


def test_a_random_choice_follows_its_seed_and_reaches_every_sample(tmp_path: Path) -> None:
    candidates = made(tmp_path, {}, {}, {}, {})

    def drawn(seed: int) -> tuple[int, ...]:
        taken, _ = choose(candidates, Corpus(choice="random", rationales_per_problem=2, selection_seed=seed), {})
        return tuple(one.sample_index for one in taken)

    assert [drawn(seed) for seed in range(40)] == [drawn(seed) for seed in range(40)]
    assert {drawn(seed) for seed in range(40)} == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
