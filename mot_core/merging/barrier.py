"""Loss along the lines start – branch – merge: whether a merge lies in the basin of its branches (linear mode
connectivity: Frankle et al. 2020, arXiv 1912.05671).

On a line from a to b, the barrier is max over t of L((1 − t) a + t b) − ((1 − t) L(a) + t L(b)): 0 where the loss lies on
or below the straight line between its ends. One model is in memory, its weights set from mapped files at each point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mot_core.errors import MergeError
from mot_core.merging.plan import BranchFiles, Plan, inspect, make_plan
from mot_core.merging.tensors import FLOATS, MappedFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mot_core.runner import StepContext
    from mot_core.sft.tokens import Example


def measure_barrier(context: StepContext, start: BranchFiles, branches: list[BranchFiles]) -> list[dict[str, Any]]:
    """Rows of `barriers`, on the first examples of every corpus that are within the limit."""
    from mot_core.corpus.tables import read_corpus
    from mot_core.models import load_model, load_tokenizer
    from mot_core.sft.tokens import tokenize

    asked = context.spec["barrier"]
    merged = str(context.work_dir)
    tokenizer = load_tokenizer(merged)
    examples = []
    for name in asked["corpora"]:
        found = [tokenize(tokenizer, row) for row in read_corpus(context.parent_dir("corpora") / f"{name}.parquet")]
        short = [example for example in found if len(example.input_ids) <= asked["max_example_tokens"]]
        examples += short[: asked["num_examples"]]
    if not examples:
        raise MergeError(f"barrier: no example of {asked['corpora']} has up to {asked['max_example_tokens']} tokens")
    model = load_model(merged, None, context.settings.device)
    return barriers(
        model, make_plan(start, branches), inspect("merged", context.work_dir), examples, asked["num_points"]
    )


def barriers(
    model: PreTrainedModel, plan: Plan, merged: BranchFiles, examples: Sequence[Example], num_points: int
) -> list[dict[str, Any]]:
    """A row a line: its ends, losses at `num_points` evenly spaced points, ends included, and its barrier."""
    assert plan.start is not None, "lines begin at a start"
    lines = [(plan.start, branch) for branch in plan.branches] + [(branch, merged) for branch in plan.branches]
    rows = []
    for first, last in [*lines, (plan.start, merged)]:
        losses = loss_along(model, first, last, examples, num_points)
        rows.append({"from": first.name, "to": last.name, "losses": losses, "barrier": barrier_of(losses)})
    return rows


def barrier_of(losses: Sequence[float]) -> float:
    """How far the loss rises above the straight line between its ends."""
    last = len(losses) - 1
    return max(loss - (losses[0] + (losses[-1] - losses[0]) * place / last) for place, loss in enumerate(losses))


@torch.no_grad()
def loss_along(
    model: PreTrainedModel, first: BranchFiles, last: BranchFiles, examples: Sequence[Example], num_points: int
) -> list[float]:
    """Mean completion loss (nats a token) at evenly spaced points of a line. The model's weights are overwritten."""
    files = MappedFiles()
    found = []
    for place in range(num_points):
        _set_weights(model, first, last, place / (num_points - 1), files)
        found.append(_loss(model, examples))
    return found


def _set_weights(model: Any, first: BranchFiles, last: BranchFiles, t: float, files: MappedFiles) -> None:
    parameters: Mapping[str, torch.Tensor] = dict(model.named_parameters())
    for key, entry in first.entries.items():
        if key not in parameters or entry.dtype not in FLOATS:
            continue
        values = torch.empty(entry.size, dtype=torch.float64)
        other = torch.empty_like(values)
        first.load(files, key, 0, values)
        last.load(files, key, 0, other)
        parameters[key].copy_(((1.0 - t) * values + t * other).reshape(entry.shape))


def _loss(model: Any, examples: Sequence[Example]) -> float:
    """One example a pass: they are few, and nothing is padded."""
    total, num_tokens = 0.0, 0
    for example in examples:
        ids_1L = torch.tensor([example.input_ids], device=model.device)
        first = max(1, example.prompt_length)
        logits_NV = model(input_ids=ids_1L, use_cache=False).logits[0, first - 1 : -1].float()
        total += float(torch.nn.functional.cross_entropy(logits_NV, ids_1L[0, first:], reduction="sum"))
        num_tokens += ids_1L.shape[1] - first
    return total / num_tokens
