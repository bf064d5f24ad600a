"""Night after night on one store, with real steps computed in this process: no orchestrator, no workers, no report.

`test_killed_night` has the whole of it, in processes that can be killed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import flows.nightly
from flows.agenda import tonight
from flows.index import final_students, index_of
from flows.nightly import Concluded, nightly
from flows.run import RunOptions, outline_of
from mot_core import identity
from mot_core.artifacts import Store
from mot_core.errors import CorpusError, Halted
from mot_core.files import write_atomically
from mot_core.nightly.nights import NIGHT, night_under_way
from mot_core.nightly.spec import Nightly, load_nightly
from mot_core.prepare import prepare
from mot_core.runner import ModelCache, RunSettings, run_step
from mot_core.runs import SUMMARY, new_run_dir, write_index
from mot_core.spec import Experiment
from mot_core.steps import RemoteStep, Step
from mot_core.summary import summarize_run
from mot_core.tables import collect
from mot_core.workers.pool import WorkerPool
from mot_core.world import resolve
from tasks.invocation import Halt, Invocation
from tests.pico import pico_document
from tests.processes import wait_until, write_spec

pytestmark = pytest.mark.slow
Watch = Callable[[Step, dict[str, Any]], None]
MODELS = ModelCache()
SIXTH, SEVENTH = ("generation.seed=6",), ("generation.seed=7",)


def run_here(spec: Experiment, options: RunOptions, watch: Watch, announce: Callable[[str, int], None]) -> Path:
    """What `flows.run.run` does for a night: publishes what is missing, stops where it is asked to, ends in a summary."""
    store = Store(options.store).open()
    world, drawn = prepare(spec, resolve(spec), store, publish=True)
    outline, steps = outline_of(spec, world)
    run_dir = new_run_dir(store, spec.name, spec.identity)
    invocation = Invocation(run_dir.name, store, WorkerPool(store, 1), world)
    invocation.look_up(steps, drawn)
    for step in steps:
        if options.halt.reason is not None:
            raise Halted(options.halt.reason)
        if invocation.found[step.identity] is None:
            made = run_step(RemoteStep.from_json(step.to_json()), store, RunSettings(), lambda event: None, MODELS)
            watch(step, {"event": "published", "record": asdict(made)})
    invocation.look_up(steps, [])
    for step in steps:
        invocation.obtain([step.identity], lambda step, event: None)
    write_index(run_dir, index_of(spec, world, outline, steps, invocation))
    found = summarize_run(
        collect(store, run_dir, {}), final_students(outline, invocation), spec.evaluation.ci_resamples
    )
    write_atomically(run_dir / SUMMARY, json.dumps({"spec_identity": spec.identity, **found}))
    return run_dir


class Nights:
    """One nightly's nights on one store; what each computed."""

    def __init__(self, spec: Nightly, root: Path) -> None:
        self.spec, self.store = spec, Store(root)
        self.computed: list[str] = []

    def night(
        self, *, watch: Watch = lambda step, event: None, spec: Nightly | None = None, halt: Halt | None = None,
        **options: Any,
    ) -> Concluded:  # fmt: skip
        self.computed = []

        def count(step: Step, event: dict[str, Any]) -> None:
            self.computed.append(step.identity)
            watch(step, event)

        own = RunOptions(self.store.root, 1, halt=halt or Halt())
        return nightly(spec or self.spec, own, count, poll_seconds=0.02, **options)

    def with_cells(self, *cells: tuple[str, ...], **budget: Any) -> Nightly:
        return self.spec.model_copy(update={"cells": cells, "budget": self.spec.budget.model_copy(update=budget)})

    def published(self) -> set[str]:
        return {manifest.identity for manifest in self.store.manifests()}


@pytest.fixture(scope="module")
def nights(pico_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    """Two cells, an undecided one gets a second seed. The tests follow each other on one store, as nights do."""
    folder = tmp_path_factory.mktemp("nights")
    document = pico_document(pico_models)
    document["methods"] = [{"name": "base"}, {"name": "mot"}]
    document["rounds"] = 1
    document["evaluation"]["path"] = {"rounds": "last", "num_problems": 4, "k": 1}
    document["evaluation"]["benchmarks"] = document["evaluation"]["benchmarks"][:1]
    base = str(write_spec(folder / "pico.yaml", document))
    (folder / "nightly.yaml").write_text(yaml.safe_dump({
        "name": "pico", "base": base, "grid": {"merge.rule": ["mean", "ties"]}, "max_seeds": 2, "budget": {"minutes": 60},
        "reference": {"method": "mot", "against": ["base"]}, "canary": {"base": base, "set": ["methods=[{name: mot}]"]},
    }))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.nightly, "run", run_here)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Nights(load_nightly(str(folder / "nightly.yaml")), folder / "store")


def test_the_first_night_runs_every_cell_and_its_seeds(nights: Nights) -> None:
    planned = tonight(nights.spec, None, 1)
    assert [standing.cell.name for standing, _ in planned] == ["merge.rule=mean", "merge.rule=ties"]
    costs = [estimate.seconds for _, estimate in planned if estimate is not None]
    assert costs[0] > costs[1] > 0  # the second shares the teachers and the branches
    assert not nights.store.root.exists()
    done = nights.night()
    assert (done.state, done.directory.name, done.digest["canary"]["verdict"]) == ("finished", "0001", "first")
    visits = [(visit["cell"], visit["state"]) for visit in done.digest["visits"]]
    assert visits[:2] == [("merge.rule=mean", "finished"), ("merge.rule=ties", "finished")]
    assert Counter(visits) == {("merge.rule=mean", "finished"): 2, ("merge.rule=ties", "finished"): 2}
    assert done.digest["visits"][2]["why"].endswith("training seed 2 is added")
    assert [(cell["seeds"], cell["kind"], cell["cause"]) for cell in done.digest["cells"]] == [
        ([1, 2], "undecided, no seed left", "first results")
    ] * 2
    assert done.digest["spent"]["completion_tokens"] > 0 and done.digest["remaining"] == []
    # Twice is once for the canary and once for the cells.
    assert max(Counter(nights.computed).values()) == 2
    assert done.markdown == (done.directory / "digest.md").read_text()


def test_a_night_with_nothing_new_computes_its_canary_alone(nights: Nights) -> None:
    before, clock = nights.published(), time.monotonic()
    done = nights.night()
    beside = time.monotonic() - clock - done.digest["canary"]["seconds"]
    print(f"a night with nothing new: {beside:.1f} s beside the canary")
    assert (done.state, done.digest["canary"]["verdict"], done.digest["canary"]["since"]) == (
        "finished",
        "equal",
        "0001",
    )
    assert done.digest["visits"] == [] and not any(cell["is_new"] for cell in done.digest["cells"])
    assert nights.published() == before and len(nights.computed) == len(set(nights.computed))
    assert not list(done.directory.glob("canary-store"))


def test_a_tampered_golden_is_an_alarm(nights: Nights) -> None:
    path = nights.store.root / "nightly/pico/0002/canary.json"
    record = json.loads(path.read_text())
    next(step for step in record["steps"] if step["kind"] == "merge")["files"]["model.safetensors"] = "0" * 64
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    canary = nights.night().digest["canary"]
    assert (canary["verdict"], canary["against"], canary["repeats"]) == ("changed", "0002", True)
    assert [(one["kind"], one["what"]) for one in canary["changed"]] == [("merge", "model.safetensors")]
    assert any(line.startswith("torch 1.0 → ") for line in canary["between"])


def test_a_night_makes_way_for_a_run_that_is_there(nights: Nights) -> None:
    done = nights.night(occupied=lambda: "run x of ann is active")
    assert (done.state, done.digest["reason"], nights.computed) == ("skipped", "run x of ann is active", [])
    assert done.digest["canary"]["verdict"] == "not computed"


def test_a_night_that_made_way_goes_on_the_next_one(nights: Nights) -> None:
    grown, came, halt = nights.with_cells(SIXTH), list[str](), Halt()

    def watch(step: Step, event: dict[str, Any]) -> None:
        if step.kind == "completions" and step.spec["seed"] == 6 and not came:
            came.append("bob")
            wait_until(lambda: halt.reason is not None, 60.0, "the poll comes before the next step")

    done = nights.night(watch=watch, spec=grown, halt=halt, occupied=lambda: "run y of bob is active" if came else None)
    assert (done.state, done.digest["reason"]) == ("stopped", "run y of bob is active")
    assert [(visit["cell"], visit["state"]) for visit in done.digest["visits"]] == [(SIXTH[0], "stopped")]
    assert [row["cell"] for row in done.digest["remaining"]] == [SIXTH[0]]
    before = nights.published()
    after = nights.night(spec=grown)
    assert after.state == "finished" and {visit["state"] for visit in after.digest["visits"]} == {"finished"}
    assert [cell["name"] for cell in after.digest["cells"] if cell["is_new"]] == [SIXTH[0]]
    again = set(nights.computed) & before
    assert all(nights.computed.count(identity) == 1 for identity in again), "a published step ran again"
    assert after.digest["canary"]["since"] == "0003"  # what the alarm was about is what later nights compare with


def test_what_a_budget_does_not_hold_is_left_and_said(nights: Nights) -> None:
    tokens = nights.night().digest["spent"]["completion_tokens"]  # of the canary
    poor = nights.night(spec=nights.with_cells(SEVENTH, max_completion_tokens=tokens + 100))
    assert poor.state == "finished" and poor.digest["visits"] == [] and poor.digest["canary"]["verdict"] == "equal"
    (left,) = poor.digest["remaining"]
    assert left["cell"] == SEVENTH[0] and left["fits"] is False and left["tokens"] > 100


def test_a_cell_that_fails_is_no_other_cells_failure(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(spec: Experiment, *rest: Any) -> Path:
        if spec.generation.seed == 7:
            raise CorpusError("the matched corpora are empty")
        return run_here(spec, *rest)

    monkeypatch.setattr(flows.nightly, "run", failing)
    done = nights.night(spec=nights.with_cells(SEVENTH, ("generation.seed=8",)))
    states = [(visit["cell"], visit["state"]) for visit in done.digest["visits"]]
    assert states[0] == (SEVENTH[0], "failed") and ("generation.seed=8", "finished") in states
    assert states.count((SEVENTH[0], "failed")) == 1
    assert "CorpusError: the matched corpora are empty" in done.digest["visits"][0]["message"]
    assert "1 cell failed" in done.markdown


def test_a_killed_night_goes_on_without_its_finished_cells(nights: Nights) -> None:
    with night_under_way(nights.store, "pico") as night:
        mean, ties = (
            cell for cell in json.loads((nights.store.root / "nightly/pico/0001/digest.json").read_text())["cells"]
        )
        visit = {
            "why": "w",
            "message": "",
            "run_id": None,
            "seconds": 1.0,
            "tokens": 0,
            "estimated_seconds": 1.0,
            "estimated_tokens": 0,
        }
        run_dir = nights.store.root / "runs" / mean["run_id"]
        identity_of = json.loads((run_dir / SUMMARY).read_text())["spec_identity"]
        night.visits = [
            {
                **visit,
                "cell": mean["name"],
                "key": mean["key"],
                "state": "running",
                "spec_identity": identity_of,
                "started": 0.0,
            },
            {
                **visit,
                "cell": ties["name"],
                "key": ties["key"],
                "state": "running",
                "spec_identity": "x",
                "started": 0.0,
            },
        ]
        night.spent_seconds = 600.0
        (night.directory / "canary-store").mkdir()
        night.save()
    done = nights.night()
    assert (
        done.directory == night.directory and json.loads((night.directory / NIGHT).read_text())["night"] == night.name
    )
    assert [(visit["state"], visit["run_id"]) for visit in done.digest["visits"]] == [
        ("finished", mean["run_id"]), ("killed", None),
    ]  # fmt: skip
    assert done.digest["spent"]["minutes"] > 10.0 and not (night.directory / "canary-store").exists()


def test_a_paused_night_goes_on_as_the_same_night(nights: Nights) -> None:
    spec, halt, digests = nights.with_cells(SIXTH), Halt(), set(nights.store.root.glob("nightly/pico/*/digest.json"))
    halt.request("paused", resumes=True)
    with pytest.raises(Halted, match=r"night \d{4} of pico: paused"):
        nights.night(spec=spec, halt=halt)
    assert set(nights.store.root.glob("nightly/pico/*/digest.json")) == digests and nights.computed == []
    done = nights.night(spec=spec)
    assert done.directory.name == f"{len(digests) + 1:04d}" and done.digest["canary"]["verdict"] == "equal"


def test_other_code_runs_a_cell_again_and_shows_in_the_canary(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {**identity.ALGORITHM_VERSIONS, "merge": identity.ALGORITHM_VERSIONS["merge"] + 1}
    monkeypatch.setattr(identity, "ALGORITHM_VERSIONS", versions)
    for module in ("mot_core.steps",):
        monkeypatch.setattr(f"{module}.ALGORITHM_VERSIONS", versions, raising=False)
    done = nights.night()
    assert [visit["why"] for visit in done.digest["visits"]] and all(
        visit["why"].startswith("ran with other code") and visit["state"] == "finished"
        for visit in done.digest["visits"]
    )
    assert [(cell["seeds"], cell["cause"]) for cell in done.digest["cells"]] == [
        ([1, 2], "run again with other code")
    ] * 2
    assert done.digest["canary"]["verdict"] == "equal"  # the same files under other names: no result has moved
    assert done.digest["regressions"] == [] and all(cell["moved"] == [] for cell in done.digest["cells"])


def test_nights_are_runs_of_one_experiment_in_the_tracker(nights: Nights) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{nights.store.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("nightly")
    runs = {run.data.params["night"]: run.data for run in client.search_runs([experiment.experiment_id])}
    digests = sorted(path.parent.name for path in nights.store.root.glob("nightly/pico/*/digest.json"))
    assert sorted(runs) == digests and len(digests) >= 9
    assert {night for night, run in runs.items() if run.metrics["canary/changed"]} == {"0003"}
    assert runs["0004"].tags["mot.state"] == "skipped" and runs["0006"].metrics["cells/new"] == 1.0
