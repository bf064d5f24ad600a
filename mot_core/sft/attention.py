"""Attention over a packed row, an example at a time.

Invariant: no position sees another example. It holds by construction, as each example is attended to apart, and
costs no mask of row × row; what a mask would do instead depends on flags of the model's library (a cache that
is on makes `sdpa` ignore where packed examples begin).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from mot_core.errors import ModelError, TrainingError

SEGMENTS = "mot_segments"


def attend_to_segments(
    module: Any, query_BHLD: torch.Tensor, key_BHLD: torch.Tensor, value_BHLD: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    segments: tuple[int, ...] | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Causal attention within each of `segments`, the lengths of a row's examples; the interface is transformers'."""
    if segments is None or sum(segments) != query_BHLD.shape[2]:
        raise TrainingError(
            f"packed attention was given segments {segments} for a row of {query_BHLD.shape[2]} tokens; does the model pass "
            "its keyword arguments on to attention? Use training.layout: padded"
        )
    if others.get("softcap") is not None or others.get("s_aux") is not None:
        raise TrainingError("the model's attention has a softcap or sinks; use training.layout: padded")
    shared = query_BHLD.shape[1] != key_BHLD.shape[1]
    parts = [
        functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=shared
        )
        for query, key, value in zip(
            *(torch.split(part, list(segments), 2) for part in (query_BHLD, key_BHLD, value_BHLD)), strict=True
        )
    ]
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1), None


def check_packable(model: Any) -> None:
    """Raise `ModelError` for a model with other than full attention, through which examples in a row would touch."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(model.config, "sliding_window", None):
        raise ModelError(
            f"layout 'packed' needs full attention in every layer, but the student's layers are {sorted(kinds)} with "
            f"sliding window {getattr(model.config, 'sliding_window', None)}; use training.layout: padded"
        )


def use_segments(model: Any) -> None:
    """Let a model attend within segments."""
    from transformers import AttentionInterface

    AttentionInterface.register(SEGMENTS, attend_to_segments)
    model.set_attn_implementation(SEGMENTS)
