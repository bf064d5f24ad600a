"""Layouts: what a pass holds, that packed examples do not touch, that a batch weighs its tokens however it is split."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mot_core.errors import ModelError, TrainingError
from mot_core.models import load_model
from mot_core.sft.attention import attend_to_segments, check_packable, use_segments
from mot_core.sft.layout import MicroBatch, collate, passes_of, share_out, split
from mot_core.sft.ranks import Ranks
from mot_core.sft.students import load_student
from mot_core.sft.tokens import Example
from mot_core.sft.train import Trainee
from mot_core.spec import Training

LENGTHS = [9, 17, 5, 30, 12, 8, 21, 14]


def examples_of(lengths: list[int], seed: int = 0) -> list[Example]:
    draw = torch.Generator().manual_seed(seed)
    return [Example(torch.randint(4, 100, (length,), generator=draw).tolist(), length // 3) for length in lengths]


def lengths_of(parts: list[list[Example]]) -> list[list[int]]:
    return [[len(example.input_ids) for example in part] for part in parts]


def test_passes_by_hand() -> None:
    batch = examples_of(LENGTHS)
    assert split(batch, "padded", None) == [batch] and split(batch, "packed", None) == [batch]
    # Padded: rows × the longest; packed: the sum, first fit.
    assert lengths_of(split(batch, "padded", 40)) == [[30], [21], [17, 14], [12, 9, 8], [5]]
    assert lengths_of(split(batch, "packed", 40)) == [[30, 9], [21, 17], [14, 12, 8, 5]]
    assert lengths_of(split(batch, "packed", 20))[0] == [30], "longer than a pass, so it passes alone"


def test_devices_share_a_batch_and_pass_equally_often() -> None:
    batch = examples_of(LENGTHS)
    assert share_out(batch, 1) == [batch]
    shares = lengths_of(share_out(batch, 2))
    assert shares == [[30, 14, 9, 5], [21, 17, 12, 8]] and sum(map(sum, shares)) == sum(LENGTHS)
    for layout, limit in itertools.product(("padded", "packed"), (None, 33)):
        ranks = [passes_of(batch, layout, limit, rank, 3) for rank in range(3)]
        assert len({len(passes) for passes in ranks}) == 1
        counted = [one for passes in ranks for examples, counts in passes if counts for one in examples]
        assert sorted(len(one.input_ids) for one in counted) == sorted(LENGTHS)
    alone = [passes_of(batch[:1], "padded", None, rank, 2) for rank in range(2)]
    assert [[counts for _, counts in passes] for passes in alone] == [[True], [False]]
    assert (collate(alone[1][0][0], "padded", 0, counts=False).labels_BL == -100).all()


def test_a_packed_row_by_hand() -> None:
    made = collate([Example([5, 6, 7], 1), Example([8, 9], 1)], "packed", 0)
    assert made.ids_BL.tolist() == [[5, 6, 7, 8, 9]] and made.segments == (3, 2)
    assert made.positions_BL is not None and made.positions_BL.tolist() == [[0, 1, 2, 0, 1]]
    assert made.labels_BL.tolist() == [[-100, 6, 7, -100, 9]]


@pytest.fixture(scope="module")
def packed_model(pico_models: Path) -> Any:
    model = load_model(str(pico_models / "student"), None, "cpu")
    use_segments(model)
    return model


def logits_of(model: Any, examples: list[Example]) -> list[torch.Tensor]:
    """The logits of each example of a packed row."""
    batch: MicroBatch = collate(examples, "packed", 0)
    with torch.no_grad():
        logits = model(
            input_ids=batch.ids_BL, position_ids=batch.positions_BL, segments=batch.segments, use_cache=False
        ).logits
    return list(logits[0].split(list(batch.segments)))


def test_a_neighbour_in_the_pack_changes_no_logit(packed_model: Any, pico_models: Path) -> None:
    first, second, third = examples_of([17, 23, 9])
    others = examples_of([17, 23, 9], seed=1)
    packed = logits_of(packed_model, [first, second, third])
    for place, one in enumerate((first, second, third)):
        row = [*others]
        row[place] = one
        # Same shapes, so the same kernels: equal to the last bit.
        assert torch.equal(logits_of(packed_model, row)[place], packed[place])
    plain = load_model(str(pico_models / "student"), None, "cpu")
    for one, logits in zip((first, second, third), packed, strict=True):
        with torch.no_grad():
            alone = plain(input_ids=torch.tensor([one.input_ids]), use_cache=False).logits[0]
        torch.testing.assert_close(logits, alone, rtol=1e-5, atol=2e-6)
    assert (logits_of(packed_model, [second, first])[1] - packed[0]).abs().max() < 2e-6, "nor does its place"


def test_what_cannot_be_packed_is_refused(packed_model: Any, pico_models: Path) -> None:
    batch = collate(examples_of([5, 4]), "packed", 0)
    with pytest.raises(TrainingError, match="segments None for a row of 9 tokens"):
        packed_model(input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False)
    query = torch.zeros(1, 2, 9, 4)
    with pytest.raises(TrainingError, match="softcap or sinks"):
        attend_to_segments(None, query, query, query, None, segments=(9,), softcap=30.0)
    windowed = load_model(str(pico_models / "student"), None, "cpu")
    windowed.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ModelError, match="the student's layers are \\['full_attention', 'sliding_attention'\\]"):
        check_packable(windowed)


def trainee(pico_models: Path, **changes: Any) -> Trainee:
    settings = Training.model_validate({"batch_size": 8, "learning_rate": 1e-2, **changes})
    return Trainee(load_student(str(pico_models / "student"), None, "cpu", settings, 1), settings, pad_id=0)


def gradient_of(trainee: Trainee, batch: list[Example]) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradient of the batch's mean token loss, pass by pass, as `Trainee.step` makes it."""
    total = sum(example.num_targets for example in batch)
    for examples, counts in trainee.passes(batch):
        trainee.accelerator.backward(trainee.loss_of(examples, counts=counts) / total)
    for name, parameter in trainee.model.named_parameters():
        assert parameter.grad is not None, name
        yield name, parameter.grad


LAYOUTS: dict[str, dict[str, Any]] = {
    "2 × 4": {"micro_batch_tokens": 4 * max(LENGTHS)},
    "8 × 1": {"micro_batch_tokens": 1},
    "packed": {"layout": "packed"},
    "packed, in passes": {"layout": "packed", "micro_batch_tokens": 40},
    "chunked": {"loss": "chunked", "loss_chunk_tokens": 7},
    "packed, chunked": {"layout": "packed", "loss": "chunked", "loss_chunk_tokens": 1000},
    "checkpointed": {"gradient_checkpointing": True},
    "packed, checkpointed, offloaded": {"layout": "packed", "gradient_checkpointing": True, "offload_activations": True},
    "offloaded": {"offload_activations": True},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_weighs_its_tokens_however_it_lies(pico_models: Path, layout: str) -> None:
    batch = examples_of(LENGTHS)
    whole, other = trainee(pico_models), trainee(pico_models, **LAYOUTS[layout])
    passes = {"2 × 4": 2, "8 × 1": 8, "packed, in passes": 3}.get(layout, 1)
    assert len(whole.passes(batch)) == 1 and len(other.passes(batch)) == passes
    for (name, mine), (_, theirs) in zip(gradient_of(other, batch), gradient_of(whole, batch), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    ours, theirs_ = trainee(pico_models, **LAYOUTS[layout]), trainee(pico_models)
    steps = [[one.step(batch, 1e-2, "step") for _ in range(3)] for one in (ours, theirs_)]
    for mine_, theirs_step in zip(*steps, strict=True):
        assert mine_ == pytest.approx(theirs_step, rel=1e-4)
    assert steps[0][2]["loss"] < steps[0][0]["loss"] - 0.1


def test_means_of_passes_would_not_weigh_tokens(pico_models: Path) -> None:
    # The mistake that the test above would find: the mean over passes of each pass's own mean.
    batch = examples_of(LENGTHS)
    one = trainee(pico_models, micro_batch_tokens=1)
    with torch.no_grad():
        sums = [float(one.loss_of(part)) for part, _ in one.passes(batch)]
    counts = [part[0].num_targets for part, _ in one.passes(batch)]
    mean_of_means = sum(total / count for total, count in zip(sums, counts, strict=True)) / len(batch)
    assert abs(mean_of_means - sum(sums) / sum(counts)) > 1e-3


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_bfloat16_is_float32_within_its_rounding(pico_models: Path, layout: str) -> None:
    batch = examples_of(LENGTHS)
    exact = trainee(pico_models).step(batch, 1e-2, "step")
    for precision in ("bfloat16", "pure_bfloat16"):
        other = trainee(pico_models, precision=precision, layout=layout, loss="chunked")
        assert other.step(batch, 1e-2, "step")["loss"] == pytest.approx(exact["loss"], rel=5e-3)
        kinds = {parameter.dtype for parameter in other.parameters}
        assert kinds == {torch.bfloat16 if precision == "pure_bfloat16" else torch.float32}
        moments = {
            value.dtype for state in other.optimizer.state.values() for key, value in state.items() if key != "step"
        }
        assert moments == kinds


def test_a_mask_that_is_all_zero_is_an_error(pico_models: Path) -> None:
    one = trainee(pico_models)
    with pytest.raises(TrainingError, match="step 3: no token of the batch carries loss"):
        one.step([Example([5, 6, 7], 3)], 1e-2, "step 3")


def test_one_process_sums_to_itself() -> None:
    assert Ranks().sum([1.5, 2.0]) == [1.5, 2.0] and Ranks().first
