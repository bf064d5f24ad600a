"""Which of a teacher's kept rationales of one problem enter its corpus.

Invariant: the chosen ones stand in the order of their samples; ties go to the earlier sample.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from mot_core.corpus.candidates import Candidate
from mot_core.identity import derive_seed
from mot_core.spec import Corpus


def choose(
    candidates: Sequence[Candidate], corpus: Corpus, log_probs: Mapping[str, float]
) -> tuple[list[Candidate], list[Candidate]]:
    """`(chosen, others)` among one teacher's candidates of one problem, `rationales_per_problem` at most.

    `log_probs` by key are needed for the choice `likeliest` alone, and there where more are kept than enter.
    """
    ordered = sorted(candidates, key=lambda one: one.sample_index)
    number = corpus.rationales_per_problem
    if len(ordered) <= number:
        return ordered, []
    if corpus.choice == "random":
        draw = random.Random(derive_seed("choose", corpus.selection_seed, ordered[0].key))
        preferred = draw.sample(ordered, number)
    else:
        preferred = sorted(ordered, key=_preference(corpus, log_probs))[:number]
    keys = {one.key for one in preferred}
    return [one for one in ordered if one.key in keys], [one for one in ordered if one.key not in keys]


def _preference(corpus: Corpus, log_probs: Mapping[str, float]) -> Callable[[Candidate], float]:
    """What is sorted by, least first; the sort is stable, so ties stay in the order of samples."""
    if corpus.choice == "shortest":
        return _length
    if corpus.choice == "longest":
        return lambda one: -_length(one)
    if corpus.choice == "likeliest":
        return lambda one: -log_probs[one.key]
    return lambda one: one.sample_index


def _length(one: Candidate) -> int:
    assert one.num_tokens is not None, f"{one.key} has no num_tokens"
    return one.num_tokens
