"""Loss along the lines start – branch – merge: whether a merge lies in the basin of its branches (linear mode
connectivity: Frankle et al. 2020, arXiv 1912.05671).

On a line from a to b, the barrier is max over t of L((1 − t) a + t b) − ((1 − t) L(a) + t L(b)): 0 where the loss lies on
or below the straight line between its ends. One model is in memory, its weights set from mapped files at each point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from mot_core.errors import MergeError
from mot_core.merging.plan import BranchFiles, Plan, inspect, make_plan
from mot_core.merging.tensors import FLOATS, MappedFiles
from mot_core.sft.layout import collate
from mot_core.sft.loss import CompletionLoss
from mot_core.spec import Training

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

    def short_ones(name: str) -> Iterator[Example]:
        for row in read_corpus(context.parent_dir("corpora") / f"{name}.parquet"):
            example = tokenize(tokenizer, row)
            if len(example.input_ids) <= asked["max_example_tokens"]:
                yield example

    examples = [one for name in asked["corpora"] for one in islice(short_ones(name), asked["num_examples"])]
    if not examples:
        raise MergeError(f"barrier: no example of {asked['corpora']} has up to {asked['max_example_tokens']} tokens")
    model = load_model(merged, None, context.settings.device)
    return barriers(
        Losses(model, examples), make_plan(start, branches), inspect("merged", context.work_dir), asked["num_points"]
    )


def barriers(losses: Losses, plan: Plan, merged: BranchFiles, num_points: int) -> list[dict[str, Any]]:
    """A row a line: its ends, losses at `num_points` evenly spaced points, ends included, and its barrier."""
    assert plan.start is not None, "lines begin at a start"
    models = [plan.start, *plan.branches, merged]
    ends = [losses.at((1.0, model)) for model in models]
    last = len(models) - 1
    shares = [place / (num_points - 1) for place in range(1, num_points - 1)]
    rows = []
    for a, b in [
        *((0, branch) for branch in range(1, last)),
        *((branch, last) for branch in range(1, last)),
        (0, last),
    ]:
        between = [losses.at((1.0 - t, models[a]), (t, models[b])) for t in shares]
        line = [ends[a], *between, ends[b]]
        rows.append({"from": models[a].name, "to": models[b].name, "losses": line, "barrier": barrier_of(line)})
    return rows


def barrier_of(losses: Sequence[float]) -> float:
    """How far the loss rises above the straight line between its ends."""
    last = len(losses) - 1
    return max(loss - (losses[0] + (losses[-1] - losses[0]) * place / last) for place, loss in enumerate(losses))


class Losses:
    """Mean completion loss (nats a token) at points between models. One example a pass: they are few."""

    def __init__(self, model: PreTrainedModel, examples: Sequence[Example]) -> None:
        settings = Training()
        self.summed = CompletionLoss(model, settings.loss, settings.loss_chunk_tokens)
        self.parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
        self.batches = [collate([example], "padded", 0).to(model.device) for example in examples]
        self.num_targets = sum(example.num_targets for example in examples)
        self.files = MappedFiles()

    @torch.no_grad()
    def at(self, *point: tuple[float, BranchFiles]) -> float:
        """Where weights are the sum of models', each times its share. The model's own are overwritten."""
        for key, entry in point[0][1].entries.items():
            if key not in self.parameters or entry.dtype not in FLOATS:
                continue
            total = torch.zeros(entry.size, dtype=torch.float64)
            values = torch.empty_like(total)
            for share, model in point:
                total += share * model.load(self.files, key, 0, values)
            self.parameters[key].copy_(total.reshape(entry.shape))
        return sum(float(self.summed(batch)) for batch in self.batches) / self.num_targets
