"""The flows that `deployments/prefect.yaml` registers; each turns its form into a spec and calls what the command line calls.

They are found by module, so a worker needs an environment with `mot` and no checkout in a certain place.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.deployed.failures import failure_of, tell
from flows.deployed.parameters import (
    EvaluateParameters,
    ExperimentParameters,
    GenerateParameters,
    MergeParameters,
    NightlyParameters,
    StudyParameters,
    evaluation_of,
    experiment_of,
    generation_of,
    nightly_of,
    recipe_of,
)
from flows.deployed.running import announce, check_code, confined, later_night, occupied, within_deployment
from flows.nightly import Concluded, nightly
from flows.orchestrate import waiting_threads
from flows.parts import Row, evaluate_model, verify_rationales
from flows.run import RunOptions, run
from flows.studies import study_named
from flows.studies.base import setup_of
from flows.studies.run import run_study
from mot_core.artifacts import Store
from mot_core.confinement import check_models_within, data_roots
from mot_core.errors import MergeError, NightUnderWay
from mot_core.merging.recipe import is_merged
from mot_core.nightly.spec import canary_of, cells_of
from mot_core.secrets import masked
from mot_core.text import log_line
from tasks.artifacts import publish_markdown, publish_rows

MERGE = "from mot_core.processes import die_with_parent; die_with_parent(); from flows.cli import main; main()"
"""The command line in a process that ends with this one, however this one ends."""


def _deployed(name: str) -> Any:
    return flow(name=name, persist_result=False, task_runner=waiting_threads())


@_deployed("experiment")  # type: ignore[untyped-decorator]
def experiment(parameters: ExperimentParameters) -> None:
    """Merge-of-Thought against its baselines on one experiment, to its report."""

    def work(options: RunOptions) -> None:
        run(confined(experiment_of(parameters), options), options, announce=announce)

    within_deployment(work)


@_deployed("study")  # type: ignore[untyped-decorator]
def study(parameters: StudyParameters) -> None:
    """One study of the paper's claims, to its figure, table and paragraph."""

    def work(options: RunOptions) -> None:
        chosen = study_named(parameters.study)
        setup = setup_of(chosen, parameters.size, parameters.overrides, str(options.store))
        confined(setup.base, options)
        run_study(chosen, setup, options, announce=announce)

    within_deployment(work)


@_deployed("nightly-ablation")  # type: ignore[untyped-decorator]
def nightly_ablation(parameters: NightlyParameters) -> State[Any]:
    """One night of an ablation: a canary, then cells in order within the budget; it makes way for any other run."""

    def work(options: RunOptions) -> Concluded:
        check_models_within({"plan": parameters.plan}, data_roots(options.store))
        spec = nightly_of(parameters)
        for place in cells_of(spec):
            confined(place.spec, options)
        confined(canary_of(spec), options)
        return nightly(spec, options, announce=announce, occupied=occupied)

    if (later := later_night()) is not None:
        return Completed(name="Skipped", message=later)
    try:
        done = within_deployment(work)
    except NightUnderWay as other:
        return Completed(name="Skipped", message=str(other))
    publish_markdown("nightly", done.directory.parent.name, done.markdown, f"Night {done.directory.name}: {done.state}")
    return Completed(name=None if done.state == "finished" else done.state.title(), message=f"digest: {done.directory}")


@_deployed("generate")  # type: ignore[untyped-decorator]
def generate(parameters: GenerateParameters) -> None:
    """The teachers' rationales of an experiment, verified; an experiment that needs them later finds them."""

    def work(options: RunOptions) -> list[Row]:
        return verify_rationales(confined(generation_of(parameters), options), options, announce=announce)

    rows = within_deployment(work)
    publish_rows(
        "rationales", parameters.preset, rows, "What the teachers were asked, and how their answers were judged"
    )


@_deployed("evaluate")  # type: ignore[untyped-decorator]
def evaluate(parameters: EvaluateParameters) -> None:
    """One model on benchmarks."""

    def work(options: RunOptions) -> list[Row]:
        return evaluate_model(confined(evaluation_of(parameters), options), options, announce=announce)

    rows = within_deployment(work)
    publish_rows("scores", parameters.model, rows, f"What {parameters.model} scores")


@_deployed("merge")  # type: ignore[untyped-decorator]
def merge(parameters: MergeParameters) -> None:
    """A merge of checkpoints of one architecture, into the store's folder `merged`."""

    def work(options: RunOptions) -> None:
        named = {f"models.{place}": model for place, model in enumerate(parameters.models)}
        named |= {"start": parameters.start} if parameters.start is not None else {}
        check_models_within(named, data_roots(options.store))
        _merge(recipe_of(parameters), Store(options.store).open().root / "merged" / parameters.name)

    within_deployment(work)


def _merge(recipe: dict[str, Any], out: Path) -> None:
    """Merge in a process of its own, since this one never loads torch; its lines go to the flow run's log."""
    logger = get_run_logger()
    if (flow_run.run_count or 1) > 1 and is_merged(recipe, out):
        logger.info("%s is there: this flow run has merged it before it was stopped", out)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "recipe.yaml"
        config.write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-c", MERGE, "merge", str(config), str(out)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"}, errors="replace",
        ) as process:  # fmt: skip
            try:
                assert process.stdout is not None
                last = ""
                for line in process.stdout:
                    last = log_line(masked(line))
                    logger.info("%s", last)
            except BaseException:
                process.kill()
                raise
    if process.returncode:
        raise MergeError(f"{out.name}: {last.strip() or f'the merge ended with status {process.returncode}'}")


@_deployed("explain-failure")  # type: ignore[untyped-decorator]
def explain_failure(flow_run_id: UUID) -> None:
    """Publish why a flow run failed, and tell MOT_FAILURE_WEBHOOK where this worker has it."""
    check_code()
    failure = failure_of(flow_run_id)
    publish_rows("failures", "", [failure], "Why the last runs failed")
    address = os.environ.get("MOT_FAILURE_WEBHOOK")
    if address:
        tell(address, failure)
