"""The methods opd and mot_opd: which steps they are made of, what they cost, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.experiment import Outline
from flows.run import outline_of
from mot_core.artifacts import Store
from mot_core.errors import ModelError, SpecError
from mot_core.fitting import Fitting, Models
from mot_core.lab import lab_model_path
from mot_core.methods.on_policy import matched_steps
from mot_core.node_planning import imagined_world, plan_for_node
from mot_core.nodes import Assumptions, Node
from mot_core.planning import PROMPT_TOKENS, Costs
from mot_core.spec import Experiment
from mot_core.spec_files import load_spec
from mot_core.steps import Step
from mot_core.tables import _Reader
from mot_core.workers.slots import devices_needed
from mot_core.world import World, resolve
from tasks.invocation import PRIORITY

STUDENT = 801_152  # parameters of student-small and of each teacher


def spec_with(*methods: str, preset: str = "lab", **more: Any) -> Experiment:
    changes = {"training_seeds": "[1]", "evaluation.path.methods": "null", **more}
    return load_spec(preset, [f"methods=[{', '.join(methods)}]", *(f"{key}={value}" for key, value in changes.items())])


def outlined(spec: Experiment) -> tuple[Outline, list[Step], World]:
    world = World(**{**vars(resolve(spec)), "removed": ()})
    return *outline_of(spec, world), world


def on_policy(spec: Experiment) -> list[Step]:
    return [step for step in outlined(spec)[1] if step.kind == "on-policy"]


def test_opd_is_one_step_from_the_untrained_student_on_the_training_problems() -> None:
    spec = spec_with("{name: opd, learning_rate: 0.0003}", "{name: std}")
    outline, steps, world = outlined(spec)
    (step,) = [step for step in steps if step.kind == "on-policy"]
    assert step.spec["student"] == world.student.identity
    assert step.parents == (("problems", outline.problems),)
    assert step.spec["num_steps"] == 40 and step.spec["training"]["learning_rate"] == 0.0003
    assert step.spec["teachers"] == sorted(world.models[teacher.name].identity for teacher in spec.teachers)
    assert step.spec["on_policy"] == {"beta": 1.0, "target": "mean", "temperature": 1.0, "max_completion_tokens": 96}
    assert devices_needed(step) == 1


def test_opd_is_followed_round_by_round_as_one_branch_is() -> None:
    along = {"evaluation.path.methods": "[opd, std]"}
    outline, _, _ = outlined(spec_with("{name: opd}", "{name: std}", **along))
    seen: dict[str, list[tuple[float, int, bool]]] = {}
    for student in outline.students:
        told = (student.round_index, student.path.path_steps[student.round_index], student.is_final)
        seen.setdefault(student.path.label, []).append(told)
    expected = [(1, 8, False), (2, 16, False), (3, 24, False), (4, 32, False), (5, 40, True)]
    assert seen["opd"] == expected == seen["std/running-total"]
    (step,) = on_policy(spec_with("{name: opd}", "{name: std}", **{"evaluation.path.methods": "[std]"}))
    assert step.spec["snapshot_steps"] == []


def test_mot_opd_goes_on_from_mots_own_last_student() -> None:
    spec = spec_with(
        "{name: mot, learning_rate: 0.0002, training: {weight_decay: 0.1}}", "{name: mot_opd, learning_rate: 0.001}"
    )
    outline, steps, _ = outlined(spec)
    branches = [step for step in steps if step.kind == "branch"]
    assert len(branches) == 15, "its rounds are mot's: nothing is trained twice"
    trained = {(step.spec["training"]["learning_rate"], step.spec["training"]["weight_decay"]) for step in branches}
    assert trained == {(0.0002, 0.1)}
    finals = {student.path.label: student for student in outline.students if student.is_final}
    mot, own = finals["mot"], finals["mot_opd"]
    step = own.student.source
    assert isinstance(step, Step) and step.kind == "on-policy" and step.parent("student") is not None
    assert isinstance(mot.student.source, Step)
    assert step.parent("student").identity == mot.student.source.identity
    assert (step.spec["training"]["learning_rate"], step.spec["first_step"], step.spec["num_steps"]) == (0.001, 40, 40)
    assert own.round_index == 6 and own.path.path_steps[6] == 80
    assert [branch.identity for branch in own.path.branches] == [
        *(branch.identity for branch in mot.path.branches), step.identity,
    ]  # fmt: skip


def test_mot_opd_without_mot_trains_its_rounds_at_the_experiments_rate() -> None:
    _, steps, _ = outlined(spec_with("{name: mot_opd, learning_rate: 0.001}"))
    rates = {step.kind: step.spec["training"]["learning_rate"] for step in steps if "training" in step.spec}
    assert rates == {"branch": 0.0005, "on-policy": 0.001}


def test_a_variant_with_some_of_the_teachers_has_them_in_both_parts() -> None:
    two = "[running-total, tens-and-ones]"
    spec = spec_with("{name: mot}", f"{{name: of-two, variant_of: mot_opd, teachers: {two}}}")
    outline, steps, world = outlined(spec)
    (step,) = [step for step in steps if step.kind == "on-policy"]
    assert step.spec["teachers"] == sorted(world.models[name].identity for name in ("running-total", "tens-and-ones"))
    paths = {student.path.label: student.path for student in outline.students if student.is_final}
    assert len(paths["mot"].branches) == 15 and len(paths["of-two"].branches) == 11


def test_matched_compute_counts_sampling_training_and_reading() -> None:
    # A step of fine-tuning 6 P N; on-policy 2 P N + 6 P N + 2 P N a teacher: 6 · 3 · 40 / (8 + 2 · 3) = 51.4…
    assert matched_steps(40, 3, STUDENT, [STUDENT] * 3) == 52
    # One teacher of three: MoT's cost is still that of its three branches.
    assert matched_steps(40, 3, STUDENT, [STUDENT]) == 72
    assert matched_steps(40, 1, 1, [1]) == 24 and matched_steps(40, 2, 1, [1, 1]) == 40
    assert matched_steps(250, 2, 10, [100, 200]) == -(-6 * 10 * 2 * 250 // (80 + 600)) == 45
    (step,) = on_policy(spec_with("{name: opd}", budgets="[matched_compute]"))
    assert step.spec["num_steps"] == 52 and step.spec["snapshot_steps"] == []
    final = outlined(spec_with("{name: opd}", budgets="[matched_compute]"))[0].students[-1]
    assert final.is_final and final.path.path_steps[final.round_index] == 52


def test_the_plan_counts_flops_and_memory() -> None:
    spec = spec_with("{name: opd}")
    _, steps, world = outlined(spec)
    (step,) = [step for step in steps if step.kind == "on-policy"]
    tokens, flops, memory, disk, seconds = Costs(spec, world, []).of(step)
    assert tokens == int(40 * 32 * (PROMPT_TOKENS + 0.6 * 96))
    assert flops == pytest.approx((8 + 2 * 3) * STUDENT * tokens)
    # Weights, gradients and two moments of the student, three teachers, and what a pass needs.
    assert memory > 4 * STUDENT * (4 + 3) and disk == 4 * STUDENT * (1 + len(step.spec["snapshot_steps"]))
    assert seconds > 0
    each = spec_with("{name: opd}", on_policy="{target: each}")
    (other,) = on_policy(each)
    assert Costs(each, world, []).of(other)[2] > memory


def test_the_plan_for_a_node_counts_it_too() -> None:
    spec = spec_with("{name: opd}")
    _, steps = outline_of(spec, imagined_world(spec))
    plan = plan_for_node(spec, steps, Node.parse("1xL4"), PRIORITY, ask_hub=False)
    (one,) = [one for one in plan.steps if one.step.kind == "on-policy"]
    length = plan.assume.prompt_tokens + plan.assume.share_of_limit * 96
    assert one.tokens == pytest.approx(40 * 32 * length) and one.devices == 1
    # Beyond the matrices there is attention.
    assert (8 + 2 * 3) * STUDENT * one.tokens < one.flops < 1.5 * (8 + 2 * 3) * STUDENT * one.tokens
    # No decoding loop is faster than the assumed seconds a token.
    assert one.seconds is not None and one.seconds > 40 * 96 * plan.assume.step_seconds
    assert plan.needs["on-policy"].parts["teachers"] == pytest.approx(3 * 4 * STUDENT)
    alone = spec_with(
        *(f"{{name: opd-{name}, variant_of: opd, teachers: [{name}]}}" for name in ("running-total", "tens-and-ones"))
    )
    needs = Fitting(alone, Node.parse("1xL4"), Assumptions(), Models(ask_hub=False)).needs
    assert needs["on-policy"].parts["teachers"] == pytest.approx(4 * STUDENT)  # one teacher is there at a time
    without = spec_with("{name: std}")
    assert "on-policy" not in Fitting(without, Node.parse("1xL4"), Assumptions(), Models(ask_hub=False)).needs


def test_only_what_changes_the_result_is_in_its_identity() -> None:
    spec = spec_with("{name: opd}")
    (step,) = on_policy(spec)

    def identity_with(**more: Any) -> str:
        (other,) = on_policy(spec_with("{name: opd}", **more))
        return other.identity

    assert identity_with(training="{max_example_tokens: 100, layout: packed, micro_batch_tokens: 900}") == step.identity
    renamed = spec.model_copy(update={"teachers": tuple(reversed(spec.teachers))})
    assert on_policy(renamed)[0].identity == step.identity
    for change in ("{beta: 0.5}", "{target: each}", "{temperature: 0.9}", "{max_completion_tokens: 90}"):
        assert identity_with(on_policy=change) != step.identity
    assert identity_with(training_seeds="[2]") != step.identity


def test_the_settings_of_on_policy_leave_every_other_step_alone() -> None:
    methods = ("{name: base}", "{name: std}", "{name: mot}")
    before, after = (
        {step.identity for step in outlined(spec_with(*methods, **more))[1]}
        for more in ({}, {"on_policy": "{beta: 0.5, max_completion_tokens: 7}"})
    )
    assert before == after


ROWS = "{name: rows, model: rows, completer: corpus, rationales: {hub: own/rows}}"
SERVER = "{name: server, model: m, completer: openai, endpoint: {base_url: 'http://127.0.0.1:9/v1'}}"
OWN = "{name: own, model: 'lab:running-total', completer: 'tests.pico:Scripted'}"
TOLD = "{name: told, model: 'lab:running-total', system: Be brief.}"


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        (
            SERVER,
            "teachers.server: on-policy distillation needs its probability of every token, but it is behind an endpoint",
        ),
        (ROWS, "teachers.rows: .*but it is rows of text; expected completer transformers or vllm; leave the methods"),
        (OWN, "teachers.own: .*has a completer of its own, tests.pico:Scripted"),
        (TOLD, "teachers.told.system: .*shows a teacher the student's own prompt"),
    ],
)
def test_teachers_without_distributions_are_refused_by_name(teacher: str, told: str) -> None:
    spec = spec_with("{name: opd}", teachers=f"[{{name: ann, model: 'lab:running-total'}}, {teacher}]")
    with pytest.raises(SpecError, match=told):
        resolve(spec)
    resolve(spec_with("{name: std}", teachers=f"[{{name: ann, model: 'lab:running-total'}}, {teacher}]"))
    resolve(
        spec_with("{name: opd, teachers: [ann]}", teachers=f"[{{name: ann, model: 'lab:running-total'}}, {teacher}]")
    )


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_runs(tmp_path: Path) -> None:
    other = Path(shutil.copytree(lab_model_path("running-total"), tmp_path / "other"))
    document = json.loads((other / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (other / "tokenizer.json").write_text(json.dumps(document))
    spec = spec_with("{name: mot_opd}", teachers=f"[{{name: swapped, model: '{other}'}}]")
    with pytest.raises(
        ModelError, match="teachers.swapped: its tokenizer is not the student's: 2 tokens differ, such as '1'"
    ):
        resolve(spec)


@pytest.mark.parametrize(
    ("method", "training", "told"),
    [
        ("{name: opd}", "{early_stop: {patience: 3}}", "methods.opd: .*set it in the method's own training: training: {early_stop: null}"),
        ("{name: opd}", "{devices: 2}", "training.devices is 2; .*training: {devices: 1}"),
        ("{name: mot_opd, training: {weight_decay: 0.1}}", "{}", "methods.mot_opd: its MoT part is method mot's"),
    ],
)  # fmt: skip
def test_training_that_does_not_go_with_it_is_refused(method: str, training: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        resolve(spec_with(method, training=training))


def test_the_remedy_of_a_refusal_helps() -> None:
    resolve(spec_with("{name: opd, training: {early_stop: null, devices: 1}}", training="{devices: 2}"))


def test_the_cost_table_counts_sampling_and_the_teachers_reading(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()

    def made(kind: str, counts: dict[str, Any]) -> str:
        return store.obtain(Step(kind, {"of": "test"}), lambda work_dir: counts).identity

    corpora = made("corpora", {"tokens": {"ann": 100, "bob": 200}})
    branch = made("branch", {"num_parameters": 10, "input_tokens": 7, "num_steps": 2})
    on_policy_counts = {"num_parameters": 10, "input_tokens": 5, "num_steps": 3, "teacher_tokens": 10, "flops": 600}
    on_policy = made("on-policy", on_policy_counts)
    spec = {"methods": [{"name": "opd"}], "teachers": [{"name": "ann"}, {"name": "bob"}]}
    reader = _Reader(store, {"nodes": {"corpora": corpora}, "spec": spec})
    for branches in ([on_policy], [branch, on_policy]):
        student = {
            "budget": "matched_path", "method": "opd", "seed": 0, "teacher": None, "evaluations": [], "path_steps": 3,
            "branches": [{"identity": identity} for identity in branches],
        }  # fmt: skip
        reader.cost(student)
    told = [(row["teacher_tokens"], row["training_tokens"], row["training_flops"]) for row in reader.tables["cost"]]
    assert told == [(10, 5, 600), (300 + 10, 7 + 5, 6 * 10 * 7 + 600)]
