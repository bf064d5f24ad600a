"""The filters on single rationales and on problems' difficulty, each a pure function: what is kept, what is rejected.

Invariant: whatever goes in comes out exactly once, kept in the order in which it came or rejected with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mot_core.corpus.candidates import Candidate
from mot_core.corpus.ledger import Rejection
from mot_core.grading.verdicts import Verdict
from mot_core.reasoning import fault_of, parse_completion

ORDER = (
    "complete", "correct", "well_formed", "distinct", "renderable", "max_rationale_tokens", "difficulty", "matched",
    "per_teacher", "union", "size_matched", "limit", "choice",
)  # fmt: skip
"""The filters' names, in the order in which a rationale meets them; those after `difficulty` are elsewhere."""

Sifted = tuple[list[Candidate], list[Rejection]]


def complete(candidates: Sequence[Candidate]) -> Sifted:
    """Without what was never answered or was cut off: no setting keeps those."""
    return _sift(candidates, "complete", _incomplete)


def correct(candidates: Sequence[Candidate]) -> Sifted:
    """Without those whose verdict is not correct."""
    return _sift(candidates, "correct", lambda one: "" if one.verdict is Verdict.CORRECT else one.verdict.value)


def well_formed(candidates: Sequence[Candidate]) -> Sifted:
    """Without those that hold no answer or, written out, would not parse to themselves: training on one would stop the
    branch. Parsing takes milliseconds a text, so this comes after the filters that need none."""
    return _sift(candidates, "well_formed", _malformed)


def distinct(candidates: Sequence[Candidate]) -> Sifted:
    """Of a teacher's rationales of a problem with the same text, only the first sample."""
    first: dict[tuple[str, bytes], int] = {}
    for one in candidates:
        place = (one.problem_id, one.digest)
        first[place] = min(one.sample_index, first.get(place, one.sample_index))

    def why(one: Candidate) -> str:
        earliest = first[one.problem_id, one.digest]
        return "" if earliest == one.sample_index else f"the same text as sample {earliest}"

    return _sift(candidates, "distinct", why)


def renderable(candidates: Sequence[Candidate], faults: Mapping[str, str]) -> Sifted:
    """Without those that the student's template cannot hold; `faults` by key."""
    return _sift(candidates, "renderable", lambda one: faults.get(one.key, ""))


def short_enough(candidates: Sequence[Candidate], tokens: Mapping[str, int], limit: int) -> Sifted:
    """Without those of more than `limit` tokens of the student; `tokens` by key."""

    def why(one: Candidate) -> str:
        return "" if tokens[one.key] <= limit else f"{tokens[one.key]} tokens, over {limit}"

    return _sift(candidates, "max_rationale_tokens", why)


def pass_rates(attempts: Iterable[tuple[str, str, str]]) -> dict[str, float]:
    """The share of right answers by problem, from `(problem_id, verdict, finish_reason)` of each.

    A request that failed and an answer that broke its grader say nothing about a problem and do not count.
    """
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for problem_id, verdict, finish_reason in attempts:
        if finish_reason not in ("failed", "absent") and verdict != Verdict.GRADER_FAILED:
            asked[problem_id] += 1
            right[problem_id] += verdict == Verdict.CORRECT
    return {problem_id: right[problem_id] / number for problem_id, number in asked.items()}


def within_difficulty(
    problem_ids: Sequence[str], rates: Mapping[str, float], band: tuple[float, float]
) -> tuple[list[str], dict[str, str]]:
    """The problems whose pass rate lies in a band, both ends included, and why each other one does not."""
    low, high = band
    kept, fallen = [], {}
    for problem_id in problem_ids:
        rate = rates.get(problem_id)
        if rate is None:
            fallen[problem_id] = "no answer of the student could be graded"
        elif low <= rate <= high:
            kept.append(problem_id)
        else:
            fallen[problem_id] = f"the student's pass rate is {rate:.3g}, outside {low:g} to {high:g}"
    return kept, fallen


def _incomplete(one: Candidate) -> str:
    if one.finish_reason in ("failed", "absent"):
        return f"{one.finish_reason}: {one.reason}" if one.reason else one.finish_reason
    return "truncated" if one.verdict is Verdict.TRUNCATED or one.finish_reason == "length" else ""


def _malformed(one: Candidate) -> str:
    """Why no student can be trained on a text, whatever its template; empty if one can.

    A corpus holds reasoning and answer, so it is these that have to come back once they are written out and parsed
    (`mot_core.sft.tokens`).
    """
    rationale = parse_completion(one.text())
    return "it holds no answer" if rationale.ended == "empty" else fault_of(rationale) or ""


def _sift(candidates: Sequence[Candidate], name: str, why: Callable[[Candidate], str]) -> Sifted:
    kept, rejected = [], []
    for one in candidates:
        reason = why(one)
        if reason:
            rejected.append(Rejection.of(one, name, reason))
        else:
            kept.append(one)
    return kept, rejected
