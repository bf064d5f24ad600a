"""What this program costs beside the work itself, in figures: `python -m tests.bench`, or `make bench`. Not a test.

    start-up     wall time of `mot --help`, the median of several runs
    overhead     wall time over compute time of a run on a fresh store, both from its summary.json
    reused run   wall time of the same command again, when nothing is left to compute
    two workers  time of two branches on two workers over that of one after the other, a thread each

Invariant: every figure comes from a process started by this call, in a temporary directory; no store, environment
or file of the user's is read or changed, and nothing is written but the file that `--markdown` names.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

HELP_RUNS = 7
HELP_GOAL_SECONDS = 0.5
OVERHEAD_GOAL = 1.10
REUSED_GOAL_SECONDS = 30.0
TWO_WORKERS_GOAL = 0.6
TWO_WORKERS_RUNS = 3
BRANCH_STEPS = 150
# The goals are for this preset; on another one the figures stand without a verdict.
GOAL_PRESET = "lab"
_USERS_OWN = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_API_DATABASE_CONNECTION_URL", "MLFLOW_TRACKING_URI")

Result = tuple[float, subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` is None where the goal does not apply."""

    what: str
    measured: str
    goal: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return "—" if self.met is None else "met" if self.met else "missed"


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="mot-bench-") as directory:
        environment = isolated_environment(Path(directory))
        rows = [startup_row(environment)]
        if not options.skip_lab:
            rows += run_rows(options.preset, Path(directory) / "store", environment)
            rows.append(two_workers_row(Path(directory)))
    facts = machine_facts()
    print(text_table(rows))
    print("\n" + ", ".join(f"{name}: {value}" for name, value in facts.items()))
    if options.markdown is not None:
        options.markdown.write_text(markdown_table(rows, facts), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure start-up, overhead and reuse.")
    parser.add_argument("--preset", default=GOAL_PRESET, help="preset or YAML file to run (smoke for a quick look)")
    parser.add_argument("--skip-lab", action="store_true", help="measure start-up only, run no experiment")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here as well")
    return parser.parse_args()


def isolated_environment(directory: Path) -> dict[str, str]:
    """This environment with Prefect's state in the temporary directory, and with no server or database of the user's.

    So the first run also pays for setting up Prefect's database, as a user's first run does.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _USERS_OWN}
    return {**kept, "PREFECT_HOME": str(directory / "prefect"), "MLFLOW_DISABLE_TELEMETRY": "true"}


def startup_row(environment: Mapping[str, str]) -> Row:
    """`mot --help`: once to warm the disk cache, then the median of `HELP_RUNS`."""
    mot(["--help"], environment)
    seconds = [mot(["--help"], environment)[0] for _ in range(HELP_RUNS)]
    return Row(
        f"`mot --help`, median of {HELP_RUNS}",
        f"{median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})",
        f"< {HELP_GOAL_SECONDS} s",
        median(seconds) < HELP_GOAL_SECONDS,
    )


def run_rows(preset: str, store: Path, environment: Mapping[str, str]) -> list[Row]:
    """A run on a fresh store, then the same one again, with everything reused."""
    command = ["run", preset, "--store", str(store)]
    fresh_seconds, _ = mot(command, environment)
    fresh = newest_summary(store)
    reused_seconds, _ = mot(command, environment)
    reused = newest_summary(store)
    if reused["step_counts"]["run"]:
        raise SystemExit(f"the second run computed {reused['step_counts']['run']} steps; expected all to be reused")
    wall, compute = float(fresh["wall_seconds"]), float(fresh["compute_seconds"])
    # A run of seconds is mostly start-up, so its ratio says nothing about an experiment's.
    has_goal = preset == GOAL_PRESET
    return [
        Row(f"`mot run {preset}`, fresh: wall time of the process", f"{fresh_seconds:.1f} s", "—", None),
        Row(f"`mot run {preset}`, fresh: wall_seconds", f"{wall:.1f} s", "—", None),
        Row(f"`mot run {preset}`, fresh: compute_seconds", f"{compute:.1f} s", "—", None),
        Row(
            f"`mot run {preset}`, fresh: wall over compute",
            f"{wall / compute:.3f}",
            f"< {OVERHEAD_GOAL:.2f}" if has_goal else "—",
            wall / compute < OVERHEAD_GOAL if has_goal else None,
        ),
        Row(
            f"`mot run {preset}`, all reused: wall time of the process",
            f"{reused_seconds:.1f} s",
            f"≤ {REUSED_GOAL_SECONDS:.0f} s" if has_goal else "—",
            reused_seconds <= REUSED_GOAL_SECONDS if has_goal else None,
        ),
    ]


def two_workers_row(directory: Path) -> Row:
    """Two branches of one store, one after the other and both at once, in turn; each is another branch."""
    from mot_core.artifacts import Store
    from mot_core.runner import RunSettings
    from mot_core.workers.pool import WorkerPool
    from tests.pico import write_pico_model
    from tests.sft.branches import branch_step_of

    student = write_pico_model(directory / "student", 1, hidden_size=256)
    store = Store(directory / "branches").open()
    pool = WorkerPool(store, num_workers=2)
    pool.settings = RunSettings(threads=1)
    seeds = itertools.count()

    def train(num_steps: int) -> None:
        step = branch_step_of(store, num_steps=num_steps, extra={"order_seed": next(seeds), "total_steps": num_steps})
        pool.run([replace(step, locators={**step.locators, "student": str(student)})], 0, lambda *_: None)

    def seconds_of(num_at_once: int) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(num_at_once) as threads:
            list(threads.map(train, [BRANCH_STEPS] * 2))
        return time.perf_counter() - start

    try:
        train(1)  # the workers' parent loads torch
        turns = [(seconds_of(1), seconds_of(2)) for _ in range(TWO_WORKERS_RUNS)]
    finally:
        pool.close()
    ratio = median(at_once / in_turn for in_turn, at_once in turns)
    shown = ", ".join(f"{at_once:.1f} of {in_turn:.1f} s" for in_turn, at_once in turns)
    return Row(
        "two branches on two workers, over one after the other", f"{ratio:.2f} ({shown}; load {os.getloadavg()[0]:.1f})",
        f"≤ {TWO_WORKERS_GOAL}", ratio <= TWO_WORKERS_GOAL,
    )  # fmt: skip


def mot(arguments: list[str], environment: Mapping[str, str]) -> Result:
    """Seconds that a `mot` process took, and the process; ends the program if it failed."""
    program = Path(sys.executable).with_name("mot")
    start = time.perf_counter()
    done = subprocess.run(
        [str(program), *arguments], env=dict(environment), capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(
            f"mot {' '.join(arguments)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
    return seconds, done


def newest_summary(store: Path) -> dict[str, Any]:
    """The summary of the last run; runs of one spec are numbered, so the last name is the newest."""
    paths = sorted((store / "runs").glob("*/summary.json"))
    if not paths:
        raise SystemExit(f"no run in {store} has a summary.json")
    document: dict[str, Any] = json.loads(paths[-1].read_text(encoding="utf-8"))
    return document


def machine_facts() -> dict[str, str]:
    """What the figures depend on; nothing that names the machine."""
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "mot": metadata.version("mot"),
    }


def text_table(rows: list[Row]) -> str:
    """The rows in aligned columns."""
    cells = [("what", "measured", "goal", ""), *((r.what, r.measured, r.goal, r.verdict) for r in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def markdown_table(rows: list[Row], facts: Mapping[str, str]) -> str:
    """The rows as a markdown table, with the machine's facts below it."""
    lines = ["| what | measured | goal | verdict |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.what} | {row.measured} | {row.goal} | {row.verdict} |" for row in rows]
    lines += ["", "Measured with " + ", ".join(f"{name} {value}" for name, value in facts.items()) + "."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
