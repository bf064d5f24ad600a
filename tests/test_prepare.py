"""What is looked at before the graph: overlap with benchmarks, drawn without writing where only a plan is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.run import outline_of
from mot_core.artifacts import Store
from mot_core.errors import CorpusError
from mot_core.prepare import prepare, world_of
from mot_core.spec import Experiment
from mot_core.world import resolve
from tests.pico import pico_document


def contaminated(models: Path, tmp_path: Path, **corpus: Any) -> Experiment:
    """Two of six training problems are benchmark problems too, one on dev and one on test."""
    train = ["1+1", "2+2", "3+3", "4+4", "5+5", "6+6"]
    held = {"dev": ["2+2", "7+7"], "test": ["9+9", "5 + 5"]}
    rows = [{"question": question, "answer": "1", "split": "train"} for question in train]
    rows += [{"question": q, "answer": "1", "split": split} for split, questions in held.items() for q in questions]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = pico_document(models)
    source = {"file": str(tmp_path / "problems.jsonl")}
    document["problems"] = source
    document["evaluation"]["benchmarks"] = [{"name": "sums", "grader": "integer", "k": 1, **source, "num_problems": 2}]
    document["evaluation"]["path"]["num_problems"] = 2
    document["corpus"] = {**document["corpus"], "grader": "integer", **corpus}
    return Experiment.model_validate(document)


def test_held_problems_leave_the_graph_and_nothing_is_written_for_a_plan(pico_models: Path, tmp_path: Path) -> None:
    spec = contaminated(pico_models, tmp_path)
    store = Store(tmp_path / "store").open()
    before = sorted(store.root.rglob("*"))
    planned = world_of(spec, store)
    assert planned.removed is not None and len(planned.removed) == 2
    assert sorted(store.root.rglob("*")) == before
    done, records = prepare(spec, resolve(spec), store, publish=True)
    assert done == planned
    assert [record.kind for record in records] == ["problems", "problems", "problems", "overlap"]
    assert prepare(spec, resolve(spec), store, publish=True) == (planned, [])
    problems = outline_of(spec, planned)[0].problems
    assert (problems.kind, problems.spec["removed"]) == ("training-problems", sorted(planned.removed))


def test_a_plan_uses_what_is_drawn_already(pico_models: Path, tmp_path: Path) -> None:
    spec = contaminated(pico_models, tmp_path)
    store = Store(tmp_path / "store").open()
    world, _ = prepare(spec, resolve(spec), store, publish=True)
    longer = spec.model_copy(update={"corpus": spec.corpus.model_copy(update={
        "decontamination": spec.corpus.decontamination.model_copy(update={"ngram": 5})})})  # fmt: skip
    before = sorted(store.root.rglob("*"))
    assert world_of(longer, store).removed == world.removed
    assert sorted(store.root.rglob("*")) == before


def test_a_hit_can_stop_everything_before_it_starts(pico_models: Path, tmp_path: Path) -> None:
    spec = contaminated(pico_models, tmp_path, decontamination={"on_hit": "stop"})
    with pytest.raises(CorpusError, match="2 of 6 training problems are in a benchmark of the spec"):
        world_of(spec)


def test_without_a_hit_the_drawn_problems_are_the_training_problems(pico_spec: Experiment) -> None:
    world = world_of(pico_spec)
    assert world.removed == ()
    assert outline_of(pico_spec, world)[0].problems.kind == "problems"
