"""Branch training: the loss mask, the order of data, the rate, the loss by hand, exact resumption, divergence."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mot_core.artifacts import Store, sha256_of
from mot_core.corpus.tables import corpus_row, write_corpus
from mot_core.errors import TrainingError
from mot_core.models import load_tokenizer
from mot_core.runner import RunSettings
from mot_core.sft.tokens import IGNORED, Example, batch_schedule, collate, tokenize
from mot_core.sft.train import completion_loss, learning_rate_at
from mot_core.steps import Step
from tests.contexts import publish, run
from tests.pico import style_of

QUESTIONS = ["12+34-5", "50+41+3", "2*31+7-11", "99-9+10-20", "11+22+33+44", "75-25", "10+9", "3*11+4", "61-2*15"]
TRAINING = {
    "learning_rate": 1e-2, "batch_size": 2, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.01,
    "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0, "max_example_tokens": 192,
}  # fmt: skip


def row(question: str, teacher: str = "ann", style: str = "running-total") -> dict[str, Any]:
    verdict = {
        "problem_id": f"p-{question}", "family": "sums", "text": style_of(question, style), "key": f"{teacher}-{question}",
        "num_tokens": 9,
    }  # fmt: skip
    return corpus_row(verdict, question, teacher)


@pytest.fixture(scope="module")
def tokenizer(pico_models: Path) -> Any:
    return load_tokenizer(str(pico_models / "student"))


def test_exactly_the_completion_with_its_end_carries_loss(tokenizer: Any) -> None:
    example = tokenize(tokenizer, row("12+34-5"), 192)
    completion = example.input_ids[example.prompt_length :]
    assert tokenizer.decode(example.input_ids[: example.prompt_length]) == "<|user|>12+34-5<|end|><|assistant|>"
    assert tokenizer.decode(completion) == style_of("12+34-5", "running-total") + "<|end|>"
    assert completion[-1] == tokenizer.eos_token_id and example.completion_tokens == len(completion)

    short = Example([5, 6, 7], 2)
    ids, mask, labels = collate([example, short], pad_id=0)
    length = len(example.input_ids)
    assert ids.shape == mask.shape == labels.shape == (2, length)
    assert labels[0].tolist() == [IGNORED] * example.prompt_length + completion
    assert (ids[1].tolist(), mask[1].tolist(), labels[1].tolist()) == (
        [5, 6, 7] + [0] * (length - 3), [1, 1, 1] + [0] * (length - 3), [IGNORED, IGNORED, 7] + [IGNORED] * (length - 3),
    )  # fmt: skip


def test_an_end_token_that_is_the_pad_token_still_carries_loss() -> None:
    _, mask, labels = collate([Example([5, 1, 9, 1], 2), Example([5, 9], 1)], pad_id=1)
    assert labels.tolist() == [[IGNORED, IGNORED, 9, 1], [IGNORED, 9, IGNORED, IGNORED]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_nothing_is_cut_silently(tokenizer: Any) -> None:
    length = len(tokenize(tokenizer, row("12+34-5"), 192).input_ids)
    assert len(tokenize(tokenizer, row("12+34-5"), length).input_ids) == length
    told = (
        rf"rationale of ann on p-12\+34-5: {length} tokens, over training\.max_example_tokens = {length - 1}; raise it"
    )
    with pytest.raises(TrainingError, match=told):
        tokenize(tokenizer, row("12+34-5"), length - 1)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(16, 4), (10, 4), (3, 8), (1, 2)])
def test_every_epoch_sees_every_example_once(num_examples: int, batch_size: int) -> None:
    lengths = [(7 * index) % 11 for index in range(num_examples)]
    num_steps = 8 * num_examples
    batches = batch_schedule(lengths, batch_size, num_steps, seed=3)
    assert [len(batch) for batch in batches] == [batch_size] * num_steps
    counts = Counter(index for batch in batches for index in batch)
    # 8 × num_examples batches are 8 × batch_size whole epochs, and windows end where epochs end.
    assert counts == dict.fromkeys(range(num_examples), 8 * batch_size)
    assert batch_schedule(lengths, batch_size, num_steps, seed=3) == batches
    if num_examples > 3:
        assert batch_schedule(lengths, batch_size, num_steps, seed=4) != batches


def test_a_short_epoch_by_hand() -> None:
    batches = batch_schedule([5, 1, 4, 2], 2, 2, seed=0)
    # One window of one epoch: sorted by length in pairs, and the pairs shuffled.
    assert sorted(batches) == [[1, 3], [2, 0]]


def test_learning_rates() -> None:
    rate = lambda step, schedule: learning_rate_at(step, 12, 1.0, 2, schedule)  # noqa: E731
    assert [rate(step, "constant") for step in (0, 1, 2, 11)] == [0.5, 1.0, 1.0, 1.0]
    assert [rate(step, "linear") for step in (0, 1, 2, 7, 11)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.1])
    assert [rate(step, "cosine") for step in (1, 2, 7)] == pytest.approx([1.0, 1.0, 0.5])
    assert rate(11, "cosine") == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert learning_rate_at(0, 10, 0.3, 0, "constant") == 0.3


def test_the_loss_by_hand() -> None:
    # Two rows of three positions over two tokens; position i predicts label i + 1.
    logits = torch.zeros(2, 3, 2)
    logits[0, 1] = torch.tensor([0.0, math.log(3.0)])
    labels = torch.tensor([[IGNORED, IGNORED, 1], [IGNORED, 0, IGNORED]])
    loss, num_tokens = completion_loss(logits, labels)
    assert num_tokens == 2
    assert float(loss) == pytest.approx((-math.log(0.75) - math.log(0.5)) / 2)
    with pytest.raises(TrainingError, match="no token that carries loss"):
        completion_loss(logits, torch.full((2, 3), IGNORED))


def branch(
    store: Store, student: Path, *, settings: RunSettings | None = None, num_steps: int = 6, corpora: tuple[str, ...] = ("ann",),
    snapshot_steps: tuple[int, ...] = (), **training: Any,
) -> Any:  # fmt: skip
    """A branch on the corpora `ann` and `bob` of the questions above."""

    def write(to: Path) -> None:
        write_corpus(to / "ann.parquet", [row(question) for question in QUESTIONS])
        write_corpus(to / "bob.parquet", [row(question, "bob", "tens-and-ones") for question in QUESTIONS])

    parent = publish(store, Step("corpora", {}), write)
    spec = {
        "student": "s", "corpora": list(corpora), "training": {**TRAINING, **training}, "order_seed": 5, "first_step": 0,
        "num_steps": num_steps, "total_steps": 6, "snapshot_steps": list(snapshot_steps),
    }  # fmt: skip
    extra = {"settings": settings} if settings else {}
    locators = {"student": str(student), "student_revision": None}
    return run(store, "branch", spec, (("corpora", parent),), locators, **extra)


def log_of(made: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.path / "training.jsonl").read_text().splitlines()]


def test_a_branch_learns_and_logs_every_step(pico_models: Path, tmp_path: Path) -> None:
    made = branch(Store(tmp_path).open(), pico_models / "student", num_steps=6, snapshot_steps=(2, 4))
    log = log_of(made)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert log[0]["loss"] == pytest.approx(math.log(104), abs=0.2), (
        "a random model is nearly uniform over its vocabulary"
    )
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    assert made.counts["num_examples"] == 9 and made.counts["num_steps"] == 6
    assert made.counts["completion_tokens"] == sum(entry["tokens"] for entry in log)
    assert (made.path / "snapshots" / "step-2" / "model.safetensors").is_file()
    hashes = {sha256_of(path) for path in made.path.rglob("model.safetensors")}
    assert len(hashes) == 3 and len(list((made.path / "snapshots").iterdir())) == 2


class Killed(BaseException):
    pass


def test_resumed_training_is_bit_identical(pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mot_core.sft.checkpoints as module

    often = RunSettings(threads=1, checkpoint_seconds=0.0)
    whole = branch(Store(tmp_path / "whole").open(), pico_models / "student", settings=often, snapshot_steps=(2,))
    store = Store(tmp_path / "broken").open()
    save = module.Checkpoints.save
    attempts = []

    def die_after(limit: int) -> None:
        def save_and_die(self: Any, step: int, *rest: Any) -> None:
            save(self, step, *rest)
            attempts.append(step)
            if step == limit:
                raise Killed

        monkeypatch.setattr(module.Checkpoints, "save", save_and_die)

    for limit in (3, 4):
        die_after(limit)
        with pytest.raises(Killed):
            branch(store, pico_models / "student", settings=often, snapshot_steps=(2,))
    monkeypatch.setattr(module.Checkpoints, "save", save)
    resumed = branch(store, pico_models / "student", settings=often, snapshot_steps=(2,))
    assert attempts == [1, 2, 3, 4], "the second attempt did not begin again"
    assert sha256_of(resumed.path / "model.safetensors") == sha256_of(whole.path / "model.safetensors")
    assert log_of(resumed) == log_of(whole)
    # A snapshot that was taken before the kill must not be lost.
    snapshot = "snapshots/step-2/model.safetensors"
    assert sha256_of(resumed.path / snapshot) == sha256_of(whole.path / snapshot)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(pico_models: Path, tmp_path: Path) -> None:
    from mot_core.models import load_model
    from mot_core.sft.checkpoints import Checkpoints

    model = load_model(str(pico_models / "student"), None, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    checkpoints = Checkpoints(tmp_path, 0.0)
    checkpoints.save(1, model, optimizer, [{"step": 1}])
    torn = tmp_path / ".checkpoint-new"
    torn.mkdir()
    (torn / "model.safetensors").write_text("half")
    assert checkpoints.load(model, optimizer) == (1, [{"step": 1}])
    checkpoints.save(2, model, optimizer, [])
    assert checkpoints.load(model, optimizer) == (2, [])


def test_the_union_sees_both_corpora(pico_models: Path, tmp_path: Path) -> None:
    made = branch(Store(tmp_path).open(), pico_models / "student", corpora=("ann", "bob"))
    assert made.counts["num_examples"] == 18


@pytest.mark.filterwarnings("ignore")
def test_divergence_stops_the_branch_and_publishes_nothing(pico_models: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(pico_models / "student", tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    store = Store(tmp_path / "store").open()
    with pytest.raises(
        TrainingError, match=r"step 1: loss is nan, gradient norm .*; expected finite numbers; lower the learning rate"
    ):
        branch(store, broken)
    assert [manifest.kind for manifest in store.manifests()] == ["corpora"]
