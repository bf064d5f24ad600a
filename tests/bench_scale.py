"""How the cost of an experiment grows, one factor at a time: `python -m tests.bench_scale`, or `make bench-scale`. Not a test.

    factor    teachers, rounds, optimizer steps a round, problems, samples a problem, samples a test problem (k)
    runs      each an experiment of its own into an empty store, by a `mot` process of its own with two workers
    cost      seconds of CPU by stage, from what workers log of each step; of the whole tree of processes; wall seconds;
              steps, Prefect's task runs, MLflow's runs and metrics, bytes of the store
    slope     least squares over the factor's runs, with the constant that is left at zero

Invariant: all but the factor is as in `BASE`, whose run every factor shares. Seconds of CPU are what a busy machine disturbs
least; the load that each run met stands below its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.run import outline_of
from mot_core.artifacts import Manifest, Store
from mot_core.planning import STAGES
from mot_core.planning import plan as make_plan
from mot_core.prepare import world_of
from mot_core.spec import Experiment
from mot_core.spec_files import load_specs
from tests.bench import isolated_environment, machine_facts, mot, newest_summary

WORKERS = 2
TEACHERS: tuple[dict[str, Any], ...] = (
    {"name": "running-total", "model": "lab:running-total"},
    {"name": "tens-and-ones", "model": "lab:tens-and-ones"},
    {"name": "gains-and-losses", "model": "lab:gains-and-losses"},
    # The laboratory has three teachers of sums; asked more coolly, one of them is another teacher to the program.
    {"name": "cool-total", "model": "lab:running-total", "sampling": {"temperature": 0.3, "max_completion_tokens": 96}},
)
FACTORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "teachers": ("teacher", (1, 2, 3, 4)),
    "rounds": ("round", (1, 2, 4, 8)),
    "steps": ("optimizer step a round", (3, 6, 12)),
    "problems": ("problem", (48, 96, 192, 384)),
    "samples": ("sample a problem", (1, 2, 4)),
    "k": ("sample a test problem", (1, 2, 4, 8)),
}
"""What each factor counts, and the values that it takes."""
BASE = {"teachers": 2, "rounds": 2, "steps": 6, "problems": 96, "samples": 1, "k": 2}
Point = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Run:
    """What one experiment cost, and what `mot plan` had said of it."""

    cpu_by_stage: dict[str, float]
    cpu: float
    """Of the whole tree of processes, in seconds."""
    wall: float
    steps: int
    task_runs: int
    tracked_runs: int
    metrics: int
    bytes: int
    weights: int
    tokens: dict[str, int]
    load: float
    """Of the machine in the last minute before the run's end."""
    planned_steps: int
    planned_tokens: dict[str, int]
    planned_flops: float
    measured_flops: float

    @property
    def rest(self) -> float:
        """Seconds of CPU outside steps: start-up, Prefect, comparison, report, tracking."""
        return self.cpu - sum(self.cpu_by_stage.values())


MEASURES: dict[str, Callable[[Run], float]] = {
    "generation, CPU s": lambda run: run.cpu_by_stage["generation"],
    "verification": lambda run: run.cpu_by_stage["verification"],
    "corpora": lambda run: run.cpu_by_stage["corpora"],
    "training": lambda run: run.cpu_by_stage["training"],
    "merging": lambda run: run.cpu_by_stage["merging"],
    "evaluation": lambda run: run.cpu_by_stage["evaluation"],
    "outside steps": lambda run: run.rest,
    "all CPU s": lambda run: run.cpu,
    "wall s": lambda run: run.wall,
    "steps": lambda run: run.steps,
    "task runs": lambda run: run.task_runs,
    "MLflow runs": lambda run: run.tracked_runs,
    "metrics": lambda run: run.metrics,
    "students, MB": lambda run: run.weights / 1e6,
    "store, MB": lambda run: run.bytes / 1e6,
    "load met": lambda run: run.load,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_scale", description="Measure how cost grows.")
    parser.add_argument("--factor", action="append", choices=FACTORS, help="these only; may be given again")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here as well")
    options = parser.parse_args()
    factors, began, before = options.factor or list(FACTORS), time.monotonic(), os.getloadavg()
    runs: dict[Point, Run] = {}
    with tempfile.TemporaryDirectory(prefix="mot-scale-") as directory:
        for number, point in enumerate(points(factors)):
            runs[point] = measured(point, Path(directory) / str(number))
            print(f"{dict(point)}: {runs[point].cpu:.1f} s of CPU, {runs[point].wall:.0f} s", flush=True)
    lines = [line for factor in factors for line in factor_table(factor, runs)]
    lines += [*plan_table(runs), "", conditions(len(runs), began, before)]
    print("\n".join(lines))
    if options.markdown is not None:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


def points(factors: Sequence[str]) -> Iterator[Point]:
    """`BASE`, then each factor's other values."""
    yield at({})
    for factor in factors:
        yield from (at({factor: value}) for value in FACTORS[factor][1] if value != BASE[factor])


def at(changes: dict[str, int]) -> Point:
    return tuple((BASE | changes).items())


def document_of(point: Point) -> dict[str, Any]:
    """The experiment at a point: the laboratory's smallest student, MoT alone, one seed, every round asked on dev."""
    value = dict(point)
    sums = {"families": ["sums"], "seed": 1}
    return {
        "name": "scale",
        "student": {"name": "student-tiny", "model": "lab:student-tiny"},
        "teachers": list(TEACHERS[: value["teachers"]]),
        "problems": {**sums, "num_problems": value["problems"]},
        "generation": {"seed": 1, "num_samples": value["samples"], "batch_size": 64},
        "corpus": {"num_rationales": 24},
        "training": {"batch_size": 16},
        "rounds": value["rounds"],
        "steps_per_round": value["steps"],
        "methods": [{"name": "mot"}],
        "training_seeds": [1],
        "evaluation": {
            "benchmarks": [{"name": "sums", **sums, "num_problems": 48, "k": value["k"]}],
            "path": {"rounds": "all", "num_problems": 48, "k": 1},
            "batch_size": 64,
            "ci_resamples": 200,
        },
    }


def measured(point: Point, directory: Path) -> Run:
    """Run the experiment into an empty store, and count what is there and what it took."""
    directory.mkdir()
    file = directory / "scale.yaml"
    file.write_text(json.dumps(document_of(point)))
    (spec,) = load_specs(str(file), None)
    store = Store(directory / "store")
    environment = isolated_environment(directory)
    spent = tree_seconds()
    wall, _ = mot(["run", str(file), "--store", str(store.root), "--workers", str(WORKERS)], environment)
    spent = tree_seconds() - spent
    manifests = list(store.manifests())
    assert newest_summary(store.root)["step_counts"] == {"run": len(manifests), "reused": 0}
    return Run(
        cpu_by_stage=cpu_by_stage(spec, store, manifests), cpu=spent, wall=wall, load=os.getloadavg()[0],
        steps=len(manifests),
        task_runs=rows(directory / "prefect" / "prefect.db", "task_run"),
        tracked_runs=rows(store.root / "mlflow.db", "runs"), metrics=rows(store.root / "mlflow.db", "metrics"),
        bytes=sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file()),
        weights=sum(facts["size"] for one in manifests for name, facts in one.files.items() if name.endswith(".safetensors")),
        tokens={kind: sum(tokens_of(one) for one in manifests if one.kind == kind) for kind in SAMPLED},
        **planned(spec, manifests),
    )  # fmt: skip


SAMPLED = ("completions", "branch", "evaluation")


def tokens_of(manifest: Manifest) -> int:
    """Tokens in the plan's sense: written ones of samples, all of what a branch was trained on."""
    if manifest.kind == "branch":
        return int(manifest.counts["input_tokens"])
    return int(manifest.counts.get("num_tokens", 0))


def planned(spec: Experiment, manifests: list[Manifest]) -> dict[str, Any]:
    """What the plan says from nothing; and by its own formulas the FLOPs of the tokens that were there."""
    world = world_of(spec, None)
    _, steps = outline_of(spec, world)
    plan = make_plan(spec, world, steps, None, WORKERS)
    counted = {one.identity: tokens_of(one) for one in manifests}
    return {
        "planned_steps": len(plan.steps),
        "planned_tokens": {kind: sum(one.tokens for one in plan.steps if one.step.kind == kind) for kind in SAMPLED},
        "planned_flops": sum(one.flops for one in plan.steps),
        # A step's FLOPs are proportional to its tokens, but for prompts, which are the same on both sides.
        "measured_flops": sum(
            one.flops * (counted[one.step.identity] / one.tokens if one.tokens else 1.0) for one in plan.steps
        ),
    }


def cpu_by_stage(spec: Experiment, store: Store, manifests: list[Manifest]) -> dict[str, float]:
    """Seconds of CPU of each stage's steps, as their workers logged them; of drawing, which runs before workers do, none."""
    _, steps = outline_of(spec, world_of(spec, store))
    stage_of = {step.identity: str(step.facts["stage"]) for step in steps}
    seconds: Counter[str] = Counter(dict.fromkeys(STAGES, 0.0))
    for manifest in manifests:
        log = store.log_path(manifest.identity)
        text = log.read_text() if log.is_file() else ""
        found = re.search(rf": {re.escape(manifest.label)}: published after .*?([\d.]+) s of CPU", text)
        if found is not None:
            seconds[stage_of[manifest.identity]] += float(found[1])
    return dict(seconds)


def tree_seconds() -> float:
    """Of CPU, that this process's children that have ended have spent, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows(database: Path, table: str) -> int:
    connection = sqlite3.connect(database)
    try:
        return int(connection.execute(f"select count(*) from {table}").fetchone()[0])
    finally:
        connection.close()


def fitted(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and constant of the line with the least squared distance."""
    mean_x = sum(x for x, _ in pairs) / len(pairs)
    mean_y = sum(y for _, y in pairs) / len(pairs)
    spread = sum((x - mean_x) ** 2 for x, _ in pairs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread
    return slope, mean_y - slope * mean_x


def factor_table(factor: str, runs: dict[Point, Run]) -> list[str]:
    """A row a measure: its value at each of the factor's values, then slope and constant."""
    unit, values = FACTORS[factor]
    lines = [
        "", f"**{factor}**", "",
        f"| {factor} | {' | '.join(map(str, values))} | a {unit} | constant |", "| --- " * (len(values) + 3) + "|",
    ]  # fmt: skip
    for name, measure in MEASURES.items():
        pairs = [(float(value), float(measure(runs[at({factor: value})]))) for value in values]
        slope, constant = fitted(pairs)
        cells = [f"{y:.3g}" if y < 1000 else f"{y:,.0f}" for _, y in pairs]
        line = f"{slope:+.2g} | {constant:.3g}" if name != "load met" else " | "
        lines.append(f"| {name} | {' | '.join(cells)} | {line} |")
    return lines


def plan_table(runs: dict[Point, Run]) -> list[str]:
    """The plan's counts beside the run's."""
    lines = [
        "", "**plan and run**", "",
        "| what differs | steps, plan | steps, run | tokens by kind, run over plan | FLOPs, plan | FLOPs, run |", "| --- " * 6 + "|",
    ]  # fmt: skip
    for point, run in runs.items():
        changed = ", ".join(f"{name} {value}" for name, value in point if value != BASE[name]) or "nothing"
        ratios = ", ".join(f"{kind} {run.tokens[kind] / run.planned_tokens[kind]:.2f}" for kind in SAMPLED)
        lines.append(
            f"| {changed} | {run.planned_steps} | {run.steps} | {ratios} | {run.planned_flops:.3g} | {run.measured_flops:.3g} |"
        )
    return lines


def conditions(num_runs: int, began: float, before: tuple[float, float, float]) -> str:
    """What the figures depend on; nothing that names the machine."""
    facts = ", ".join(f"{name} {value}" for name, value in machine_facts().items())
    minutes = (time.monotonic() - began) / 60
    base = ", ".join(f"{name} {value}" for name, value in BASE.items())
    return (
        f"{num_runs} runs in {minutes:.0f} minutes, {WORKERS} workers; {facts}; load of the last minute {before[0]:.1f} at the "
        f"start, {os.getloadavg()[0]:.1f} at the end, of the last fifteen {os.getloadavg()[2]:.1f}. Where nothing else is said: {base}."
    )


if __name__ == "__main__":
    main()
