"""From candidates to corpora: filters on rationales, on problems, the mode's selection, the choice; then the files.

    <teacher>.parquet   one corpus a teacher        rejections.jsonl   everything that is in none, with its reason
    coverage.parquet    teacher × problem           ledger.json        the same as counts
    README.md           the data card

Invariant: every rationale that comes in is in its teacher's corpus or in `rejections.jsonl`, exactly once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.corpus import filters
from mot_core.corpus.candidates import Candidate, Progress
from mot_core.corpus.card import CARD, Contents, corpus_card
from mot_core.corpus.choice import choose
from mot_core.corpus.ledger import Ledger, Rejection, union_of
from mot_core.corpus.licenses import Origin
from mot_core.corpus.selection import Kept, Selection, problem_limit, select
from mot_core.corpus.student import Student
from mot_core.corpus.tables import COVERAGE, example_messages, write_corpus, write_coverage
from mot_core.errors import CorpusError
from mot_core.grading.verdicts import Verdict
from mot_core.spec import Corpus

log = logging.getLogger("mot.corpus")
_TELL_EVERY = 64

ByTeacher = Mapping[str, list[Candidate]]


@dataclass(frozen=True)
class Inputs:
    """What corpora are built from. `problems` by id, in order; `pass_rates` of the untrained student by problem."""

    problems: Mapping[str, Mapping[str, Any]]
    candidates: ByTeacher
    teacher_licenses: Mapping[str, str | None]
    problems_license: str | None = None
    pass_rates: Mapping[str, float] | None = None

    @property
    def origins(self) -> list[Origin]:
        teachers = [Origin("teacher", name, self.teacher_licenses.get(name)) for name in self.candidates]
        return [*teachers, Origin("problems", "the questions and reference answers", self.problems_license)]


class Builder:
    """One building of corpora: its settings, and what has been dropped so far."""

    def __init__(self, inputs: Inputs, corpus: Corpus, student: Student | None, progress: Progress) -> None:
        self.inputs, self.corpus, self.student, self.progress = inputs, corpus, student, progress
        self.matching = list(corpus.match_over or inputs.candidates)
        self.ledger = Ledger({teacher: len(rows) for teacher, rows in inputs.candidates.items()})
        self.student_tokens: dict[str, dict[str, int]] = {}

    def build(self, out_dir: Path) -> dict[str, Any]:
        """Write every file; the counts."""
        kept = {teacher: self.filter_rationales(teacher, rows) for teacher, rows in self.inputs.candidates.items()}
        selection = self.select_problems(kept)
        chosen = {teacher: self.choose(teacher, rows, selection) for teacher, rows in kept.items()}
        return self.write(out_dir, kept, chosen)

    def is_asked_for_truth(self, teacher: str) -> bool:
        """Whether only right rationales of a teacher are kept: one outside `match_over` comes unfiltered."""
        return self.corpus.filter_correct and teacher in self.matching

    # -- rationales ------------------------------------------------------------------------------------

    def filter_rationales(self, teacher: str, candidates: list[Candidate]) -> list[Candidate]:
        """What passes every filter on single rationales, in the order of the module `filters`."""
        kept = self.sift(filters.complete(candidates))
        if self.is_asked_for_truth(teacher):
            kept = self.sift(filters.correct(kept))
        kept = self.sift(filters.well_formed(kept))
        if self.corpus.rationales_per_problem > 1:
            # With one a problem no text enters twice, and a repeated one keeps its weight in a random choice.
            kept = self.sift(filters.distinct(kept))
        if self.student is not None:
            faults, tokens = self.measure(self.student, kept)
            kept = self.sift(filters.renderable(kept, faults))
            self.student_tokens[teacher] = tokens
            if self.corpus.max_rationale_tokens is not None:
                kept = self.sift(filters.short_enough(kept, tokens, self.corpus.max_rationale_tokens))
        return kept

    def sift(self, sifted: filters.Sifted) -> list[Candidate]:
        kept, rejected = sifted
        self.ledger.reject(rejected)
        return kept

    def measure(self, student: Student, candidates: list[Candidate]) -> tuple[dict[str, str], dict[str, int]]:
        """By key: why a rationale cannot be trained on, where it cannot, and its completion's tokens, where it can."""
        faults, tokens = {}, {}
        for number, one in enumerate(candidates, 1):
            num_tokens, fault = student.measure(self.question(one), one.text())
            if fault:
                faults[one.key] = fault
            else:
                tokens[one.key] = num_tokens
            if number % _TELL_EVERY == 0 or number == len(candidates):
                self.progress(number, len(candidates), "rationales measured")
        return faults, tokens

    def question(self, one: Candidate) -> str:
        question: str = self.inputs.problems[one.problem_id]["question"]
        return question

    # -- problems --------------------------------------------------------------------------------------

    def select_problems(self, kept: ByTeacher) -> Selection:
        """The problems of each corpus; whatever falls with the others is rejected.

        Raises:
            CorpusError: a corpus is empty, with how many fell at which filter.
        """
        drawn = list(self.inputs.problems)
        self.ledger.enter("problems drawn", len(drawn), len(drawn))
        left, fallen = drawn, dict[str, str]()
        if self.corpus.difficulty is not None:
            low, high = self.corpus.difficulty
            left, fallen = filters.within_difficulty(drawn, self.inputs.pass_rates or {}, self.corpus.difficulty)
            self.ledger.enter(f"the student's pass rate is {low:g} to {high:g}", len(drawn), len(left))
        counted = Kept(
            {teacher: Counter(one.problem_id for one in rows) for teacher, rows in kept.items()},
            {teacher: self.kept_word(teacher) for teacher in kept},
        )
        selection = select(left, counted, self.corpus, self.matching, self.ledger)
        self.require_some(selection)
        hard = {problem_id: ("difficulty", reason) for problem_id, reason in fallen.items()}
        for teacher, rows in kept.items():
            falls = {**selection.fallen[teacher], **hard}
            self.ledger.reject(
                Rejection.of(one, *falls[one.problem_id]) for one in rows if one.problem_id in falls
            )  # fmt: skip
        self.reject_problems(selection, hard)
        return selection

    def kept_word(self, teacher: str) -> str:
        if not self.is_asked_for_truth(teacher):
            return "usable"
        return "correct" if self.student is None else "correct and usable"

    def reject_problems(self, selection: Selection, hard: Mapping[str, tuple[str, str]]) -> None:
        """A row for each problem in no corpus: where it fell, or got furthest, of all teachers."""
        used = set(union_of(selection.problems.values()))
        for problem_id in self.inputs.problems:
            if problem_id in used:
                continue
            falls = [fallen[problem_id] for fallen in selection.fallen.values() if problem_id in fallen]
            last = [fall for fall in falls if fall[0] in ("limit", "size_matched")]
            name, reason = hard[problem_id] if problem_id in hard else (last or falls)[0]
            self.ledger.reject([Rejection("", problem_id, "", name, reason)])

    def require_some(self, selection: Selection) -> None:
        empty = [teacher for teacher, problems in selection.problems.items() if not problems]
        if not empty:
            return
        shared = self.corpus.mode in ("matched", "union") and len(empty) == len(selection.problems)
        if shared:
            how = "was answered correctly" if self.corpus.filter_correct else "has a usable answer"
            who = "by every teacher" if self.corpus.mode == "matched" else "by any teacher"
            what = f"the {self.corpus.mode} corpora are empty: no problem {how} {who}"
        else:
            what = f"in mode {self.corpus.mode} the corpus of {', '.join(empty)} is empty"
        remedies = [
            "draw more problems or samples",
            "leave out the teacher at which they fall (from corpus.match_over, too)",
        ]
        if self.corpus.difficulty is not None:
            remedies.insert(0, "widen corpus.difficulty")
        if self.corpus.max_rationale_tokens is not None:
            remedies.insert(0, "raise corpus.max_rationale_tokens")
        raise CorpusError(f"{what} ({self.ledger.told()}); {', or '.join(remedies)}")

    # -- choice ----------------------------------------------------------------------------------------

    def choose(self, teacher: str, candidates: list[Candidate], selection: Selection) -> list[Candidate]:
        """A teacher's corpus, by problem and sample."""
        by_problem: dict[str, list[Candidate]] = {problem_id: [] for problem_id in selection.problems[teacher]}
        for one in candidates:
            if one.problem_id in by_problem:
                by_problem[one.problem_id].append(one)
        log_probs = self.log_probs(by_problem)
        corpus: list[Candidate] = []
        for rows in by_problem.values():
            chosen, others = choose(rows, self.corpus, log_probs)
            corpus += chosen
            reason = f"{self.corpus.choice}: {len(chosen)} of {len(rows)} enter"
            self.ledger.reject(Rejection.of(one, "choice", reason) for one in others)
        return corpus

    def log_probs(self, by_problem: ByTeacher) -> dict[str, float]:
        """By key, of the rationales among which there is something to choose."""
        if self.corpus.choice != "likeliest":
            return {}
        assert self.student is not None, "the choice likeliest needs a student"
        number = self.corpus.rationales_per_problem
        contested = [one for rows in by_problem.values() if len(rows) > number for one in rows]
        examples = [self.student.encode(self.question(one), one.text()) for one in contested]
        scores = self.student.mean_log_probs(examples, self.progress)
        return {one.key: score for one, score in zip(contested, scores, strict=True)}

    # -- files -----------------------------------------------------------------------------------------

    def write(self, out_dir: Path, kept: ByTeacher, chosen: ByTeacher) -> dict[str, Any]:
        contents = {}
        for teacher, rows in chosen.items():
            write_corpus(out_dir / f"{teacher}.parquet", [self.row(one) for one in rows])
            lengths = [one.num_tokens for one in rows]
            known = [length for length in lengths if length is not None]
            contents[teacher] = Contents(
                len(rows), len({one.problem_id for one in rows}), sum(known) if len(known) == len(lengths) else None,
                len(self.inputs.candidates[teacher]),
            )  # fmt: skip
        num_by_teacher = {teacher: one.num_rationales for teacher, one in contents.items()}
        problems = {teacher: sorted({one.problem_id for one in rows}) for teacher, rows in chosen.items()}
        self.ledger.write(out_dir, problems, num_by_teacher)
        write_coverage(out_dir / f"{COVERAGE}.parquet", self.coverage(kept, chosen))
        card = corpus_card(self.corpus, self.matching, contents, self.ledger, self.inputs.origins)
        (out_dir / CARD).write_text(card, encoding="utf-8")
        self.warn_of_few(problems)
        sizes = set(num_by_teacher.values())
        return {
            "num_rationales": sizes.pop() if len(sizes) == 1 else num_by_teacher,
            "num_by_teacher": num_by_teacher,
            "num_problems": len(union_of(problems.values())),
            "num_problems_wanted": problem_limit(self.corpus),
            "tokens": {teacher: one.num_tokens for teacher, one in contents.items()},
        }

    def row(self, one: Candidate) -> dict[str, Any]:
        """A rationale as a training example, with its provenance."""
        question = self.question(one)
        return {
            "problem_id": one.problem_id,
            "family": one.family,
            "question": question,
            "teacher": one.teacher,
            "completion_key": one.key,
            "completion_tokens": one.num_tokens,
            "messages": example_messages(question, one.text()),
            "sample_index": one.sample_index,
            "verdict": one.verdict.value,
            "extracted": one.extracted,
            "gold": self.inputs.problems[one.problem_id]["answer"],
            "student_tokens": self.student_tokens.get(one.teacher, {}).get(one.key),
            "teacher_license": self.inputs.teacher_licenses.get(one.teacher),
            "problems_license": self.inputs.problems_license,
        }

    def coverage(self, kept: ByTeacher, chosen: ByTeacher) -> list[dict[str, Any]]:
        rows = []
        for teacher, candidates in self.inputs.candidates.items():
            drawn = Counter(one.problem_id for one in candidates)
            right = Counter(one.problem_id for one in candidates if one.verdict is Verdict.CORRECT)
            usable = Counter(one.problem_id for one in kept[teacher])
            selected = {one.problem_id for one in chosen[teacher]}
            rows += [
                {
                    "teacher": teacher, "problem_id": problem_id, "family": problem["family"],
                    "num_samples": drawn[problem_id], "num_correct": right[problem_id], "num_kept": usable[problem_id],
                    "selected": problem_id in selected,
                }
                for problem_id, problem in self.inputs.problems.items()
            ]  # fmt: skip
        return rows

    def warn_of_few(self, problems: Mapping[str, list[str]]) -> None:
        wanted = problem_limit(self.corpus)
        if self.corpus.mode in ("matched", "union"):
            found = {f"{self.corpus.mode} problems": union_of(problems.values())}
        else:
            found = {f"problems of {teacher}": ids for teacher, ids in problems.items()}
        for what, ids in found.items():
            if len(ids) < wanted:
                log.warning("%d %s, fewer than the %d asked for", len(ids), what, wanted)


def check_corpus_names(names: list[str]) -> None:
    """Raise `CorpusError` for a teacher whose corpus would take another file's name."""
    if COVERAGE in names:
        raise CorpusError(
            f"a teacher is named {COVERAGE!r}, but {COVERAGE}.parquet is the table of teachers by problems; give the "
            "teacher another name: nothing is asked again, names are not part of a request"
        )
