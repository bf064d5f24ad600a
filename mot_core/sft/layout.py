"""How a step's batch lies in tensors: padded or packed, in one pass or several, on one device or several.

Invariant: the batch is what, its layout is how. Whatever the layout, the same tokens carry loss with the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mot_core.sft.tokens import Example

IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. `mask_BL` belongs to the padded layout; `positions_BL` and `segments`, the lengths of the
    examples in the row, to the packed one. `labels_BL` are IGNORED outside completions."""

    ids_BL: torch.Tensor
    labels_BL: torch.Tensor
    mask_BL: torch.Tensor | None = None
    positions_BL: torch.Tensor | None = None
    segments: tuple[int, ...] = ()

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(
            self.ids_BL.to(device), self.labels_BL.to(device),
            self.mask_BL.to(device) if self.mask_BL is not None else None,
            self.positions_BL.to(device) if self.positions_BL is not None else None, self.segments,
        )  # fmt: skip


def share_out(examples: list[Example], num_ranks: int) -> list[list[Example]]:
    """A batch over devices, longest first to the device with the fewest tokens so far."""
    if num_ranks == 1:
        return [examples]
    shares: list[list[Example]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for example in sorted(examples, key=lambda one: -len(one.input_ids)):
        rank = loads.index(min(loads))
        shares[rank].append(example)
        loads[rank] += len(example.input_ids)
    return shares


def split(examples: list[Example], layout: str, max_tokens: int | None) -> list[list[Example]]:
    """The examples of each forward pass, at most `max_tokens` a pass; an example that is longer passes alone."""
    if max_tokens is None or not examples:
        return [examples] if examples else []
    ordered = sorted(examples, key=lambda one: -len(one.input_ids))
    passes: list[list[Example]] = []
    if layout == "padded":
        for example in ordered:
            if passes and (len(passes[-1]) + 1) * len(passes[-1][0].input_ids) <= max_tokens:
                passes[-1].append(example)
            else:
                passes.append([example])
        return passes
    loads: list[int] = []  # first fit, longest first
    for example in ordered:
        length = len(example.input_ids)
        place = next((index for index, load in enumerate(loads) if load + length <= max_tokens), None)
        if place is None:
            passes.append([example])
            loads.append(length)
        else:
            passes[place].append(example)
            loads[place] += length
    return passes


def passes_of(
    batch: list[Example], layout: str, max_tokens: int | None, rank: int, num_ranks: int
) -> list[tuple[list[Example], bool]]:
    """A device's forward passes over its share of a batch, and whether each counts.

    Sharded devices must pass equally often: one with fewer passes repeats its shortest example without loss.
    """
    shares = [split(share, layout, max_tokens) for share in share_out(batch, num_ranks)]
    own: list[tuple[list[Example], bool]] = [(examples, True) for examples in shares[rank]]
    filler = min((one for part in (shares[rank] or [batch]) for one in part), key=lambda one: len(one.input_ids))
    return own + [([filler], False)] * (max(len(share) for share in shares) - len(own))


def collate(examples: Sequence[Example], layout: str, pad_id: int, *, counts: bool = True) -> MicroBatch:
    """The tensors of one forward pass; without loss anywhere unless it counts."""
    made = _pad(examples, pad_id) if layout == "padded" else _pack(examples)
    if not counts:
        made.labels_BL.fill_(IGNORED)
    return made


def _pad(examples: Sequence[Example], pad_id: int) -> MicroBatch:
    length = max(len(example.input_ids) for example in examples)
    ids_BL = torch.full((len(examples), length), pad_id, dtype=torch.int64)
    mask_BL = torch.zeros((len(examples), length), dtype=torch.int64)
    labels_BL = torch.full((len(examples), length), IGNORED, dtype=torch.int64)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.input_ids)
        ids_BL[row, : len(tokens)] = tokens
        mask_BL[row, : len(tokens)] = 1
        labels_BL[row, example.prompt_length : len(tokens)] = tokens[example.prompt_length :]
    return MicroBatch(ids_BL, labels_BL, mask_BL=mask_BL)


def _pack(examples: Sequence[Example]) -> MicroBatch:
    ids = [token for example in examples for token in example.input_ids]
    positions = [position for example in examples for position in range(len(example.input_ids))]
    labels: list[int] = []
    for example in examples:
        # At least the first: it would be predicted from the neighbour's last token.
        unlabelled = max(1, example.prompt_length)
        labels += [IGNORED] * unlabelled + example.input_ids[unlabelled:]
    return MicroBatch(
        torch.tensor([ids]), torch.tensor([labels]), positions_BL=torch.tensor([positions]),
        segments=tuple(len(example.input_ids) for example in examples),
    )  # fmt: skip
