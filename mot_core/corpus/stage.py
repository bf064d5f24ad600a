"""The corpora stage: one corpus a teacher from every teacher's verdicts."""

from __future__ import annotations

from typing import Any

from mot_core.corpus.build import Builder, Inputs, check_corpus_names
from mot_core.corpus.candidates import read_candidates
from mot_core.corpus.filters import pass_rates
from mot_core.corpus.student import Student
from mot_core.files import read_jsonl
from mot_core.grading.stage import VERDICTS
from mot_core.runner import StepContext
from mot_core.spec import Corpus


def build_corpora(context: StepContext) -> dict[str, Any]:
    """Runner of `corpora`: the files of `mot_core.corpus.build`.

    Raises:
        CorpusError: no problem is left, with how many fell at which filter.
    """
    spec = context.spec
    corpus = Corpus(**{name: spec[name] for name in Corpus.model_fields if name in spec})
    verdicts = {role.removeprefix("verdicts/"): path for role, path in context.parents("verdicts/")}
    check_corpus_names(list(verdicts))
    attempts = [
        (row["problem_id"], row["verdict"], row["finish_reason"])
        for _, path in context.parents("difficulty")
        for row in read_jsonl(path / VERDICTS)
    ]
    licenses = spec["licenses"]
    inputs = Inputs(
        problems={row["problem_id"]: row for row in read_jsonl(context.parent_dir("problems") / "problems.jsonl")},
        candidates={teacher: read_candidates(teacher, path / VERDICTS) for teacher, path in verdicts.items()},
        teacher_licenses=licenses["teachers"],
        problems_license=licenses["problems"],
        pass_rates=pass_rates(attempts),
    )
    return Builder(inputs, corpus, _student(context), context.progress).build(context.work_dir)


def _student(context: StepContext) -> Student | None:
    """Whose template and tokens rationales must fit; None where the step names no student."""
    if "student" not in context.step.locators:
        return None
    return Student(
        context.model_dir("student"), context.step.locators.get("student_revision"), context.settings.device,
        context.models.get,
    )  # fmt: skip
