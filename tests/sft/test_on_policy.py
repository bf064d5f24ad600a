"""On-policy distillation: the divergence by hand and against TRL's, sampling, and the step that trains on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mot_core.artifacts import Published, Store
from mot_core.completers.base import Request, Source
from mot_core.completers.transformers_completer import TransformersCompleter
from mot_core.errors import ModelError, TrainingError
from mot_core.files import sha256_of, write_jsonl
from mot_core.models import load_model, load_tokenizer
from mot_core.problems import Problem
from mot_core.prompts import render_prompt
from mot_core.runner import RunSettings
from mot_core.sft.checkpoints import Checkpoints
from mot_core.sft.divergence import LogMean, summed_divergence
from mot_core.sft.layout import IGNORED, collate
from mot_core.sft.on_policy import OnPolicyTrainee, Prompt, Teachers, check_room
from mot_core.sft.ranks import Ranks
from mot_core.sft.sampling import sample_completions
from mot_core.sft.tokens import Example
from mot_core.sft.vocabulary import vocabulary_of
from mot_core.spec import Sampling, Training
from mot_core.steps import Step
from tests.contexts import publish, run
from tests.pico import write_pico_model
from tests.sft.branches import QUESTIONS, TRAINING, log_of

OFTEN = RunSettings(threads=1, checkpoint_seconds=0.0)
ON_POLICY: dict[str, Any] = {"beta": 1.0, "target": "mean", "temperature": 1.0, "max_completion_tokens": 12}
Q, P1, P2 = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5)


def log_of_row(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def value_and_gradient(logits: torch.Tensor, targets: list[torch.Tensor], beta: float) -> tuple[float, torch.Tensor]:
    own = logits.clone().requires_grad_()
    loss = summed_divergence(own, targets, beta)
    loss.backward()
    assert own.grad is not None
    return float(loss.detach()), own.grad


# -- the divergence ------------------------------------------------------------------------------------------------


def test_reverse_and_forward_kl_by_hand() -> None:
    # KL(Q ‖ P1) = ½ log 2 + ¼ log ½ = ¼ log 2; its gradient is Q (log Q/P1 − KL) = log 2 · (3/8, −5/16, −1/16).
    value, gradient = value_and_gradient(log_of_row(*Q), [log_of_row(*P1)], 1.0)
    assert value == pytest.approx(0.25 * math.log(2.0))
    assert gradient[0].tolist() == pytest.approx([math.log(2.0) * part for part in (3 / 8, -5 / 16, -1 / 16)])
    # KL(P1 ‖ Q) = ¼ log ½ + ½ log 2 = ¼ log 2 as well; its gradient is Q − P1.
    value, gradient = value_and_gradient(log_of_row(*Q), [log_of_row(*P1)], 0.0)
    assert value == pytest.approx(0.25 * math.log(2.0))
    assert gradient[0].tolist() == pytest.approx([0.25, -0.25, 0.0])


def test_the_mixture_of_two_teachers_and_the_mean_over_them_by_hand() -> None:
    mixture = LogMean()
    for teacher in (P1, P2):
        mixture.add(log_of_row(*teacher))
    assert mixture.result().exp()[0].tolist() == pytest.approx([0.25, 0.375, 0.375])
    # To the mixture: ½ log 2 + ½ log ⅔. To each: ¼ log 2 twice.
    value, _ = value_and_gradient(log_of_row(*Q), [mixture.result()], 1.0)
    assert value == pytest.approx(0.5 * math.log(2.0) + 0.5 * math.log(2 / 3))
    value, gradient = value_and_gradient(log_of_row(*Q), [log_of_row(*P1), log_of_row(*P2)], 1.0)
    assert value == pytest.approx(0.25 * math.log(2.0))
    assert gradient[0].tolist() == pytest.approx([math.log(2.0) * part for part in (3 / 8, -3 / 16, -3 / 16)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beta", [1.0, 0.0, 0.3, 0.5])
def test_trls_loss_and_its_gradient_are_the_same(beta: float) -> None:
    """The oracle: TRL's generalised JSD, whose gradient is autograd's."""
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(1)
    student, teacher = (3.0 * torch.randn(2, 5, 11, generator=generator) for _ in range(2))
    labels = torch.tensor([[IGNORED, 1, 2, 3, IGNORED], [IGNORED, IGNORED, 4, 5, 6]])
    theirs = student.clone().requires_grad_()
    expected = GKDTrainer.generalized_jsd_loss(theirs, teacher, labels=labels, beta=beta)
    expected.backward()
    carries_loss = labels != IGNORED
    value, gradient = value_and_gradient(student[carries_loss], [teacher[carries_loss].log_softmax(-1)], beta)
    assert value / 6 == pytest.approx(float(expected.detach()), rel=1e-5)
    assert theirs.grad is not None
    torch.testing.assert_close(gradient / 6, theirs.grad[carries_loss], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("beta", [1.0, 0.7, 0.0])
def test_equal_distributions_have_no_loss_and_no_gradient_at_all(beta: float) -> None:
    logits = 20.0 * torch.randn(7, 33, generator=torch.Generator().manual_seed(2))
    value, gradient = value_and_gradient(logits, [logits.log_softmax(-1)], beta)
    assert value == 0.0 and not gradient.any()


def test_distributions_far_apart_stay_finite() -> None:
    student, teacher = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]).log_softmax(-1)
    value, gradient = value_and_gradient(student, [teacher], 0.5)
    assert value == pytest.approx(math.log(2.0), rel=1e-5) and bool(gradient.isfinite().all())


# -- sampling ------------------------------------------------------------------------------------------------------


def prompts_of(tokenizer: Any) -> list[list[int]]:
    return [
        tokenizer(render_prompt(tokenizer, question), add_special_tokens=False)["input_ids"] for question in QUESTIONS
    ]


def test_the_loop_samples_what_the_completer_samples(pico_models: Path) -> None:
    """Same seeds, same noise: the tokens are those of transformers' own `generate`."""
    student = pico_models / "student"
    model, tokenizer = load_model(str(student), None, "cpu"), load_tokenizer(str(student))
    requests = [Request.of({"scope": "test"}, f"p-{question}", question, 0) for question in QUESTIONS]
    source = Source(locator=str(student), revision=None, sampling=Sampling(temperature=1.3, max_completion_tokens=40))
    theirs: list[Any] = []
    TransformersCompleter(source).complete(requests, theirs.extend, lambda tokens: None)
    ours = sample_completions(
        model, prompts_of(tokenizer), [request.seed for request in requests], end_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id, num_tokens=model.config.vocab_size, temperature=1.3, max_completion_tokens=40,
    )  # fmt: skip
    assert [len(ids) for ids in ours] == [completion.num_tokens for completion in theirs]
    ended = [ids[-1] == tokenizer.eos_token_id for ids in ours]
    assert ended == [completion.finish_reason == "stop" for completion in theirs]
    assert 0 < sum(ended) < len(ended), "some must leave the batch early for this to say anything"
    texts = [
        tokenizer.decode(ids[:-1] if stop else ids, skip_special_tokens=True)
        for ids, stop in zip(ours, ended, strict=True)
    ]
    assert texts == [completion.text for completion in theirs]


def test_what_a_row_draws_is_its_own(pico_models: Path) -> None:
    student = pico_models / "student"
    model, tokenizer = load_model(str(student), None, "cpu"), load_tokenizer(str(student))
    prompts, seeds = prompts_of(tokenizer), list(range(40, 40 + len(QUESTIONS)))

    def sample(rows: list[int]) -> list[list[int]]:
        return sample_completions(
            model, [prompts[row] for row in rows], [seeds[row] for row in rows], end_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id, num_tokens=100, temperature=1.0, max_completion_tokens=20,
        )  # fmt: skip

    together = sample(list(range(len(prompts))))
    assert sample([3]) == [together[3]] and sample([7, 2]) == [together[7], together[2]]
    assert max(token for ids in together for token in ids) < 100


# -- the step ------------------------------------------------------------------------------------------------------


def trainee_of(
    student: Path, teachers: list[Path], record: dict[str, Any] | None = None, **training: Any
) -> OnPolicyTrainee:
    tokenizer = load_tokenizer(str(student))
    models = [load_model(str(path), None, "cpu").requires_grad_(False) for path in teachers]
    record = {**ON_POLICY, **(record or {})}
    return OnPolicyTrainee(
        load_model(str(student), None, "cpu"), Training.model_validate({**TRAINING, **training}),
        int(tokenizer.pad_token_id), Ranks(), end_id=int(tokenizer.eos_token_id), record=record,
        teachers=Teachers(models, record["target"], models[0].config.vocab_size),
    )  # fmt: skip


def batch_of(student: Path, count: int = 4) -> list[Example]:
    tokenizer = load_tokenizer(str(student))
    return [Prompt(ids, len(ids), seed=place) for place, ids in enumerate(prompts_of(tokenizer)[:count])]


def gradients(trainee: OnPolicyTrainee) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in trainee.parameters if parameter.grad is not None]
    assert len(found) == len(trainee.parameters)
    trainee.optimizer.zero_grad()
    return found


@pytest.mark.parametrize("target", ["mean", "each"])
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_weights_get_autograds_gradient(pico_models: Path, target: str, beta: float) -> None:
    """Against the definition in plain operations, row by row without padding, on a whole model."""
    student, teachers = pico_models / "student", [pico_models / "ann", pico_models / "bob"]
    trainee = trainee_of(student, teachers, {"target": target, "beta": beta})
    examples = trainee.sample(batch_of(student))
    loss = trainee.loss_of(examples)
    loss.backward()
    ours, total = gradients(trainee), torch.zeros(())
    for example in examples:
        ids, first = torch.tensor([example.input_ids]), example.prompt_length
        q, *p = (
            model(ids).logits[0, first - 1 : -1].softmax(-1) for model in (trainee.model, *trainee.teachers.models)
        )
        for target_p in [sum(p) / len(p)] if target == "mean" else p:
            m = beta * target_p + (1 - beta) * q
            value = beta * (target_p * (target_p / m).log()).sum()
            value = value + (1 - beta) * (q * (q / m).log()).sum() if beta < 1 else (q * (q / target_p).log()).sum()
            total = total + value / (1 if target == "mean" else len(p))
    total.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-4)
    for own, expected in zip(ours, gradients(trainee), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-6)


def test_prompts_and_padding_and_the_split_into_passes_do_not_matter(pico_models: Path) -> None:
    student, teachers = pico_models / "student", [pico_models / "ann", pico_models / "bob"]
    trainee = trainee_of(student, teachers)
    examples = trainee.sample(batch_of(student))
    batch = collate(examples, "padded", 0)
    carries_loss = batch.labels_BL[:, 1:] != IGNORED
    assert (
        int(carries_loss.sum())
        == sum(example.num_targets for example in examples)
        == sum(len(example.input_ids) - example.prompt_length for example in examples)
    )
    together = float(trainee.loss_of(examples).detach())
    assert sum(float(trainee.loss_of([one]).detach()) for one in examples) == pytest.approx(together, rel=1e-5)
    logs = [
        trainee_of(student, teachers, micro_batch_tokens=tokens).step(batch_of(student), 1e-3, "step 1")
        for tokens in (None, 30)
    ]
    assert logs[0]["tokens"] == logs[1]["tokens"]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    assert logs[0]["grad_norm"] == pytest.approx(logs[1]["grad_norm"], rel=1e-4)


def on_policy_step_of(store: Store, models: Path, *, teachers: tuple[str, ...] = ("ann", "bob"), num_steps: int = 5,
                      record: dict[str, Any] | None = None, snapshot_steps: tuple[int, ...] = (), **training: Any) -> Step:  # fmt: skip
    problems = [Problem.of("sums", question, "1").to_json() for question in QUESTIONS]
    parent = publish(store, Step("problems", {}), lambda to: write_jsonl(to / "problems.jsonl", problems))
    settings = Training.model_validate({**TRAINING, **training})
    spec = {
        "student": "s", "teachers": list(teachers), "on_policy": {**ON_POLICY, **(record or {})},
        "training": settings.record(), "order_seed": 5, "first_step": 8, "num_steps": num_steps,
        "snapshot_steps": list(snapshot_steps),
    }  # fmt: skip
    locators = {
        "teachers": [[name, str(models / name), None] for name in teachers],
        "layout": {**settings.layout_record(), "layout": "padded", "loss": "full"},
        "student": str(models / "student"), "student_revision": None,
    }  # fmt: skip
    return Step("on-policy", spec, (("problems", parent),), locators=locators)


def distil(store: Store, models: Path, *, settings: RunSettings | None = None, **wanted: Any) -> Published:
    step = on_policy_step_of(store, models, **wanted)
    return run(
        store, "on-policy", step.spec, step.parents, step.locators, settings or RunSettings(1, checkpoint_seconds=1e9)
    )


def weights_of(made: Published) -> dict[str, torch.Tensor]:
    return load_file(made.path / "model.safetensors")


def test_a_student_moves_towards_its_teachers(pico_models: Path, tmp_path: Path) -> None:
    made = distil(Store(tmp_path).open(), pico_models, num_steps=30, snapshot_steps=(10,))
    log = log_of(made)
    assert [entry["step"] for entry in log] == list(range(9, 39))
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    counts = made.counts
    assert counts["num_steps"] == 30 and counts["sampled_tokens"] == sum(entry["tokens"] for entry in log)
    assert counts["teacher_tokens"] == 2 * counts["input_tokens"]
    assert counts["flops"] == (8 + 2 * 2) * counts["num_parameters"] * counts["input_tokens"]
    assert all(0 < entry["mean_sampled_tokens"] <= 12 and 0 <= entry["ended_share"] <= 1 for entry in log)
    load_model(str(made.path), None, "cpu"), load_tokenizer(str(made.path))
    between = load_file(made.path / "snapshots/step-10/model.safetensors")
    assert all(not torch.equal(between[name], value) for name, value in weights_of(made).items())


def test_a_student_that_is_its_own_teacher_stays_where_it_is(pico_models: Path, tmp_path: Path) -> None:
    made = distil(Store(tmp_path).open(), pico_models, teachers=("student",), weight_decay=0.0)
    assert [entry["loss"] for entry in log_of(made)] == [0.0] * 5
    before = load_file(pico_models / "student" / "model.safetensors")
    assert all(torch.equal(before[name], value) for name, value in weights_of(made).items())


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "training", [{}, {"ema_decay": 0.7}, {"precision": "bfloat16", "micro_batch_tokens": 60}, {"lora": {"rank": 2, "dropout": 0.3}}],
    ids=["default", "averaged", "bf16 in passes", "adapters"],
)  # fmt: skip
def test_a_killed_step_goes_on_to_the_same_bits(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: dict[str, Any]
) -> None:
    wanted: dict[str, Any] = {"settings": OFTEN, "snapshot_steps": (2,), **training}
    whole = distil(Store(tmp_path / "whole").open(), pico_models, **wanted)
    store, saved = Store(tmp_path / "broken").open(), list[int]()
    save = Checkpoints.save

    def save_and_die(self: Checkpoints, step: int, *rest: Any) -> None:
        save(self, step, *rest)
        saved.append(step)
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            distil(store, pico_models, **wanted)
    resumed = distil(store, pico_models, **wanted)
    assert saved == [1, 2, 3] and log_of(resumed) == log_of(whole)
    for name in ("model.safetensors", "snapshots/step-2/model.safetensors"):
        assert sha256_of(resumed.path / name) == sha256_of(whole.path / name)


def test_a_teacher_of_another_vocabulary_is_refused(pico_models: Path, tmp_path: Path) -> None:
    import shutil

    models = Path(shutil.copytree(pico_models, tmp_path / "models"))
    tokenizer = load_tokenizer(str(models / "bob"))
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(models / "bob")
    with pytest.raises(
        ModelError, match="teacher bob: its tokenizer is not the student's: 1 tokens differ, such as '<more>'"
    ):
        distil(Store(tmp_path / "store").open(), models)


def test_a_files_vocabulary_is_the_loaded_ones(pico_models: Path) -> None:
    assert vocabulary_of(str(pico_models / "ann")) == load_tokenizer(str(pico_models / "ann")).get_vocab()


def test_padding_of_one_models_head_is_left_out(pico_models: Path, tmp_path: Path) -> None:
    """Models of one tokenizer may have heads padded to other widths: the tokens that all have are compared."""
    import shutil

    models = Path(shutil.copytree(pico_models, tmp_path / "models"))
    wide = load_model(str(write_pico_model(tmp_path / "wide", 2)), None, "cpu")
    wide.resize_token_embeddings(wide.config.vocab_size + 8, mean_resizing=False)
    wide.save_pretrained(models / "ann")
    padded = distil(Store(tmp_path / "padded").open(), models, num_steps=2)
    plain = distil(Store(tmp_path / "plain").open(), pico_models, num_steps=2)
    assert [entry["loss"] for entry in log_of(padded)] == pytest.approx(
        [entry["loss"] for entry in log_of(plain)], rel=1e-5
    )


def test_a_completion_that_the_context_cannot_hold_is_refused_before_anything_is_sampled(
    pico_models: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="tokens, and on_policy.max_completion_tokens is 250, more together than"):
        distil(Store(tmp_path).open(), pico_models, record={"max_completion_tokens": 250})
    config = load_model(str(pico_models / "student"), None, "cpu").config
    check_room([Prompt([1] * 6, 6)], 250, config)
