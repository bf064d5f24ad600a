"""The confidence stage: a student forced along teachers' rationales, its distributions read at every completion token.

Invariant: examples are rendered and masked as training does, so what is read here is what SFT would be given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mot_core.files import write_jsonl
from mot_core.models import load_model, load_tokenizer
from mot_core.probes.rows import CONFIDENCE, MEASURES, pooled
from mot_core.probes.sample import problems_of_all
from mot_core.probes.tokens import CLASSES, span_of, token_classes
from mot_core.sft.layout import collate, split

if TYPE_CHECKING:
    from mot_core.runner import StepContext
    from mot_core.sft.tokens import Example

PASS_TOKENS = 4096  # logits take vocabulary × tokens × 4 bytes: 2.5 GB for a vocabulary of 152,000
_CHUNK_TOKENS = 512  # whose probabilities exist at once, beside the logits


def measure_confidence(context: StepContext) -> dict[str, Any]:
    """Runner of `confidence`: `confidence.jsonl`, a row a problem, teacher and class that has tokens; means by class over
    all teachers in the manifest."""
    spec = context.spec
    locator, revision = context.model_dir("student"), context.step.locators.get("student_revision")
    tokenizer = load_tokenizer(locator, revision)
    rows, chosen = problems_of_all(tokenizer, context.parent_dir("corpora"), spec)
    classes: list[dict[str, list[str]]] = []
    for examples in chosen:
        spans = {
            teacher: span_of(tokenizer, rows[teacher][example.problem_id], example)
            for teacher, example in examples.items()
        }
        classes.append(token_classes(spans, spec["ngram"]))
    model = load_model(locator, revision, context.settings.device)
    every = [example for examples in chosen for example in examples.values()]
    scores = iter(
        score_tokens(
            model, every, tokenizer.pad_token_id or 0, lambda done: context.progress(done, len(every), "rationales")
        )
    )
    published = [
        {"problem_id": example.problem_id, "teacher": teacher, "class": name, **means}
        for examples, own in zip(chosen, classes, strict=True)
        for teacher, example in examples.items()
        for name, means in _means_by_class(own[teacher], next(scores)).items()
    ]
    write_jsonl(context.work_dir / CONFIDENCE, published)
    counts: dict[str, Any] = {"num_problems": len(chosen), "num_rationales": len(every)}
    for row in pooled(published, ("class",)):
        counts |= {f"{measure}/{row['class']}": row[measure] for measure in ("num_tokens", *MEASURES)}
    return counts


@torch.inference_mode()
def score_tokens(
    model: Any, examples: Sequence[Example], pad_id: int, progress: Callable[[int], None] = lambda done: None
) -> list[torch.Tensor]:
    """For each example `MEASURES` of its tokens that carry loss, (3, T) float64, in nats and probabilities.

    A token's three values are of the distribution that predicts it: its own log-probability, the largest probability,
    and the entropy.
    """
    scores: dict[int, torch.Tensor] = {}  # by the example's id, since passes are in another order
    for group in split(list(examples), "padded", PASS_TOKENS):
        batch = collate(group, "padded", pad_id).to(model.device)
        logits_BLV = model(input_ids=batch.ids_BL, attention_mask=batch.mask_BL, use_cache=False).logits
        for row, example in enumerate(group):
            first, end = max(1, example.prompt_length), len(example.input_ids)
            logits_TV, targets_T = logits_BLV[row, first - 1 : end - 1], batch.ids_BL[row, first:end]
            parts = [
                _of_distributions(logits_TV[start : start + _CHUNK_TOKENS], targets_T[start : start + _CHUNK_TOKENS])
                for start in range(0, len(targets_T), _CHUNK_TOKENS)
            ]
            scores[id(example)] = torch.cat(parts, dim=1).to("cpu", torch.float64)
        progress(len(scores))
    return [scores[id(example)] for example in examples]


def _of_distributions(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    log_CV = logits_CV.float().log_softmax(-1)
    probabilities_CV = log_CV.exp()
    return torch.stack(
        [
            log_CV.gather(1, targets_C[:, None])[:, 0],
            probabilities_CV.amax(-1),
            torch.special.entr(probabilities_CV).sum(-1),
        ]
    )


def _means_by_class(classes: Sequence[str], scores_3T: torch.Tensor) -> dict[str, dict[str, Any]]:
    """Number of tokens and mean measures of each class that has any."""
    found: dict[str, dict[str, Any]] = {}
    for name in CLASSES:
        places = [place for place, own in enumerate(classes) if own == name]
        if places:
            means = scores_3T[:, places].mean(dim=1).tolist()
            found[name] = {"num_tokens": len(places), **dict(zip(MEASURES, means, strict=True))}
    return found
