"""What passes from round to round: moments, the schedule, and which of it makes a branch's identity; the early stop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from mot_core.artifacts import Store
from mot_core.dag import StudentAt, branch_step, merge_step
from mot_core.errors import SpecError, TrainingError
from mot_core.files import sha256_of
from mot_core.models import load_model, load_tokenizer
from mot_core.sft.optimizers import STATE_FILE, start_from, write_state
from mot_core.sft.ranks import Ranks
from mot_core.sft.students import load_student, publish_student
from mot_core.sft.tokens import Example, hold_out
from mot_core.sft.train import Trainee
from mot_core.spec import Experiment, Training
from mot_core.steps import ModelRef, Step
from tests.pico import pico_experiment
from tests.sft.branches import QUESTIONS, TRAINING, branch, branch_step_of, log_of
from tests.sft.test_layout import LENGTHS, examples_of

START = StudentAt(ModelRef("s", "somewhere"))
CORPORA = Step("corpora", {})
# The specs of branches that stores hold since before any of the newer settings existed.
OLD_FIELDS = {
    "learning_rate", "batch_size", "schedule", "warmup_steps", "weight_decay", "beta1", "beta2", "max_grad_norm",
    "max_example_tokens",
}  # fmt: skip


def two_rounds(spec: Experiment, corpora: Step = CORPORA) -> tuple[dict[str, Step], Step, dict[str, Step]]:
    """Branches of round 1, their merge, and branches of round 2, as MoT builds them."""

    def branches(student: StudentAt, first_step: int) -> dict[str, Step]:
        return {
            name: branch_step(
                spec, student, corpora, [name], learning_rate=1e-2, seed=1, first_step=first_step, num_steps=3,
                total_steps=6, snapshot_steps=[], label=name, facts={},
            )
            for name in ("ann", "bob")
        }  # fmt: skip

    first = branches(START, 0)
    merged = merge_step(spec, START, first, label="merge", facts={})
    return first, merged, branches(StudentAt(merged), 3)


def test_defaults_leave_no_trace(pico_models: Path) -> None:
    assert set(Training().record()) == OLD_FIELDS
    spec = pico_experiment(pico_models)
    for step in (two_rounds(spec)[0]["ann"], two_rounds(spec)[2]["ann"]):
        assert set(step.spec["training"]) == OLD_FIELDS
        assert set(step.spec) - {"student"} == {
            "corpora", "training", "order_seed", "first_step", "num_steps", "total_steps", "snapshot_steps"
        }  # fmt: skip
    changed = Training.model_validate({"precision": "bfloat16", "lora": {"rank": 4}})
    assert set(changed.record()) == OLD_FIELDS | {"precision", "lora"}


def test_how_a_branch_is_computed_is_not_what_it_is(pico_models: Path) -> None:
    plain = two_rounds(pico_experiment(pico_models))[2]["ann"]
    how = {
        "layout": "packed", "micro_batch_tokens": 64, "loss": "chunked", "loss_chunk_tokens": 9, "devices": 4,
        "gradient_checkpointing": True, "offload_activations": True,
    }  # fmt: skip
    other = two_rounds(pico_experiment(pico_models, training={"batch_size": 2, "learning_rate": 1e-3, **how}))[2]["ann"]
    assert other.identity == plain.identity
    assert {key: other.locators["layout"][key] for key in how} == how
    for what in ({"precision": "bfloat16"}, {"too_long": "cut"}, {"lora": {}}, {"early_stop": {}}):
        spec = pico_experiment(pico_models, training={"batch_size": 2, "learning_rate": 1e-3, **what})
        assert two_rounds(spec)[2]["ann"].identity != plain.identity


def test_a_schedule_of_each_round(pico_models: Path, tmp_path: Path) -> None:
    settings = {"batch_size": 2, "learning_rate": 1e-2, "schedule_over": "round"}
    constant = two_rounds(pico_experiment(pico_models, training=settings))[2]["ann"]
    assert "schedule_over" not in constant.spec, "a constant rate is the same over whatever it runs"
    linear = two_rounds(pico_experiment(pico_models, training={**settings, "schedule": "linear"}))
    assert linear[0]["ann"].spec["schedule_over"] == linear[2]["ann"].spec["schedule_over"] == "round"

    store = Store(tmp_path).open()
    at = {"first_step": 3, "num_steps": 3, "schedule": "linear", "warmup_steps": 0, "learning_rate": 0.3}
    changes = {key: at[key] for key in ("schedule", "warmup_steps", "learning_rate")}
    rates = {}
    for over in ("path", "round"):
        extra = {"first_step": 3, **({"schedule_over": "round"} if over == "round" else {})}
        log = log_of(branch(store, pico_models / "student", num_steps=3, extra=extra, **changes))
        assert [entry["step"] for entry in log] == [4, 5, 6]
        rates[over] = [entry["learning_rate"] for entry in log]
    assert rates["path"] == pytest.approx([0.15, 0.1, 0.05]) and rates["round"] == pytest.approx([0.3, 0.2, 0.1])


def test_which_moments_a_round_starts_from(pico_models: Path) -> None:
    def spec(between: str, **changes: Any) -> Experiment:
        training = {"batch_size": 2, "learning_rate": 1e-3, "optimizer_between_rounds": between}
        return pico_experiment(pico_models, training=training, **changes)

    first, _, second = two_rounds(spec("carry"))
    assert first["ann"].spec["keeps_optimizer"] and "optimizer_weights" not in first["ann"].spec
    # The last round leaves nothing, as nobody goes on from it.
    assert "keeps_optimizer" not in second["ann"].spec and second["ann"].spec["optimizer_weights"] == [1.0]
    assert second["ann"].parent("optimizer/0") is first["ann"] and second["bob"].parent("optimizer/0") is first["bob"]

    first, merged, second = two_rounds(spec("average"))
    ordered = [step for role, step in merged.parents if role.startswith("branch/")]
    for step in second.values():
        assert [step.parent(f"optimizer/{index}") for index in (0, 1)] == ordered
        assert step.spec["optimizer_weights"] == [0.5, 0.5]
    weighted = {"rule": "weighted_mean", "weights": {"ann": 0.25, "bob": 0.75}}
    first, merged, second = two_rounds(spec("average", merge=weighted))
    held = dict(zip([step.identity for step in ordered], second["ann"].spec["optimizer_weights"], strict=True))
    assert held == {first["ann"].identity: 0.25, first["bob"].identity: 0.75}

    alone = {"first_step": 3, "num_steps": 3, "total_steps": 6, "snapshot_steps": [], "label": "mine", "facts": {}}
    with pytest.raises(SpecError, match="mine: optimizer_between_rounds is 'carry', but the round before left no"):
        branch_step(spec("carry"), START, CORPORA, ["ann"], learning_rate=1e-2, seed=1, **alone)
    # A branch that walks its whole path is the same one, whatever happens between rounds elsewhere.
    path = {**alone, "first_step": 0, "num_steps": 6}
    wholes = [
        branch_step(spec(between), START, CORPORA, ["ann"], learning_rate=1e-2, seed=1, **path).identity
        for between in ("reset", "carry", "average")
    ]
    assert len(set(wholes)) == 1


def test_moments_are_averaged_by_hand(pico_models: Path, tmp_path: Path) -> None:
    model = load_model(str(pico_models / "student"), None, "cpu")
    for number, value in ((0, 1.0), (1, 5.0)):
        entries = {f"{name}/exp_avg": torch.full_like(one, value).detach() for name, one in model.named_parameters()}
        entries |= {f"{name}/step": torch.tensor(3.0 + number) for name, _ in model.named_parameters()}
        (tmp_path / str(number) / "optimizer").mkdir(parents=True)
        save_file(entries, tmp_path / str(number) / STATE_FILE)
    optimizer = torch.optim.AdamW(model.parameters())
    places = [tmp_path / "0", tmp_path / "1"]
    start_from(model, optimizer, places, [0.25, 0.75])
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], torch.full_like(parameter, 4.0)) and float(state["step"]) == 3.75
    start_from(model, optimizer, places[:1], [1.0])
    assert all(bool((state["exp_avg"] == 1.0).all()) for state in optimizer.state.values())
    save_file({"other/exp_avg": torch.zeros(2)}, tmp_path / "1" / STATE_FILE)
    with pytest.raises(TrainingError, match="its moments are not of this student's parameters: \\['other'\\]"):
        start_from(model, optimizer, places, [0.5, 0.5])


def test_two_rounds_that_carry_are_one_long_one(pico_models: Path, tmp_path: Path) -> None:
    # With one branch a round and its moments carried, nothing happens between rounds: the path is one AdamW's.
    settings = Training(batch_size=8, learning_rate=1e-2)

    def walk(student: Path, steps: int, before: Path | None, to: Path) -> Trainee:
        trainee = Trainee(load_student(str(student), None, "cpu", settings, seed=1), settings, 0)
        if before is not None:
            start_from(trainee.model, trainee.optimizer, [before], [1.0])
        for _ in range(steps):
            trainee.step(examples_of(LENGTHS), 1e-2, "step")
        write_state(trainee.model, trainee.optimizer, to, Ranks())
        publish_student(
            trainee.model, load_tokenizer(str(pico_models / "student")), to, settings, Ranks(), str(student), None
        )
        return trainee

    one = walk(pico_models / "student", 4, None, tmp_path / "one")
    walk(pico_models / "student", 2, None, tmp_path / "first")
    second = walk(tmp_path / "first", 2, tmp_path / "first", tmp_path / "second")
    reset = walk(tmp_path / "first", 2, None, tmp_path / "reset")
    for mine, whole, other in zip(second.parameters, one.parameters, reset.parameters, strict=True):
        assert torch.equal(mine, whole) and not torch.equal(other, whole)
    assert sha256_of(tmp_path / "second" / STATE_FILE) == sha256_of(tmp_path / "one" / STATE_FILE)


def test_a_branch_starts_from_its_parents_moments(pico_models: Path, tmp_path: Path) -> None:
    student, store = pico_models / "student", Store(tmp_path / "store").open()
    half = {"num_steps": 2, "extra": {"keeps_optimizer": True}}
    first = branch(store, student, **half)
    assert set(load_file(first.path / STATE_FILE)) == {
        f"{name}/{key}"
        for name in load_file(first.path / "model.safetensors")
        for key in ("exp_avg", "exp_avg_sq", "step")
    }
    parents = (("optimizer/0", branch_step_of(store, **half)),)
    last = {"first_step": 2, "optimizer_weights": [1.0], "keeps_optimizer": True}
    second = branch(store, first.path, num_steps=2, extra=last, parents=parents)
    assert float(load_file(second.path / STATE_FILE)["model.norm.weight/step"]) == 4.0
    assert "optimizer" not in [path.name for path in branch(store, student, num_steps=2).path.iterdir()]


def test_what_cannot_pass_between_rounds() -> None:
    for settings, told in (
        ({"optimizer_between_rounds": "carry", "lora": {}}, "must be 'reset' with lora"),
        ({"optimizer_between_rounds": "average", "optimizer": "adamw8bit"}, "8-bit moments have no mean"),
        ({"devices": 2, "optimizer": "adamw8bit"}, "devices must be 1"),
        ({"devices": 2, "lora": {"quantization": "nf4"}}, "devices must be 1"),
        ({"attention": "flash_attention_2"}, "needs precision 'bfloat16'"),
    ):
        with pytest.raises(ValidationError, match=told):
            Training.model_validate(settings)


def test_the_same_problems_are_held_out_of_every_corpus() -> None:
    ann = [Example([1, 2], 1, f"p{index}") for index in range(10)]
    bob = [Example([3, 4, 5], 1, f"p{index}") for index in reversed(range(10)) for _ in range(2)]
    kept, held = hold_out(ann, 0.2)
    assert len(held) == 2 and sorted(one.problem_id for one in [*kept, *held]) == sorted(one.problem_id for one in ann)
    _, others = hold_out(bob, 0.2)
    assert {one.problem_id for one in others} == {one.problem_id for one in held} and len(others) == 4
    assert len(hold_out(ann, 0.01)[1]) == 1, "at least one"
    with pytest.raises(TrainingError, match="holds out 1 of 1 problems, so none is left"):
        hold_out(ann[:1], 0.5)


def test_a_branch_stops_early_and_keeps_its_best(pico_models: Path, tmp_path: Path) -> None:
    store, student = Store(tmp_path).open(), pico_models / "student"
    stop = {"held_out_share": 0.3, "every_steps": 1, "patience": 2}
    # So fast that the student soon gets worse on what it does not see.
    fast = {"early_stop": stop, "learning_rate": 0.1, "warmup_steps": 0, "schedule": "constant"}
    made = branch(store, student, num_steps=30, snapshot_steps=(1, 29), **fast)
    log = log_of(made)
    losses = [entry["held_out_loss"] for entry in log]
    best = losses.index(min(losses)) + 1
    assert len(log) == made.counts["num_steps"] == best + 2 < 30, "two looks without a new minimum"
    assert (made.counts["best_step"], made.counts["held_out_loss"]) == (best, min(losses))
    assert (made.counts["num_examples"], made.counts["num_held_out"]) == (6, 3) and len(QUESTIONS) == 9
    # A snapshot of the same branch where it was best is what it kept; so is one that it never reached.
    with_best = branch(store, student, num_steps=30, snapshot_steps=(best, 29), **fast)
    kept = sha256_of(with_best.path / "snapshots" / f"step-{best}" / "model.safetensors")
    assert sha256_of(made.path / "model.safetensors") == kept
    assert sha256_of(made.path / "snapshots" / "step-29" / "model.safetensors") == kept
    assert sha256_of(made.path / "snapshots" / "step-1" / "model.safetensors") != kept


def test_a_held_out_loss_that_is_not_finite_stops_the_branch(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0, math.nan])
    monkeypatch.setattr(Trainee, "held_out_loss", lambda self, examples: next(losses))
    store, stop = Store(tmp_path).open(), {"held_out_share": 0.3, "every_steps": 1, "patience": 3}
    with pytest.raises(TrainingError, match="step 3: the held-out loss is nan; expected a finite number; lower the"):
        branch(store, pico_models / "student", num_steps=6, early_stop=stop)
    assert [manifest.kind for manifest in store.manifests()] == ["corpora"]


def test_settings_travel_as_the_spec_says() -> None:
    settings = Training.model_validate({**TRAINING, "lora": {"rank": 3, "targets": ["q_proj"]}, "layout": "packed"})
    assert Training.model_validate({**settings.record(), **settings.layout_record()}) == settings
