"""The command `mot`. Each subcommand is a thin shell around a documented Python call; heavy imports are inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mot_core.spec import Experiment

app = typer.Typer(
    name="mot", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Merge-of-Thought distillation as an experiment DAG: several teachers, one student.",
)  # fmt: skip
lab = typer.Typer(no_args_is_help=True, help="The embedded laboratory: small real models and problem families.")
app.add_typer(lab, name="lab")

SpecArgument = Annotated[str, typer.Argument(metavar="PRESET|FILE", help="a preset's name, or a YAML file")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a spec field by its dotted name")
]
StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="where results live")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="worker processes; absent: one a core")]


@app.command(epilog="Example: mot run lab --set training_seeds=[1,2,3] --store ./store")
def run(
    spec: SpecArgument, set_: SetOption = None, store: StoreOption = Path("store"), workers: WorkersOption = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0.0, help="between checkpoints inside a branch")] = 60.0,
) -> None:  # fmt: skip
    """Run an experiment to its report; started again after any interruption, it goes on."""
    from flows.live import LiveView
    from flows.run import RunOptions
    from flows.run import run as run_experiment

    experiment = _load(spec, set_)
    console = _console()
    with LiveView(console) as view:
        run_dir = run_experiment(experiment, RunOptions(store, workers, checkpoint_seconds), view.watch, view.announce)
    _show(run_dir, console)


@app.command(epilog="Example: mot plan lab --steps")
def plan(
    spec: SpecArgument, set_: SetOption = None, store: StoreOption = Path("store"), workers: WorkersOption = None,
    steps: Annotated[bool, typer.Option("--steps", help="list every step with its reason")] = False,
) -> None:  # fmt: skip
    """Show the DAG before anything runs: run or reuse and why, and what it will cost by stage."""
    import os

    from flows.run import outline_of
    from flows.show import plan_tables
    from flows.tune import tuning_note
    from mot_core.artifacts import Store
    from mot_core.planning import plan as make_plan
    from mot_core.world import resolve

    experiment = _load(spec, set_)
    world = resolve(experiment)
    _, nodes = outline_of(experiment, world)
    opened = Store(store) if (store / "store.json").is_file() else None
    made = make_plan(experiment, world, nodes, opened, workers or len(os.sched_getaffinity(0)))
    console = _console()
    for table in plan_tables(made, list_steps=steps):
        console.print(table)
    console.print(tuning_note(experiment, world), markup=False, soft_wrap=True)


@app.command(epilog="Example: mot tune lab")
def tune(
    spec: SpecArgument, set_: SetOption = None, store: StoreOption = Path("store"), workers: WorkersOption = None
) -> None:
    """Choose each method's learning rate by the same sweep on the dev split, and print what a preset carries."""
    from flows.live import LiveView
    from flows.run import RunOptions
    from flows.show import sweep_table
    from flows.tune import preset_lines
    from flows.tune import tune as run_sweep

    experiment = _load(spec, set_)
    console = _console()
    with LiveView(console) as view:
        sweep = run_sweep(experiment, RunOptions(store, workers), view.watch, view.announce)
    console.print(sweep_table(sweep))
    console.print(preset_lines(experiment, sweep), markup=False, highlight=False, soft_wrap=True)


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="a run's id, or how it begins")]


@app.command(epilog="Example: mot show lab")
def show(run: RunArgument, store: StoreOption = Path("store")) -> None:
    """Print a run's scores, comparisons and counts."""
    from mot_core.artifacts import Store
    from mot_core.runs import find_run_dir

    _show(find_run_dir(Store(store), run), _console())


@app.command(epilog="Example: mot report lab")
def report(run: RunArgument, store: StoreOption = Path("store")) -> None:
    """Write a run's report again from what is published, and print where it is."""
    from mot_core.artifacts import Store
    from mot_core.report.html import write_report
    from mot_core.runs import find_run_dir
    from mot_core.tables import load_results

    run_dir = find_run_dir(Store(store), run)
    print(write_report(load_results(run_dir), run_dir))


@app.command(epilog="Example: mot logs lab 'finetune running-total'")
def logs(
    run: RunArgument,
    step: Annotated[str, typer.Argument(help="an identity or label of a step, or how it begins")],
    store: StoreOption = Path("store"),
) -> None:
    """Print what a step's worker printed, in whichever run computed it."""
    from flows.show import step_logs
    from mot_core.artifacts import Store
    from mot_core.runs import find_run_dir

    opened = Store(store)
    for line in step_logs(opened, find_run_dir(opened, run), step):
        print(line)


@app.command(epilog="Example: mot doctor")
def doctor(store: StoreOption = Path("store")) -> None:
    """Check versions, devices, memory, disk and servers; say what is missing for which feature."""
    from flows.doctor import checks
    from flows.show import doctor_table

    _console().print(doctor_table(checks(store)))


@lab.command(epilog="Example: mot lab forge --out forged --model running-total")
def forge(
    out: Annotated[Path, typer.Option(help="an empty or new directory")] = Path("forged"),
    model: Annotated[list[str] | None, typer.Option(help="only this model; may be given again")] = None,
    quick: Annotated[bool, typer.Option(help="a few steps only: files, not models that can do sums")] = False,
) -> None:
    """Train the laboratory's models again from the frozen recipe, and measure their levels."""
    from mot_core.lab.forge import forge as forge_models

    forge_models(out, names=model, quick=quick, progress=lambda line: print(line, flush=True))


def _load(spec: str, overrides: list[str] | None) -> Experiment:
    from mot_core.spec_files import load_spec

    return load_spec(spec, overrides)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def _show(run_dir: Path, console: Console) -> None:
    from flows.show import run_tables

    for part in run_tables(run_dir):
        console.print(part)


def main() -> None:
    """Entry point: errors of ours end in one message and status 1, never in a traceback."""
    from mot_core.errors import MotError

    try:
        app()
    except MotError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is published", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
