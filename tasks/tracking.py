"""What ran, told to MLflow: the only module that imports it, and only inside functions (the import takes 1.6 s).

Tracking comes last and harms nothing: a run whose tracking fails is complete, its `tracking.json` says `pending`, and
the next run in the same store logs it. Invariant: of each planned run there is at most one in the tracker with the
tag `mot.complete`, whose value is its content's hash; a run without it was interrupted and is replaced.
Longer than most: all that is said to MLflow, and how a failure of it stays harmless.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.analysis.page import STUDY
from mot_core.artifacts import Store
from mot_core.errors import MotError, StoreError
from mot_core.files import write_atomically
from mot_core.nightly.nights import DIGEST
from mot_core.provenance import without_credentials
from mot_core.runs import EVALUATION, read_index
from mot_core.secrets import masked
from tasks.tracking_evaluation import EVALUATIONS, plan_evaluation
from tasks.tracking_nightly import NIGHTS, plan_night
from tasks.tracking_plan import plan_run
from tasks.tracking_records import PlannedRun, short_text
from tasks.tracking_study import plan_study
from tasks.tracking_views import TAG_PREFIX, View, run_description, tag_value, views_of

TRACKING = "tracking.json"
COMPLETE, KEY, SPEC = "mot.complete", "mot.key", "mot.spec"
PARENT_RUN, DESCRIPTION, KIND = "mlflow.parentRunId", "mlflow.note.content", "mlflow.experimentKind"
METRICS_PER_BATCH, PARAMS_PER_BATCH = 900, 100  # MLflow's limits are 1,000 entities a batch, 100 of them params
PROBE_SECONDS, CALL_SECONDS = 4, 20
_REPLACED = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
log = logging.getLogger("mot.tracking")


@dataclass(frozen=True)
class TrackingOutcome:
    """What became of one run's tracking. `problem` is None if all of it is logged; the URI has no credentials."""

    tracking_uri: str
    parent_run_id: str | None
    logged: int
    unchanged: int
    problem: str | None
    experiment_id: str | None = None


def track_run(store: Store, run_dir: Path) -> TrackingOutcome:
    """Log a run, and before it those that are pending. Never raises; a failure leaves the run pending."""
    return _track(store, [*_pending(store, but=run_dir), run_dir])[-1]


def track_pending(store: Store) -> list[TrackingOutcome]:
    """Log every run of the store whose tracking is pending."""
    runs = _pending(store)
    return _track(store, runs) if runs else []


def tracking_uri(store: Store) -> str:
    """The user's `MLFLOW_TRACKING_URI`, or a database inside the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root / 'mlflow.db'}"


@contextlib.contextmanager
def tracker(uri: str) -> Iterator[Any]:
    """A client of a tracker that answers.

    Raises:
        StoreError: it does not answer, or an answer of it is an error.
    """
    with _environment(uri):
        try:
            yield _connect(uri)
        except MotError:
            raise
        except Exception as error:
            raise StoreError(
                f"the tracker {_masked(uri, uri)} cannot be used: {_problem(error, uri)}; set MLFLOW_TRACKING_URI to one "
                "that answers"
            ) from error


def _pending(store: Store, but: Path | None = None) -> list[Path]:
    found = []
    found_here = [*(store.root / "runs").glob(f"*/{TRACKING}"), *(store.root / "nightly").glob(f"*/*/{TRACKING}")]
    for path in sorted(found_here, key=lambda path: path.stat().st_mtime):
        # A file that cannot be read says nothing: logging is idempotent, so such a run is logged again.
        with contextlib.suppress(ValueError, OSError, AttributeError):
            if json.loads(path.read_text()).get("state") != "pending":
                continue
        if but is None or path.parent.resolve() != but.resolve():
            found.append(path.parent)
    return found


def _track(store: Store, run_dirs: list[Path]) -> list[TrackingOutcome]:
    """Log runs in order. If the tracker cannot be reached, that is found out once, not once a run."""
    uri = tracking_uri(store)
    shown = _masked(uri, uri)
    outcomes: list[TrackingOutcome] = []
    try:
        for run_dir in run_dirs:  # first of all, so that a process that is killed meanwhile leaves them pending
            _record(run_dir, TrackingOutcome(shown, None, 0, 0, "tracking was interrupted"))
        # One process of this store at a time: two first migrations of one database spoil each other.
        with _environment(uri), store.lock("mlflow"):
            client = _connect(uri)
            for run_dir in run_dirs:
                outcomes.append(_logged(client, store, run_dir, uri))
                _record(run_dir, outcomes[-1])
    except Exception as error:
        problem = _problem(error, uri)
        log.warning("tracking to %s failed; the results are safe, the next run logs them: %s", shown, problem)
        for run_dir in run_dirs[len(outcomes) :]:
            outcomes.append(TrackingOutcome(shown, None, 0, 0, problem))
            with contextlib.suppress(OSError):  # a full disk has been reported already
                _record(run_dir, outcomes[-1])
    return outcomes


def _logged(client: Any, store: Store, run_dir: Path, uri: str) -> TrackingOutcome:
    shown = _masked(uri, uri)
    try:
        if (run_dir / STUDY).is_file():
            plans = plan_study(store, run_dir)
            name = f"study-{plans[0].params['study']}"
        elif (run_dir / DIGEST).is_file():
            plans, name = plan_night(run_dir), NIGHTS
        elif (run_dir / EVALUATION).is_file():
            plans, name = plan_evaluation(store, run_dir), EVALUATIONS
        else:
            plans = plan_run(store, run_dir)
            name = read_index(run_dir)["spec"]["name"]
        experiment_id = _experiment(client, store, name, uri)
        counts = _Tracker(client, experiment_id).log(plans)
        _refresh_views(client, experiment_id, views_of(plans))
        return TrackingOutcome(shown, *counts, None, experiment_id)
    except Exception as error:
        problem = _problem(error, uri)
        log.warning("tracking of run %s to %s failed; its results are safe: %s", run_dir.name, shown, problem)
        return TrackingOutcome(shown, None, 0, 0, problem)


def _record(run_dir: Path, outcome: TrackingOutcome) -> None:
    state = "pending" if outcome.problem else "logged"
    document = {"state": state, "uri": outcome.tracking_uri, "problem": outcome.problem}
    if outcome.parent_run_id:
        document |= {"parent_run_id": outcome.parent_run_id, "experiment_id": outcome.experiment_id}
    write_atomically(run_dir / TRACKING, json.dumps(document, indent=1) + "\n")


# -- the connection ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _environment(uri: str) -> Iterator[None]:
    """MLflow's environment while it is used: no telemetry, short waits (unless the user set others), no `MLFLOW_RUN_ID`,
    which would override the parent (mlflow#15713), and the tracker as default, where it looks a registry's models up
    whatever client asks."""
    defaults = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    hidden = {name: os.environ.pop(name) for name in _REPLACED if name in os.environ}
    os.environ.update(ours, MLFLOW_TRACKING_URI=uri)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    loggers = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    try:
        yield
    finally:
        for name in (*ours, "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)
        os.environ.update(hidden)
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)


def _connect(uri: str) -> Any:
    """A client of a tracker that answers; the database is made or migrated here, under the caller's lock."""
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # 60 lines of migration would bury the report's path
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    client.search_experiments(max_results=1)
    if os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == str(PROBE_SECONDS):
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(CALL_SECONDS)  # it lives: let it store an artifact in peace
    return client


def _experiment(client: Any, store: Store, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        inside = uri == f"sqlite:///{store.root / 'mlflow.db'}"
        location = (store.root / "mlartifacts" / name).as_uri() if inside else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another store made it at the same moment
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        remedy = f"`mlflow experiments restore -x {found.experiment_id}` brings it back, or give the spec another name"
        raise ValueError(f"experiment {name!r} was deleted in the tracker; {remedy}")
    return str(found.experiment_id)


def _refresh_views(client: Any, experiment_id: str, views: list[View]) -> None:
    """Bring the experiment's views in line with its newest run; other people's views are theirs. Of an experiment whose kind
    nobody chose, MLflow guesses one, and shows our runs among evaluations of prompts."""
    tags = client.get_experiment(experiment_id).tags
    if KIND not in tags:
        client.set_experiment_tag(experiment_id, KIND, "custom_model_development")
    for view in views:
        name = f"{TAG_PREFIX}{view.key}"
        value = tag_value(view, int(time.time() * 1000), tags.get(name))
        if value is not None:
            client.set_experiment_tag(experiment_id, name, value)


def _masked(text: str, uri: str) -> str:
    """A text without the URI's credentials and query, nor any other secret."""
    if uri in text and "://" in uri:
        text = text.replace(uri, uri if uri.startswith("sqlite:///") else without_credentials(uri))
    return masked(text)


def _problem(error: Exception, uri: str) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return short_text(_masked(f"{type(error).__name__}: {lines[0] if lines else 'no message'}", uri), 500)


# -- logging -------------------------------------------------------------------------------------------


class _Tracker:
    """Brings one experiment of the tracker in line with a plan."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id

    def log(self, plans: list[PlannedRun]) -> tuple[str, int, int]:
        """The parent's run id, how many runs were logged, and how many were there already."""
        found: dict[str, list[Any]] = {}
        models: dict[str, list[str]] = {}
        where = f"tags.`{SPEC}` = '{plans[0].tags[SPEC]}'"
        for run in _pages(self.client.search_runs, [self.experiment_id], filter_string=where, max_results=1_000):
            found.setdefault(run.data.tags.get(KEY, ""), []).append(run)
        for model in _pages(self.client.search_logged_models, [self.experiment_id], filter_string=where):
            models.setdefault(model.source_run_id, []).append(model.model_id)
        run_ids: dict[str | None, str] = {}
        logged = 0
        for plan in plans:
            parent = run_ids.get(plan.parent)
            known = found.pop(plan.key, [])
            kept = next((run for run in known if run.data.tags.get(COMPLETE) == plan.content), None)
            if kept is None:
                run_ids[plan.key] = self.create(plan, parent)
                logged += 1
            else:
                run_ids[plan.key] = kept.info.run_id
                if kept.data.tags.get(PARENT_RUN) != parent:  # its parent was replaced
                    self.client.set_tag(kept.info.run_id, PARENT_RUN, parent)
            # Replaced, interrupted, logged twice, or no longer planned; only once its successor is complete.
            self.delete([run for run in known if run is not kept], models)
        for runs in found.values():
            self.delete(runs, models)
        return run_ids[plans[0].key], logged, len(plans) - logged

    def create(self, plan: PlannedRun, parent: str | None) -> str:
        """Log one run whole; its last word is the tag that says so."""
        client = self.client
        started, ended = int(plan.started * 1000), int(plan.ended * 1000)
        tags = {
            **plan.tags, **plan.notes, KEY: plan.key, "mlflow.source.name": "mot run", "mlflow.source.type": "LOCAL",
            **({PARENT_RUN: parent} if parent else {}),
            **({DESCRIPTION: run_description(self.experiment_id)} if plan.tags["mot.role"] == "experiment" else {}),
        }  # fmt: skip
        run = client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=plan.name)
        run_id = str(run.info.run_id)
        model_id = self.create_model(plan, run_id)
        self.log_values(plan, run_id, model_id, ended or int(time.time() * 1000))
        self.log_inputs(plan, run_id)
        for path, place in plan.artifacts:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), place)
            else:
                client.log_artifact(run_id, str(path), place)
        client.set_terminated(run_id, "FINISHED", end_time=ended or None)
        client.set_tag(run_id, COMPLETE, plan.content)
        return run_id

    def create_model(self, plan: PlannedRun, run_id: str) -> str | None:
        from mlflow.entities import LoggedModelOutput

        student = plan.student
        if student is None:
            return None
        model = self.client.create_logged_model(
            self.experiment_id, name=student.name, source_run_id=run_id, model_type="merged-student",
            tags={**student.tags, "mot.uri": student.uri}, params=plan.params,
        )  # fmt: skip
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, int(student.tags["mot.round"]))])
        return str(model.model_id)

    def log_values(self, plan: PlannedRun, run_id: str, model_id: str | None, stamp: int) -> None:
        from mlflow.entities import Metric, Param

        metrics = [
            Metric(name, value, stamp, step, model_id=model_id, run_id=run_id) for name, value, step in plan.metrics
        ]
        metrics += [
            Metric(name, value, int(when * 1000), step, run_id=run_id) for name, value, step, when in plan.samples
        ]
        params = [Param(name, value) for name, value in plan.params.items()]
        while params or metrics:
            self.client.log_batch(run_id, metrics=metrics[:METRICS_PER_BATCH], params=params[:PARAMS_PER_BATCH])
            metrics, params = metrics[METRICS_PER_BATCH:], params[PARAMS_PER_BATCH:]

    def log_inputs(self, plan: PlannedRun, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if plan.inputs:
            inputs = [
                DatasetInput(
                    Dataset(one.name, one.digest, "mot", json.dumps({"step": one.digest})),
                    [InputTag("mlflow.data.context", one.context)],
                )
                for one in plan.inputs
            ]
            self.client.log_inputs(run_id, inputs)

    def delete(self, runs: list[Any], models: dict[str, list[str]]) -> None:
        for run in runs:
            for model_id in models.get(run.info.run_id, ()):
                self.client.delete_logged_model(model_id)
            self.client.delete_run(run.info.run_id)


def _pages(search: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*arguments, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return
