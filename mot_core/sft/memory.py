"""How much memory a branch takes on each of its devices, from its model's config.json and its settings alone.

Counted for dense decoders of Llama's and Qwen3's shape, from what autograd keeps of each operation; held against
that by tests/sft/test_memory.py. Left out: the allocator's rounding, and buffers of the communication library.
Invariant: nothing is loaded, and torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mot_core.sft.places import CHUNKED_FROM_VOCABULARY
from mot_core.spec import Training

# bitsandbytes: 4 bits a weight, and of each 64 a scale of 8 bits, of each 256 scales one of 32.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Two moments of 8 bits, and of each 256 of them a scale of 32.
_ADAMW8BIT_BYTES = 2 + 2 * 4 / 256


@dataclass(frozen=True)
class Pass:
    """The largest forward pass on one device: rows × length tokens, padding included; `targets` carry loss."""

    rows: int
    length: int
    targets: int

    @classmethod
    def expected(cls, training: Training, example_tokens: float, completion_tokens: float) -> Pass:
        """Of a batch whose examples have these mean lengths."""
        longest, examples = math.ceil(example_tokens), math.ceil(training.batch_size / training.devices)
        if training.micro_batch_tokens is not None:
            examples = max(1, min(examples, training.micro_batch_tokens // longest))
        targets = math.ceil(examples * completion_tokens)
        if training.layout == "packed":
            return cls(1, examples * longest, targets)
        return cls(examples, longest, targets)

    @classmethod
    def largest(cls, training: Training) -> Pass:
        """The largest that the settings allow: every example of the batch at max_example_tokens, all of it with loss."""
        return cls.expected(training, training.max_example_tokens, training.max_example_tokens)


@dataclass(frozen=True)
class Sizes:
    """A decoder's widths."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    qk_norm: bool
    attention_bias: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        hidden, heads = config["hidden_size"], config.get("num_attention_heads", 1)
        kind = config.get("model_type", "")
        return cls(
            config["num_hidden_layers"], hidden, config.get("intermediate_size") or 4 * hidden, heads,
            config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads, config["vocab_size"],
            bool(config.get("tie_word_embeddings")), kind.startswith("qwen3"),
            bool(config.get("attention_bias", kind == "qwen2")),
        )  # fmt: skip

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> list[tuple[int, int]]:
        """`(inputs, outputs)` of a layer's matrices."""
        h, i = self.hidden, self.intermediate
        return [(h, self.queries), (h, self.keys), (h, self.keys), (self.queries, h), (h, i), (h, i), (i, h)]

    @property
    def in_matrices(self) -> int:
        """Parameters of all layers' matrices."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        # Qwen2 has biases in query, key and value only; with `attention_bias` elsewhere the output has one as well.
        biases = self.queries + 2 * self.keys if self.attention_bias else 0
        return sum(inputs * outputs for inputs, outputs in self.linears) + norms + biases

    @property
    def outside(self) -> int:
        """Parameters outside the layers: embedding, head if it is apart, last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def total(self) -> int:
        return self.layers * self.layer + self.outside

    def adapters(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Parameters of adapters; of named targets as of all, in the share that they are of a layer's seven matrices."""
        every = rank * self.layers * sum(inputs + outputs for inputs, outputs in self.linears)
        return every if isinstance(targets, str) else math.ceil(every * min(1.0, len(targets) / len(self.linears)))


def memory_of(config: Mapping[str, Any], training: Training, largest: Pass) -> dict[str, int]:
    """Bytes on each device at the peak of a step: `weights`, `gradients`, `optimizer`, `activations`, `logits`."""
    sizes = Sizes.of(config)
    lora, pure = training.lora, training.precision == "pure_bfloat16"
    half_frozen = lora is not None and training.precision != "float32" and training.devices == 1
    trained = sizes.total if lora is None else sizes.adapters(lora.rank, lora.targets)
    held = 2 if pure or half_frozen else 4
    weights, gradients = float(held * sizes.total), float(trained * (2 if pure else 4))
    if lora is not None:
        weights += trained * (2 if pure else 4)
        if lora.quantization is not None:
            weights += (_NF4_BYTES - held) * sizes.in_matrices
    if training.precision == "bfloat16" and held == 4 and training.devices == 1:
        # autocast keeps a bf16 copy of each matrix until the backward pass has used it.
        weights += 2 * (sizes.in_matrices + sizes.vocabulary * sizes.hidden)
    moments = trained * (_ADAMW8BIT_BYTES if training.optimizer == "adamw8bit" else 2 * (2 if pure else 4))
    if training.ema_decay is not None:
        moments += trained * (2 if pure else 4)
    if training.devices > 1:
        weights, gradients, moments = (part / training.devices for part in (weights, gradients, moments))
        # Gathered for their use: what is outside the layers throughout, one layer and the next, one layer's gradient.
        used = 4 if training.precision == "float32" else 2
        weights += used * (sizes.outside + 2 * sizes.layer)
        gradients += used * (sizes.layer + sizes.outside) if lora is None else 0
    return {
        "weights": math.ceil(weights),
        "gradients": math.ceil(gradients),
        "optimizer": math.ceil(moments),
        "activations": math.ceil(activation_bytes(sizes, training, largest)),
        "logits": math.ceil(logits_bytes(sizes, training, largest)),
    }


def on_policy_memory(
    config: Mapping[str, Any], training: Training, largest: Pass, *, num_targets: int, teacher_bytes: float,
    cache_bytes: float,
) -> dict[str, int]:  # fmt: skip
    """The same of an on-policy step, with its teachers beside the student (docs/on-policy.md). A pass also holds its targets
    and what a divergence computes; the cache of sampling and a pass are not held at once."""
    parts = memory_of(config, training, largest)
    divergence = 4 * (num_targets + 6) * largest.targets * config["vocab_size"]
    passing = parts["activations"] + parts["logits"] + divergence
    beyond = max(0, math.ceil(cache_bytes) - passing)
    return {**parts, "teachers": math.ceil(teacher_bytes), "divergence": divergence, "cache beyond a pass": beyond}


def teacher_value_bytes(training: Training) -> int:
    """Bytes a weight of a teacher that an on-policy step reads with: bf16 wherever the student computes in it."""
    return 4 if training.precision == "float32" else 2


def activation_bytes(sizes: Sizes, training: Training, largest: Pass) -> float:
    """What the backward pass needs of the layers. With checkpointing: every layer's input, and one layer whole; with
    offloading: one layer's part."""
    tokens, layer = largest.rows * largest.length, layer_bytes(sizes, training, largest)
    stream = 2 if _half_stream(training) else 4
    end = tokens * (8 + 4 + sizes.hidden * (4 + (0 if training.lora is not None else stream)))  # ids and the last norm
    if training.gradient_checkpointing:
        inputs = tokens * sizes.hidden * stream
        return end + layer + (inputs if training.offload_activations else sizes.layers * inputs)
    return end + (layer if training.offload_activations else sizes.layers * layer)


def layer_bytes(sizes: Sizes, training: Training, largest: Pass) -> float:
    """What autograd keeps of one layer."""
    half, lora = training.precision != "float32", training.lora
    used, autocast = (2 if half else 4), training.precision == "bfloat16" and training.devices == 1
    stream = 2 if _half_stream(training) else 4
    h, q, k, heads = sizes.hidden, sizes.queries, sizes.keys, sizes.heads
    # A norm keeps its input in fp32, a factor a row, and what its own weight is multiplied with, if that trains.
    scaled = 0 if lora is not None else stream
    norms = 2 * (4 * h + 4 + scaled * h)
    # Their outputs go into three and two matrices; autocast makes a copy for each.
    inputs = (2 * 5 if autocast else 2 * used) * h
    if sizes.qk_norm:
        norms += (4 + (0 if lora is not None else used)) * (q + k) + 4 * (heads + sizes.kv_heads)
    # Padded rows have a mask, for which sdpa repeats keys and values to as many heads as there are queries.
    attention = used * (4 * q if training.layout == "padded" else 3 * q + 2 * k) + 4 * heads
    mlp = used * 4 * sizes.intermediate
    adapters = 0 if lora is None else used * (len(sizes.linears) * lora.rank + (q if autocast else 0))
    mask = used * largest.length if training.layout == "padded" else 0
    return largest.rows * largest.length * (norms + inputs + attention + mlp + adapters + mask)


def logits_bytes(sizes: Sizes, training: Training, largest: Pass) -> float:
    """What the loss holds at once, its gradients with respect to the head's inputs and weights included."""
    used = 4 if training.precision == "float32" else 2
    kind = training.loss
    if kind == "auto":
        kind = "chunked" if sizes.vocabulary >= CHUNKED_FROM_VOCABULARY else "full"
    if kind == "full":
        # In fp32 the logits, the copy of them that is shifted by one, and their log-probabilities, 4 bytes each; in
        # bf16 the first two are half as large, and there is a copy in fp32.
        return largest.rows * largest.length * sizes.vocabulary * 12
    chunk = min(training.loss_chunk_tokens, largest.targets) * sizes.vocabulary * (4 if used == 4 else 6)
    head = 4 * sizes.vocabulary * sizes.hidden if training.lora is None else 0
    return chunk + head + used * largest.targets * sizes.hidden


def _half_stream(training: Training) -> bool:
    """Whether what flows from layer to layer is in bf16: where the embedding is, or is gathered so."""
    if training.precision == "pure_bfloat16":
        return True
    return training.precision == "bfloat16" and (training.lora is not None or training.devices > 1)
