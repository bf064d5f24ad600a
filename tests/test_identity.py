"""Identity: golden texts, refusals with a remedy, and independence of what changes no result."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from flows.run import outline_of
from mot_core.identity import ALGORITHM_VERSIONS, canonical_json, derive_seed, fingerprint, step_identity
from mot_core.prepare import world_of
from mot_core.steps import RUNNERS, ModelRef, RemoteStep, Step, walk
from tests.pico import pico_document, pico_experiment


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, "ü"]}, '{"a":[true,null,"\\u00fc"],"b":1}'),
        (0.1 + 0.2, "0.30000000000000004"),
        (1.0, "1.0"),
        (1, "1"),
        (5e-4, "0.0005"),
        (2e-05, "2e-05"),
        ((1, (2, 3)), "[1,[2,3]]"),
        ({}, "{}"),
    ],
)
def test_canonical_text(value: Any, text: str) -> None:
    assert canonical_json(value) == text


def test_golden_fingerprint_is_the_sha256_of_the_text() -> None:
    text = '{"a":1,"b":[2.5]}'
    assert fingerprint({"b": (2.5,), "a": 1}) == hashlib.sha256(text.encode()).hexdigest()[:32]
    assert fingerprint({"b": (2.5,), "a": 1}) == "1d97f1c6350e2d952e3db713f3d5e3b3"


def test_golden_seeds() -> None:
    assert derive_seed("branch", 1, 0) == 5183425785383098912
    assert derive_seed("branch", 1, 0) != derive_seed("branch", "1", 0) != derive_seed("branch", 10)
    assert all(0 <= derive_seed("x", number) < 2**63 for number in range(100))


@pytest.mark.parametrize(
    ("value", "phrase"),
    [
        ({"rule": len}, r"\$\.rule is a builtin_function_or_method: .*import path of the function"),
        ({"a": [1, {2}]}, r"\$\.a\[1\] is a set: .*give a number, text, list or mapping"),
        ({"a": {"b": float("nan")}}, r"\$\.a\.b is nan: not finite.*null"),
        ({"a": float("inf")}, r"\$\.a is inf: not finite"),
        ({1: 2}, r"\$ has the key 1 of type int; keys must be text"),
        (Path("/x"), r"\$ is a PosixPath: its text is not stable"),
        (b"x", r"\$ is a bytes"),
    ],
)
def test_unstable_values_are_refused_with_place_type_and_remedy(value: Any, phrase: str) -> None:
    with pytest.raises(TypeError, match=phrase):
        canonical_json(value)


def test_every_kind_has_a_version_and_a_runner() -> None:
    assert set(RUNNERS) == set(ALGORITHM_VERSIONS)
    with pytest.raises(KeyError, match="step kind 'polish' has no algorithm version"):
        step_identity("polish", {}, [])


def test_identity_is_of_kind_version_spec_and_parents_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Step("problems", {"seed": 1, "num_problems": 2})
    step = Step(
        "completions", {"a": 1, "b": 2}, (("problems", parent),), label="one", facts={"x": 1}, locators={"p": "/a"}
    )
    same = Step("completions", {"b": 2, "a": 1}, (("problems", parent),), label="two", facts={}, locators={"p": "/b"})
    assert step.identity == same.identity == "f937a855c1ccb7e3cb2e1216c6f80a2c"
    others = [
        Step("verdicts", {"a": 1, "b": 2}, (("problems", parent),)),
        Step("completions", {"a": 1, "b": 3}, (("problems", parent),)),
        Step("completions", {"a": 1, "b": 2}),
        Step("completions", {"a": 1, "b": 2}, (("source", parent),)),
        Step("completions", {"a": 1, "b": 2}, (("problems", Step("problems", {"seed": 2, "num_problems": 2})),)),
    ]
    assert len({step.identity, *(other.identity for other in others)}) == 6
    monkeypatch.setitem(ALGORITHM_VERSIONS, "completions", 99)
    assert Step("completions", {"a": 1, "b": 2}, (("problems", parent),)).identity != step.identity


def test_a_step_survives_the_way_to_a_worker() -> None:
    parent = Step("problems", {"seed": 1})
    step = Step("verdicts", {"grader": "family"}, (("problems", parent),), label="v", facts={"teacher": "t"})
    remote = RemoteStep.from_json(step.to_json())
    assert (remote.identity, remote.label, remote.parent_identities()) == (step.identity, "v", step.parent_identities())
    with pytest.raises(AssertionError, match="identity changed on its way"):
        RemoteStep.from_json({**step.to_json(), "spec": {"grader": "text"}})


def test_walk_yields_parents_first_and_each_once() -> None:
    root = Step("problems", {"seed": 1})
    left, right = (Step("completions", {"n": n}, (("problems", root),)) for n in (1, 2))
    top = Step("corpora", {}, (("verdicts/a", left), ("verdicts/b", right)))
    order = [step.identity for step in walk([top, left, root])]
    assert order == [root.identity, left.identity, right.identity, top.identity]


def identities(models: Path, **changes: Any) -> dict[str, set[str]]:
    """Identities by kind of an experiment over the pico models."""
    spec = pico_experiment(models, **changes)
    by_kind: dict[str, set[str]] = {}
    for step in outline_of(spec, world_of(spec))[1]:
        by_kind.setdefault(step.kind, set()).add(step.identity)
    return by_kind


def test_names_descriptions_paths_and_order_of_keys_change_no_step(pico_models: Path, tmp_path: Path) -> None:
    import shutil

    before = identities(pico_models)
    moved = tmp_path / "elsewhere"
    shutil.copytree(pico_models, moved)
    assert identities(moved, name="other", description="words", keep="last") == before
    assert pico_experiment(moved, keep="last").identity == pico_experiment(moved).identity
    document = pico_document(pico_models)
    assert identities(pico_models, **{key: document[key] for key in reversed(document)}) == before


def test_a_downstream_field_leaves_everything_upstream_alone(pico_models: Path) -> None:
    before = identities(pico_models)
    longer = identities(pico_models, steps_per_round=5)
    same = ("problems", "completions", "verdicts", "corpora", "shuffled-corpora")
    assert {kind: before[kind] == longer[kind] for kind in same} == dict.fromkeys(same, True)
    assert not before["branch"] & longer["branch"] and not before["merge"] & longer["merge"]
    # The untrained student is evaluated as before, and nobody else.
    assert 0 < len(before["evaluation"] & longer["evaluation"]) < len(before["evaluation"])

    evaluation = pico_document(pico_models)["evaluation"]
    evaluation["path"] = {**evaluation["path"], "k": 2}
    asked_more = identities(pico_models, evaluation=evaluation)
    changed = {kind for kind in before if before[kind] != asked_more[kind]}
    assert changed == {"evaluation"}

    reseeded = identities(pico_models, training_seeds=[2])
    assert {kind for kind in before if before[kind] != reseeded[kind]} == {
        "shuffled-corpora",
        "branch",
        "merge",
        "evaluation",
    }

    generation = {**pico_document(pico_models)["generation"], "seed": 2}
    resampled = identities(pico_models, generation=generation)
    kept = {kind for kind in before if before[kind] == resampled[kind]}
    assert kept == {"problems", "overlap"}


def test_another_benchmark_trains_nothing_again(pico_models: Path) -> None:
    before = identities(pico_models)
    evaluation = pico_document(pico_models)["evaluation"]
    more = {"name": "sorting", "role": "panel", "families": ["sort"], "num_problems": 4, "seed": 1, "k": 1}
    grown = identities(pico_models, evaluation={**evaluation, "benchmarks": [*evaluation["benchmarks"], more]})
    assert {kind for kind in before if before[kind] != grown[kind]} == {"problems", "overlap", "evaluation"}
    assert before["evaluation"] < grown["evaluation"]


def test_std_and_merge_once_share_their_branches(pico_models: Path) -> None:
    without_snapshots = pico_document(pico_models)["evaluation"]
    without_snapshots["path"] = {**without_snapshots["path"], "rounds": "last"}
    both = identities(pico_models, evaluation=without_snapshots, methods=[{"name": "std"}, {"name": "merge_once"}])
    std = identities(pico_models, evaluation=without_snapshots, methods=[{"name": "std"}])
    assert both["branch"] == std["branch"] and len(std["branch"]) == 2


def test_renaming_a_teacher_leaves_its_rationales(pico_models: Path) -> None:
    document = pico_document(pico_models)
    renamed = [{**teacher, "name": f"{teacher['name']}-2"} for teacher in document["teachers"]]
    assert identities(pico_models, teachers=renamed)["completions"] == identities(pico_models)["completions"]


def test_a_models_content_is_its_identity(pico_models: Path, tmp_path: Path) -> None:
    import shutil

    from mot_core.spec import Student
    from mot_core.world import model_ref

    copy = Path(shutil.copytree(pico_models / "student", tmp_path / "copy"))
    ref = model_ref(Student(name="s", model=str(pico_models / "student")), "student")
    assert isinstance(ref, ModelRef)
    assert model_ref(Student(name="s", model=str(copy)), "student").identity == ref.identity
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    (other / "chat_template.jinja").write_text((copy / "chat_template.jinja").read_text() + " ")
    assert model_ref(Student(name="s", model=str(other)), "student").identity != ref.identity
