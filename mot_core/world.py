"""What a spec refers to outside itself, resolved and checked before any compute: models, files, import paths.

Invariant: an outside input enters identity by content (or hub id and revision), never by where it lies.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.errors import CompletionError, ModelError, ProblemError, SpecError
from mot_core.evaluation.harness import check_harness
from mot_core.files import sha256_of
from mot_core.identity import fingerprint
from mot_core.model_files import check_model_files
from mot_core.sft.vocabulary import check_on_policy
from mot_core.spec import (
    BUILTIN_METHODS,
    Benchmark,
    Experiment,
    Model,
    ProblemSource,
    Rationales,
    Table,
    Teacher,
    local_directory,
    nearest,
)
from mot_core.steps import ModelRef, check_import_path, load_object

UNTRAINED_STUDENT, JUDGE = "untrained student", "the judge"
"""Names in `World.models` beside the teachers'; with a space, so that no teacher can have them."""
_TOKENIZER_FILES = ("tokenizer", "chat_template", "special_tokens_map", "added_tokens", "vocab", "merges")


@dataclass(frozen=True)
class World:
    """The outside inputs of one experiment."""

    student: ModelRef
    student_tokenizer: str
    """The identity of the student's tokenizer and chat template alone."""
    models: dict[str, ModelRef]
    """Who completes problems: the teachers by name, the untrained student, and the judge if there is one."""
    files: dict[str, str]
    removed: tuple[str, ...] | None = None
    """Training problems that a benchmark holds, by id, once `mot_core.prepare` has looked; it is part of what there is
    outside the spec, as the files' content is."""
    lm_eval: str | None = None
    """The version of lm-evaluation-harness, where the spec asks for it: tasks' definitions belong to it."""

    @property
    def locators(self) -> set[str]:
        """Where its models lie."""
        return {model.locator for model in (self.student, *self.models.values())}

    def to_json(self) -> dict[str, Any]:
        return {
            "student": self.student.to_json(),
            "student_tokenizer": self.student_tokenizer,
            "models": {name: ref.to_json() for name, ref in self.models.items()},
            "files": self.files,
            "removed": self.removed,
            **({"lm_eval": self.lm_eval} if self.lm_eval is not None else {}),
        }


def resolve(spec: Experiment) -> World:
    """The spec's outside inputs.

    Raises:
        ModelError, ProblemError, SpecError: whatever is missing or cannot serve, before anything runs.
    """
    student = model_ref(spec.student, "student")
    files: dict[str, str] = {}
    for where, source in _sources(spec):
        if source.file is not None:
            files[source.file] = files_identity(source.file, f"{where}.file")
        for family in source.families or ():
            _check_family(where, family)
        _check_gyms_grader(spec, where, source)
        if source.gym is not None:
            from mot_core.gym import check_gym

            check_gym(source.gym, f"{where}.gym")
        if source.import_path is not None:
            load_object(source.import_path, f"{where}.import_path")
        check_columns(source, where)
    models = {teacher.name: teacher_ref(teacher, f"teachers.{teacher.name}") for teacher in spec.teachers}
    if spec.corpus.judge is not None:
        models[JUDGE] = teacher_ref(spec.corpus.judge, "corpus.judge")
    models[UNTRAINED_STUDENT] = student
    _check_registered(spec)
    check_on_policy(spec)
    lm_eval: str | None = None
    for entry in spec.evaluation.harness:
        lm_eval, content = check_harness(entry, f"evaluation.harness.{entry.name}")
        if entry.include_path is not None and content is not None:
            files[entry.include_path] = content
    return World(student, tokenizer_identity(spec.student), models, files, lm_eval=lm_eval)


def files_identity(file: str, where: str) -> str:
    """The content hash of a file, or of every file that a pattern with * matches.

    Raises:
        ProblemError: nothing there.
    """
    try:
        path = Path(file).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long for any file, a home directory of nobody
        raise ProblemError(f"{where}: {file[:200]!a} cannot be a path: {error}; expected a file") from None
    if "*" not in file:
        if not is_file:
            raise ProblemError(f"{where}: {file!r} does not exist; expected JSONL, CSV or parquet")
        return sha256_of(path)
    path = path.absolute()
    paths = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not paths:
        raise ProblemError(f"{where}: {file!r} matches no file; expected JSONL, CSV or parquet")
    return fingerprint([[path.name, sha256_of(path)] for path in paths])


def rationales_identity(rows: Rationales, where: str) -> str:
    """What a corpus teacher is: its files' content, or its hub id and revision, with how they are read."""
    content = files_identity(rows.file, f"{where}.file") if rows.file is not None else None
    return fingerprint({"rationales": {**rows.record(content), "split": rows.split}})


def teacher_ref(teacher: Teacher, where: str) -> ModelRef:
    """Who answers for a teacher: weights, a name at an endpoint, or rows.

    Raises:
        ModelError, ProblemError, SpecError: what is missing, such as the variable that an endpoint's key is in.
    """
    if teacher.endpoint is not None:
        from mot_core.completers.endpoint_client import check_extra_body, read_key

        check_extra_body(teacher.endpoint)
        try:
            read_key(teacher.endpoint)
        except CompletionError as error:
            raise SpecError(f"{where}.endpoint.api_key_env: {error}") from None
        return ModelRef(fingerprint({"endpoint": teacher.model, "revision": teacher.revision}), teacher.model)
    if teacher.rationales is not None:
        rows = teacher.rationales
        check_columns(rows, f"{where}.rationales")
        identity = rationales_identity(rows, f"{where}.rationales")
        return ModelRef(identity, rows.file or str(rows.hub), rows.revision)
    return model_ref(teacher, where)


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
    """Raise `ModelError` unless a directory holds a safetensors model, no pickle, and a chat template."""
    if not (directory / "config.json").is_file():
        raise ModelError(f"{where}: {directory} has no config.json; expected a model directory")
    check_model_files(directory, where)
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"{where}: {directory} has no *.safetensors; save the model with safetensors")
    if (directory / "adapter_config.json").exists():
        # transformers would load the model that this file names, wherever it lies, in place of the one here.
        raise ModelError(
            f"{where}: {directory} holds adapter_config.json beside a whole model; expected one of both: merge the adapter "
            "into its model first (mot merge), or move the file away"
        )
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
    return content_of((path.name, sha256_of(path)) for path in directory.iterdir() if is_model_file(path.name))


def content_of(hashes: Iterable[tuple[str, str]]) -> str:
    """`content_identity` of a directory from the name and SHA-256 of each of its files; those that do not belong to a
    model are passed over."""
    return fingerprint([[name, sha256] for name, sha256 in sorted(hashes) if is_model_file(name)])


def is_model_file(name: str) -> bool:
    """Whether a file of a model directory is part of what the model is."""
    return name.endswith((".safetensors", ".json", ".jinja", ".txt", ".model")) and name != "manifest.json"


def tokenizer_identity(model: Model) -> str:
    """What a model's tokenizer and chat template are: their files' content, or hub id and revision."""
    directory = local_directory(model.model)
    if directory is None:
        return fingerprint({"hub": model.model, "revision": model.revision})
    paths = [path for path in sorted(directory.iterdir()) if path.name.startswith(_TOKENIZER_FILES)]
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


def _check_gyms_grader(spec: Experiment, where: str, source: ProblemSource) -> None:
    """Raise `SpecError` unless a gym's problems are graded by `gym`, or by a grader of the user's, and no others are: that
    grader runs reasoning-gym's scorers on the reference, some of which evaluate it."""
    field, grader = (
        (f"{where}.grader", source.grader) if isinstance(source, Benchmark) else ("corpus.grader", spec.corpus.grader)
    )
    if source.gym is None:
        if grader == "gym":
            raise SpecError(
                f"{field}: gym reads the items of reasoning-gym only, and {where} has none; give another grader"
            )
        return
    if grader != "gym" and ":" not in grader:
        raise SpecError(f"{field}: {grader!r} cannot read the reference answers of gym problems; give gym")


def check_named(where: str, name: str, known: Collection[str]) -> None:
    """Raise `SpecError` unless a part is registered under its name, or an import path that exists."""
    if name not in known and ":" not in name:
        raise SpecError(
            f"{where}: {name!r} is not known; {nearest(name, known)}known: {', '.join(known)}, "
            "or package.module:name for one of your own"
        )
    if name not in known:
        check_import_path(name, where)


def check_columns(table: Table, where: str) -> None:
    """Raise `SpecError` unless a table's format and columns are known."""
    from mot_core.columns import mapping_of

    try:
        mapping_of(table.model_dump(mode="json"))
    except ProblemError as error:
        raise SpecError(f"{where}: {error}") from None


def _check_registered(spec: Experiment) -> None:
    from mot_core.completers.base import COMPLETERS
    from mot_core.grading.verdicts import GRADERS
    from mot_core.merging import RULES as RULE_PATHS

    asked = [*spec.teachers, *([spec.corpus.judge] if spec.corpus.judge is not None else [])]
    named = [(f"teachers.{t.name}.completer", t.completer, COMPLETERS) for t in asked]
    named += [("evaluation.completer", spec.evaluation.completer, COMPLETERS)]
    named += [(f"evaluation.benchmarks.{b.name}.grader", b.grader, GRADERS) for b in spec.evaluation.benchmarks]
    named += [("corpus.grader", spec.corpus.grader, GRADERS), ("merge.rule", spec.merge.rule, RULE_PATHS)]
    for where, name, known in named:
        check_named(where, name, known)
    for method in spec.methods:
        if method.import_path is not None:
            if method.name in BUILTIN_METHODS:
                raise SpecError(f"methods: {method.name!r} is a built-in method; give your own another name")
            load_object(method.import_path, f"methods.{method.name}.import_path")
