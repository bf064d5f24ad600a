"""Machines that a plan can be made for: `8xH100`, or `1x24GB` of which only the memory is known; and what is assumed.

Invariant: figures of a GPU are its vendor's, for dense matrices; whatever stands for how well a program uses them is an
assumption, in one record, printed with every plan.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mot_core.errors import SpecError
from mot_core.spec import nearest

GIB = 1 << 30
_ECC_SHARE = 1 / 16
"""Of GDDR6, where error correction keeps its codes in the memory itself (`nvidia-smi` on an L4: 23,034 of 24,576 MiB)."""


@dataclass(frozen=True)
class Gpu:
    """One device. Rates are per second: bytes of its memory, operations on dense matrices by precision."""

    name: str
    memory_gib: float
    bandwidth: float | None = None
    bfloat16: float | None = None
    float32: float | None = None
    fp8: float | None = None
    source: str = "memory as given; rates unknown"

    def rate(self, precision: str) -> float | None:
        """Operations per second in a precision; in bf16 where fp8 is not computed in."""
        if precision == "fp8":
            return self.fp8 or self.bfloat16
        return self.float32 if precision == "float32" else self.bfloat16


def _gpu(name: str, gib: float, tb: float, bf16: float, fp32: float, fp8: float | None, source: str, ecc: bool) -> Gpu:
    memory = gib * (1 - _ECC_SHARE) if ecc else gib
    return Gpu(name, memory, tb * 1e12, bf16 * 1e12, fp32 * 1e12, fp8 * 1e12 if fp8 else None, source)


TYPES = {
    gpu.name: gpu
    for gpu in (
        _gpu("H100", 80, 3.35, 989, 67, 1979, "NVIDIA H100 datasheet, SXM5 80 GB; half of the figures with sparsity", False),
        _gpu("H200", 141, 4.8, 989, 67, 1979, "NVIDIA H200 datasheet, SXM; half of the figures with sparsity", False),
        _gpu("B200", 180, 8.0, 2250, 75, 4500, "NVIDIA HGX B200 datasheet, an eighth of 8 GPUs', dense", False),
        _gpu("A100-80GB", 80, 2.039, 312, 19.5, None, "NVIDIA A100 datasheet, SXM4 80 GB", False),
        _gpu("A100-40GB", 40, 1.555, 312, 19.5, None, "NVIDIA A100 datasheet, SXM4 40 GB", False),
        _gpu("L40S", 48, 0.864, 362, 91.6, 733, "NVIDIA L40S datasheet, dense", True),
        _gpu("L4", 24, 0.3, 121, 30.3, 242, "NVIDIA L4 datasheet; half of the figures with sparsity", True),
        _gpu("A10G", 24, 0.6, 70, 31.5, None, "NVIDIA A10G datasheet, dense", True),
        _gpu("RTX4090", 24, 1.008, 165.2, 82.6, 330.3, "NVIDIA Ada whitepaper, sums in fp32, dense", False),
        _gpu("RTX3090", 24, 0.936, 71, 35.6, None, "NVIDIA GA102 whitepaper, sums in fp32, dense", False),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """As many devices of one type."""

    count: int
    gpu: Gpu

    @classmethod
    def parse(cls, text: str, option: str = "--node") -> Node:
        """`8xH100`, or `2x24GB` for devices of which only the memory is known; `option` is what an error calls it.

        Raises:
            SpecError: no such form, or a type that is not known.
        """
        match = re.fullmatch(r"(\d+)\s*[xX×]\s*(\S+)", text.strip())
        if match is None or int(match[1]) < 1:
            raise SpecError(f"{option} {text!r}: expected COUNTxTYPE, e.g. 8xH100 or 1x24GB; types: {', '.join(TYPES)}")
        count, name = int(match[1]), match[2]
        memory = re.fullmatch(r"(\d+(?:\.\d+)?)(?:GB|GiB)", name, re.IGNORECASE)
        if memory is not None and float(memory[1]) > 0:
            return cls(count, Gpu(name, float(memory[1])))
        known = {known.lower(): known for known in TYPES}
        if name.lower() not in known:
            raise SpecError(
                f"{option} {text!r}: GPU type {name!r} is not known; {nearest(name.upper(), TYPES)}known: "
                f"{', '.join(TYPES)}, or a memory alone, e.g. {count}x24GB"
            )
        return cls(count, TYPES[known[name.lower()]])

    def __str__(self) -> str:
        return f"{self.count}x{self.gpu.name}"


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind over one store that all of them reach. A job lies within one of them."""

    count: int
    node: Node

    @classmethod
    def parse(cls, text: str) -> Cluster:
        """`4x8xH100`: four nodes of `8xH100`.

        Raises:
            SpecError: no such form, or a type that is not known.
        """
        match = re.fullmatch(r"(\d+)\s*[xX×]\s*(\d+\s*[xX×].+)", text.strip())
        if match is None or int(match[1]) < 1:
            raise SpecError(
                f"--cluster {text!r}: expected NODESxCOUNTxTYPE, e.g. 4x8xH100 for four nodes of eight; "
                f"for one machine --node COUNTxTYPE; types: {', '.join(TYPES)}"
            )
        return cls(int(match[1]), Node.parse(match[2], "--cluster"))

    def __str__(self) -> str:
        return f"{self.count}x{self.node}"


@dataclass(frozen=True)
class Assumptions:
    """What a plan for a node takes for granted. None of it was measured on the node."""

    context_gib: float = 1.0
    """Of a device, that the driver and CUDA's context take from everything else."""
    training_slack_gib: float = 1.0
    """Of a device in training: what the allocator rounds up, and buffers of the communication library."""
    engine_gib: float = 3.0
    """Of a device that an engine runs on, beside weights and cache: its activations, and its recorded graphs."""
    training_utilization: float = 0.4
    """Share of the device's rate that training reaches; what is computed twice under checkpointing counts as work."""
    bandwidth_utilization: float = 0.6
    """Share of the memory's bandwidth that writing tokens reaches."""
    prefill_utilization: float = 0.5
    """Share of the device's rate that reading prompts, and large batches of tokens, reach."""
    max_sequences: int = 256
    """Requests that an engine runs at once at most, unless engine_args.max_num_seqs says otherwise."""
    engine_start_seconds: float = 120.0
    """From starting an engine to its first token."""
    step_seconds: float = 0.03
    """The least that one token of a batch takes with the completer transformers: its Python runs a layer at a time."""
    disk_bytes_per_second: float = 1e9
    """At which merging reads and writes weights."""
    share_of_limit: float = 0.6
    """Mean tokens of a completion, as a share of max_completion_tokens."""
    prompt_tokens: int = 256
    """Mean tokens of a prompt."""
    longest_prompt_tokens: int = 1024
    """That max_model_len has to leave room for beside max_completion_tokens."""
    unknown_problems: int = 1000
    """Problems of a source that gives all its rows, where their number is not known."""
    bytes_per_token: float = 4.0
    """Of text on disk."""
