"""Decontamination: training problems that a benchmark holds, word for word or in part.

A training problem is hit if its normal form (`mot_core.problems.normal_question`) is a benchmark problem's, or if the two
share n words in a row. Words are runs of letters and runs of digits, in lower case and after Unicode's NFKC: `3.5` is two
words, `\\frac{1}{2}` is `frac`, `1`, `2`; operators, punctuation, `$` and TeX's commands of spacing and style are none. A
benchmark question of fewer than n words is therefore found by its normal form only. Invariant: what was removed is
listed with the benchmark, the rule and the words; benchmarks themselves are never changed.

The search is a step, `overlap`, that depends on every benchmark; what follows depends on what it found alone (the names
of the problems to remove), so that another benchmark trains nothing again unless it holds a training problem.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mot_core.errors import CorpusError
from mot_core.files import read_jsonl, write_jsonl
from mot_core.problems import normal_question
from mot_core.runner import StepContext

_SHOWN = 5
_UNREAD = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|(?:display|text)style|q?quad|limits|begin|end|(?:text|math|operator)(?:[a-z]{2}|name|bf|rm|it|cal)?)(?![A-Za-z])"
)
_WORD = re.compile(r"[^\W\d_]+|\d+")


HITS = "hits.jsonl"


def find_overlap(context: StepContext) -> dict[str, Any]:
    """Runner of `overlap`: which problems of the parent `problems` a parent `benchmark/<i>` holds.

    Raises:
        CorpusError: a problem is hit and the spec says stop, or all are.
    """
    spec = context.spec
    held = Held(spec["ngram"])
    for index, name in enumerate(spec["benchmarks"]):
        rows = read_jsonl(context.parent_dir(f"benchmark/{index}") / "problems.jsonl")
        held.add(name, (row["question"] for row in rows))
    problems = read_jsonl(context.parent_dir("problems") / "problems.jsonl")
    found = [(number, problem, held.hit(problem["question"])) for number, problem in enumerate(problems, 1)]
    hits = [_rejected(problem, number, hit) for number, problem, hit in found if hit is not None]
    if hits and (spec["on_hit"] == "stop" or len(hits) == len(problems)):
        raise CorpusError(_overlap_message(hits, len(problems), spec["on_hit"]))
    write_jsonl(context.work_dir / HITS, hits)
    return {"num_problems": len(problems), "num_hits": len(hits), **Counter(f"num_{row['rule']}" for row in hits)}


def keep_rest(context: StepContext) -> dict[str, Any]:
    """Runner of `training-problems`: the problems of the parent `problems` without those that the spec names."""
    removed = set(context.spec["removed"])
    problems = read_jsonl(context.parent_dir("problems") / "problems.jsonl")
    kept = [problem for problem in problems if problem["problem_id"] not in removed]
    write_jsonl(context.work_dir / "problems.jsonl", kept)
    return {"num_problems": len(kept), "num_removed": len(problems) - len(kept)}


@dataclass(frozen=True)
class Hit:
    """Why a training problem is out: the benchmark, `exact` or `ngram`, and the words that both have."""

    benchmark: str
    rule: str
    shared: str


@dataclass
class Held:
    """The questions of benchmarks, to look training problems up in. The first benchmark that holds a question counts."""

    ngram: int
    forms: dict[str, str] = field(default_factory=dict)
    grams: dict[tuple[str, ...], str] = field(default_factory=dict)

    def add(self, benchmark: str, questions: Iterable[str]) -> None:
        for question in questions:
            self.forms.setdefault(normal_question(question), benchmark)
            for gram in self._grams_of(question):
                self.grams.setdefault(gram, benchmark)

    def hit(self, question: str) -> Hit | None:
        """The first rule that takes a question out, if one does."""
        benchmark = self.forms.get(normal_question(question))
        if benchmark is not None:
            return Hit(benchmark, "exact", question[:200])
        for gram in self._grams_of(question):
            if gram in self.grams:
                return Hit(self.grams[gram], "ngram", " ".join(gram))
        return None

    def _grams_of(self, question: str) -> Iterator[tuple[str, ...]]:
        words = words_of(question)
        return zip(*(words[start:] for start in range(self.ngram)), strict=False)


def words_of(text: str) -> list[str]:
    """A question's words, as the module says."""
    return _WORD.findall(unicodedata.normalize("NFKC", _UNREAD.sub(" ", text)).lower())


def _rejected(problem: Mapping[str, Any], number: int, hit: Hit) -> dict[str, Any]:
    reason = f"the same question as in {hit.benchmark}" if hit.rule == "exact" else f"shares words with {hit.benchmark}"
    return {
        "problem_id": problem["problem_id"], "source_row": f"problems:{number}", "filter": "benchmark",
        "reason": f"{reason}: {hit.shared}", "question": problem["question"][:200], "benchmark": hit.benchmark,
        "rule": hit.rule, "shared": hit.shared,
    }  # fmt: skip


def _overlap_message(rejected: list[dict[str, Any]], num_problems: int, on_hit: str) -> str:
    shown = "".join(f"\n  {row['problem_id']} {row['question'][:80]!r}: {row['reason']}" for row in rejected[:_SHOWN])
    more = f"\n  and {len(rejected) - _SHOWN} more" if len(rejected) > _SHOWN else ""
    remedy = (
        "take them out, or set corpus.decontamination.on_hit to remove"
        if on_hit == "stop"
        else "none is left to train on; give other problems, or a larger corpus.decontamination.ngram"
    )
    return f"{len(rejected)} of {num_problems} training problems are in a benchmark of the spec; {remedy}:{shown}{more}"
