"""A student as it is trained, and as it is published.

Invariant: whatever trains (all weights, adapters, adapters on 4-bit weights, shards of either), what is published is a
plain directory of full weights, so that merging and evaluation know one form only. Adapters are added to the weights
they were trained beside: averaging A and B apart would bring in cross terms.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mot_core.errors import ModelError
from mot_core.models import load_model, save_student
from mot_core.sft.attention import check_packable, use_segments
from mot_core.sft.ranks import Ranks, whole
from mot_core.spec import Training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADAPTER = ".lora_A.default.weight"


def load_student(locator: str, revision: str | None, device: str, settings: Training, seed: int) -> Any:
    """The model to train: its precision, attention, adapters and checkpointing as the settings say."""
    lora = settings.lora
    model: Any = load_model(
        locator, revision, device, weights_dtype(settings), attention=settings.attention,
        quantization=lora.quantization if lora is not None else None,
    )  # fmt: skip
    if settings.layout == "packed":
        check_packable(model)
        if settings.attention == "sdpa":
            use_segments(model)
    if lora is not None:
        _add_adapters(model, settings, seed)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    return model


def checkpoint_activations(model: Any) -> None:
    """Keep the input of each layer only, and compute the rest again in the backward pass."""
    # The older name is all that transformers 5.20 has, which one environment with vLLM needs; 5.24 warns of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def weights_dtype(settings: Training) -> torch.dtype:
    """Of the weights as they are loaded. Frozen ones need no more precision than they compute in, but a sharded layer
    must hold one dtype."""
    frozen = settings.lora is not None and settings.precision != "float32" and settings.devices == 1
    return torch.bfloat16 if frozen or settings.precision == "pure_bfloat16" else torch.float32


def _add_adapters(model: Any, settings: Training, seed: int) -> None:
    """Adapters in place of the linear layers named, frozen weights elsewhere; their start follows from the seed."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError(f"training.lora needs peft: {error}; pip install peft, or leave lora out") from error
    lora = settings.lora
    assert lora is not None
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    torch.manual_seed(seed)
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ModelError(f"training.lora.targets {lora.targets!r}: {error}") from error
    embeddings = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and id(module) in embeddings:
            raise ModelError(f"training.lora.targets reaches {name}; embeddings and head stay as they are, name others")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad and settings.precision != "pure_bfloat16":
            parameter.data = parameter.data.float()


def publish_student(
    model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path, settings: Training, ranks: Ranks, locator: str,
    revision: str | None,
) -> None:  # fmt: skip
    """Write the student as it stands; every rank must call this, the first one writes."""
    if settings.lora is None and ranks.count == 1:
        save_student(model, tokenizer, directory)
        return
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = whole(parameter.detach())
            if ranks.first:
                trained[name] = value.cpu()
    if ranks.first:
        # Frozen weights come from their source: those in memory may be rounded to 4 bits.
        dtype = torch.bfloat16 if settings.precision == "pure_bfloat16" else torch.float32
        plain = load_model(locator, revision, "cpu", dtype)
        with torch.no_grad():
            if settings.lora is None:
                for name, value in trained.items():
                    plain.get_parameter(name).copy_(value)
            else:
                _add_updates(plain, trained, settings.lora.alpha / settings.lora.rank)
        save_student(plain, tokenizer, directory)
    ranks.wait()


def _add_updates(plain: Any, trained: dict[str, torch.Tensor], scale: float) -> None:
    """W ← W + (alpha / rank) B A, computed in fp32."""
    for name, down in trained.items():
        if name.endswith(_ADAPTER):
            module = name.removesuffix(_ADAPTER)
            up = trained[f"{module}.lora_B.default.weight"]
            weight = plain.get_submodule(module).weight
            weight.copy_(weight.float() + scale * (up.float() @ down.float()))
