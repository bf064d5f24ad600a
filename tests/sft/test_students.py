"""Adapters end in full weights: the published student is the one that was trained, whatever was trained of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mot_core.artifacts import Store
from mot_core.errors import ModelError
from mot_core.models import load_model, load_tokenizer
from mot_core.sft.ranks import Ranks
from mot_core.sft.students import load_student, publish_student, weights_dtype
from mot_core.sft.train import Trainee
from mot_core.spec import Lora, Training
from tests.pico import write_pico_model
from tests.sft.branches import branch, log_of
from tests.sft.test_layout import LENGTHS, examples_of

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10]])


def trained(student: Path, steps: int = 3, **changes: Any) -> Trainee:
    settings = Training.model_validate({"batch_size": 8, "learning_rate": 2e-2, **changes})
    trainee = Trainee(load_student(str(student), None, "cpu", settings, seed=1), settings, pad_id=0)
    for step in range(steps):
        torch.manual_seed(step)
        trainee.step(examples_of(LENGTHS), 2e-2, "step")
    trainee.model.eval()
    return trainee


def published(trainee: Trainee, student: Path, to: Path) -> Any:
    """The student that was published, loaded as anyone would."""
    tokenizer = load_tokenizer(str(student))
    publish_student(trainee.model, tokenizer, to, trainee.settings, Ranks(), str(student), None)
    return load_model(str(to), None, "cpu")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=PROMPT, use_cache=False).logits.float()
    return found


def test_published_adapters_are_the_trained_model(pico_models: Path, tmp_path: Path) -> None:
    student = pico_models / "student"
    trainee = trained(student, lora={"rank": 3, "alpha": 6.0, "dropout": 0.1})
    plain = published(trainee, student, tmp_path / "out")
    start = load_model(str(student), None, "cpu")
    torch.testing.assert_close(logits(plain), logits(trainee.model), rtol=1e-5, atol=1e-5)
    assert (logits(plain) - logits(start)).abs().max() > 0.05, "something was learnt"
    # Same names and shapes as full training publishes, so merging needs to know no other form.
    assert {name: value.shape for name, value in load_file(tmp_path / "out" / "model.safetensors").items()} == {
        name: value.shape for name, value in load_file(student / "model.safetensors").items()
    }


def test_the_update_by_hand_and_by_peft(pico_models: Path, tmp_path: Path) -> None:
    student, name = pico_models / "student", "model.layers.1.self_attn.o_proj"
    trainee = trained(student, lora={"rank": 3, "alpha": 6.0, "targets": ["o_proj"]})
    layer = trainee.model.get_submodule(name)
    update = layer.get_delta_weight("default").detach()  # peft's own
    up, down = (getattr(layer, part)["default"].weight.detach() for part in ("lora_B", "lora_A"))
    torch.testing.assert_close(2.0 * up @ down, update, rtol=1e-6, atol=1e-9)
    published(trainee, student, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (student, tmp_path / "out"))
    torch.testing.assert_close(after[f"{name}.weight"] - before[f"{name}.weight"], update, rtol=1e-3, atol=1e-7)
    # Only the modules named have changed.
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (0, 1)
    }


def test_adapters_of_full_rank_can_be_a_full_update(pico_models: Path, tmp_path: Path) -> None:
    # With B = ΔW / scale and A = 1, adapters are any full update; published, both are the same student to rounding.
    student, name = pico_models / "student", "model.layers.0.mlp.down_proj"
    full = trained(student)
    settings = Training.model_validate({"lora": {"rank": 48, "alpha": 96.0, "targets": ["down_proj"]}})
    model = load_student(str(student), None, "cpu", settings, seed=1)
    start, end = (
        load_file(student / "model.safetensors")[f"{name}.weight"],
        full.model.get_submodule(name).weight.detach(),
    )
    with torch.no_grad():
        layer = model.get_submodule(name)
        layer.lora_A["default"].weight.copy_(torch.eye(48))
        layer.lora_B["default"].weight.copy_((end - start) / 2.0)
    published(Trainee(model, settings, 0), student, tmp_path / "out")
    torch.testing.assert_close(
        load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"], end, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "pure_bfloat16"])
def test_frozen_weights_are_held_small_and_published_whole(pico_models: Path, tmp_path: Path, precision: str) -> None:
    student = pico_models / "student"
    trainee = trained(student, precision=precision, lora={"rank": 2, "targets": ["q_proj"]})
    held = {parameter.dtype for parameter in trainee.model.parameters() if not parameter.requires_grad}
    moving = {parameter.dtype for parameter in trainee.parameters}
    assert held == {torch.float32 if precision == "float32" else torch.bfloat16}
    assert moving == {torch.bfloat16 if precision == "pure_bfloat16" else torch.float32}
    assert len(trainee.parameters) == 4
    published(trainee, student, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (student, tmp_path / "out"))
    assert after["model.norm.weight"].dtype == (torch.bfloat16 if precision == "pure_bfloat16" else torch.float32)
    embedding = before["model.embed_tokens.weight"]
    if precision != "pure_bfloat16":  # not rounded on its way through bf16
        assert torch.equal(after["model.embed_tokens.weight"], embedding)
    # A sharded layer holds one dtype.
    assert weights_dtype(Training(precision="bfloat16", lora=Lora(), devices=2)) == torch.float32


def test_adapters_on_4_bit_weights_are_added_to_the_exact_ones(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    student = write_pico_model(tmp_path / "wide", 1, hidden_size=128)
    trainee = trained(student, lora={"rank": 2, "targets": ["q_proj", "v_proj"], "quantization": "nf4"})
    layer = trainee.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.base_layer.weight.dtype == torch.uint8
    published(trainee, student, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (student, tmp_path / "out"))
    update = layer.get_delta_weight("default").detach()
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(after[name] - before[name], update, rtol=1e-3, atol=1e-7)
    assert float(update.abs().max()) > 1e-3
    assert torch.equal(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


def test_8_bit_moments_are(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    student = write_pico_model(tmp_path / "wide", 1, hidden_size=128)
    trainee = trained(student, optimizer="adamw8bit")
    state = trainee.optimizer.state[trainee.model.get_submodule("model.embed_tokens").weight]
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}
    exact = trained(student)
    losses = [one.step(examples_of(LENGTHS), 2e-2, "step")["loss"] for one in (trainee, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_targets_that_are_not_there(pico_models: Path) -> None:
    for targets, told in (
        (["nope"], "training.lora.targets"),
        (["embed_tokens"], "embeddings and head stay as they are"),
    ):
        with pytest.raises(ModelError, match=told):
            trained(pico_models / "student", lora={"targets": targets})


def test_a_branch_of_adapters_learns(pico_models: Path, tmp_path: Path) -> None:
    made = branch(
        Store(tmp_path).open(), pico_models / "student", lora={"rank": 8}, learning_rate=5e-2, snapshot_steps=(3,)
    )
    log = log_of(made)
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    assert made.counts["num_trained_parameters"] < made.counts["num_parameters"]
    snapshot, final = (load_file(path) for path in sorted(made.path.rglob("model.safetensors"), reverse=True))
    assert not torch.equal(snapshot["model.layers.0.mlp.up_proj.weight"], final["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention may be there")
def test_flash_attention_where_it_is_not(pico_models: Path) -> None:
    settings = Training.model_validate({"attention": "flash_attention_2", "precision": "bfloat16"})
    with pytest.raises(
        ModelError, match="cannot be loaded as asked: .*; install what is missing, or change training.attention"
    ):
        load_student(str(pico_models / "student"), None, "cpu", settings, seed=1)
