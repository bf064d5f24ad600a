"""Branch training: the loss mask, the order of data, the rate, the loss by hand, exact resumption, divergence."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mot_core.artifacts import Store
from mot_core.errors import TrainingError
from mot_core.files import sha256_of
from mot_core.models import load_tokenizer
from mot_core.sft.layout import IGNORED, collate
from mot_core.sft.optimizers import learning_rate_at
from mot_core.sft.tokens import Example, batch_schedule, tokenize, within_limit
from tests.pico import example_row, style_of
from tests.sft.branches import QUESTIONS, branch, log_of


@pytest.fixture(scope="module")
def tokenizer(pico_models: Path) -> Any:
    return load_tokenizer(str(pico_models / "student"))


def test_exactly_the_completion_with_its_end_carries_loss(tokenizer: Any) -> None:
    example = tokenize(tokenizer, example_row("12+34-5"))
    completion = example.input_ids[example.prompt_length :]
    assert tokenizer.decode(example.input_ids[: example.prompt_length]) == "<|user|>12+34-5<|end|><|assistant|>"
    assert tokenizer.decode(completion) == style_of("12+34-5", "running-total") + "<|end|>"
    assert completion[-1] == tokenizer.eos_token_id and example.completion_tokens == len(completion)

    short = Example([5, 6, 7], 2)
    batch = collate([example, short], "padded", pad_id=0)
    ids, mask, labels = batch.ids_BL, batch.mask_BL, batch.labels_BL
    length = len(example.input_ids)
    assert mask is not None and ids.shape == mask.shape == labels.shape == (2, length)
    assert labels[0].tolist() == [IGNORED] * example.prompt_length + completion
    assert (ids[1].tolist(), mask[1].tolist(), labels[1].tolist()) == (
        [5, 6, 7] + [0] * (length - 3), [1, 1, 1] + [0] * (length - 3), [IGNORED, IGNORED, 7] + [IGNORED] * (length - 3),
    )  # fmt: skip


def test_an_end_token_that_is_the_pad_token_still_carries_loss() -> None:
    batch = collate([Example([5, 1, 9, 1], 2), Example([5, 9], 1)], "padded", pad_id=1)
    assert batch.labels_BL.tolist() == [[IGNORED, IGNORED, 9, 1], [IGNORED, 9, IGNORED, IGNORED]]
    assert batch.mask_BL is not None and batch.mask_BL.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_nothing_is_cut_silently(tokenizer: Any) -> None:
    example = tokenize(tokenizer, example_row("12+34-5"))
    length = len(example.input_ids)
    assert within_limit([example], length, "error").examples == [example]
    told = (
        rf"rationale of ann on p-12\+34-5: {length} tokens, over training\.max_example_tokens = {length - 1}; raise it"
    )
    with pytest.raises(TrainingError, match=told):
        within_limit([example], length - 1, "error")


def test_what_the_limit_does_is_counted() -> None:
    short, long, prompt = Example([1, 2, 3], 1), Example([1, 2, 3, 4, 5], 2), Example([1, 2, 3, 4, 5], 4)
    dropped = within_limit([short, long, prompt], 4, "drop")
    assert (dropped.examples, dropped.num_dropped, dropped.num_cut) == ([short], 2, 0)
    cut = within_limit([short, long, prompt], 4, "cut")
    # Of the third only its prompt would be left, which nothing can be learnt from.
    assert (cut.examples, cut.num_dropped, cut.num_cut) == ([short, Example([1, 2, 3, 4], 2)], 1, 1)
    assert [one.num_targets for one in cut.examples] == [2, 2]
    with pytest.raises(TrainingError, match="none of 2 examples is within training.max_example_tokens = 2; raise it"):
        within_limit([short, long], 2, "drop")


def test_a_branch_reports_what_the_limit_did(pico_models: Path, tmp_path: Path) -> None:
    lengths = [
        len(tokenize(load_tokenizer(str(pico_models / "student")), example_row(one)).input_ids) for one in QUESTIONS
    ]
    limit = sorted(lengths)[-3]
    over = sum(length > limit for length in lengths)
    assert over == 2
    student, counts = pico_models / "student", []
    for choice in ("drop", "cut"):
        made = branch(Store(tmp_path / choice).open(), student, max_example_tokens=limit, too_long=choice, num_steps=1)
        counts.append([made.counts[name] for name in ("num_examples", "num_dropped_long", "num_cut_long")])
    assert counts == [[9 - over, over, 0], [9, 0, over]]
    with pytest.raises(TrainingError, match="over training.max_example_tokens"):
        branch(Store(tmp_path / "error").open(), student, max_example_tokens=limit, num_steps=1)


def test_a_first_token_is_predicted_by_nothing() -> None:
    bare = Example([7, 8, 9], 0)
    assert bare.num_targets == 2
    assert collate([bare, bare], "packed", 0).labels_BL.tolist() == [[IGNORED, 8, 9, IGNORED, 8, 9]]


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


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(pico_models: Path, tmp_path: Path) -> None:
    from mot_core.models import load_model
    from mot_core.sft.checkpoints import Checkpoints

    model = load_model(str(pico_models / "student"), None, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    checkpoints = Checkpoints(tmp_path, 0.0)
    checkpoints.save(1, model, optimizer, [{"step": 1}])
    torn = tmp_path / ".checkpoint-new"
    torn.mkdir()
    (torn / "model-0.safetensors").write_text("half")
    assert checkpoints.load(model, optimizer) == (1, [{"step": 1}])
    checkpoints.save(2, model, optimizer, [])
    assert checkpoints.load(model, optimizer) == (2, [])
    # Its sums would be in another order.
    assert Checkpoints(tmp_path, 0.0, layout={"layout": "packed"}).load(model, optimizer) == (0, [])


def test_the_union_sees_both_corpora(pico_models: Path, tmp_path: Path) -> None:
    made = branch(Store(tmp_path).open(), pico_models / "student", names=("ann", "bob"))
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
