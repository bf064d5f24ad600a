"""A digest as people read it: the same parts as Markdown (a file, Prefect's artifact) and as a page.

Invariant: names, overrides and messages are untrusted: Markdown has them escaped, the page's template escapes them, and the
page loads nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.analysis.wording import counted
from mot_core.files import write_atomically
from mot_core.nightly.digest import STUCK, new_cells, open_cells
from mot_core.nightly.nights import DIGEST
from mot_core.report.html import template
from mot_core.report.text import markdown_text
from mot_core.report.wording import p_text, percent, points
from mot_core.text import visible


@dataclass(frozen=True)
class Part:
    """One section: sentences, and a table if there are rows."""

    title: str
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def write_digest(directory: Path, digest: dict[str, Any]) -> None:
    """Write digest.md and digest.html, then digest.json, which ends the night."""
    write_atomically(directory / "digest.md", markdown(digest))
    page = template("nightly.html.j2").render(
        nightly=digest["nightly"], night=digest["night"], began=_began(digest), lead=visible(headline(digest)),
        parts=[_shown(part) for part in parts_of(digest)],
    )  # fmt: skip
    write_atomically(directory / "digest.html", page)
    write_atomically(directory / DIGEST, json.dumps(digest, indent=1) + "\n")


def markdown(digest: dict[str, Any]) -> str:
    """The digest as Markdown."""
    name, line = markdown_text(digest["nightly"]), markdown_text(headline(digest))
    blocks = [f"**{name}, night {digest['night']}**, begun {_began(digest)}: {line}"]
    for part in parts_of(digest):
        blocks += [f"## {part.title}", *map(markdown_text, part.lines)]
        if part.rows:
            rows = [
                part.columns,
                ["---"] * len(part.columns),
                *([markdown_text(cell) for cell in row] for row in part.rows),
            ]
            blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(blocks) + "\n"


def headline(digest: dict[str, Any]) -> str:
    """The night in one line."""
    num_failed = sum(visit["state"] == "failed" for visit in digest["visits"])
    num_stuck = sum(cell["kind"] in STUCK for cell in digest["cells"])
    facts = [
        f"canary {_canary_word(digest['canary'])}", f"{counted(len(new_cells(digest)), 'cell')} with new results",
        counted(len(digest["regressions"]), "regression"), f"{len(open_cells(digest))} undecided",
        *([f"{counted(num_failed, 'cell')} failed"] if num_failed else []),
        *([f"{counted(num_stuck, 'cell')} that cannot go on"] if num_stuck else []), f"{len(digest['remaining'])} left to do", _spent(digest),
    ]  # fmt: skip
    return f"{_ended(digest)}; {', '.join(facts)}"


def parts_of(digest: dict[str, Any]) -> Iterator[Part]:
    """The digest's sections in order; those with nothing to say say so."""
    yield _canary_part(digest["canary"])
    new = new_cells(digest)
    yield Part(
        "New since the last digest", () if new else ("Nothing.",), ("cell", "why", "budget", "method", "benchmark", "score, %", "reference − it, points"),
        [row for cell in new for row in _score_rows(cell)],
    )  # fmt: skip
    yield Part(
        "Regressions", [_regression_line(digest)],
        ("cell", "why", "method", "benchmark", "before → after, %", "points", "adjusted p"), [_moved_row(row) for row in digest["regressions"]],
    )  # fmt: skip
    undecided = open_cells(digest)
    yield Part(
        "Undecided", () if undecided else ("No finished cell has an interval that holds 0.",), ("cell", "training seeds", "why"),
        [(cell["name"], ", ".join(map(str, cell["seeds"])), cell["why"]) for cell in undecided],
    )  # fmt: skip
    stuck = [cell for cell in digest["cells"] if cell["kind"] in STUCK]
    if stuck:
        rows = [(cell["name"], cell["why"]) for cell in stuck]
        yield Part("Cells that cannot go on", (), ("cell", "why"), rows)
    yield Part(
        "What this night ran", () if digest["visits"] else ("No cell.",), ("cell", "why", "came out", "minutes (planned)", "completion tokens (planned)"),
        [_visit_row(visit) for visit in digest["visits"]],
    )  # fmt: skip
    yield _remaining_part(digest)


def _canary_part(canary: dict[str, Any]) -> Part:
    took = f" It took {canary['seconds']:.0f} s." if "seconds" in canary else ""
    lines = [f"{_canary_word(canary).capitalize()}: {canary['why']}.{took}"]
    if canary["verdict"] != "changed":
        return Part("Canary", lines)
    since = canary["between"] or ["nothing that is recorded: not the commit, no package's version, no system"]
    lines.append(f"Since night {canary['against']} changed: {'; '.join(since)}.")
    if canary["weights"]:
        lines.append(f"Other weights: {', '.join(canary['weights'])}.")
    again = "the same: the change repeats" if canary["repeats"] else "other files again: its results do not repeat here"
    lines.append(f"Computed a second time, it gave {again}.")
    largest = canary["largest"]
    if largest is None:
        lines.append("No score moved.")
    else:
        lines.append(
            f"{counted(canary['num_moved'], 'score')} moved, {len(canary['beyond'])} of them beyond the 95 % interval; most "
            f"{largest['method']} on {largest['benchmark']}: {_difference(largest)} points."
        )
    return Part("Canary", lines, ("step", "what changed"), [(one["label"], one["what"]) for one in canary["changed"]])


def _canary_word(canary: dict[str, Any]) -> str:
    return {
        "first": "computed, with nothing to compare", "equal": "equal", "changed": "CHANGED", "failed": "FAILED",
        "not computed": "not computed",
    }[canary["verdict"]]  # fmt: skip


def _score_rows(cell: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    margins = {(row["budget"], row["rival"], row["benchmark"]): row for row in cell["margins"]}
    for row in cell["scores"]:
        margin = margins.get((row["budget"], row["method"], row["benchmark"]))
        interval = f" [{percent(row['ci95'][0])}, {percent(row['ci95'][1])}]" if row["ci95"] else ""
        yield (
            cell["name"], f"{cell['cause']}, {cell['kind']}", row["budget"], row["method"], row["benchmark"],
            f"{percent(row['score'])}{interval}", f"{margin['reference']} {_difference(margin)}" if margin else "",
        )  # fmt: skip


def _regression_line(digest: dict[str, Any]) -> str:
    rows = [row for cell in digest["cells"] for row in cell["moved"]]
    if not rows:
        return "Nothing to compare: no cell has new results beside older ones that differ."
    higher = sum(row["low"] > 0 for row in rows)
    return (
        f"Of {counted(len(rows), 'score')} that moved, {len(digest['regressions'])} fell and {higher} rose by more than the "
        "95 % interval, each method against itself, paired by problem. p is adjusted over a cell's scores (Holm)."
    )


def _moved_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["cell"], row["cause"], row["method"], row["benchmark"], f"{percent(row['before'])} → {percent(row['after'])}",
        _difference(row), p_text(row["p_value_holm"]),
    )  # fmt: skip


def _visit_row(visit: dict[str, Any]) -> tuple[str, ...]:
    outcome = visit["state"] if visit["state"] == "finished" else f"{visit['state']}: {visit['message']}"
    return (
        visit["cell"], visit["why"], outcome, f"{visit['seconds'] / 60:.1f} ({visit['estimated_seconds'] / 60:.1f})",
        f"{visit['tokens']:,} ({visit['estimated_tokens']:,})",
    )  # fmt: skip


def _remaining_part(digest: dict[str, Any]) -> Part:
    remaining = digest["remaining"]
    lines = [] if remaining else ["Nothing."]
    if any(not one["fits"] for one in remaining):
        lines.append(
            "What did not fit exceeds what the night had left; where a whole night would not hold it, raise its budget."
        )
    return Part(
        "What remains", lines, ("cell", "why", "minutes, planned", "completion tokens, planned", "fitted"),
        [
            (one["cell"], one["why"], f"{one['seconds'] / 60:.1f}", f"{one['tokens']:,}", "yes" if one["fits"] else "no")
            for one in remaining
        ],
    )  # fmt: skip


def _difference(row: dict[str, Any]) -> str:
    return f"{points(row['delta'])} [{points(row['low'])}, {points(row['high'])}]"


def _ended(digest: dict[str, Any]) -> str:
    """How the night ended."""
    if digest["state"] == "finished":
        return "finished"
    return f"{digest['state']} for: {digest['reason']}; goes on next night"


def _spent(digest: dict[str, Any]) -> str:
    spent, budget = digest["spent"], digest["budget"]
    tokens = f" of {budget['max_completion_tokens']:,}" if budget["max_completion_tokens"] else ""
    return (
        f"{spent['minutes']:.1f} of {budget['minutes']:g} minutes and {spent['completion_tokens']:,}{tokens} completion tokens "
        "spent"
    )


def _began(digest: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(digest["started"]))


def _shown(part: Part) -> Part:
    return Part(part.title, [visible(line) for line in part.lines], part.columns, [[visible(cell) for cell in row] for row in part.rows])  # fmt: skip
