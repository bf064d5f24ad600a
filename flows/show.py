"""Terminal tables for `mot`. Labels and names are printed as text, never as markup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mot_core.artifacts import Store
from mot_core.errors import StoreError
from mot_core.planning import Plan
from mot_core.runs import SUMMARY, read_index

if TYPE_CHECKING:
    from flows.doctor import Check
    from flows.tune import Sweep


def plan_tables(plan: Plan, list_steps: bool) -> Iterator[Table]:
    """The stages' costs, and if asked every step with its reason."""
    if list_steps:
        table = _table("steps", "step", "do", "why")
        for planned in plan.steps:
            table.add_row(Text(planned.step.label), planned.action, Text(planned.reason))
        yield table
    table = _table(
        f"plan, {plan.workers} workers", "stage", *["run", "reuse", "tokens", "FLOPs", "peak memory", "disk", "time"]
    )
    rows = plan.by_stage()
    for row in rows:
        table.add_row(
            row["stage"], str(row["run"]), str(row["reuse"]), f"{row['tokens']:,}", f"{row['flops']:.2g}",
            _bytes(row["peak_memory_bytes"]), _bytes(row["disk_bytes"]), _time(row["seconds"]),
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "all", str(sum(row["run"] for row in rows)), str(sum(row["reuse"] for row in rows)),
        f"{sum(row['tokens'] for row in rows):,}", f"{sum(row['flops'] for row in rows):.2g}",
        _bytes(max(row["peak_memory_bytes"] for row in rows)), _bytes(sum(row["disk_bytes"] for row in rows)),
        _time(sum(row["seconds"] for row in rows)),
    )  # fmt: skip
    yield table


def run_tables(run_dir: Path) -> Iterator[Table | Text]:
    """Scores by method and benchmark, comparisons with the best single teacher, counts and places."""
    path = run_dir / SUMMARY
    if not path.is_file():
        raise StoreError(f"run {run_dir.name} has no {SUMMARY}: it has not finished; run its spec again, it goes on")
    summary = json.loads(path.read_text())
    for budget, methods in summary["budgets"].items():
        names = list(dict.fromkeys(name for method in methods.values() for name in method["benchmarks"]))
        table = _table(f"{budget}: avg@k on test, 95 % interval over problems", "method", *names)
        for method, entry in methods.items():
            cells = [_score(entry["benchmarks"].get(name)) for name in names]
            table.add_row(Text(method), *cells)
        yield table
    best = summary["best_single_teacher"]
    table = _table(f"paired differences (best single teacher: {best['dev']} on dev, {best['test_oracle']} on test)",
                   "a − b", "benchmark", "budget", "difference", "95 % interval", "p", "p (Holm)")  # fmt: skip
    for row in summary["comparisons"]:
        if row["a"] == "mot" or row["b"] == best["dev"]:
            low, high = row["ci95"]
            table.add_row(
                Text(f"{row['a']} − {row['b']}"), row["benchmark"], row["budget"], f"{row['delta']:+.3f}",
                f"{low:+.3f} … {high:+.3f}", f"{row['p_value']:.3f}", f"{row['p_value_holm']:.3f}",
            )  # fmt: skip
    yield table
    counts = summary["step_counts"]
    yield Text(
        f"steps: {counts['run']} run, {counts['reused']} reused; {summary['wall_seconds']:.0f} s in all, "
        f"{summary['compute_seconds']:.0f} s computing\nreport: {run_dir / 'report.html'}"
    )


def sweep_table(sweep: Sweep) -> Table:
    """A sweep's dev scores, the chosen rate of each method marked."""
    rates = sorted({rate for scores in sweep.scores.values() for rate in scores})
    table = _table(f"sweep {sweep.identity}: home avg@k on dev", "method", *[f"{rate:g}" for rate in rates])
    for method, scores in sweep.scores.items():
        cells = [f"{scores[rate]:.3f}" + (" *" if rate == sweep.chosen[method] else "") for rate in rates]
        table.add_row(Text(method), *cells)
    return table


def doctor_table(checks: list[Check]) -> Table:
    table = _table("doctor", "what", "found", "needed for", "state")
    for check in checks:
        table.add_row(check.what, Text(check.found), check.needed_for, "ok" if check.fine else "MISSING")
    return table


def step_logs(store: Store, run_dir: Path, wanted: str) -> Iterator[str]:
    """The log lines of every step of a run whose identity or label begins as asked.

    Raises:
        StoreError: no step of the run fits, with some labels that would.
    """
    steps = read_index(run_dir)["steps"]
    fitting = [s for s in steps if s["identity"].startswith(wanted) or s["label"].startswith(wanted)]
    if not fitting:
        labels = ", ".join(repr(step["label"]) for step in steps[:5])
        raise StoreError(f"run {run_dir.name} has no step {wanted!r}; labels begin like {labels} …")
    for step in fitting:
        path = store.log_path(step["identity"])
        yield f"== {step['label']} ({step['identity'][:12]}, {step['state']})"
        if path.is_file():
            yield from path.read_text(errors="replace").splitlines()
        else:
            yield "(its worker printed nothing, or it ran in one worker with the step listed before it)"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def _score(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    low, high = entry["ci95"]
    return f"{entry['avg_at_k']:.3f} [{low:.3f}, {high:.3f}]"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
