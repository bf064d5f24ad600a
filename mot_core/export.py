"""A final student as a directory of its own, to load or to publish: weights, tokenizer, card.

Invariant: the weights' hashes are checked on the way; the card follows from the run's index and manifests alone, and
names the licences that the spec did not state. A step's own files carry no card: they are named by what made the
weights, and a licence's wording makes none.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from mot_core.artifacts import MANIFEST, Manifest, Store
from mot_core.corpus.card import CARD, LICENSES, student_card
from mot_core.corpus.licenses import Origin, license_fields, license_section
from mot_core.errors import StoreError
from mot_core.files import inside, whole_directory
from mot_core.model_files import check_model_files
from mot_core.retention import TOP, lies_in
from mot_core.runs import read_index, teachers_of
from mot_core.spec import nearest

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NAME = re.compile(rf"lab:[\w.-]+|{_HUB_ID.pattern}")
_LOADED = (".safetensors", ".json", ".jinja", ".txt", ".model")
_OUR_OWN = (MANIFEST, "diagnostics.json")


def export_student(
    store: Store, run_dir: Path, method: str, out_dir: Path, *, seed: int | None = None, budget: str | None = None
) -> Path:
    """Copy one method's final student into a new or empty directory, with a card.

    `seed` and `budget`, where absent, are the run's first.

    Raises:
        StoreError: no such student; one that is not published or is damaged; a directory that holds something.
    """
    out_dir = out_dir.expanduser().resolve()
    with store.in_use(f"mot export to {out_dir}"):
        index = read_index(run_dir)
        student = final_student(store, index, method, seed, budget)
        source = directory_of(store, student)
        check_model_files(source, f"step {student['student']['identity']}")
        if out_dir.exists() and any(out_dir.iterdir()):
            raise StoreError(f"{out_dir} is not empty; give a new directory")
        with whole_directory(out_dir, sync=False) as unfinished:
            for path in sorted(source.iterdir()):
                if path.is_file() and path.suffix in _LOADED and path.name not in _OUR_OWN:
                    shutil.copyfile(path, unfinished / path.name)
            (unfinished / CARD).write_text(card_of(store, index, student))
            origins = _origins(index["spec"], student)
            if "license_name" in license_fields(origins):  # none that the hub knows: the card links to this file
                text = license_section("this model", origins)
                (unfinished / LICENSES).write_text(f"# Licences\n\n{text}\n")
    return out_dir


def card_of(store: Store, index: dict[str, Any], student: dict[str, Any]) -> str:
    """The card of a final student: what it was made from, how, under which licences."""
    spec = index["spec"]
    merges = [_manifest(store, merge["identity"]) for merge in student["merges"]]
    weights: dict[str, float] = {}
    if merges:
        branches = [role.removeprefix("branch/") for role, _ in merges[-1].parents if role.startswith("branch/")]
        asked = merges[-1].spec["weights"]
        given = merges[-1].counts["weights"] if isinstance(asked, str) else asked  # text: a rule for weights
        weights = dict(zip(branches, given, strict=True))
    used = _teachers(spec, student)
    hub = [spec["problems"]["hub"], *(t["rationales"]["hub"] for t in used if t["rationales"] is not None)]
    return student_card(
        name=f"{spec['name']}: {student['method']}, seed {student['seed']}", start=_public_name(spec["student"]),
        base_model=_hub_id(index), rule=spec["merge"]["rule"], weights=weights, origins=_origins(spec, student),
        datasets=list(dict.fromkeys(one for one in hub if one)), results=_results(store, student),
    )  # fmt: skip


def _teachers(spec: dict[str, Any], student: dict[str, Any]) -> list[dict[str, Any]]:
    names = teachers_of(spec, student)
    return [teacher for teacher in spec["teachers"] if teacher["name"] in names]


def _origins(spec: dict[str, Any], student: dict[str, Any]) -> list[Origin]:
    """What the student was made from."""
    start, problems = spec["student"], spec["problems"]
    return [
        Origin("student", start["name"], start["license"]),
        *(Origin("teacher", teacher["name"], teacher["license"]) for teacher in _teachers(spec, student)),
        Origin("problems", _source_name(problems), problems["license"]),
    ]


def _results(store: Store, student: dict[str, Any]) -> list[list[object]]:
    """Benchmark, k, avg@k and number of problems, on the test split."""
    rows: list[list[object]] = []
    for evaluation in student["evaluations"]:
        if evaluation["split"] == "test":
            counts = _manifest(store, evaluation["identity"]).counts
            rows.append([evaluation["benchmark"], counts["k"], f"{counts['avg_at_k']:.3f}", counts["num_problems"]])
    return rows


def _hub_id(index: dict[str, Any]) -> str | None:
    """The start's hub id; absent where it is a directory, whose name may be another's on the hub."""
    reference: str = index["spec"]["student"]["model"]
    is_hub_id = index["world"]["student"]["locator"] == reference and _HUB_ID.fullmatch(reference)
    return reference if is_hub_id else None


def directory_of(store: Store, student: dict[str, Any]) -> Path:
    """Where the weights of one of an index's students lie."""
    place = student["student"]
    return inside(store.object_dir(place["identity"]), place["subdirectory"] or "", "an index's subdirectory")


def final_student(
    store: Store, index: dict[str, Any], method: str, seed: int | None, budget: str | None
) -> dict[str, Any]:
    """A method's final student in an index, published and whole; `seed` and `budget`, where absent, are the run's first.

    Raises:
        StoreError: no such student; the untrained one; one that is not published or is damaged.
    """
    student = _find(index, method, seed, budget)
    place = student["student"]
    if place["locator"] is not None:
        raise StoreError(
            f"{method} is the untrained student, {index['spec']['student']['model']}: load it by that name"
        )
    _verify(store, place["identity"], place["subdirectory"])
    return student


def _find(index: dict[str, Any], method: str, seed: int | None, budget: str | None) -> dict[str, Any]:
    final = [student for student in index["students"] if student["is_final"]]
    wanted_seed = index["spec"]["training_seeds"][0] if seed is None else seed
    wanted_budget = index["spec"]["budgets"][0] if budget is None else budget
    place = (method, wanted_seed, wanted_budget)
    for student in final:
        if (student["method"], student["seed"], student["budget"]) == place:
            return dict(student)
    methods = list(dict.fromkeys(student["method"] for student in final))
    seeds = sorted({student["seed"] for student in final})
    raise StoreError(
        f"run {index['run_id']} has no final student of method {method!r}, seed {wanted_seed}, budget {wanted_budget}; "
        f"{nearest(method, methods)}methods: {', '.join(methods)}; seeds: {seeds}; budgets: {index['spec']['budgets']}"
    )


def _verify(store: Store, identity: str, subdirectory: str | None) -> None:
    manifest = _manifest(store, identity)
    removed = [name for name in store.removed_files(manifest) if lies_in(name, subdirectory or TOP)]
    if removed:
        raise StoreError(
            f"step {identity}: {', '.join(removed)} removed by mot gc; run the experiment again with keep=last, merged or "
            "all (mot run SPEC --set keep=last): what is gone is computed again"
        )
    damaged = store.damaged_files(manifest)
    if damaged:
        raise StoreError(f"step {identity} is damaged: {'; '.join(damaged)}; run the experiment again, it is redone")


def _manifest(store: Store, identity: str) -> Manifest:
    manifest = store.manifest(identity)
    if manifest is None:
        raise StoreError(f"step {identity} is not published in {store.root}; run the experiment again")
    return manifest


def _public_name(model: dict[str, Any]) -> str:
    """A hub id or `lab:` name as it is; of a directory the student's name, since a path says nothing elsewhere."""
    reference: str = model["model"]
    return str(model["name"]) if reference.startswith(("/", ".", "~")) or not _NAME.fullmatch(reference) else reference


def _source_name(problems: dict[str, Any]) -> str:
    if problems["families"]:
        return "laboratory families " + ", ".join(problems["families"])
    if problems.get("gym"):
        return f"reasoning-gym, {problems['gym']['dataset']}"
    return str(problems["hub"] or problems["import_path"] or Path(problems["file"]).name)
