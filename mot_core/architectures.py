"""What a model is made of, from its config.json, wherever that can be had: parameters, cache, bytes as stored.

A plan is often made for another machine, so a model need not be here. Its config.json is taken from a directory, from
the hub's local cache, from the table below, or from the hub, in this order. Invariant: no weights are read, and torch
is not imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.errors import ModelError, SpecError
from mot_core.sft.memory import Sizes
from mot_core.spec import local_directory

HUB_SECONDS = 5.0
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "fp8": 1.0, "int8": 1.0}
# As configs on the hub and configs that transformers 5 writes call it.
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
# Four bits, and of each 128 weights a scale of 16 bits: the group size of published AWQ and GPTQ weights.
_FOUR_BITS = 0.5 + 2 / 128
QUANTIZED_BYTES = {
    "fp8": 1.0, "compressed-tensors": 1.0, "int8": 1.0, "awq": _FOUR_BITS, "awq_marlin": _FOUR_BITS,
    "gptq": _FOUR_BITS, "gptq_marlin": _FOUR_BITS, "bitsandbytes": _FOUR_BITS,
}  # fmt: skip
"""Bytes of a weight in a layer's matrices by the method's name in vLLM; embedding and head stay as they are stored."""


@dataclass(frozen=True)
class Architecture:
    """A decoder: what is stored, what a token passes through, what it leaves in the cache; and where that is known from."""

    config: Mapping[str, Any]
    parameters: int
    active: int
    """Of a mixture of experts, the parameters that one token passes through; else all."""
    expert_share: float
    """Of a mixture of experts, the share of its experts that one token is sent to; else 1."""
    outside: int
    """Parameters of embedding and head."""
    cache_values: int
    """Numbers that one token leaves in the cache, over all layers."""
    kv_heads: int
    """Over how many devices a cache can be divided; latent attention has one copy a device."""
    heads: int
    context: int
    """The longest prompt and completion, tokens."""
    stored_bytes: float
    """Of one weight, as it is published."""
    source: str

    @property
    def is_dense(self) -> bool:
        return self.expert_share == 1.0

    @property
    def largest_tensor(self) -> int:
        """Numbers of the largest tensor: the embedding."""
        return int(self.config["vocab_size"] * self.config["hidden_size"])

    def weight_bytes(self, dtype_bytes: float | None = None, quantization: str | None = None) -> float:
        """Of all weights: as stored, in a dtype, or with its matrices quantized."""
        outside = dtype_bytes or max(2.0, self.stored_bytes)
        inside = dtype_bytes or self.stored_bytes
        if quantization is not None:
            inside = QUANTIZED_BYTES.get(quantization, inside)
        return inside * (self.parameters - self.outside) + outside * self.outside

    @classmethod
    def of_config(cls, config: Mapping[str, Any], source: str) -> Architecture:
        """From a config.json's fields.

        Raises:
            ModelError: a field that is needed is not there.
        """
        try:
            return _described(config, source)
        except KeyError as error:
            raise ModelError(
                f"{source}: config.json of model type {config.get('model_type')!r} has no {error}; expected a decoder in "
                "the form of Llama, Qwen or DeepSeek-V3"
            ) from None


def active_share(config: Mapping[str, Any]) -> float:
    """Of a mixture of experts, the share of its parameters that a token passes through; 1 of a dense decoder, and of one
    whose config is in no form known here."""
    if not any(config.get(name) for name in _EXPERTS):
        return 1.0
    try:
        found = Architecture.of_config(config, "the model's config")
    except (ModelError, TypeError, ValueError):
        return 1.0
    return found.active / found.parameters


def architecture_of(model: str, revision: str | None, where: str, *, ask_hub: bool) -> Architecture:
    """The architecture of a model reference: `lab:NAME`, a directory, or a hub id.

    Raises:
        ModelError: its config.json is nowhere to be had.
    """
    try:
        directory = local_directory(model)
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from None
    if directory is not None:
        config = directory / "config.json"
        if not config.is_file():
            raise ModelError(f"{where}: {directory} has no config.json; expected a model directory")
        return Architecture.of_config(json.loads(config.read_text()), str(config))
    found = _from_cache(model, revision) or known_architecture(model)
    if found is None and ask_hub:
        found = _from_hub(model, revision)
    if found is None:
        raise ModelError(
            f"{where}: nothing is known of model {model!r}: it is no directory here, not in the hub's local cache, not in "
            f"the table of known models (docs/planning.md){', and the hub did not answer' if ask_hub else ''}; give a "
            "directory that holds its config.json, or run this once where the hub can be reached"
        )
    return found


def known_architecture(model: str) -> Architecture | None:
    """The table's entry for a hub id or a directory called like one: its own or its family's of the same shape."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    plain, changes = name, dict[str, Any]()
    for ending, more in _SIBLINGS.items():
        if re.search(ending, plain):
            plain, changes = re.sub(ending, "", plain), {**changes, **more}
    base = _KNOWN.get(name) or _KNOWN.get(plain)
    if base is None:
        return None
    family, fields = base
    config = {**_FAMILIES[family], **fields, **({} if name in _KNOWN else changes)}
    if family == "qwen3" and re.search(r"-base$", name):
        config["max_position_embeddings"] = 32_768
    return Architecture.of_config(config, f"table of known models ({name})")


def _from_cache(model: str, revision: str | None) -> Architecture | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # a path, not a hub id
        return None
    if not isinstance(path, str):
        return None
    return Architecture.of_config(json.loads(Path(path).read_text()), f"hub cache ({model})")


def _from_hub(model: str, revision: str | None) -> Architecture | None:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(model, "config.json", revision=revision, etag_timeout=HUB_SECONDS)
    except (OSError, ValueError):  # unreachable, unknown, gated, or no hub id: all are the hub's errors
        return None
    return Architecture.of_config(json.loads(Path(path).read_text()), f"hub ({model})")


def _described(config: Mapping[str, Any], source: str) -> Architecture:
    kind = config.get("model_type", "")
    latent = "kv_lora_rank" in config
    sizes = Sizes.of(config)
    h, layers = sizes.hidden, sizes.layers
    attention = _latent_attention(config) if latent else _attention(sizes)
    dense_mlp, outside = 3 * h * sizes.intermediate, sizes.outside
    experts, width = next((int(config[name]) for name in _EXPERTS if config.get(name)), 0), 0
    dense_layers, chosen, shared = layers, 0, 0
    if experts:
        width = 3 * h * int(config.get("moe_intermediate_size") or sizes.intermediate)
        chosen = int(config["num_experts_per_tok"])
        shared = int(config.get("n_shared_experts") or 0)
        dense_layers = int(config.get("first_k_dense_replace") or len(config.get("mlp_only_layers") or ()))
    router = h * experts + (experts if kind.startswith("deepseek_v3") else 0)
    moe_layers = layers - dense_layers
    fixed = layers * (attention + 2 * h) + dense_layers * dense_mlp + moe_layers * (shared * width + router) + outside
    cache = layers * (config["kv_lora_rank"] + config["qk_rope_head_dim"] if latent else 2 * sizes.keys)
    return Architecture(
        config=config,
        parameters=fixed + moe_layers * experts * width,
        active=fixed + moe_layers * chosen * width,
        expert_share=chosen / experts if experts else 1.0,
        outside=outside,
        cache_values=cache,
        kv_heads=1 if latent else sizes.kv_heads,
        heads=sizes.heads,
        context=int(config.get("max_position_embeddings") or 0),
        stored_bytes=_stored_bytes(config, source),
        source=source,
    )


def _attention(sizes: Sizes) -> int:
    """Parameters of one layer's attention."""
    return sizes.layer - 3 * sizes.hidden * sizes.intermediate - 2 * sizes.hidden


def _latent_attention(config: Mapping[str, Any]) -> int:
    """The same of DeepSeek-V3's multi-head latent attention (arXiv 2412.19437, section 2.1.1), its norms included."""
    h, heads = config["hidden_size"], config["num_attention_heads"]
    q, kv, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    queries = h * q + q + q * heads * (nope + rope)
    return int(queries + h * (kv + rope) + kv + kv * heads * (nope + value) + heads * value * h)


def _stored_bytes(config: Mapping[str, Any], source: str) -> float:
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None:
        if method not in QUANTIZED_BYTES:
            raise SpecError(
                f"{source}: quantization method {method!r} is not known to the plan; known: {', '.join(QUANTIZED_BYTES)}"
            )
        return QUANTIZED_BYTES[method]
    return _BYTES.get(str(config.get("dtype") or config.get("torch_dtype") or "float32"), 4.0)


# --- the table -------------------------------------------------------------------------------------------------------

# Fields of the published config.json files, so far as they are read; totals are checked by tests/test_architectures.py.
_FP8 = {"quantization_config": {"quant_method": "fp8"}}
_SIBLINGS: dict[str, dict[str, Any]] = {
    r"-fp8$": _FP8,
    r"-awq$": {"quantization_config": {"quant_method": "awq"}},
    r"-gptq-int4$": {"quantization_config": {"quant_method": "gptq"}},
    r"-(instruct|thinking)-2507$": {"max_position_embeddings": 262_144},
    r"-(instruct|base|chat)$": {},
}
"""Endings of names whose models have the plain one's shape, with what differs."""
_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "vocab_size": 151_936, "head_dim": 128, "tie_word_embeddings": False,
              "max_position_embeddings": 40_960, "dtype": "bfloat16"},
    "qwen3_moe": {"model_type": "qwen3_moe", "vocab_size": 151_936, "head_dim": 128, "tie_word_embeddings": False,
                  "num_experts": 128, "num_experts_per_tok": 8, "num_key_value_heads": 4,
                  "max_position_embeddings": 40_960, "dtype": "bfloat16"},
    "qwen2": {"model_type": "qwen2", "vocab_size": 152_064, "tie_word_embeddings": False,
              "max_position_embeddings": 32_768, "dtype": "bfloat16"},
    "llama": {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "tie_word_embeddings": False,
              "max_position_embeddings": 131_072, "dtype": "bfloat16"},
    "smollm2": {"model_type": "llama", "vocab_size": 49_152, "tie_word_embeddings": True,
                "max_position_embeddings": 8192, "dtype": "bfloat16"},
    "deepseek_v3": {"model_type": "deepseek_v3", "vocab_size": 129_280, "tie_word_embeddings": False,
                    "max_position_embeddings": 163_840, "dtype": "bfloat16", **_FP8},
}  # fmt: skip


def _shape(layers: int, hidden: int, intermediate: int, heads: int, **more: Any) -> dict[str, Any]:
    named = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate}
    return {**named, "num_attention_heads": heads, **more}


_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_QWEN2_SMALL: dict[str, Any] = {**_TIED, "vocab_size": 151_936}
_LLAMA_8B, _LLAMA_70B = _shape(32, 4096, 14_336, 32), _shape(80, 8192, 28_672, 64)
_R1 = _shape(
    61, 7168, 18_432, 128, num_key_value_heads=128, moe_intermediate_size=2048, n_routed_experts=256,
    n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3, q_lora_rank=1536, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
)  # fmt: skip
_KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-0.6b": ("qwen3", _shape(28, 1024, 3072, 16, num_key_value_heads=8, **_TIED)),
    "qwen3-1.7b": ("qwen3", _shape(28, 2048, 6144, 16, num_key_value_heads=8, **_TIED)),
    "qwen3-4b": ("qwen3", _shape(36, 2560, 9728, 32, num_key_value_heads=8, **_TIED)),
    "qwen3-8b": ("qwen3", _shape(36, 4096, 12_288, 32, num_key_value_heads=8)),
    "qwen3-14b": ("qwen3", _shape(40, 5120, 17_408, 40, num_key_value_heads=8)),
    "qwen3-32b": ("qwen3", _shape(64, 5120, 25_600, 64, num_key_value_heads=8)),
    "qwen3-30b-a3b": ("qwen3_moe", _shape(48, 2048, 6144, 32, moe_intermediate_size=768)),
    "qwen3-235b-a22b": ("qwen3_moe", _shape(94, 4096, 12_288, 64, moe_intermediate_size=1536)),
    "qwen2.5-0.5b": ("qwen2", _shape(24, 896, 4864, 14, num_key_value_heads=2, **_QWEN2_SMALL)),
    "qwen2.5-1.5b": ("qwen2", _shape(28, 1536, 8960, 12, num_key_value_heads=2, **_QWEN2_SMALL)),
    "qwen2.5-3b": ("qwen2", _shape(36, 2048, 11_008, 16, num_key_value_heads=2, **_QWEN2_SMALL)),
    "qwen2.5-7b": ("qwen2", _shape(28, 3584, 18_944, 28, num_key_value_heads=4)),
    "qwen2.5-14b": ("qwen2", _shape(48, 5120, 13_824, 40, num_key_value_heads=8)),
    "qwen2.5-32b": ("qwen2", _shape(64, 5120, 27_648, 40, num_key_value_heads=8)),
    "qwen2.5-72b": ("qwen2", _shape(80, 8192, 29_568, 64, num_key_value_heads=8)),
    "qwq-32b": ("qwen2", _shape(64, 5120, 27_648, 40, num_key_value_heads=8, max_position_embeddings=40_960)),
    "llama-3.2-1b": ("llama", _shape(16, 2048, 8192, 32, head_dim=64, **_TIED)),
    "llama-3.2-3b": ("llama", _shape(28, 3072, 8192, 24, head_dim=128, **_TIED)),
    "meta-llama-3-8b": ("llama", {**_LLAMA_8B, "max_position_embeddings": 8192}),
    "meta-llama-3-70b": ("llama", {**_LLAMA_70B, "max_position_embeddings": 8192}),
    "llama-3.1-8b": ("llama", _LLAMA_8B),
    "llama-3.1-70b": ("llama", _LLAMA_70B),
    "llama-3.3-70b": ("llama", _LLAMA_70B),
    "smollm2-135m": ("smollm2", _shape(30, 576, 1536, 9, num_key_value_heads=3)),
    "smollm2-360m": ("smollm2", _shape(32, 960, 2560, 15, num_key_value_heads=5)),
    "smollm2-1.7b": ("smollm2", _shape(24, 2048, 8192, 32, num_key_value_heads=32)),
    "deepseek-r1": ("deepseek_v3", _R1),
    "deepseek-r1-0528": ("deepseek_v3", _R1),
    "deepseek-v3": ("deepseek_v3", _R1),
}
