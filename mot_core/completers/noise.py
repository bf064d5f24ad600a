"""Sampling whose randomness belongs to the request, not to the batch.

The Gumbel-max trick: argmax(logits / T + G) with G ~ Gumbel(0, 1) is a draw from softmax(logits / T). G is a
counter-based hash of (request seed, position, token), so a request draws the same noise in any batch, at any
place, on any run; students that answer the same request share it (common random numbers).
"""

from __future__ import annotations

import math

import torch
from transformers import LogitsProcessor

from mot_core.spec import Sampling

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64, the SplitMix64 increment


def gumbel_noise(seeds_B: torch.Tensor, position: int, vocab_size: int) -> torch.Tensor:
    """Gumbel(0, 1) noise, float32 (B, V), from int64 request seeds (B,), a position and each token's index.

    Two rounds of the SplitMix64 finaliser (Steele, Lea, Flood 2014) over the mixed counter.
    """
    tokens_V = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=seeds_B.device)
    row_B = _mix(seeds_B + _wrapped((position + 1) * _GOLDEN))
    bits_BV = _mix(row_B[:, None] + tokens_V[None, :] * _GOLDEN)
    uniform_BV = (_shift_right(bits_BV, 12).to(torch.float64) + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform_BV)).to(torch.float32)


def _wrapped(value: int) -> int:
    """A Python integer as the int64 that arithmetic modulo 2⁶⁴ would give."""
    return (value + 2**63) % 2**64 - 2**63


def _shift_right(bits: torch.Tensor, places: int) -> torch.Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    bits = (bits ^ _shift_right(bits, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return bits ^ _shift_right(bits, 31)


class RequestNoise(LogitsProcessor):
    """Turns greedy decoding into per-request sampling at a temperature, among the tokens that the sampling admits."""

    def __init__(self, seeds: list[int], prompt_length: int, sampling: Sampling) -> None:
        self.seeds_B = torch.tensor(seeds, dtype=torch.int64)
        self.prompt_length = prompt_length
        self.sampling = sampling

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        sampling = self.sampling
        if sampling.temperature == 0.0:
            return scores
        logits_BV = scores.float() / sampling.temperature
        # In vLLM's order (temperature, min_p, top_k, top_p), so that one spec means the same to both.
        if sampling.min_p:
            floor_B1 = logits_BV.amax(-1, keepdim=True) + math.log(sampling.min_p)
            logits_BV = logits_BV.masked_fill(logits_BV < floor_B1, float("-inf"))
        if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
            kth_B1 = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, float("-inf"))
        if sampling.top_p < 1.0:
            logits_BV = within_nucleus(logits_BV, sampling.top_p)
        position = input_ids.shape[1] - self.prompt_length
        return logits_BV + gumbel_noise(self.seeds_B.to(scores.device), position, scores.shape[1])


def within_nucleus(logits_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Logits with every token outside the smallest set of mass ≥ top_p at −inf (Holtzman et al. 2020)."""
    ordered_BV, index_BV = logits_BV.sort(dim=-1, descending=True)
    probability_BV = ordered_BV.softmax(-1)
    before_BV = probability_BV.cumsum(-1) - probability_BV
    outside_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, index_BV, before_BV >= top_p)
    return logits_BV.masked_fill(outside_BV, float("-inf"))
