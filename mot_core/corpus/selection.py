"""Which problems each teacher's corpus holds: the modes.

| mode | problems | sizes |
| --- | --- | --- |
| matched | those that every teacher has `rationales_per_problem` kept rationales of | all equal, the same problems |
| per_teacher | of each teacher, those that it has as many of itself | differ |
| union | those that any teacher of `match_over` has a kept rationale of; each teacher brings what it has | differ |
| size_matched | as per_teacher, cut at random to the smallest corpus | all equal, other problems |

The paper's is matched (method, D_k): branches differ in how the teachers reason, not in what they were asked.
Invariant: the same kept rationales, settings and seed give the same problems, however teachers are named.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mot_core.corpus.ledger import Ledger
from mot_core.identity import derive_seed
from mot_core.spec import Corpus

Fall = tuple[str, str]
"""The filter at which a problem fell, and why."""


@dataclass
class Selection:
    """The problems of each teacher's corpus, sorted, and where each other one fell, by teacher."""

    problems: dict[str, list[str]] = field(default_factory=dict)
    fallen: dict[str, dict[str, Fall]] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """What the filters on rationales left: how many a teacher has of a problem."""

    counts: Mapping[str, Mapping[str, int]]
    words: Mapping[str, str]
    """What a teacher's kept rationales are: `correct`, or `usable` where nobody asked whether they are right."""

    def having(self, teacher: str, problem_ids: Iterable[str], number: int) -> set[str]:
        """The problems that a teacher has at least `number` kept rationales of."""
        of_teacher = self.counts[teacher]
        return {problem_id for problem_id in problem_ids if of_teacher.get(problem_id, 0) >= number}

    def wording(self, teacher: str, number: int) -> str:
        word = self.words[teacher]
        return f"{teacher} has a {word} rationale" if number == 1 else f"{teacher} has {number} {word} rationales"

    def lacking(self, teacher: str, problem_id: str, number: int) -> str:
        has = self.counts[teacher].get(problem_id, 0)
        return f"{teacher} has {has or 'no'} {self.words[teacher]} rationale" + (f" of {number}" if number > 1 else "")


def select(
    problem_ids: Sequence[str], kept: Kept, corpus: Corpus, matching: Sequence[str], ledger: Ledger
) -> Selection:
    """The selection of a mode; the number of problems left after each filter goes to the ledger.

    `matching` are the teachers of `match_over`.
    """
    if corpus.mode == "matched":
        return _matched(problem_ids, kept, corpus, ledger)
    if corpus.mode == "union":
        return _union(problem_ids, kept, corpus, matching, ledger)
    return _separate(problem_ids, kept, corpus, ledger)


def _matched(problem_ids: Sequence[str], kept: Kept, corpus: Corpus, ledger: Ledger) -> Selection:
    number = corpus.rationales_per_problem
    left, fallen = set(problem_ids), dict[str, Fall]()
    for teacher in kept.counts:
        enough = kept.having(teacher, left, number)
        for problem_id in left - enough:
            fallen[problem_id] = ("matched", kept.lacking(teacher, problem_id, number))
        ledger.enter(kept.wording(teacher, number), len(left), len(enough))
        left = enough
    selected = _within_limit(left, corpus, fallen, ledger)
    return Selection(dict.fromkeys(kept.counts, selected), dict.fromkeys(kept.counts, fallen))


def _union(
    problem_ids: Sequence[str], kept: Kept, corpus: Corpus, matching: Sequence[str], ledger: Ledger
) -> Selection:
    left = set[str]().union(*(kept.having(teacher, problem_ids, 1) for teacher in matching))
    word = kept.words[matching[0]]
    fallen = {
        problem_id: ("union", f"none of {', '.join(matching)} has a {word} rationale")
        for problem_id in problem_ids if problem_id not in left
    }  # fmt: skip
    ledger.enter(f"any of {', '.join(matching)} has a {word} rationale", len(problem_ids), len(left))
    selected = _within_limit(left, corpus, fallen, ledger)
    problems = {teacher: sorted(kept.having(teacher, selected, 1)) for teacher in kept.counts}
    return Selection(problems, dict.fromkeys(kept.counts, fallen))


def _separate(problem_ids: Sequence[str], kept: Kept, corpus: Corpus, ledger: Ledger) -> Selection:
    """Each teacher's own problems; with `size_matched` as many as the teacher with fewest has."""
    number, limit = corpus.rationales_per_problem, problem_limit(corpus)
    own = {teacher: kept.having(teacher, problem_ids, number) for teacher in kept.counts}
    smallest = min(map(len, own.values()))
    is_cut = corpus.mode == "size_matched" and smallest < limit
    made = Selection()
    for teacher, left in own.items():
        selected = pick(sorted(left), min(limit, smallest) if is_cut else limit, corpus.selection_seed)
        fallen = {
            problem_id: ("per_teacher", kept.lacking(teacher, problem_id, number))
            for problem_id in problem_ids if problem_id not in left
        }  # fmt: skip
        cut: Fall = (
            ("size_matched", f"not among the {len(selected)} drawn: the smallest corpus has as many")
            if is_cut
            else ("limit", f"not among the {len(selected)} drawn")
        )
        fallen |= dict.fromkeys(left.difference(selected), cut)
        ledger.enter(kept.wording(teacher, number), len(problem_ids), len(left))
        ledger.enter(f"{teacher}: {'cut to the smallest' if is_cut else _limit(corpus)}", len(left), len(selected))
        made.problems[teacher], made.fallen[teacher] = selected, fallen
    return made


def problem_limit(corpus: Corpus) -> int:
    """How many problems a corpus may hold."""
    return corpus.num_rationales // corpus.rationales_per_problem


def pick(problem_ids: list[str], limit: int, seed: int) -> list[str]:
    """At most `limit` of sorted problems, at random, sorted."""
    order = random.Random(derive_seed("select", seed))
    return sorted(order.sample(problem_ids, limit)) if limit < len(problem_ids) else problem_ids


def _within_limit(left: set[str], corpus: Corpus, fallen: dict[str, Fall], ledger: Ledger) -> list[str]:
    selected = pick(sorted(left), problem_limit(corpus), corpus.selection_seed)
    fallen |= dict.fromkeys(left.difference(selected), ("limit", f"not among the {len(selected)} drawn"))
    ledger.enter(_limit(corpus), len(left), len(selected))
    return selected


def _limit(corpus: Corpus) -> str:
    number = corpus.rationales_per_problem
    return f"limit of {corpus.num_rationales}" + (f", {number} a problem" if number > 1 else "")
