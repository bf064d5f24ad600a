"""A run's scores again from the raw completions that it published, by another grader or another version of one.

No model is loaded and nothing is asked. Invariant: published steps stay as they are; what is found lies beside the run,
in `regraded-<grader>.json` and, a row for each changed verdict, `regraded-<grader>.csv`.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mot_core.artifacts import Manifest, Store
from mot_core.errors import GradingError, SpecError, StoreError
from mot_core.evaluation.ensemble import ensemble_rows, voters_of
from mot_core.evaluation.metrics import problem_scores, summarize
from mot_core.files import read_jsonl, whole_file, write_atomically
from mot_core.grading.pool import GradingPool
from mot_core.grading.stage import graded_rows
from mot_core.grading.verdicts import GRADERS, Verdict
from mot_core.provenance import package_versions
from mot_core.report.text import spreadsheet
from mot_core.runs import read_index
from mot_core.world import check_named

INSTALLED = "installed"
"""Stands for no other grader: each step's own, as this installation has it."""
_COLUMNS = ("step", "problem", "sample", "old", "new", "old_extracted", "extracted")
_METRICS = ("avg_at_k", "pass_at_k", "maj_at_k", "truncated_share", "unparseable_share", "failed_share")
Rows = list[dict[str, Any]]


@dataclass
class Regraded:
    """What one grader says of a run. Verdicts changed to right and from right, with all that changed (a wrong answer
    that becomes unparseable is among these), are told for each student, teacher and step."""

    run_id: str
    grader: str
    students: Rows = field(default_factory=list)
    """A row a budget, method, benchmark, split and seed of final students, with `old` and `new` metrics."""
    teachers: Rows = field(default_factory=list)
    """A row a teacher: `old` and `new` share of right rationales."""
    steps: Rows = field(default_factory=list)
    """A row a published step, along the paths too."""
    left_out: Rows = field(default_factory=list)
    """Steps that the grader cannot serve, with the reason."""
    changed: Rows = field(default_factory=list)
    """A row a changed verdict."""

    def document(self) -> dict[str, Any]:
        """The JSON form; the changed verdicts are in the CSV."""
        kept = {name: value for name, value in asdict(self).items() if name != "changed"}
        return {**kept, "num_changed": len(self.changed), "versions": package_versions()}


def regrade(
    store: Store, run_dir: Path, grader: str = INSTALLED, *, num_workers: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> Regraded:  # fmt: skip
    """Every verdict and score of a run again, in the run's directory as files; the same as a value.

    Raises:
        SpecError: an unknown grader.
        StoreError: a step of the run is not published, or its files are damaged.
        GradingError: the grader cannot read a reference answer of any step, or breaks on too many answers.
    """
    if grader == "gym":
        raise SpecError(
            "--grader gym: it reads items of reasoning-gym only, which are graded by it anyway; leave it out"
        )
    if grader != INSTALLED:
        check_named("--grader", grader, GRADERS)
    index = read_index(run_dir)
    found = Regraded(run_dir.name, grader)
    with GradingPool(num_workers) as pool:
        work = _Work(store, found, pool, tell)
        work.students(index)
        work.ensemble(index)
        work.teachers(index)
    if not found.steps:
        reasons = "; ".join(f"{row['what']}: {row['reason']}" for row in found.left_out[:3])
        raise GradingError(
            f"--grader {grader}: it cannot serve any step of run {run_dir.name} ({reasons}); give a grader for answers of "
            "this kind, or none: each step is then graded by its own"
        )
    _write(run_dir, found)
    return found


@dataclass
class _Work:
    """Grades each published step of one run once."""

    store: Store
    found: Regraded
    pool: GradingPool
    tell: Callable[[str], None]
    pairs: dict[str, tuple[Rows, Rows] | None] = field(default_factory=dict)
    """By step: the rows with the published verdicts, and the same rows with the new ones; None where left out."""

    suits: dict[tuple[str, Path], str | None] = field(default_factory=dict)

    def students(self, index: dict[str, Any]) -> None:
        for student in index["students"]:
            for evaluation in student["evaluations"]:
                pair = self.evaluation(evaluation, f"{student['method']}, {evaluation['benchmark']}")
                if pair is not None and student["is_final"]:
                    self.student_row(student, evaluation, pair, self.manifest(evaluation["identity"]).spec["k"])

    def evaluation(self, evaluation: dict[str, Any], what: str) -> tuple[Rows, Rows] | None:
        """One evaluation's published and new rows."""
        identity = evaluation["identity"]
        if identity not in self.pairs:
            manifest = self.manifest(identity)
            raw = read_jsonl(self.file(manifest, "completions.jsonl"))
            old = read_jsonl(self.file(manifest, "graded.jsonl"))
            pair = self.pairs[identity] = self.graded(manifest, raw, old, what)
            if pair is not None:
                k = manifest.spec["k"]
                self.found.steps.append({"step": identity, "kind": "evaluation", "what": what, **_both(*pair, k)})
        return self.pairs[identity]

    def student_row(self, student: dict[str, Any], evaluation: dict[str, Any], pair: tuple[Rows, Rows], k: int) -> None:
        place = {name: student[name] for name in ("budget", "method", "seed")}
        where = {name: evaluation[name] for name in ("benchmark", "split")}
        self.found.students.append({**place, **where, "k": k, **_both(*pair, k)})

    def ensemble(self, index: dict[str, Any]) -> None:
        """The votes again, over the final STD students' new verdicts."""
        for voters in voters_of(index):
            for position, evaluation in enumerate(voters[0]["evaluations"]):
                identities = [voter["evaluations"][position]["identity"] for voter in voters]
                pairs = [pair for pair in (self.pairs[identity] for identity in identities) if pair is not None]
                if len(pairs) == len(voters):
                    votes = (ensemble_rows([old for old, _ in pairs]), ensemble_rows([new for _, new in pairs]))
                    voter = {**voters[0], "method": "ensemble"}
                    self.student_row(voter, evaluation, votes, self.manifest(identities[0]).spec["k"])

    def teachers(self, index: dict[str, Any]) -> None:
        for teacher, identity in index["nodes"]["verdicts"].items():
            manifest = self.manifest(identity)
            rationales = self.manifest(dict(manifest.parents)["completions"])
            raw = read_jsonl(self.file(rationales, "completions.jsonl"))
            old = read_jsonl(self.file(manifest, "verdicts.jsonl"))
            pair = self.graded(manifest, raw, old, f"teacher {teacher}")
            if pair is not None:
                row = {
                    "old": _right_share(pair[0]), "new": _right_share(pair[1]), "num_rationales": len(raw), **_changes(*pair)
                }  # fmt: skip
                self.found.teachers.append({"teacher": teacher, **row})
                self.found.steps.append({"step": identity, "kind": "verdicts", "what": f"teacher {teacher}", **row})

    def graded(self, manifest: Manifest, raw: Rows, old: Rows, what: str) -> tuple[Rows, Rows] | None:
        """The published rows and the same rows with new verdicts; None, with the reason noted, for a step whose reference
        answers the grader cannot read."""
        name = manifest.spec["grader"] if self.found.grader == INSTALLED else self.found.grader
        problems = self.file(self.manifest(dict(manifest.parents)["problems"]), "problems.jsonl")
        by_id = {row["problem_id"]: row for row in read_jsonl(problems)}
        reason = self.unsuited(name, problems, by_id)
        if reason is not None:
            self.found.left_out.append({"step": manifest.identity, "what": what, "reason": reason})
            return None
        self.tell(f"{what}: {len(raw)} completions by {name}")
        if [row["key"] for row in raw] != [row["key"] for row in old]:
            raise StoreError(
                f"step {manifest.identity}: its verdicts are not of its completions; run the experiment again"
            )
        again = graded_rows(name, by_id, raw, num_workers=self.pool.num_workers, pool=self.pool)
        new = [
            {**row, "verdict": one["verdict"], "extracted": one["extracted"]}
            for row, one in zip(old, again, strict=True)
        ]
        self.found.changed += _changed_rows(manifest.identity, old, new)
        return old, new

    def unsuited(self, grader: str, problems: Path, by_id: dict[str, dict[str, Any]]) -> str | None:
        """Why a grader cannot serve problems, or None; asked once of each set of problems."""
        if (grader, problems) not in self.suits:
            golds = [(grader, row["family"], row["answer"]) for row in by_id.values()]
            faults = [fault for fault in self.pool.check_golds(golds) if fault is not None]
            said = (
                f"{len(faults)} of {len(golds)} reference answers do not suit {grader!r}: {faults[0]}"
                if faults
                else None
            )
            self.suits[grader, problems] = said
        return self.suits[grader, problems]

    def manifest(self, identity: str) -> Manifest:
        found = self.store.manifest(identity)
        if found is None:
            raise StoreError(f"step {identity} is not published in {self.store.root}; run the experiment again")
        return found

    def file(self, manifest: Manifest, name: str) -> Path:
        """A published file, checked against its hash: a score is worth what its raw text is."""
        own = [line for line in self.store.damaged_files(manifest) if line.startswith(f"{name} ")]
        if own:
            raise StoreError(f"step {manifest.identity} is damaged: {own[0]}; run the experiment again, it is redone")
        return self.store.object_dir(manifest.identity) / name


def _both(old: Rows, new: Rows, k: int) -> dict[str, Any]:
    before, after = (summarize(rows, problem_scores(rows, k), k) for rows in (old, new))
    return {
        "old": {name: before[name] for name in _METRICS}, "new": {name: after[name] for name in _METRICS},
        **_changes(old, new),
    }  # fmt: skip


def _changes(old: Rows, new: Rows) -> dict[str, int]:
    pairs = Counter((a["verdict"], b["verdict"]) for a, b in zip(old, new, strict=True))
    right = Verdict.CORRECT.value
    return {
        "num_changed": sum(count for (a, b), count in pairs.items() if a != b),
        "num_to_right": sum(count for (a, b), count in pairs.items() if a != right and b == right),
        "num_from_right": sum(count for (a, b), count in pairs.items() if a == right and b != right),
    }


def _changed_rows(identity: str, old: Rows, new: Rows) -> Iterator[dict[str, Any]]:
    for before, after in zip(old, new, strict=True):
        if before["verdict"] != after["verdict"]:
            place = (identity, before["problem_id"], before["sample_index"])
            said = (before["verdict"], after["verdict"], before["extracted"], after["extracted"])
            yield dict(zip(_COLUMNS, (*place, *said), strict=True))


def _right_share(rows: Rows) -> float:
    return [row["verdict"] for row in rows].count(Verdict.CORRECT) / max(1, len(rows))


def regraded_paths(run_dir: Path, grader: str) -> tuple[Path, Path]:
    """Where the JSON and the CSV of a grader lie; a name's `:` and other marks become dashes."""
    stem = f"regraded-{re.sub(r'[^A-Za-z0-9_.]+', '-', grader)}"
    return run_dir / f"{stem}.json", run_dir / f"{stem}.csv"


def _write(run_dir: Path, found: Regraded) -> None:
    document, changed = regraded_paths(run_dir, found.grader)
    with (
        whole_file(changed) as unfinished,
        # An answer is model output, and may hold half a surrogate pair.
        unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: spreadsheet(value) for name, value in row.items()} for row in found.changed)
    write_atomically(document, json.dumps(found.document(), indent=1, sort_keys=True) + "\n")


def mean_rows(students: Iterable[dict[str, Any]]) -> Rows:
    """Final students' rows over seeds: mean old and new avg@k, and the sums of what changed."""
    groups: dict[tuple[str, ...], Rows] = {}
    for row in students:
        key = (row["budget"], row["benchmark"], row["split"], row["method"])
        groups.setdefault(key, []).append(row)
    return [
        {
            **dict(zip(("budget", "benchmark", "split", "method"), key, strict=True)),
            "old": sum(row["old"]["avg_at_k"] for row in rows) / len(rows),
            "new": sum(row["new"]["avg_at_k"] for row in rows) / len(rows),
            **{name: sum(row[name] for row in rows) for name in ("num_changed", "num_to_right", "num_from_right")},
        }
        for key, rows in groups.items()
    ]
