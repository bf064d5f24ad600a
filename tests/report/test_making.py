"""The section on how the corpora came about: what was dropped, by whom and where."""

from __future__ import annotations

from dataclasses import replace

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


def test_rejections_stand_by_teacher_and_filter_and_problems_come_last() -> None:
    made = _tables(
        [("", "limit", 4), ("bob", "correct", 7), ("bob", "max_rationale_tokens", 2), ("ann", "correct", 1234)]
    )["rejections-table"]
    assert [header.text for header in made.headers[0]] == ["teacher", "limit", "correct", "max rationale tokens"]
    assert [[cell.text for cell in row] for row in made.rows] == [
        ["bob", "0", "7", "2"], ["ann", "0", "1,234", "0"], ["(problems)", "4", "0", "0"],
    ]  # fmt: skip


def test_nothing_rejected_needs_no_table() -> None:
    assert "rejections-table" not in _tables([])
