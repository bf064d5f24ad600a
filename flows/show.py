"""Terminal tables for `mot`. Labels, names and values are printed as text, never as markup, with nothing hidden in them.

Longer than most: one short function a table, which share how a cell is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mot_core.artifacts import Store
from mot_core.errors import StoreError
from mot_core.node_planning import NodePlan
from mot_core.nodes import GIB, Cluster, Node
from mot_core.planning import Plan
from mot_core.removal import Removals
from mot_core.runs import SUMMARY, read_index
from mot_core.text import visible

if TYPE_CHECKING:
    from flows.doctor import Check
    from flows.studies.base import Cell, Setup, Study
    from flows.tune import Sweep
    from mot_core.analysis.compared import Row
    from mot_core.nightly.digest import Estimate
    from mot_core.nightly.order import Standing
    from mot_core.nightly.spec import Nightly


def plain(value: object) -> Text:
    """Text of a spec, a model, a server or a library as a terminal may have it."""
    return Text(visible(value, keep_layout=True))


def plan_tables(plan: Plan, list_steps: bool) -> Iterator[Table]:
    """The stages' costs, and if asked every step with its reason."""
    if list_steps:
        table = _table("steps", "step", "do", "why")
        for planned in plan.steps:
            table.add_row(plain(planned.step.label), planned.action, plain(planned.reason))
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


def study_plan_table(study: Study, setup: Setup, plans: list[tuple[Cell, Plan]]) -> Table:
    """A study's cells: steps to run and to reuse, tokens and time, a shared step in the first cell that has it."""
    phases = f", phase 1 of {len(study.phases)}" if len(study.phases) > 1 else ""
    table = _table(
        f"study {study.name}, size {setup.size}{phases}", "cell", "run", "reuse", "tokens", "FLOPs", "disk", "time"
    )
    total = [0.0] * 6
    for cell, made in plans:
        stages = made.by_stage()
        row = [
            sum(stage[name] for stage in stages)
            for name in ("run", "reuse", "tokens", "flops", "disk_bytes", "seconds")
        ]
        total = [before + value for before, value in zip(total, row, strict=True)]
        table.add_row(cell.name, *_plan_cells(row))
    table.add_section()
    table.add_row("all", *_plan_cells(total))
    return table


def tonight_table(nightly: Nightly, planned: list[tuple[Standing, Estimate | None]]) -> Table:
    """A nightly's cells in tonight's order, with why and what they are planned to cost, alone and up to there."""
    tokens = nightly.budget.max_completion_tokens
    budget = f"{nightly.budget.minutes:g} minutes" + (f", {tokens:,} completion tokens" if tokens else "")
    table = _table(
        f"nightly {nightly.name}, budget {budget}, beside the canary", "cell", "why", "time", "tokens", "time so far"
    )
    so_far = 0.0
    for standing, estimate in planned:
        costs = ["–", "–", "–"]
        if estimate is not None:
            so_far += estimate.seconds
            costs = [_time(estimate.seconds), f"{estimate.tokens:,}", _time(so_far)]
        what = standing.why if estimate is not None else f"{standing.kind}: {standing.why}"
        table.add_row(plain(standing.cell.name), plain(what), *costs)
    return table


def study_node_table(study: Study, setup: Setup, machine: Node | Cluster, plans: list[tuple[Cell, NodePlan]]) -> Table:
    """What each cell of a study adds on another machine; cells run one after the other there, so hours add up."""
    phases = f", phase 1 of {len(study.phases)}" if len(study.phases) > 1 else ""
    columns = ["steps", "GPU memory", "tokens", "FLOPs", "disk", "GPU hours", "hours", "money"]
    table = _table(
        f"study {study.name}, size {setup.size}{phases}, on {machine}; a shared step in the first cell that has it",
        "cell",
        *columns,
    )
    rows = []
    for cell, made in plans:
        stages = made.by_stage()
        timed = made.seconds is not None
        money = [stage["money"] for stage in stages if stage["money"] is not None]
        row = {
            "steps": sum(stage["steps"] for stage in stages), "gpu_bytes": max(stage["gpu_bytes"] for stage in stages),
            "tokens": sum(stage["tokens"] for stage in stages), "flops": sum(stage["flops"] for stage in stages),
            "disk": sum(stage["disk_bytes"] for stage in stages),
            "gpu_seconds": sum(stage["gpu_seconds"] for stage in stages) if timed else None,
            "seconds": made.seconds, "money": sum(money) if money else None,
        }  # fmt: skip
        rows.append(row)
        table.add_row(cell.name, *_node_cells(row))
    table.add_section()
    summed = {
        name: None if all(row[name] is None for row in rows) else sum(row[name] or 0.0 for row in rows)
        for name in rows[0]
    }
    summed["gpu_bytes"] = max(row["gpu_bytes"] for row in rows)
    table.add_row("all", *_node_cells(summed))
    return table


def _node_cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['steps']:.0f}", f"{row['gpu_bytes'] / GIB:.1f} GiB", f"{row['tokens']:,.0f}", f"{row['flops']:.2g}",
        _bytes(int(row["disk"])), _hours(row["gpu_seconds"]), _hours(row["seconds"]), _money(row["money"]),
    ]  # fmt: skip


def _plan_cells(row: list[float]) -> list[str]:
    run, reuse, tokens, flops, disk, seconds = row
    return [f"{run:.0f}", f"{reuse:.0f}", f"{tokens:,.0f}", f"{flops:.2g}", _bytes(int(disk)), _time(seconds)]


def study_table(record: dict[str, Any]) -> Table:
    """A study's table."""
    table = _table(f"{record['study']}, size {record['size']}", *record["columns"])
    for row in record["rows"]:
        table.add_row(*(plain(cell) for cell in row))
    return table


def node_tables(plan: NodePlan, list_steps: bool) -> Iterator[Table | Text]:
    """A node's plan: memory by kind of work, costs by stage, what is known from where, and what was assumed."""
    gpu = plan.node.gpu
    if plan.refusals:
        yield Text("DOES NOT FIT (--force)\n" + "\n".join(plan.refusals), style="bold")
    if list_steps:
        table = _table("steps", "step", "GPUs", "tokens", "FLOPs", "time")
        for one in plan.steps:
            table.add_row(
                plain(one.step.label),
                str(one.devices),
                f"{one.tokens:,.0f}",
                f"{one.flops:.2g}",
                _maybe_time(one.seconds),
            )
        yield table
    table = _table(
        f"memory a GPU, {plan.node} of {gpu.memory_gib:.1f} GiB", "work", "GPUs", "needs", "of", "", "parts, GiB"
    )
    for need in plan.needs.values():
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in need.parts.items() if size >= 0.05 * GIB)
        held = f"; holds {need.requests:.1f} full requests" if need.requests is not None else ""
        table.add_row(
            plain(need.what), str(need.devices), f"{need.total / GIB:.1f} GiB", f"{need.available / GIB:.1f} GiB",
            "fits" if need.fits else "DOES NOT FIT", plain(need.refusal or parts + held),
        )  # fmt: skip
    yield table
    columns = [
        "steps",
        "GPU memory",
        "GPUs a step",
        "tokens",
        "FLOPs",
        "disk",
        "host memory",
        "GPU hours",
        "hours",
        "money",
    ]
    table = _table("by stage, everything run anew; stages overlap in time", "stage", *columns)
    rows = plan.by_stage()
    for row in rows:
        table.add_row(
            row["stage"], str(row["steps"]), f"{row['gpu_bytes'] / GIB:.1f} GiB" if row["gpu_bytes"] else "–", str(row["devices"]),
            f"{row['tokens']:,.0f}", f"{row['flops']:.2g}", _bytes(row["disk_bytes"]), _bytes(row["host_bytes"]),
            _hours(row["gpu_seconds"]), _hours(row["seconds"]), _money(row["money"]),
        )  # fmt: skip
    table.add_section()
    paid = [row["money"] for row in rows if row["money"] is not None]
    known = plan.seconds is not None
    table.add_row(
        "all", str(sum(row["steps"] for row in rows)), f"{max(row['gpu_bytes'] for row in rows) / GIB:.1f} GiB",
        str(max(row["devices"] for row in rows)), f"{sum(row['tokens'] for row in rows):,.0f}",
        f"{sum(row['flops'] for row in rows):.2g}", _bytes(sum(row["disk_bytes"] for row in rows)),
        _bytes(max(row["host_bytes"] for row in rows)),
        _hours(sum(row["gpu_seconds"] for row in rows) if known else None), _hours(plan.seconds),
        _money(sum(paid) if paid else None),
    )  # fmt: skip
    yield table
    assumed = ", ".join(f"{name} {value:g}" for name, value in vars(plan.assume).items())
    yield plain(
        f"{gpu.name}: {gpu.source}. Models and counts:\n" + "".join(f"  {note}\n" for note in plan.notes)
        + f"Assumed, not measured (docs/planning.md): {assumed}. Drawing, grading and building corpora count as no time."
    )  # fmt: skip


def _maybe_time(seconds: float | None) -> str:
    return _time(seconds) if seconds is not None else "unknown"


def _hours(seconds: float | None) -> str:
    return f"{seconds / 3600:,.2f}" if seconds is not None else "unknown"


def _money(money: float | None) -> str:
    return f"{money:,.2f}" if money is not None else "–"


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
            table.add_row(plain(method), *cells)
        yield table
    best = summary["best_single_teacher"]
    table = _table(f"paired differences (best single teacher: {best['dev']} on dev, {best['test_oracle']} on test)",
                   "a − b", "benchmark", "budget", "difference", "95 % interval", "p", "p (Holm)")  # fmt: skip
    for row in summary["comparisons"]:
        if row["a"] == "mot" or row["b"] == best["dev"]:
            low, high = row["ci95"]
            table.add_row(
                plain(f"{row['a']} − {row['b']}"), row["benchmark"], row["budget"], f"{row['delta']:+.3f}",
                f"{low:+.3f} … {high:+.3f}", f"{row['p_value']:.3f}", f"{row['p_value_holm']:.3f}",
            )  # fmt: skip
    yield table
    counts = summary["step_counts"]
    yield plain(
        f"steps: {counts['run']} run, {counts['reused']} reused; {summary['wall_seconds']:.0f} s in all, "
        f"{summary['compute_seconds']:.0f} s computing\nreport: {run_dir / 'report.html'}"
    )


def sweep_table(sweep: Sweep) -> Table:
    """A sweep's dev scores, the chosen rate of each method marked."""
    rates = sorted({rate for scores in sweep.scores.values() for rate in scores})
    table = _table(f"sweep {sweep.identity}: home avg@k on dev", "method", *[f"{rate:g}" for rate in rates])
    for method, scores in sweep.scores.items():
        cells = [f"{scores[rate]:.3f}" + (" *" if rate == sweep.chosen[method] else "") for rate in rates]
        table.add_row(plain(method), *cells)
    return table


def removal_tables(found: Removals, *, dry_run: bool) -> Iterator[Table | Text]:
    """What goes and why, largest first; what stays because of whom; and what that comes to."""
    if found.removals:
        table = _table("would go" if dry_run else "removed", "what", "of", "kind", "bytes", "why")
        for one in sorted(found.removals, key=lambda one: -one.num_bytes):
            table.add_row(one.what, Text(one.label), one.kind, f"{one.num_bytes:,}", Text(one.why))
        yield table
    if found.stays:
        table = _table("stays", "because of", "keeps", "steps", "bytes", "for it alone")
        for stay in found.stays:
            table.add_row(
                Text(stay.claim),
                Text(stay.keeps),
                str(stay.num_steps),
                f"{stay.num_bytes:,}",
                f"{stay.num_bytes_alone:,}",
            )
        yield table
    told = "would be removed" if dry_run else "removed"
    lines = [
        f"{_bytes(found.num_bytes)} {told}" if found.removals else "nothing to remove: some run wants all that is there"
    ]
    if found.users:
        lines.append(f"in use, so that mot gc would refuse now: {'; '.join(found.users)}")
    yield Text("\n".join(lines))


def doctor_table(checks: list[Check]) -> Table:
    table = _table("doctor", "what", "found", "needed for", "state")
    for check in checks:
        table.add_row(check.what, plain(check.found), check.needed_for, "ok" if check.fine else "MISSING")
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
        yield f"== {visible(step['label'])} ({step['identity'][:12]}, {step['state']})"
        if path.is_file():
            yield from (visible(line, keep_layout=True) for line in path.read_text(errors="replace").split("\n")[:-1])
        else:
            yield "(its worker printed nothing, or it ran in one worker with the step listed before it)"


def comparison_tables(
    rows: Sequence[Row], names: Sequence[str], settings: Sequence[tuple[str, tuple[str, ...]]]
) -> Iterator[Table]:
    """Runs side by side: the settings that differ, then each method's scores and differences from the first run."""
    # Here, since they bring pandas, which no other table needs.
    from mot_core.analysis.wording import described, estimated
    from mot_core.report.palette import budget_name, method_name

    if settings:
        table = _table("settings that differ", "setting", *names)
        for name, values in settings:
            table.add_row(plain(name), *(plain(value if len(value) <= 60 else f"{value[:59]}…") for value in values))
        yield table
    table = _table(
        "test, mean over seeds, 95 % over problems; adjusted p by Holm over this table",
        "budget", "benchmarks", "method", *names, *(f"{name} minus {names[0]}" for name in names[1:]),
    )  # fmt: skip
    for row in rows:
        table.add_row(
            budget_name(row.budget), row.role, plain(method_name(row.method)),
            *("–" if value is None else estimated(value) for value in row.values),
            *("the same" if equal else "–" if one is None else described(one)
              for one, equal in zip(row.differences, row.same, strict=True)),
        )  # fmt: skip
    yield table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(plain(column), overflow="fold")
    return table


def _score(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    if entry["ci95"] is None:
        return f"{entry['avg_at_k']:.3f}"
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
