"""The section on how the corpora came about: what was dropped, by whom and where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from mot_core.report.blocks import TableBlock
from mot_core.report.measures import Measures
from mot_core.report.sections.making import coverage_section
from mot_core.results import TABLE_COLUMNS

from .fixtures import empty_results


def _tables(rejections: list[tuple[str, str, int]]) -> dict[str, TableBlock]:
    frame = pd.DataFrame(rejections, columns=list(TABLE_COLUMNS["rejections"]))
    section = coverage_section(Measures(replace(empty_results(), rejections=frame)))
    return {block.element_id: block for block in section.blocks if isinstance(block, TableBlock)}


def test_rejections_stand_by_teacher_and_filter_in_order_and_problems_come_last() -> None:
    made = _tables(
        [("", "limit", 4), ("bob", "correct", 7), ("bob", "max_rationale_tokens", 2), ("ann", "correct", 1234)]
    )["rejections-table"]
    assert [header.text for header in made.headers[0]] == ["teacher", "correct", "max rationale tokens", "limit"]
    assert [[cell.text for cell in row] for row in made.rows] == [
        ["bob", "7", "2", "0"], ["ann", "1,234", "0", "0"], ["(problems)", "0", "0", "4"],
    ]  # fmt: skip


def test_nothing_rejected_needs_no_table() -> None:
    assert "rejections-table" not in _tables([])


def test_teachers_show_cost_and_judge_only_where_there_is_one() -> None:
    def table(rows: list[tuple[Any, ...]]) -> TableBlock:
        frame = pd.DataFrame(rows, columns=list(TABLE_COLUMNS["teachers"]))
        section = coverage_section(Measures(replace(empty_results(), teachers=frame)))
        return {block.element_id: block for block in section.blocks if isinstance(block, TableBlock)}["teachers-table"]

    free = ("ann", 240, 240, 3, 0, 9000, 20_000, None, 180, 40, 10, 10, 0, None)
    paid = ("bob", 240, 0, 0, 12, 9000, 20_000, 1234.5, 180, 40, 10, 10, 0, 0.125)
    plain = table([free])
    assert [header.text for header in plain.headers[0]] == [
        "teacher", "requests", "failed", "absent", "prompt tokens", "completion tokens",
    ]  # fmt: skip
    both = table([free, paid])
    assert [header.text for header in both.headers[0]][-2:] == ["cost", "judge disagrees"]
    assert [[cell.text for cell in row][-2:] for row in both.rows] == [["–", "–"], ["1,234.50", "12.5%"]]
