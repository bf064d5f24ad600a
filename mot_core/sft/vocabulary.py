"""Who can teach on a student's own tokens: local models whose tokenizer has the student's vocabulary, ids included.

Invariant: asked before any compute, from files alone (torch is not imported); a model that is not here yet is asked
again when its step has loaded it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mot_core.errors import ModelError, SpecError
from mot_core.spec import Experiment, Teacher, local_directory

ON_POLICY_METHODS = ("opd", "mot_opd")
_WITH_WEIGHTS = ("transformers", "vllm")
_REMEDY = "leave the methods opd and mot_opd out, or give teachers that are models with the student's tokenizer"


def check_on_policy(spec: Experiment) -> None:
    """Whether the spec's on-policy methods, where it has any, can run.

    Raises:
        SpecError: a teacher whose distributions cannot be had, or a setting of training that does not go with them.
        ModelError: a teacher of another vocabulary.
    """
    methods = [method for method in spec.methods if method.builtin in ON_POLICY_METHODS]
    if not methods:
        return
    asked = {teacher.name for teachers in on_policy_teachers(spec).values() for teacher in teachers}
    teachers = [teacher for teacher in spec.teachers if teacher.name in asked]
    for teacher in teachers:
        _check_teacher(teacher)
    for method in methods:
        training = spec.training_of(method)
        for field, given in (("early_stop", training.early_stop is not None), ("devices", training.devices > 1)):
            if given:
                raise SpecError(
                    f"methods.{method.name}: on-policy steps run on one device and all of them, but training.{field} is "
                    f"{getattr(training, field)}; set it in the method's own training: "
                    f"training: {{{field}: {'null' if field == 'early_stop' else 1}}}"
                )
        if method.builtin == "mot_opd" and method.training:
            raise SpecError(
                f"methods.{method.name}: its MoT part is method mot's and would not know training "
                f"{sorted(method.training)}; give them to the experiment's training, or use opd"
            )
    own = vocabulary_of(spec.student.model)
    for teacher in teachers:
        theirs = vocabulary_of(teacher.model)
        if own is not None and theirs is not None:
            check_same(own, theirs, f"teachers.{teacher.name}")


def on_policy_teachers(spec: Experiment) -> dict[str, list[Teacher]]:
    """On-policy method of the spec → the teachers that it learns from."""
    return {
        method.name: [one for one in spec.teachers if method.teachers is None or one.name in method.teachers]
        for method in spec.methods if method.builtin in ON_POLICY_METHODS
    }  # fmt: skip


def _check_teacher(teacher: Teacher) -> None:
    where = f"teachers.{teacher.name}"
    if teacher.completer not in _WITH_WEIGHTS:
        what = {"openai": "is behind an endpoint", "corpus": "is rows of text"}.get(
            teacher.completer, f"has a completer of its own, {teacher.completer}"
        )
        raise SpecError(
            f"{where}: on-policy distillation needs its probability of every token, but it {what}; expected completer "
            f"{' or '.join(_WITH_WEIGHTS)}; {_REMEDY}"
        )
    given = [name for name in ("system", "template_kwargs") if getattr(teacher, name)]
    if given:
        raise SpecError(
            f"{where}.{given[0]}: on-policy distillation shows a teacher the student's own prompt and tokens, where it "
            f"has no place; leave it out, or {_REMEDY}"
        )


def vocabulary_of(model: str) -> dict[str, int] | None:
    """Token → id, from a directory's tokenizer.json; None where there is none, or the model is not here."""
    directory = local_directory(model)
    path = directory / "tokenizer.json" if directory is not None else Path()
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text())
    pieces = document["model"]["vocab"]
    if isinstance(pieces, list):  # a unigram model's, with their scores
        pieces = {piece[0]: index for index, piece in enumerate(pieces)}
    return {**pieces, **{token["content"]: token["id"] for token in document.get("added_tokens", ())}}


def check_same(student: Mapping[str, int], teacher: Mapping[str, int], where: str) -> None:
    """Raise `ModelError` unless two vocabularies have the same tokens under the same ids."""
    apart = [token for token in sorted({*student, *teacher}) if student.get(token) != teacher.get(token)]
    if apart:
        token = apart[0]
        raise ModelError(
            f"{where}: its tokenizer is not the student's: {len(apart)} tokens differ, such as {token!r}, id "
            f"{student.get(token)} in the student's and {teacher.get(token)} in its own; on-policy distillation "
            f"compares probabilities token by token: {_REMEDY}"
        )
