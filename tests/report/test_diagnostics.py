"""Diagnostics in the report: what was measured is shown, what was not is not mentioned, and a shared branch counts once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from mot_core.report.blocks import FigureBlock, Section, TableBlock
from mot_core.report.figures.drawing import RenderedFigure
from mot_core.report.measures import Measures
from mot_core.report.sections.merging import merge_section
from mot_core.report.sections.training import training_section
from mot_core.results import TABLE_COLUMNS, Results

from .fixtures import Shape, build_results, empty_results, without

SMALL = Shape(
    teachers=("ann", "bob", "eve"),
    seeds=(0,),
    budgets=("matched_path",),
    rounds=2,
    num_dev_problems=4,
    num_test_problems=4,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for section in ("training", "merging"):
        monkeypatch.setattr(
            f"mot_core.report.sections.{section}.rendered", lambda name, figure: RenderedFigure(name, b"", b"")
        )
    monkeypatch.setattr("mot_core.report.measures._POINT_RESAMPLES", 50)


def tables_of(section: Section) -> dict[str, TableBlock]:
    return {block.element_id: block for block in section.blocks if isinstance(block, TableBlock)}


def figures_of(section: Section) -> dict[str, str]:
    return {block.figure.name: block.caption for block in section.blocks if isinstance(block, FigureBlock)}


def texts(table: TableBlock) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def branch(method: str, name: str, identity: str, **given: Any) -> dict[str, Any]:
    facts = {
        "budget": "matched_path", "method": method, "seed": 0, "round": 1, "branch": name, "identity": identity,
        "num_examples": 10, "num_dropped_long": 0, "num_cut_long": 0, "num_planned_steps": 8, "num_steps": 8,
        "num_parameters": 400, "num_trained_parameters": 400, "num_carried_moments": 0, "input_tokens": 1000,
        "tokens_per_second": 50.0,
    }  # fmt: skip
    return {**facts, **given}


def branches(*rows: dict[str, Any]) -> dict[str, TableBlock]:
    frame = pd.DataFrame(rows, columns=list(TABLE_COLUMNS["branches"]))
    return tables_of(training_section(Measures(replace(empty_results(), branches=frame))))


def test_a_branch_that_methods_share_counts_once() -> None:
    made = branches(
        branch("std/ann", "ann", "1"),
        branch("merge_once", "ann", "1"),
        branch("mot", "ann", "2"),
        branch("mot", "bob", "3", num_examples=12, tokens_per_second=70.0),
    )
    assert set(made) == {"branches-table"}
    table = made["branches-table"]
    assert [header.text for header in table.headers[0]] == [
        "method", "trainings", "examples", "steps", "input tokens", "tokens/s", "trained parameters",
    ]  # fmt: skip
    assert texts(table) == [
        ["STD ann and Merge once", "1", "10", "8", "1,000", "50", "400"],
        ["MoT", "2", "10–12", "8", "2,000", "60", "400"],
    ]


def test_adapters_moments_and_memory_have_columns_where_there_are_any() -> None:
    given = {"num_trained_parameters": 40, "num_carried_moments": 1, "peak_memory_bytes": 3 * 2**30}
    table = branches(branch("mot", "ann", "1", **given), branch("mot", "bob", "2"))["branches-table"]
    assert [header.text for header in table.headers[0]][-3:] == [
        "peak memory (GiB)", "trained parameters", "began with moments",
    ]  # fmt: skip
    assert [cell.text for cell in table.rows[0]][-3:] == ["3.00", "400", "1"]
    (row,) = branches(branch("mot", "ann", "1", num_trained_parameters=40))["branches-table"].rows
    assert (row[-1].text, row[-1].sub) == ("40", "10.00% of 400")


def test_branches_that_ended_early_or_lost_examples_are_told() -> None:
    made = branches(
        branch("mot", "ann", "1", num_steps=4, best_step=2, num_held_out=3),
        branch("mot", "ann", "2", num_steps=6, best_step=4, num_held_out=3, round=2),
        branch("mot", "bob", "3", num_dropped_long=5, num_examples=5),
        branch("mot", "eve", "4"),
    )
    assert texts(made["branch-losses-table"]) == [
        ["MoT", "ann", "2", "2", "4–6", "8", "2–4", "10", "3", "0", "0"],
        ["MoT", "bob", "1", "0", "8", "8", "—", "5", "—", "5", "0"],
    ]


def test_branches_of_older_stores_have_dashes() -> None:
    old = branch("mot", "ann", "1")
    for name in ("num_dropped_long", "num_cut_long", "num_trained_parameters", "tokens_per_second"):
        del old[name]
    made = branches(old)
    assert set(made) == {"branches-table"}
    assert texts(made["branches-table"]) == [["MoT", "1", "10", "8", "1,000", "—"]]


def test_held_out_losses_are_explained_only_where_there_are_any() -> None:
    results = build_results(SMALL)
    caption = "early stop"
    assert caption in figures_of(training_section(Measures(results)))["training_loss_matched_path"]
    plain = replace(results, training=results.training.assign(held_out_loss=None))
    assert caption not in figures_of(training_section(Measures(plain)))["training_loss_matched_path"]


def test_barriers_ranks_and_cosines_are_shown_by_round() -> None:
    section = merge_section(Measures(build_results(SMALL)))
    assert list(figures_of(section)) == [
        f"merge_{name}_matched_path" for name in ("drift", "agreement", "rank", "barrier")
    ]
    made = tables_of(section)
    assert texts(made["cosine-matched_path"]) == [
        ["MoT", a, b, "+0.280", "+0.260"] for a, b in (("ann", "bob"), ("ann", "eve"), ("bob", "eve"))
    ]
    barriers = texts(made["barrier-matched_path"])
    assert barriers[0] == ["MoT", "start", "ann", "0.0000", "0.0000"]
    assert barriers[3] == ["MoT", "ann", "merged", "0.1200", "0.0600"]
    assert barriers[-1] == ["MoT", "start", "merged", "0.0000", "0.0000"]


@pytest.mark.parametrize(
    ("absent", "figures", "tables"),
    [
        (("merge_barrier",), {"drift", "agreement", "rank"}, {"cosine-matched_path"}),
        (("merge_rank", "merge_cosine"), {"drift", "agreement", "barrier"}, {"barrier-matched_path"}),
        (("merge_barrier", "merge_rank", "merge_cosine"), {"drift", "agreement"}, set()),
    ],
)
def test_what_was_not_measured_takes_no_place(absent: tuple[str, ...], figures: set[str], tables: set[str]) -> None:
    section = merge_section(Measures(without(build_results(SMALL), *absent)))
    assert set(figures_of(section)) == {f"merge_{name}_matched_path" for name in figures}
    assert set(tables_of(section)) == tables


def test_one_pair_of_branches_needs_no_table_of_pairs() -> None:
    results: Results = build_results(replace(SMALL, teachers=("ann", "bob")))
    assert "cosine-matched_path" not in tables_of(merge_section(Measures(results)))
