"""The derived tables against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mot_core.evaluation.statistics import bootstrap_ci
from mot_core.report.figures.barrier import barrier_lines
from mot_core.report.figures.corpus import coverage_table, solved_counts
from mot_core.report.figures.merging import drift_totals, layer_order
from mot_core.report.figures.rank import mean_ranks
from mot_core.report.figures.training import _drawn_points, losses_along_path
from mot_core.report.measures import Measures
from mot_core.report.palette import Palette
from mot_core.report.text import clipped, drawable, latex, spreadsheet
from mot_core.report.wording import p_text, percent, points, stars
from mot_core.results import TABLE_COLUMNS, Results
from mot_core.text import visible

from .fixtures import build_results, empty_results


def test_final_accuracy_and_interval_are_those_of_the_problems() -> None:
    results = build_results()
    row = (
        Measures(results).final.query("budget == 'matched_path' and method == 'mot' and benchmark == 'clocks'").iloc[0]
    )
    scores = results.problem_scores.query(
        "budget == 'matched_path' and method == 'mot' and benchmark == 'clocks' and split == 'test'"
    )
    per_problem = (scores["num_correct"] / scores["num_samples"]).groupby(scores["problem_id"]).mean()
    per_seed = (scores["num_correct"] / scores["num_samples"]).groupby(scores["seed"]).mean()
    assert row["mean"] == pytest.approx(per_problem.mean())
    assert row["sd"] == pytest.approx(per_seed.std(ddof=1))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(bootstrap_ci(per_problem))
    assert row["num_seeds"] == 2


def test_change_by_round_starts_from_the_untrained_student() -> None:
    results = build_results()
    changes = Measures(results).home_change_by_round.query("budget == 'matched_path' and method == 'mot'")
    scores = results.scores.query("budget == 'matched_path' and split == 'dev' and role == 'home'")
    by_round = scores[scores["method"] == "mot"].groupby("round")["avg_at_k"].mean()
    base = scores.loc[scores["method"] == "base", "avg_at_k"].mean()
    expected = [by_round[1] - base, *by_round.diff().dropna()]
    assert changes["change"].tolist() == pytest.approx(expected)


def test_curves_follow_the_split_that_was_scored_along_the_path() -> None:
    splits = Measures(build_results()).curves.drop_duplicates("benchmark").set_index("benchmark")["split"]
    assert splits.to_dict() == {"arithmetic": "dev", "clocks": "dev", "letters": "test"}


def _with(name: str, rows: Sequence[tuple[object, ...]]) -> Results:
    return replace(empty_results(), **{name: pd.DataFrame(rows, columns=list(TABLE_COLUMNS[name]))})


def test_coverage_is_sorted_and_counted() -> None:
    rows = [
        ("a", "f", "p1", 2, 0, False), ("a", "f", "p2", 2, 2, True), ("a", "f", "p3", 2, 1, False),
        ("b", "f", "p1", 2, 0, False), ("b", "f", "p2", 2, 1, True), ("b", "f", "p3", 2, 0, False),
    ]  # fmt: skip
    measures = Measures(_with("coverage", rows))
    assert coverage_table(measures).to_dict("list") == {"p2": [1.0, 0.5], "p3": [0.5, 0.0], "p1": [0.0, 0.0]}
    assert solved_counts(measures).loc["f"].to_dict() == {"all": 1, "some": 1, "none": 1}


def test_drift_adds_in_squares() -> None:
    rows = [
        ("matched_path", "mot", 0, 1, "a", "layer 0", "mlp", 3.0, 0.3),
        ("matched_path", "mot", 0, 1, "a", "layer 1", "mlp", 4.0, 0.4),
        ("matched_path", "mot", 0, 1, "a", "layer 1", "norm", 0.0, None),
    ]
    totals = drift_totals(pd.DataFrame(rows, columns=list(TABLE_COLUMNS["merge_drift"])), ["branch"])
    assert totals["drift"].tolist() == [5.0]
    assert totals["relative_drift"].tolist() == pytest.approx([5.0 / 200**0.5])


def test_drift_of_what_did_not_move_is_zero_and_of_an_unknown_start_absent() -> None:
    rows = [
        ("matched_path", "mot", 0, 1, "a", "layer 0", "mlp", 3.0, 0.3),
        ("matched_path", "mot", 0, 1, "a", "layer 0", "norm", 0.0, 0.0),
        ("matched_path", "mot", 0, 1, "a", "outside layers", "embedding", 0.0, 0.0),
        ("matched_path", "mot", 0, 1, "a", "layer 1", "norm", 0.5, None),
    ]
    totals = drift_totals(pd.DataFrame(rows, columns=list(TABLE_COLUMNS["merge_drift"])), ["layer"])
    assert totals["layer"].tolist() == ["layer 0", "outside layers", "layer 1"]
    assert totals["relative_drift"].tolist() == pytest.approx([0.3, 0.0, float("nan")], nan_ok=True)


def test_barriers_and_ranks_are_means_over_seeds() -> None:
    points = [
        ("matched_path", "mot", seed, 1, "start", "a", share, loss, barrier)
        for seed, barrier, losses in ((0, 0.5, (1.0, 1.5, 1.0)), (1, 0.0, (3.0, 1.5, 2.0)))
        for share, loss in zip((0.0, 0.5, 1.0), losses, strict=True)
    ]
    lines = barrier_lines(pd.DataFrame(points, columns=list(TABLE_COLUMNS["merge_barrier"])))
    assert lines["share"].tolist() == [0.0, 0.5, 1.0]
    assert lines["loss"].tolist() == [2.0, 1.5, 1.5] and set(lines["barrier"]) == {0.25}
    ranks = [
        ("matched_path", "mot", 0, 1, "a", "layer 0", "mlp", key, rank, 8) for key, rank in (("up", 2.0), ("down", 4.0))
    ]
    frame = pd.DataFrame(ranks, columns=list(TABLE_COLUMNS["merge_rank"]))
    assert mean_ranks(frame, ["layer", "kind"]).to_numpy().tolist() == [["layer 0", "mlp", 3.0]]


def test_held_out_losses_stand_at_the_steps_that_looked() -> None:
    rows = [
        ("matched_path", "mot", seed, 1, "a", step, 1.0, 2.0 + seed if step == 2 else None, 1.0, 9)
        for seed in (0, 1)
        for step in (1, 2, 3)
    ]
    losses = losses_along_path(Measures(_with("training", rows)))
    assert losses["held_out_loss"].tolist() == pytest.approx([float("nan"), 2.5, float("nan")], nan_ok=True)


def test_a_curve_has_a_gap_where_steps_are_missing_and_means_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.array([1.0, 2.0, 5.0, 6.0])
    assert _drawn_points(x, 10 * x)[1].tolist() == pytest.approx([10, 20, float("nan"), 50, 60], nan_ok=True)
    monkeypatch.setattr("mot_core.report.figures.training.MAX_POINTS", 2)
    assert _drawn_points(x, 10 * x)[1].tolist() == pytest.approx([15, float("nan"), 55], nan_ok=True)


def test_layers_stand_in_the_order_of_the_network() -> None:
    assert layer_order(["layer 10", "outside layers", "layer 2", "embed", "layer 2"]) == [
        "embed", "layer 2", "layer 10", "outside layers",
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [[1, 2, 1, 2], [1, 2, 3, 4]])
def test_steps_are_counted_through_the_rounds(steps: list[int]) -> None:
    rows = [
        ("matched_path", "mot", 0, 1 + i // 2, "a", step, 1.0 - i / 10, None, 1.0, 9) for i, step in enumerate(steps)
    ]
    losses = losses_along_path(Measures(_with("training", rows)))
    assert losses["path_step"].tolist() == [1, 2, 3, 4]
    assert losses["loss"].tolist() == pytest.approx([1.0, 0.9, 0.8, 0.7])


def test_palette_is_fixed_and_ordered() -> None:
    palette = Palette(["mot", "mine", "std/b", "base", "std/a"], ["a", "b"])
    assert palette.methods == ["base", "std/a", "std/b", "mine", "mot"]
    assert palette.teacher("a") == palette.method("std/a")
    assert palette.teacher("merged") == palette.method("mot")
    assert len({palette.method(method).colour for method in palette.methods}) == 5
    assert Palette(["mot"], []).method("mot") == palette.method("mot")


def test_text_is_made_visible() -> None:
    assert visible("a\x00\n\x7f\u200b\ud800é") == "a␀␊␡⟨U+200B⟩⟨U+D800⟩é"
    assert visible("a\n\tb", keep_layout=True) == "a\n\tb"
    assert clipped("abcdef", 4) == ("abcd", "first 4 of 6 characters")
    assert clipped("abcd", 4) == ("abcd", "")
    assert drawable("a字b", {ord("a"), ord("b")}) == "a\\u5b57b"
    assert drawable("x" * 40, {ord("x")}, 10) == "x" * 9 + "…"
    assert latex("50% a_b\\") == r"50\% a\_b\textbackslash{}"


def test_numbers_are_worded() -> None:
    assert (percent(0.4123), percent(None), percent(float("nan"))) == ("41.2", "—", "—")
    assert (points(0.0251), points(-0.031), points(-0.0001)) == ("+2.5", "−3.1", "0.0")
    assert (p_text(0.00009), p_text(0.0714), p_text(0.5)) == ("0.0001", "0.071", "0.50")
    assert (stars(0.2), stars(0.04), stars(0.004), stars(0.0004), stars(None)) == ("", "*", "**", "***", "")


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@sum", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert spreadsheet(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-5", "+1e3", "12 = 5 + 7", "", 3, None, -0.5])
def test_other_cells_stay(value: object) -> None:
    assert spreadsheet(value) == value
