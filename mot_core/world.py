"""What a spec refers to outside itself, resolved and checked before any compute: models, files, import paths.

Invariant: an outside input enters identity by content (or hub id and revision), never by where it lies.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.artifacts import sha256_of
from mot_core.errors import ModelError, ProblemError, SpecError
from mot_core.identity import fingerprint
from mot_core.spec import BUILTIN_METHODS, Experiment, Model, ProblemSource, local_directory, nearest
from mot_core.steps import ModelRef, check_import_path, load_object

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class World:
    """The outside inputs of one experiment."""

    student: ModelRef
    teachers: dict[str, ModelRef]
    files: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "student": self.student.to_json(),
            "teachers": {name: ref.to_json() for name, ref in self.teachers.items()},
            "files": self.files,
        }


def resolve(spec: Experiment) -> World:
    """The spec's outside inputs.

    Raises:
        ModelError, ProblemError, SpecError: whatever is missing or cannot serve, before anything runs.
    """
    student = model_ref(spec.student, "student")
    teachers = {teacher.name: model_ref(teacher, f"teacher {teacher.name!r}") for teacher in spec.teachers}
    files: dict[str, str] = {}
    for where, source in _sources(spec):
        if source.file is not None:
            path = Path(source.file).expanduser()
            if not path.is_file():
                raise ProblemError(
                    f"{where}.file: {source.file!r} does not exist; expected JSONL with question and answer"
                )
            files[source.file] = sha256_of(path)
        for family in source.families or ():
            _check_family(where, family)
        if source.import_path is not None:
            load_object(source.import_path, f"{where}.import_path")
    _check_registered(spec)
    return World(student, teachers, files)


def model_ref(model: Model, where: str) -> ModelRef:
    """A model's identity and place.

    Raises:
        ModelError: a directory that lacks weights, config or chat template, or holds pickles; an unknown name.
    """
    try:
        directory = local_directory(model.model)
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from None
    if directory is None:
        if not _looks_like_hub_id(model.model):
            raise ModelError(
                f"{where}: model {model.model!r} is no directory here, and no hub id (owner/name); "
                "give an existing directory, lab:NAME, or a hub id"
            )
        identity = fingerprint({"hub": model.model, "revision": model.revision})
        return ModelRef(identity, model.model, model.revision)
    check_model_directory(directory, where)
    return ModelRef(content_identity(directory), str(directory.resolve()))


def check_model_directory(directory: Path, where: str) -> None:
    """Raise `ModelError` unless a directory holds a safetensors model whose tokenizer has a chat template."""
    if not (directory / "config.json").is_file():
        raise ModelError(f"{where}: {directory} has no config.json; expected a model directory")
    if not any(directory.glob("*.safetensors")):
        pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
        found = f"; found {', '.join(pickles)}, which are pickles and are never loaded" if pickles else ""
        raise ModelError(f"{where}: {directory} has no *.safetensors{found}; save it with safetensors")
    if not _has_chat_template(directory):
        raise ModelError(
            f"{where}: the tokenizer in {directory} has no chat template; expected chat_template.jinja, or "
            "chat_template in tokenizer_config.json, that renders user and assistant messages"
        )


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").is_file():
        return True
    config = directory / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))


@functools.cache
def content_identity(directory: Path) -> str:
    """The hash of what a model directory means: weights, config, tokenizer, template."""
    paths = [
        path
        for path in sorted(directory.iterdir())
        if path.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model") and path.name != "manifest.json"
    ]
    return fingerprint([[path.name, sha256_of(path)] for path in paths])


def _looks_like_hub_id(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(slash and owner and rest) and "/" not in rest and not name.startswith((".", "~", "/"))


def _sources(spec: Experiment) -> list[tuple[str, ProblemSource]]:
    return [("problems", spec.problems)] + [
        (f"evaluation.benchmarks.{benchmark.name}", benchmark) for benchmark in spec.evaluation.benchmarks
    ]


def _check_family(where: str, family: str) -> None:
    from mot_core.lab.families import FAMILIES

    if family not in FAMILIES:
        raise SpecError(
            f"{where}.families: {family!r} is not known; {nearest(family, FAMILIES)}known: {', '.join(FAMILIES)}"
        )


def _check_registered(spec: Experiment) -> None:
    from mot_core.completers.base import COMPLETERS
    from mot_core.grading.verdicts import GRADERS
    from mot_core.merging import RULES as RULE_PATHS

    named = [(f"teachers.{t.name}.completer", t.completer, COMPLETERS) for t in spec.teachers]
    named += [(f"evaluation.benchmarks.{b.name}.grader", b.grader, GRADERS) for b in spec.evaluation.benchmarks]
    named += [("corpus.grader", spec.corpus.grader, GRADERS), ("merge.rule", spec.merge.rule, RULE_PATHS)]
    for where, name, known in named:
        if name not in known and ":" not in name:
            raise SpecError(
                f"{where}: {name!r} is not known; {nearest(name, known)}known: {', '.join(known)}, "
                "or package.module:name for one of your own"
            )
        if name not in known:
            check_import_path(name, where)
    for method in spec.methods:
        if method.import_path is not None:
            if method.name in BUILTIN_METHODS:
                raise SpecError(f"methods: {method.name!r} is a built-in method; give your own another name")
            load_object(method.import_path, f"methods.{method.name}.import_path")
