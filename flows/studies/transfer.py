"""Transfer: a new student taught by the MoT student, and by each teacher (claim C8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from flows.studies.base import PATH_BUDGET, Cell, Findings, Options, Setup, Study, only_methods, with_fields
from mot_core.analysis.outcomes import Arm
from mot_core.analysis.ranking import Ranking
from mot_core.analysis.wording import percent
from mot_core.steps import ModelRef

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FIRST, SECOND = "first-students", "new-student"
MOT, BEST = "mot-student", "best-std-student"


class TransferOptions(Options):
    """The new student, and how much it gets: as many rationales from each teacher, cut to the one with fewest."""

    student: dict[str, Any] = Field(description="fields of the new student")
    num_samples: int = Field(4, ge=1, description="rationales drawn a problem: weak teachers are right less often")


def first_students(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """The students that will teach: MoT's, and each single teacher's."""
    methods = only_methods(setup.base, ["base", "std", "mot"])
    return [Cell(FIRST, with_fields(setup.base, FIRST, methods=methods, budgets=PATH_BUDGET))]


def new_student(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """The new student, a run a teacher: the home teachers, the MoT student and the best single teacher's student."""
    base, options = setup.base, setup.options
    best = findings.outcomes.best_teacher(FIRST)
    home = [teacher.model_dump(mode="json") for teacher in base.teachers]
    made: list[dict[str, Any]] = [
        {"name": MOT, "model": model_of(findings, "mot")},
        {"name": BEST, "model": model_of(findings, best)},
    ]
    if base.evaluation.engine is not None:
        engine = base.evaluation.engine.model_dump(mode="json")
        made = [{**one, "completer": base.evaluation.completer, "engine": engine} for one in made]
    spec = with_fields(
        base, SECOND, methods=only_methods(base, ["base", "std"]), budgets=PATH_BUDGET, teachers=[*home, *made], student=options.student,
        generation={"num_samples": options.num_samples}, corpus={"mode": "size_matched"},
    )  # fmt: skip
    return [Cell(SECOND, spec)]


def model_of(findings: Findings, label: str) -> str:
    """Where a final student of the first phase lies: that of the first training seed."""
    seed = findings.setup.options.training_seeds[0]
    students = findings.planned[FIRST].outline.students
    (final,) = (one for one in students if one.is_final and one.path.label == label and one.seed == seed)
    source = final.student.source
    if isinstance(source, ModelRef):
        return source.locator
    return str(Path(findings.setup.store).absolute() / "objects" / source.identity / (final.student.subdirectory or ""))


def _ranking(findings: Findings) -> Ranking:
    teachers = [teacher.name for teacher in findings.planned[SECOND].cell.spec.teachers]
    arms = {f"from {name}": Arm(SECOND, f"std/{name}") for name in teachers}
    arms["untrained"] = Arm(SECOND, "base")
    return Ranking(findings.outcomes, arms, f"from {MOT}")


def _right(findings: Findings) -> dict[str, float]:
    coverage = findings.outcomes.results[SECOND].coverage
    shares = coverage.groupby("teacher")["num_correct"].sum() / coverage.groupby("teacher")["num_samples"].sum()
    return {str(name): float(share) for name, share in shares.items()}


def table(findings: Findings) -> pd.DataFrame:
    """A row a teacher of the new student."""
    chosen = findings.outcomes.results[SECOND].rationales
    kept = chosen[chosen["selected"]].groupby("teacher").size()
    right = {f"from {name}": f"{percent(share)} %" for name, share in _right(findings).items()}
    return _ranking(findings).rows(
        teacher_right_on=right, rationales={f"from {name}": int(count) for name, count in kept.items()}
    )


def figure(findings: Findings) -> Figure:
    """Accuracy of the new student by teacher, and differences from the MoT student's."""
    return _ranking(findings).figure("A new student")


def text(findings: Findings) -> str:
    """Who teaches the new student best."""
    right = _right(findings)
    told = (
        f"The MoT student itself is right on {percent(right[MOT])} % of the problems that it was asked as a teacher, the best "
        f"single teacher's student on {percent(right[BEST])} %."
    )
    return (
        f"{told} {_ranking(findings).sentences()} Every teacher gave as many rationales, of problems that it got right itself; "
        "the students that teach are those of one training seed."
    )


STUDY = Study(
    name="transfer", claim="claim C8", options=TransferOptions, phases=(first_students, new_student), table=table,
    figure=figure, text=text,
    question="Is the MoT student a better teacher for a new student than the teachers that it learnt from?",
)  # fmt: skip
