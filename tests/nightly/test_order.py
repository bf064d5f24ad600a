"""The order of a night: unseen values first and cheap before dear, other code, then the most open cell; with reasons."""

from __future__ import annotations

import pytest

from mot_core.nightly.order import Standing, in_order, standing_of
from mot_core.nightly.results import Margin, margins_of
from mot_core.nightly.spec import Cell, Reference
from tests.nightly.made_up import STEPS, finished, grid_of, summary

REFERENCE = Reference(method="mot")


def never(cells: tuple[Cell, ...]) -> list[Standing]:
    return [standing_of(cell, None, STEPS, REFERENCE, 3) for cell in cells]


def names(standings: list[Standing]) -> list[str]:
    return [standing.cell.name for standing in standings]


def test_every_value_is_shown_before_any_combination_of_shown_ones() -> None:
    cells = grid_of(rounds=[1, 2, 3], **{"merge.rule": ["mean", "ties", "dare"]})
    ordered = in_order(never(cells), (), lambda standing: 1.0)
    assert names(ordered)[:3] == [
        "rounds=1, merge.rule=mean", "rounds=2, merge.rule=ties", "rounds=3, merge.rule=dare",
    ]  # fmt: skip
    assert ordered[1].why == "has never run; the first cell with rounds=2, merge.rule=ties"
    assert names(ordered)[3:] == [cell.name for cell in cells if cell.name not in names(ordered)[:3]]
    assert {standing.why for standing in ordered[3:]} == {"has never run"}


def test_of_cells_that_show_as_much_the_cheapest_comes_first() -> None:
    cells = grid_of(rounds=[5, 2, 9])
    ordered = in_order(never(cells), (), lambda standing: float(standing.cell.spec.rounds))
    assert names(ordered) == ["rounds=2", "rounds=5", "rounds=9"]


def test_what_a_finished_cell_has_shown_is_seen() -> None:
    first, second, third = grid_of(**{"merge.rule": ["mean"], "rounds": [1, 2, 3]})
    done = standing_of(first, finished(first, ("mtd", 0.2, 0.1, 0.3)), STEPS, REFERENCE, 3)
    ordered = in_order([done, *never((second, third))], (), lambda standing: 1.0)
    assert [standing.why for standing in ordered] == [
        "has never run; the first cell with rounds=2", "has never run; the first cell with rounds=3",
    ]  # fmt: skip


def test_a_cell_that_failed_comes_after_what_else_never_ran() -> None:
    cells = grid_of(rounds=[1, 2, 3])
    assert names(in_order(never(cells), {cells[0].key}, lambda standing: 1.0)) == ["rounds=2", "rounds=3", "rounds=1"]


def test_the_whole_order() -> None:
    cells = grid_of(rounds=[1, 2, 3, 4, 5, 6])
    standings = [
        standing_of(cells[0], finished(cells[0], ("mtd", 0.2, 0.1, 0.3)), STEPS, REFERENCE, 3),
        standing_of(cells[1], finished(cells[1], ("mtd", 0.1, -0.1, 0.3)), STEPS, REFERENCE, 3),
        standing_of(cells[2], finished(cells[2], ("mtd", -0.01, -0.2, 0.18)), STEPS, REFERENCE, 3),
        standing_of(cells[3], finished(cells[3], ("mtd", 0.0, -0.1, 0.1), num_seeds=3), STEPS, REFERENCE, 3),
        standing_of(cells[4], finished(cells[4], ("mtd", 0.2, 0.1, 0.3), num_seeds=2), {"a", "c"}, REFERENCE, 3),
        standing_of(cells[5], None, STEPS, REFERENCE, 3),
    ]
    assert [standing.kind for standing in standings] == [
        "decided", "undecided", "undecided", "undecided, no seed left", "other code", "never run",
    ]  # fmt: skip
    ordered = in_order(standings, (), lambda standing: 1.0)
    assert names(ordered) == ["rounds=6", "rounds=5", "rounds=3", "rounds=2"]
    # Other code runs with the seeds that there were; an undecided cell gets one more.
    assert [len(standing.visit.training_seeds) for standing in ordered if standing.visit] == [1, 2, 2, 2]
    assert ordered[1].why == "ran with other code: 1 of its 2 steps are others today"
    assert ordered[2].why == "1 of 1 intervals hold 0, most evenly mot − mtd on sums; training seed 2 is added"
    assert standings[3].why.endswith("it has 3 training seeds") and standings[3].visit is None


@pytest.mark.parametrize(
    ("low", "high", "undecided", "overlap"),
    [(-0.1, 0.3, True, 0.25), (-0.3, 0.1, True, 0.25), (-0.2, 0.2, True, 0.5), (0.1, 0.3, False, 0.0), (-0.3, -0.1, False, 0.0),
     (0.0, 0.2, True, 0.0), (0.0, 0.0, True, 0.5)],
)  # fmt: skip
def test_overlap_is_the_share_on_the_lesser_side(low: float, high: float, undecided: bool, overlap: float) -> None:
    margin = Margin("matched_path", "mtd", "sums", (low + high) / 2, low, high)
    assert margin.is_undecided is undecided and margin.overlap == pytest.approx(overlap)


def test_margins_have_the_references_sign_and_rivals() -> None:
    (cell,) = grid_of(rounds=[1])
    document = summary(("mtd", 0.2, 0.1, 0.3), ("base", 0.1, -0.1, 0.3))
    document["comparisons"].append(
        {"a": "shuffled", "b": "mot", "benchmark": "sums", "budget": "matched_path", "delta": 0.3, "ci95": [0.2, 0.5]}
    )
    document["comparisons"].append({**document["comparisons"][0], "benchmark": "panel"})
    found = margins_of(document, cell.spec, REFERENCE)
    assert [(one.rival, one.delta, one.low, one.high) for one in found] == [
        ("mtd", 0.2, 0.1, 0.3), ("shuffled", -0.3, -0.5, -0.2),
    ]  # fmt: skip
    asked = Reference(method="mot", against=("base",), benchmarks=("panel", "sums"))
    assert [one.rival for one in margins_of(document, cell.spec, asked)] == ["base"]
    none = standing_of(cell, finished(cell), STEPS, REFERENCE, 3)
    assert none.kind == "not compared" and none.visit is None
