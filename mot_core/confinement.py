"""What an experiment may read, where others than the machine's owner may start it: files below given roots only.

A deployed flow takes specs that somebody fills into a form, and a spec names files and model directories anywhere.
Invariant: a spec that passes names none outside the roots, through links either. Hub ids, `lab:` models and modules that
are importable already pass; what a file holds is not looked at. A link that is changed afterwards is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mot_core.errors import SpecError
from mot_core.spec import Engine, Experiment, Teacher

DATA_ROOTS = "MOT_DATA_ROOTS"
"""The variable of further roots, separated as in PATH."""
KEY_SERVERS = "MOT_KEY_SERVERS"
"""The variable of further pairs `VARIABLE=https://host`: which key may go to which server."""
_REMEDY = f"move it below one of them, or let {DATA_ROOTS} name its folder where the flow runs"


def data_roots(store: Path) -> list[Path]:
    """Where a deployed flow may read: its working directory, its store, and the folders of MOT_DATA_ROOTS."""
    named = [Path(text) for text in os.environ.get(DATA_ROOTS, "").split(os.pathsep) if text]
    return [Path.cwd(), store, *named]


def check_paths_within(spec: Experiment, roots: Iterable[Path]) -> None:
    """
    Raises:
        SpecError: a file, folder or model directory that the spec names, or a link in such a folder, lies under none of the
            roots.
    """
    allowed = [_resolved(str(root), "root") for root in roots]
    for field, text, is_model in _named(spec):
        if not (is_model and _is_no_path(text)):
            _check(text, field, allowed)


def check_keys_within(spec: Experiment, allowed: Iterable[tuple[str, str]]) -> None:
    """Raise `SpecError` if a spec sends a key to a server that it is not for: whoever names both a variable and an address
    could have any secret of the environment sent anywhere. `allowed` are pairs of variable and address, beside those of
    KEY_SERVERS.

    Raises:
        SpecError: a pair that is not among them.
    """
    named = [pair.partition("=") for pair in os.environ.get(KEY_SERVERS, "").split()]
    known = {(variable, origin_of(address)) for variable, address in allowed}
    known |= {(variable, origin_of(address)) for variable, _, address in named}
    asked = [(f"teachers.{teacher.name}", teacher) for teacher in spec.teachers]
    asked += [("corpus.judge", spec.corpus.judge)] if spec.corpus.judge is not None else []
    for where, teacher in asked:
        endpoint = teacher.endpoint
        if endpoint is None or endpoint.api_key_env is None:
            continue
        if (endpoint.api_key_env, origin_of(endpoint.base_url)) not in known:
            raise SpecError(
                f"{where}.endpoint: the key of {endpoint.api_key_env} would go to {origin_of(endpoint.base_url)}, which a "
                f"form may not ask for; let {KEY_SERVERS} hold {endpoint.api_key_env}={origin_of(endpoint.base_url)} where "
                "the flow runs (several are separated by spaces)"
            )


def origin_of(address: str) -> str:
    """Scheme, host and port of an address."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}".lower()


def check_models_within(named: Mapping[str, str], roots: Iterable[Path]) -> None:
    """The same for models by themselves, by the field that names each.

    Raises:
        SpecError: as `check_paths_within`.
    """
    allowed = [_resolved(str(root), "root") for root in roots]
    for field, text in named.items():
        if not _is_no_path(text):
            _check(text, field, allowed)


def _check(text: str, field: str, roots: list[Path]) -> None:
    """One path or pattern: where it starts, what it matches, and every link in a folder that it names."""
    start, wild = _split_pattern(text, field)
    if not _is_within(_resolved(start, field), roots):
        raise _refusal(field, text, _resolved(start, field), roots)
    for path in _files_of(Path(start).expanduser(), wild):
        if not _is_within(_resolved(str(path), field), roots):
            raise _refusal(field, text, path.resolve(), roots)


def _files_of(start: Path, wild: str) -> Iterator[Path]:
    if wild:
        yield from start.glob(wild)
    elif start.is_dir():
        yield from (path for path in start.rglob("*") if path.is_symlink())


def _split_pattern(text: str, field: str) -> tuple[str, str]:
    """The part of a pattern before its first wildcard, and the rest; of a plain path, all and nothing."""
    parts = Path(text).parts
    first = next((place for place, part in enumerate(parts) if "*" in text and set(part) & set("*?[")), len(parts))
    if "\0" in text:
        raise SpecError(f"{field}: {text[:200]!a} cannot be a path: it holds a NUL; give another")
    if ".." in parts[first:]:
        raise SpecError(f"{field}: {text!r} has '..' after a wildcard; expected a pattern that only leads down")
    return str(Path(*parts[:first])), str(Path(*parts[first:])) if first < len(parts) else ""


def _resolved(text: str, field: str) -> Path:
    try:
        path = Path(text).expanduser().resolve()
        path.lstat()
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, NUL, a loop of links
        raise SpecError(f"{field}: {text[:200]!a} cannot be a path: {error}; give another") from None
    return path


def _is_within(path: Path, roots: list[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _refusal(field: str, text: str, place: Path, roots: list[Path]) -> SpecError:
    shown = f"{text!r}" if str(place) == text else f"{text!r} is {str(place)!r}, which"
    return SpecError(
        f"{field}: {shown} lies outside of what a spec may name here: {', '.join(map(str, roots))}; {_REMEDY}"
    )


def _is_no_path(model: str) -> bool:
    """Whether a model is a laboratory's, or a hub id of which no directory has the name."""
    if model.startswith("lab:"):
        return True
    owner, _, name = model.partition("/")
    is_id = bool(owner and name) and "/" not in name and not model.startswith((".", "~")) and ".." not in (owner, name)
    return is_id and "\0" not in model and len(model) < 256 and not os.path.lexists(model)


def _named(spec: Experiment) -> Iterator[tuple[str, str, bool]]:
    """`(field, text, whether it is a model)` of everything in a spec that may be a path."""
    yield "student.model", spec.student.model, True
    for place, teacher in [(f"teachers.{teacher.name}", teacher) for teacher in spec.teachers]:
        yield from _of_teacher(place, teacher)
    if spec.corpus.judge is not None:
        yield from _of_teacher("corpus.judge", spec.corpus.judge)
    if spec.problems.file is not None:
        yield "problems.file", spec.problems.file, False
    yield from _free("problems.gym.settings", spec.problems.gym.settings if spec.problems.gym else {})
    for benchmark in spec.evaluation.benchmarks:
        where = f"evaluation.benchmarks.{benchmark.name}"
        if benchmark.file is not None:
            yield f"{where}.file", benchmark.file, False
        yield from _free(f"{where}.gym.settings", benchmark.gym.settings if benchmark.gym else {})
    yield from _of_engine("evaluation.engine", spec.evaluation.engine)
    for entry in spec.evaluation.harness:
        where = f"evaluation.harness.{entry.name}"
        if entry.include_path is not None:
            yield f"{where}.include_path", entry.include_path, False
        yield from _free(f"{where}.gen_kwargs", entry.gen_kwargs)
        yield from ((f"{where}.tasks", task, False) for task in entry.tasks if _looks_like_path(task))
    yield from _free("merge.parameters", spec.merge.parameters)


def _of_teacher(where: str, teacher: Teacher) -> Iterator[tuple[str, str, bool]]:
    if teacher.rationales is not None and teacher.rationales.file is not None:
        yield f"{where}.rationales.file", teacher.rationales.file, False
    if teacher.endpoint is None and teacher.rationales is None:  # else `model` is a name that nothing opens
        yield f"{where}.model", teacher.model, True
    yield from _of_engine(f"{where}.engine", teacher.engine)


def _of_engine(where: str, engine: Engine | None) -> Iterator[tuple[str, str, bool]]:
    yield from _free(f"{where}.engine_args", engine.engine_args if engine is not None else {})


def _free(where: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Those of settings that go to others as they are which could be taken for a path, or a model, there."""
    for name, value in settings.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and _looks_like_path(text):
                yield f"{where}.{name}", text, True


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\0" in text or text.startswith(("~", "."))
