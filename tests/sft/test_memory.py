"""The memory count against what autograd keeps: saved-tensor hooks, and the peak of live tensors in the loss."""

from __future__ import annotations

import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mot_core.sft.layout import collate
from mot_core.sft.loss import CompletionLoss, chunked_loss, summed_loss
from mot_core.sft.memory import Pass, Sizes, activation_bytes, layer_bytes, logits_bytes, memory_of
from mot_core.sft.tokens import Example
from mot_core.spec import Training

QWEN3: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 160,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 200, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 100,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip
# A published model's config.json, so far as it is read.
QWEN3_14B: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 5120, "num_hidden_layers": 40,
    "intermediate_size": 17_408, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
LENGTHS = [60, 43, 57, 25]
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, packed": {"layout": "packed"},
    "fp32, checkpointed": {"gradient_checkpointing": True},
    "bf16": {"precision": "bfloat16"},
    "bf16, packed": {"precision": "bfloat16", "layout": "packed"},
    "bf16, packed, checkpointed": {"precision": "bfloat16", "layout": "packed", "gradient_checkpointing": True},
    "all in bf16": {"precision": "pure_bfloat16"},
    "all in bf16, packed, checkpointed": {"precision": "pure_bfloat16", "layout": "packed", "gradient_checkpointing": True},
    "adapters": {"lora": {"rank": 4}},
    "adapters, bf16": {"lora": {"rank": 4}, "precision": "bfloat16"},
    "adapters, all in bf16, packed": {"lora": {"rank": 4}, "precision": "pure_bfloat16", "layout": "packed"},
}  # fmt: skip


def model_of(config: dict[str, Any], training: Training) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    from mot_core.sft.attention import use_segments
    from mot_core.sft.students import _add_adapters, checkpoint_activations, weights_dtype

    fields = {key: value for key, value in config.items() if key != "model_type"}
    made = AutoConfig.for_model(config["model_type"], **fields)
    model: Any = AutoModelForCausalLM.from_config(made, attn_implementation="sdpa").to(weights_dtype(training)).train()
    if training.layout == "packed":
        use_segments(model)
    if training.lora is not None:
        _add_adapters(model, training, 1)
    if training.gradient_checkpointing:
        checkpoint_activations(model)
    return model


def kept_by_autograd(config: dict[str, Any], training: Training) -> int:
    """Bytes of all distinct tensors that a forward pass saves, but for parameters, their casts, and the loss's own."""
    model = model_of(config, training)
    computed = CompletionLoss(model, "chunked", 8)
    draw = torch.Generator().manual_seed(0)
    examples = [
        Example(torch.randint(0, config["vocab_size"], (length,), generator=draw).tolist(), length // 3)
        for length in LENGTHS
    ]
    batch = collate(examples, training.layout, 0)
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: list[torch.Tensor] = []  # so that no address is used twice
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        address, shape = tensor.untyped_storage().data_ptr(), tuple(tensor.shape)
        if address not in seen and shape not in shapes and shape[::-1] not in shapes:
            seen.add(address)
            held.append(tensor)
            total += tensor.untyped_storage().nbytes()
        return tensor

    bf16 = training.precision == "bfloat16"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, bf16),
    ):
        computed(batch)
    targets = sum(example.num_targets for example in examples)
    return total - targets * config["hidden_size"] * (4 if training.precision == "float32" else 2)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("config", [QWEN3, LLAMA], ids=["qwen3", "llama"])
def test_activations_are_what_autograd_keeps(config: dict[str, Any], name: str) -> None:
    training = Training.model_validate(SETTINGS[name])
    packed = training.layout == "packed"
    shape = Pass(1, sum(LENGTHS), 0) if packed else Pass(len(LENGTHS), max(LENGTHS), 0)
    counted = activation_bytes(Sizes.of(config), training, shape)
    if training.gradient_checkpointing:  # the layer that is computed again is kept in the backward pass only
        counted -= layer_bytes(Sizes.of(config), training, shape)
    assert kept_by_autograd(config, training) == pytest.approx(counted, rel=0.15)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf.untyped_storage(), inputs)
        return made

    def count(self, storage: Any, inputs: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in inputs:  # a view, or what was there before
            return
        self.known.add(key)
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def test_parameters_are_the_models() -> None:
    for config in (QWEN3, LLAMA):
        model = model_of(config, Training())
        assert Sizes.of(config).total == sum(parameter.numel() for parameter in model.parameters())
        adapted = model_of(config, Training.model_validate({"lora": {"rank": 5}}))
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        assert Sizes.of(config).adapters(5, "all-linear") == trained
    assert Sizes.of(QWEN3_14B).total == 14_768_307_200


def test_the_parts_by_hand() -> None:
    sizes, shape = Sizes.of(QWEN3_14B), Pass(1, 16_384, 12_000)
    total = sizes.total
    full = memory_of(QWEN3_14B, Training(), shape)
    assert (full["weights"], full["gradients"], full["optimizer"]) == (4 * total, 4 * total, 8 * total)
    assert full["logits"] == 4 * 512 * 151_936 + 4 * 151_936 * 5120 + 4 * 12_000 * 5120
    pure = memory_of(QWEN3_14B, Training(precision="pure_bfloat16", optimizer="adamw8bit"), shape)
    assert (pure["weights"], pure["gradients"]) == (2 * total, 2 * total)
    assert pure["optimizer"] == pytest.approx(2.03125 * total)
    qlora = memory_of(
        QWEN3_14B,
        Training.model_validate({"precision": "bfloat16", "lora": {"rank": 16, "quantization": "nf4"}}),
        shape,
    )
    adapters = sizes.adapters(16, "all-linear")
    assert adapters == 64_225_280 and (qlora["gradients"], qlora["optimizer"]) == (4 * adapters, 8 * adapters)
    assert 9.5e9 < qlora["weights"] < 10.5e9
    sharded = memory_of(QWEN3_14B, Training(devices=8), shape)
    assert sharded["optimizer"] == total
    assert sharded["weights"] == pytest.approx(total / 2 + 4 * (sizes.outside + 2 * sizes.layer))
    whole = memory_of(QWEN3_14B, Training(), shape)["activations"]
    spared = memory_of(QWEN3_14B, Training(gradient_checkpointing=True), shape)["activations"]
    layer = layer_bytes(sizes, Training(), shape)
    assert whole - spared == pytest.approx(39 * layer - 40 * 4 * 16_384 * 5120)


def test_the_largest_pass() -> None:
    assert Pass.expected(Training(batch_size=8), 99.5, 80) == Pass(8, 100, 640)
    assert Pass.expected(Training(batch_size=8, layout="packed"), 100, 80) == Pass(1, 800, 640)
    assert Pass.expected(Training(batch_size=8, devices=4), 100, 80) == Pass(2, 100, 160)
    assert Pass.expected(Training(batch_size=8, micro_batch_tokens=350), 100, 80) == Pass(3, 100, 240)
    assert Pass.expected(Training(batch_size=8, micro_batch_tokens=50), 100, 80) == Pass(1, 100, 80)


def test_logits_are_the_losss_peak() -> None:
    sizes = Sizes.of({**QWEN3, "vocab_size": 4000, "hidden_size": 16})
    hidden, weight = torch.randn(3, 40, 16), torch.randn(4000, 16, requires_grad=True)
    labels = torch.randint(0, 4000, (3, 40))
    with Peak() as peak:
        summed_loss(hidden @ weight.T, labels).backward()
    shape = Pass(3, 40, 117)
    assert peak.most == pytest.approx(logits_bytes(sizes, Training(loss="full"), shape), rel=0.15)
    flat = hidden[:, :-1].reshape(-1, 16).requires_grad_()
    weight.grad = None
    for chunk in (16, 64):
        with Peak() as peak:
            chunked_loss(flat, weight, None, labels[:, 1:].reshape(-1), chunk).backward()
        training = Training(loss="chunked", loss_chunk_tokens=chunk)
        assert peak.most == pytest.approx(logits_bytes(sizes, training, shape), rel=0.15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in SETTINGS if "fp32" not in name])
def test_the_whole_is_what_the_allocator_gave(name: str) -> None:
    """Weights, gradients, moments, activations and logits of a second step, whose moments exist already."""
    from mot_core.sft.ranks import Ranks
    from mot_core.sft.train import Trainee

    large = {**QWEN3, "vocab_size": 32_000, "hidden_size": 1024, "num_hidden_layers": 8, "intermediate_size": 3072,
             "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}  # fmt: skip
    training = Training.model_validate({**SETTINGS[name], "loss": "chunked", "batch_size": 4})
    device = torch.device("cuda:0")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    trainee = Trainee(model_of(large, training).to(device), training, 0, Ranks(device=device))
    batch = [Example(list(range(1000, 1000 + length)), length // 4) for length in (1024, 1000, 900, 1024)]
    trainee.step(batch, 1e-4, "step 1")
    torch.cuda.reset_peak_memory_stats(device)
    trainee.step(batch, 1e-4, "step 2")
    targets, lengths = sum(example.num_targets for example in batch), [len(example.input_ids) for example in batch]
    packed = training.layout == "packed"
    largest = Pass(1, sum(lengths), targets) if packed else Pass(len(batch), max(lengths), targets)
    counted = sum(memory_of(large, training, largest).values())
    assert torch.cuda.max_memory_allocated(device) - before == pytest.approx(counted, rel=0.15)


def test_the_count_needs_no_torch() -> None:
    code = "import sys, mot_core.sft.memory; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
