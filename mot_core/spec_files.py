"""Specs as YAML: presets by name or files by path, variants, dotted overrides, and errors a newcomer can act on.

A document may hold several experiments that share most fields: `variants: {boba: {problems: …}, s1k: {problems: …}}`.
Each variant is laid over the rest of the document (mappings key by key, anything else whole) and is an experiment of
its own, called by the document's name, a dash and the variant's. `NAME:VARIANT` chooses one.

Invariant: every refusal is a `SpecError` whose lines name source, field, value, what is allowed and, for a
misspelt word, the nearest right one.
Longer than most: reading, variants, overrides and their refusals share how a place in a spec is named.
"""

from __future__ import annotations

import copy
import re
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mot_core.errors import SpecError
from mot_core.spec import Experiment, Spec, Teacher, nearest

Part = TypeVar("Part", bound=Spec)
VARIANTS = "variants"
_VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


PRESETS = "presets"


def preset_names(folder: str = PRESETS) -> list[str]:
    """The shipped presets, by name; of another folder of `deployments`, its documents."""
    entries = (resources.files("deployments") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def variant_names(preset: str) -> list[str]:
    """The variants of a preset or file, in their order; one empty name where it has none."""
    return [variant or "" for variant in _documents(preset)[1]]


def load_spec(preset_or_file: str, overrides: list[str] | None = None) -> Experiment:
    """The one experiment that a preset name or a YAML file describes, with `dotted.key=value` overrides applied;
    of a document with variants, the one that `NAME:VARIANT` names.

    Raises:
        SpecError: unreadable source, unknown field, wrong value, a spec that contradicts itself, or variants of which
            none is named.
    """
    name, documents = _documents(preset_or_file)
    if len(documents) > 1:
        chosen = ", ".join(f"{name}:{variant}" for variant in documents if variant is not None)
        raise SpecError(f"{name} holds {len(documents)} experiments, and one is wanted here; name one of {chosen}")
    return _experiments(documents, overrides)[0]


def load_specs(preset_or_file: str, overrides: list[str] | None = None) -> list[Experiment]:
    """Every experiment that a preset name or a YAML file describes: all its variants in their order, or the one that is
    named; without variants, the one that there is. Overrides apply to each.

    Raises:
        SpecError: as `load_spec`.
    """
    return _experiments(_documents(preset_or_file)[1], overrides)


Documents = dict[str | None, tuple[str, dict[str, Any]]]
"""By variant, None where there are none: where a document came from, for errors, and its fields."""


def _documents(preset_or_file: str) -> tuple[str, Documents]:
    """The name without the variant, and the documents that are asked for."""
    name, variant = _name_and_variant(preset_or_file)
    source, text = _read(name)
    document = parse_yaml(source, text)
    if VARIANTS not in document:
        if variant is not None:
            raise SpecError(f"{source} has no variants, so {preset_or_file!r} names nothing; give {name!r}")
        return name, {None: (source, document)}
    shared = {key: value for key, value in document.items() if key != VARIANTS}
    variants = _checked_variants(document[VARIANTS], source)
    if variant is not None and variant not in variants:
        raise SpecError(
            f"{source} has no variant {variant!r}; {nearest(variant, variants)}variants: {', '.join(variants)}"
        )
    return name, {
        one: (f"{source}, variant {one}", _merged(shared, changes))
        for one, changes in variants.items()
        if variant in (None, one)
    }


def _name_and_variant(preset_or_file: str) -> tuple[str, str | None]:
    """A preset or file, and what follows the last colon; a file that has a colon in its own name keeps it."""
    path = Path(preset_or_file).expanduser()
    name, colon, variant = preset_or_file.rpartition(":")
    if not colon or not name or path.suffix in (".yaml", ".yml") or path.is_file():
        return preset_or_file, None
    return name, variant


def _checked_variants(variants: Any, source: str) -> dict[str, dict[str, Any]]:
    """The variants of a document, each a mapping of what it changes."""
    if not isinstance(variants, dict) or not variants:
        raise SpecError(f"{source}: variants: expected a mapping of name → fields, got {_short(variants)}")
    for name, changes in variants.items():
        where = f"{source}: variants.{name}"
        if not isinstance(name, str) or not _VARIANT_NAME.fullmatch(name):
            raise SpecError(f"{where}: expected a name of letters, digits, '.', '_' and '-', got {_short(name)}")
        if not isinstance(changes, dict) or not changes:
            raise SpecError(f"{where}: expected a mapping of the fields that it changes, got {_short(changes)}")
        if VARIANTS in changes:
            raise SpecError(f"{where}: a variant has no variants of its own; write them side by side")
        if "name" in changes:
            raise SpecError(f"{where}.name: it follows from the document's name and {name!r}; leave it out")
    return variants


def _merged(base: Any, over: Any) -> Any:
    """`over` on top of `base`: mappings key by key, anything else (lists too) in its place. Neither is changed."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    kept = {key: copy.deepcopy(value) for key, value in base.items() if key not in over}
    return {**kept, **{key: _merged(base.get(key), value) for key, value in over.items()}}


def _experiments(documents: Documents, overrides: list[str] | None) -> list[Experiment]:
    experiments = []
    for variant, (source, document) in documents.items():
        _with_overrides(document, overrides)
        if variant is not None and isinstance(document.get("name"), str):
            document["name"] += f"-{variant}"
        experiments.append(spec_from_document(document, source, Experiment))
    return experiments


def load_teacher(model_or_file: str, overrides: list[str] | None = None) -> Teacher:
    """A teacher from a YAML file of its fields, or from a model's name (`lab:NAME`, a directory, a hub id).

    Raises:
        SpecError: as `load_spec`.
    """
    if model_or_file.endswith((".yaml", ".yml")):
        source, text = _read(model_or_file)
        document = parse_yaml(source, text)
    else:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model_or_file.rpartition("/")[2].removeprefix("lab:")).strip("-._")
        source, document = f"teacher {model_or_file}", {"name": name[:64], "model": model_or_file}
    return spec_from_document(_with_overrides(document, overrides), source, Teacher)


def load_part(part: type[Part], overrides: list[str] | None = None) -> Part:
    """A part of a spec (`Corpus`, `Generation`) at its defaults, with overrides applied."""
    return spec_from_document(_with_overrides({}, overrides), "--set", part)


def load_document(part: type[Part], name_or_file: str, folder: str, overrides: list[str] | None = None) -> Part:
    """Another kind of spec, by the name of a document in `deployments/FOLDER` or from a YAML file, with overrides applied.

    Raises:
        SpecError: as `load_spec`.
    """
    source, text = _read(name_or_file, folder)
    return spec_from_document(_with_overrides(parse_yaml(source, text), overrides), source, part)


def overridden(spec: Experiment, overrides: list[str]) -> Experiment:
    """A spec with `dotted.key=value` overrides applied, as on the command line.

    Raises:
        SpecError: as `load_spec`.
    """
    document = spec.model_dump(mode="json", exclude_none=True)
    return spec_from_document(_with_overrides(document, overrides), f"experiment {spec.name}", Experiment)


def spec_from_document(document: dict[str, Any], source: str, part: type[Part]) -> Part:
    """A spec from parsed YAML; `source` names where it came from in errors."""
    try:
        return part.model_validate(document)
    except ValidationError as error:
        lines = [_explain(detail, part) for detail in error.errors()]
        raise SpecError(f"{source}: the spec is wrong in {len(lines)} place(s)\n" + "\n".join(lines)) from None


def _with_overrides(document: dict[str, Any], overrides: list[str] | None) -> dict[str, Any]:
    for override in overrides or []:
        _apply_override(document, override)
    return document


def spec_to_yaml(spec: Experiment) -> str:
    """The full spec, every default written out."""
    text: str = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _read(preset_or_file: str, folder: str = PRESETS) -> tuple[str, str]:
    path = Path(preset_or_file).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return str(preset_or_file), path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{preset_or_file}: cannot be read as a spec: {error}") from None
    names, what = preset_names(folder), "preset" if folder == PRESETS else f"{folder} preset"
    if preset_or_file not in names:
        raise SpecError(
            f"{preset_or_file!r} is neither a {what} nor a YAML file; {what}s: {', '.join(names)}; "
            f"{nearest(preset_or_file, names)}a file's name ends in .yaml"
        )
    resource = resources.files("deployments") / folder / f"{preset_or_file}.yaml"
    return f"{what} {preset_or_file}", resource.read_text()


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where plain YAML would keep the last one silently."""


def _mapping_without_repeats(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key_node, deep=True) for key_node, _ in node.value]
    repeated = [key for index, key in enumerate(keys) if key in keys[:index]]
    if repeated:
        raise yaml.constructor.ConstructorError(None, None, f"the key {repeated[0]!r} is given twice", node.start_mark)
    mapping: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return mapping


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def parse_yaml(source: str, text: str) -> dict[str, Any]:
    """A document's fields; `source` names where it came from in errors.

    Raises:
        SpecError: text that is no YAML, no mapping, or gives a key twice.
    """
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise SpecError(f"{source}: expected a mapping of spec fields, got {type(document).__name__}")
    return document


def _apply_override(document: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise SpecError(f"--set {override!r}: expected dotted.key=value, e.g. --set generation.seed=7")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    place: Any = document
    keys = dotted.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            index = _list_index(place, key, override)
            if last:
                place[index] = value
            else:
                place = place[index]
        elif isinstance(place, dict):
            if last:
                place[key] = value
            else:
                place = place.setdefault(key, {})
        else:
            raise SpecError(f"--set {override!r}: {'.'.join(keys[:depth])} is {place!r}, which has no field {key!r}")


def _list_index(items: list[Any], key: str, override: str) -> int:
    """A list's element by position, or by its `name`; of a benchmark that has none, its entry's."""
    names = [item.get("name", item.get("benchmark")) for item in items if isinstance(item, dict)]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise SpecError(
        f"--set {override!r}: no element {key!r}; expected a name among {names} or a position below {len(items)}"
    )


def _explain(detail: Any, part: type[Spec]) -> str:
    loc = tuple(part for part in detail["loc"] if not (isinstance(part, str) and part in _UNION_LABELS))
    field = ".".join(str(part) for part in loc) or "the spec as a whole"
    if detail["type"] == "extra_forbidden":
        allowed = _fields_at(part, loc[:-1])
        return (
            f"  {field}: unknown field (value {_short(detail['input'])}); {nearest(str(loc[-1]), allowed)}"
            f"allowed: {', '.join(allowed)}"
        )
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"  {field}: required, but absent"
    if detail["type"] == "value_error":
        return f"  {field}: {message}"
    hint = ""
    context = detail.get("ctx", {})
    if "expected" in context and isinstance(detail["input"], str):
        hint = "; " + nearest(
            detail["input"], str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        )
    return f"  {field}: {_short(detail['input'])} is not allowed: {message}{hint.rstrip()}"


_UNION_LABELS = {
    "literal['all','last']", "tuple[int, ...]", "tuple[int,...]", "tuple[float, ...]", "tuple[float,...]",
}  # fmt: skip


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The field names of the spec class at a place in a spec."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        current = _model_in(current.model_fields[part].annotation) if part in current.model_fields else None
        if current is None:
            return []
    return [*getattr(current, "SHORTHANDS", ()), *current.model_fields]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, UnionType, dict):
        for argument in get_args(annotation):
            found = _model_in(argument)
            if found is not None:
                return found
    return None
