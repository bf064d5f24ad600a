"""A student's own completions while it is trained: a bare cached decoding loop.

Invariant: what a row draws depends on its seed and the weights, not on its neighbours; only the padding of its batch can
touch its logits (about 4e-7 in fp32), and a batch is a pure function of the step.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from mot_core.completers.noise import gumbel_noise


@torch.no_grad()
def sample_completions(
    model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, end_id: int, pad_id: int, num_tokens: int,
    temperature: float, max_completion_tokens: int,
) -> list[list[int]]:  # fmt: skip
    """The token ids that a model writes after each prompt: up to its end token, which is included, or to the limit.

    Drawn by Gumbel noise of each row's seed (`mot_core.completers.noise`) among the first `num_tokens` of the
    vocabulary. Rows that have ended leave the batch.
    """
    ids_BL, mask_BL = _padded_left(prompts, pad_id, model.device)
    positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
    seeds_B = torch.tensor(seeds, dtype=torch.int64, device=model.device)
    cache = DynamicCache(config=model.config)
    held = {_cache_name(model): cache}
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for position in range(max_completion_tokens):
        logits_BV = model(
            input_ids=ids_BL, attention_mask=mask_BL, position_ids=positions_BL, use_cache=True, logits_to_keep=1, **held
        ).logits[:, -1, :num_tokens].float()  # fmt: skip
        tokens_B = (logits_BV / temperature + gumbel_noise(seeds_B, position, logits_BV.shape[1])).argmax(-1)
        drawn = tokens_B.tolist()
        for row, token in zip(rows, drawn, strict=True):
            written[row].append(token)
        going = [place for place, token in enumerate(drawn) if token != end_id]
        if not going:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=model.device)
            cache.batch_select_indices(kept)
            mask_BL, positions_BL, seeds_B, tokens_B = mask_BL[kept], positions_BL[kept], seeds_B[kept], tokens_B[kept]
            rows = [rows[place] for place in going]
        ids_BL, positions_BL = tokens_B[:, None], positions_BL[:, -1:] + 1
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=1)
    return written


def _padded_left(prompts: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded on the left, so that every row goes on at the same place."""
    longest = max(len(prompt) for prompt in prompts)
    ids_BL = torch.full((len(prompts), longest), pad_id, dtype=torch.int64)
    mask_BL = torch.zeros((len(prompts), longest), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids_BL[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BL[row, longest - len(prompt) :] = 1
    return ids_BL.to(device), mask_BL.to(device)


def _cache_name(model: Any) -> str:
    """What a model's forward pass calls its cache: transformers 5.24 has renamed it, and warns of the older name."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
