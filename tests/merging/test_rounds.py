"""Merge steps of an experiment: schedules, state from round to round, weights by accuracy, barrier, ranks, card."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mot_core.artifacts import Published, Store
from mot_core.corpus.tables import write_corpus
from mot_core.dag import StudentAt, merge_step
from mot_core.errors import MergeError
from mot_core.files import write_jsonl
from mot_core.merging.barrier import Losses, barrier_of
from mot_core.merging.plan import inspect
from mot_core.merging.rank import effective_rank
from mot_core.spec import Experiment, Merge
from mot_core.steps import ModelRef, Step
from tests.contexts import publish, run
from tests.pico import example_row, pico_experiment

KEY = "model.layers.1.mlp.up_proj.weight"


def branches_in(store: Store, models: Path) -> dict[str, Step]:
    def copied(name: str) -> Step:
        return publish(
            store, Step("branch", {"of": name}), lambda to: shutil.copytree(models / name, to, dirs_exist_ok=True)
        )

    return {name: copied(name) for name in ("ann", "bob")}


def student(models: Path) -> StudentAt:
    return StudentAt(ModelRef("start", str(models / "student")))


def spec_with(models: Path, **merge: Any) -> Experiment:
    return pico_experiment(models, merge=merge)


def compute(store: Store, step: Step) -> Published:
    return run(store, step.kind, step.spec, step.parents, step.locators)


def step_of(store: Store, models: Path, spec: Experiment, **given: Any) -> Step:
    return merge_step(spec, student(models), branches_in(store, models), label="m", facts={}, **given)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def test_a_plain_merge_says_what_it_said_before(store: Store, pico_models: Path) -> None:
    step = step_of(store, pico_models, pico_experiment(pico_models), round_index=3, seed=5)
    assert step.spec == {"student": "start", "rule": "mean", "weights": [0.5, 0.5]}
    assert {role for role, _ in step.parents} == {"branch/ann", "branch/bob"}


def test_schedules_give_each_round_its_values(store: Store, pico_models: Path) -> None:
    spec = spec_with(
        pico_models,
        rule="ties",
        weights={"ann": [1.0, 0.5], "bob": 0.25},
        parameters={"density": [0.1, 0.2], "scale": 2.0},
    )
    weights_by_name = []
    for round_index in (1, 2, 3):
        step = step_of(store, pico_models, spec, round_index=round_index)
        names = [role.removeprefix("branch/") for role, _ in step.parents]
        weights_by_name.append(dict(zip(names, step.spec["weights"], strict=True)))
        assert step.spec["parameters"] == {"density": (0.1, 0.2, 0.2)[round_index - 1], "scale": 2.0}
    assert weights_by_name == [{"ann": 1.0, "bob": 0.25}, {"ann": 0.5, "bob": 0.25}, {"ann": 0.5, "bob": 0.25}]


def test_a_schedule_that_does_not_sum_in_some_round_is_refused() -> None:
    Merge(rule="weighted_mean", weights={"ann": (0.5, 0.2), "bob": (0.5, 0.8)})
    with pytest.raises(ValueError, match=r"weights must sum to 1, got 0\.7 from \{'ann': 0\.2, 'bob': 0\.5\}"):
        Merge(rule="weighted_mean", weights={"ann": (0.5, 0.2), "bob": 0.5})
    with pytest.raises(ValueError, match=r"parameters of merge rule 'ties': density: .*less than or equal to 1"):
        Merge(rule="ties", parameters={"density": (0.5, 1.5)})


def test_the_seed_is_of_rules_that_draw(store: Store, pico_models: Path) -> None:
    dare = spec_with(pico_models, rule="dare")
    seeds = [
        step_of(store, pico_models, dare, round_index=r, seed=s).spec["seed"]
        for r, s in ((1, 1), (1, 1), (2, 1), (1, 2))
    ]
    assert seeds[0] == seeds[1] and len(set(seeds)) == 3
    assert "seed" not in step_of(store, pico_models, spec_with(pico_models, rule="ties"), seed=4).spec


def test_momentum_is_carried_from_round_to_round(store: Store, pico_models: Path) -> None:
    spec = spec_with(pico_models, rule="outer", parameters={"learning_rate": 1.0, "momentum": 0.5, "nesterov": False})
    first = step_of(store, pico_models, spec)
    compute(store, first)
    second = step_of(store, pico_models, spec, previous=first)
    assert ("previous", first) in second.parents
    one, two = store.object_dir(first.identity), compute(store, second).path
    start, ann, bob = (
        load_file(pico_models / n / "model.safetensors")[KEY].double() for n in ("student", "ann", "bob")
    )
    update = (ann + bob) / 2 - start
    torch.testing.assert_close(load_file(one / "model.safetensors")[KEY].double(), start + update, rtol=1e-6, atol=1e-8)
    # The same start and branches again: v = ½ Δ + Δ.
    moved = load_file(two / "model.safetensors")[KEY].double()
    torch.testing.assert_close(moved, start + 1.5 * update, rtol=1e-6, atol=1e-7)


def test_a_rule_without_state_takes_no_previous(store: Store, pico_models: Path) -> None:
    first = step_of(store, pico_models, pico_experiment(pico_models))
    assert step_of(store, pico_models, pico_experiment(pico_models), previous=first).identity == first.identity


def verdicts(store: Store, name: str, marks: list[str]) -> Step:
    rows = [{"verdict": mark} for mark in marks]
    return publish(store, Step("verdicts", {"of": name}), lambda to: write_jsonl(to / "verdicts.jsonl", rows))


def test_weights_follow_the_teachers_accuracy(store: Store, pico_models: Path) -> None:
    spec = spec_with(pico_models, rule="weighted_mean", weights_by="teacher_accuracy")
    qualities = {
        "ann": verdicts(store, "ann", ["correct", "correct", "correct", "truncated"]),
        "bob": verdicts(store, "bob", ["correct", "incorrect", "incorrect", "incorrect"]),
    }
    step = step_of(store, pico_models, spec, qualities=qualities)
    assert step.spec["weights"] == "teacher_accuracy"
    made = compute(store, step)
    ann, bob = (load_file(pico_models / n / "model.safetensors")[KEY].double() for n in ("ann", "bob"))
    expected = (0.75 * ann + 0.25 * bob).float()
    torch.testing.assert_close(load_file(made.path / "model.safetensors")[KEY], expected, rtol=2**-23, atol=0)
    assert "| 0.75 |" in (made.path / "README.md").read_text()


def test_teachers_that_are_never_right_have_no_weights(store: Store, pico_models: Path) -> None:
    spec = spec_with(pico_models, rule="weighted_mean", weights_by="teacher_accuracy")
    qualities = {name: verdicts(store, name, ["incorrect"]) for name in ("ann", "bob")}
    with pytest.raises(MergeError, match="weights by teacher_accuracy: no teacher of .* was ever right"):
        compute(store, step_of(store, pico_models, spec, qualities=qualities))


def test_methods_pass_on_what_rules_need(pico_models: Path) -> None:
    from mot_core.methods.base import Setting
    from mot_core.methods.merged import merge_once, mot, shuffled
    from mot_core.world import World

    spec = spec_with(pico_models, rule="outer", weights_by="teacher_accuracy", barrier={"num_examples": 2})
    given = {f"verdicts/{name}": Step("verdicts", {"of": name}) for name in ("ann", "bob")}
    corpora = Step("corpora", {}, tuple(given.items()))
    world = World(ModelRef("s", str(pico_models / "student")), "tokenizer", {}, {}, ())
    setting = Setting("mot", spec, world, corpora, "matched_path", 1, 1e-3)
    for method in (mot, shuffled, merge_once):
        (path,) = method(setting, lambda *steps: None)
        for place, (round_index, merge) in enumerate(path.merges):
            parents = dict(merge.parents)
            assert merge.facts["round"] == round_index
            assert parents["quality/ann"] is given["verdicts/ann"] and "corpora" in parents
            assert parents.get("previous") is (path.merges[place - 1][1] if place else None)
            assert merge.spec["barrier"]["corpora"] == (["part-1", "part-2"] if method is shuffled else ["ann", "bob"])


def corpora_in(store: Store) -> Step:
    def write(to: Path) -> None:
        for name, style in (("ann", "running-total"), ("bob", "tens-and-ones")):
            rows = [example_row(question, name, style) for question in ("12+34", "56+7", "8+9")]
            write_corpus(to / f"{name}.parquet", rows)

    return publish(store, Step("corpora", {"of": "pico"}), write)


def test_the_barrier_is_measured_where_it_is_asked_for(
    store: Store, pico_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points: list[int] = []
    measured = Losses.at
    monkeypatch.setattr(Losses, "at", lambda self, *point: points.append(len(point)) or measured(self, *point))
    spec = spec_with(pico_models, barrier={"num_examples": 2, "num_points": 3})
    step = step_of(store, pico_models, spec, corpora=corpora_in(store), corpus_names=["ann", "bob"])
    made = compute(store, step)
    rows = json.loads((made.path / "diagnostics.json").read_text())["barrier"]
    ends = {(row["from"], row["to"]) for row in rows}
    assert ends == {("start", "ann"), ("start", "bob"), ("ann", "merged"), ("bob", "merged"), ("start", "merged")}
    losses = {(row["from"], row["to"]): row["losses"] for row in rows}
    assert losses["start", "ann"][0] == losses["start", "merged"][0] == losses["start", "bob"][0]
    assert losses["ann", "merged"][0] == losses["start", "ann"][-1]
    assert losses["ann", "merged"][-1] == losses["start", "merged"][-1] == losses["bob", "merged"][-1]
    assert points == [1, 1, 1, 1, 2, 2, 2, 2, 2], "each model once, then the middle of each line"
    assert made.counts["barrier"] == max(row["barrier"] for row in rows)


def test_loss_along_a_line_is_the_models_own_at_its_ends(store: Store, pico_models: Path) -> None:
    from mot_core.models import load_model, load_tokenizer
    from mot_core.sft.tokens import tokenize

    tokenizer = load_tokenizer(str(pico_models / "ann"))
    example = tokenize(tokenizer, example_row("12+34"))
    ends = [inspect(name, pico_models / name) for name in ("ann", "bob")]
    losses = Losses(load_model(str(pico_models / "student"), None, "cpu"), [example])
    found = [losses.at((1.0, end)) for end in ends]
    assert losses.at((0.5, ends[0]), (0.5, ends[0])) == found[0]
    for name, loss in zip(("ann", "bob"), found, strict=True):
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[0, : example.prompt_length] = -100
        with torch.no_grad():
            model = load_model(str(pico_models / name), None, "cpu")
            assert loss == pytest.approx(float(model(input_ids=ids, labels=labels).loss), rel=1e-5)


@pytest.mark.parametrize(
    ("losses", "barrier"), [([1.0, 2.0, 3.0], 0.0), ([1.0, 4.0, 3.0], 2.0), ([3.0, 1.0, 1.0], 0.0), ([0.0, 1.0, 0.0, 0.0], 1.0)]
)  # fmt: skip
def test_a_barrier_is_the_rise_above_the_straight_line(losses: list[float], barrier: float) -> None:
    assert barrier_of(losses) == pytest.approx(barrier)


def test_effective_rank_by_hand() -> None:
    assert effective_rank(torch.eye(4, dtype=torch.float64)) == pytest.approx(4.0)
    assert effective_rank(torch.ones(5, 7, dtype=torch.float64)) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(3, 3, dtype=torch.float64)) == 0.0
    shares = (3 / 4, 1 / 4)
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))) == pytest.approx(expected)


def test_a_step_has_ranks_and_a_card(store: Store, pico_models: Path) -> None:
    made = compute(store, step_of(store, pico_models, pico_experiment(pico_models)))
    rows = json.loads((made.path / "diagnostics.json").read_text())["effective_rank"]
    assert {row["branch"] for row in rows} == {"ann", "bob", "merged"}
    keys = {row["key"] for row in rows}
    assert len(keys) == 8 and all("layers" in key for key in keys)
    # Independent noise: a mean of two such updates has as many directions as each of them.
    assert all(0.5 * row["num_rows"] / 2 < row["effective_rank"] <= row["num_rows"] for row in rows)
    card = (made.path / "README.md").read_text()
    identities = dict(store.manifest(made.identity).parents)  # type: ignore[union-attr]
    assert f"| ann | `{identities['branch/ann']}` | 0.5 |" in card and "Start: `start`." in card
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["merge", "mot"]


def test_a_merged_student_gives_the_mean_models_logits(store: Store, pico_models: Path) -> None:
    from mot_core.models import load_model

    made = compute(store, step_of(store, pico_models, pico_experiment(pico_models)))
    merged, by_hand = (load_model(str(path), None, "cpu") for path in (made.path, pico_models / "ann"))
    other = load_model(str(pico_models / "bob"), None, "cpu")
    with torch.no_grad():
        for ours, theirs in zip(by_hand.parameters(), other.parameters(), strict=True):
            ours.copy_(((ours.double() + theirs.double()) / 2).float())
        ids = torch.arange(5, 25)[None]
        assert torch.equal(merged(ids).logits, by_hand(ids).logits)
