"""What `mot regrade` prints: old and new scores, and how many verdicts changed which way. Names are printed as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from flows.show import plain
from mot_core.regrading import Regraded, mean_rows, regraded_paths


def regraded_tables(found: Regraded, run_dir: Path) -> Iterator[Table | Text]:
    """Final students over seeds, teachers, what was left out, and where the rest is."""
    several = len({row["budget"] for row in found.students}) > 1
    table = _table(
        f"{found.run_id} by {found.grader}: avg@k, mean over seeds", "benchmark", "method", "old", "new", "to right",
        "from right", "changed",
    )  # fmt: skip
    for row in mean_rows(found.students):
        method = f"{row['method']} ({row['budget']})" if several else row["method"]
        table.add_row(
            plain(f"{row['benchmark']} ({row['split']})"), plain(method), f"{row['old']:.3f}", f"{row['new']:.3f}",
            *[str(row[name]) for name in ("num_to_right", "num_from_right", "num_changed")],
        )  # fmt: skip
    yield table
    table = _table("teachers: share of right rationales", "teacher", "old", "new", "to right", "from right", "changed")
    for row in found.teachers:
        counts = [str(row[name]) for name in ("num_to_right", "num_from_right", "num_changed")]
        table.add_row(plain(row["teacher"]), f"{row['old']:.3f}", f"{row['new']:.3f}", *counts)
    yield table
    lines = [f"left out: {row['what']}: {row['reason']}" for row in found.left_out]
    document, changed = regraded_paths(run_dir, found.grader)
    yield plain(
        "\n".join([*lines, f"{len(found.changed)} of the verdicts changed: {changed}", f"all of it: {document}"])
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=plain(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
