"""Loss along the lines start – branch – merge: whether a merge lies in the basin of its branches (linear mode
connectivity: Frankle et al. 2020, arXiv 1912.05671).

On a line from a to b, the barrier is max over t of L((1 − t) a + t b) − ((1 − t) L(a) + t L(b)): 0 where the loss lies on
or below the straight line between its ends. One model is in memory, its weights set from mapped files at each point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mot_core.errors import MergeError
from mot_core.merging.plan import BranchFiles, Plan, inspect, make_plan
from mot_core.merging.tensors import FLOATS, Entry, MappedFiles
from mot_core.sft.layout import collate, split
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


class Weights(Protocol):
    """What can be added to a model's weights, key by key: another model's, or a direction that no file holds."""

    def load(self, files: MappedFiles, key: str, offset: int, out: torch.Tensor) -> torch.Tensor: ...


class Losses:
    """Mean completion loss (nats a token) at points between models. One example a pass, or of so many padded tokens."""

    def __init__(self, model: PreTrainedModel, examples: Sequence[Example], max_pass_tokens: int | None = None) -> None:
        settings = Training()
        self.summed = CompletionLoss(model, settings.loss, settings.loss_chunk_tokens)
        self.parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
        alone = [[example] for example in examples]
        groups = alone if max_pass_tokens is None else split(list(examples), "padded", max_pass_tokens)
        self.batches = [collate(group, "padded", 0).to(model.device) for group in groups]
        self.num_targets = sum(example.num_targets for example in examples)
        self.files = MappedFiles()

    @torch.no_grad()
    def at(self, first: tuple[float, BranchFiles], *others: tuple[float, Weights]) -> float:
        """Where weights are the sum of models', each times its share. The model's own are overwritten."""
        for key, entry in self.entries_of(first[1]):
            values = torch.empty(entry.size, dtype=torch.float64)
            total = first[0] * first[1].load(self.files, key, 0, values)
            for share, added in others:
                total += share * added.load(self.files, key, 0, values)
            self.parameters[key].copy_(total.reshape(entry.shape))
        return sum(float(self.summed(batch)) for batch in self.batches) / self.num_targets

    def entries_of(self, model: BranchFiles) -> Iterator[tuple[str, Entry]]:
        """The tensors of a model's files that are weights of the loaded one, in the files' order."""
        for key, entry in model.entries.items():
            if key in self.parameters and entry.dtype in FLOATS:
                yield key, entry
