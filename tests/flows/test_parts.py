"""Parts of an experiment by themselves: the same steps as in the whole, and a run in the tracker for a model's scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.deployed.parameters import EvaluateParameters, evaluation_of
from flows.parts import evaluate_model, verify_rationales
from flows.run import RunOptions, run
from mot_core.artifacts import Store
from mot_core.spec import Experiment
from tasks.tracking import tracker, tracking_uri
from tests.pico import pico_document


@pytest.mark.slow
def test_parts_publish_what_the_whole_takes_up_and_scores_are_tracked(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec = Experiment.model_validate({**pico_document(pico_models), "methods": [{"name": "base"}]})
    options = RunOptions(tmp_path / "store", workers=1)
    rationales = verify_rationales(spec, options)
    assert [row["teacher"] for row in rationales] == [teacher.name for teacher in spec.teachers]
    assert all(row["correct"] > 0 for row in rationales), rationales
    scores = evaluate_model(spec, options)
    [test] = [
        row for row in scores if row["split"] == "test" and row["benchmark"] == spec.evaluation.benchmarks[0].name
    ]

    store = Store(options.store)
    with tracker(tracking_uri(store)) as client:
        experiment = client.get_experiment_by_name("evaluations")
        [logged] = client.search_runs([experiment.experiment_id])
        metrics, params = dict(logged.data.metrics), dict(logged.data.params)
        datasets = {one.dataset.name for one in logged.inputs.dataset_inputs}
    name = f"test/{test['benchmark']}/avg_at_{test['k']}"
    assert metrics[name] == test["avg_at_k"]
    assert params["model"] == spec.student.model and params["preset"] == spec.name
    assert f"benchmark/{test['benchmark']}/test" in datasets

    evaluate_model(spec, options)  # again: nothing runs, and nothing is logged twice
    with tracker(tracking_uri(store)) as client:
        assert len(client.search_runs([experiment.experiment_id])) == 1

    published = {manifest.identity for manifest in store.manifests()}
    run_dir = run(spec, options)
    steps = json.loads((run_dir / "index.json").read_text())["steps"]
    states = {step["identity"]: step["state"] for step in steps}
    assert {states[identity] for identity in published & set(states)} == {"reused"}
    of_kind: dict[str, set[Any]] = {}
    for step in steps:
        of_kind.setdefault(step["kind"], set()).add(step["state"])
    assert of_kind["evaluation"] == of_kind["verdicts"] == {"reused"}


def test_a_model_is_asked_benchmarks_that_have_no_dev_split_while_training_needs_one() -> None:
    asked = evaluation_of(EvaluateParameters(model="lab:student-small", preset="smoke", benchmarks=["math-500"]))
    assert [one.name for one in asked.evaluation.benchmarks] == ["math-500"]
    document = asked.model_dump(mode="json", exclude_none=True)
    document["methods"] = [{"name": "base"}, {"name": "std"}]
    with pytest.raises(ValueError, match="none of role 'home'"):
        Experiment.model_validate(document)
