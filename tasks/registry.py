"""A final student in MLflow's model registry: a version with card, hash and lineage.

Weights are not uploaded: a version names them by place and SHA-256, as a run's students do. Invariant: of one student there is
one version of a registered model, however often it is promoted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.claims import pin
from mot_core.errors import SpecError, StoreError
from mot_core.export import card_of, directory_of, final_student
from mot_core.identity import canonical_json
from mot_core.runs import read_index
from tasks.tracking import KEY, SPEC, track_run, tracker, tracking_uri
from tasks.tracking_records import short_text, weights_sha256

_NAME = re.compile(r"[\w.\- ]{1,200}")
_MOST_DESCRIPTION = 4_900  # MLflow refuses 5,001 characters


def promote_student(
    store: Store, run_dir: Path, method: str, name: str, *, alias: str | None = None, seed: int | None = None,
    budget: str | None = None,
) -> int:  # fmt: skip
    """Register one method's final student under a name, and move an alias to it; the version.

    Raises:
        SpecError: a name or alias that a registry does not take.
        StoreError: no such student, one that is damaged, or a tracker that does not answer.
    """
    for what, given in (("name", name), ("alias", alias)):
        if given is not None and (not _NAME.fullmatch(given) or given.lower() in ("latest", ".", "..")):
            raise SpecError(
                f"--{what} {given!r}: expected letters, digits, spaces and . _ - (200 at most), and not 'latest'"
            )
    # Before the weights are verified: they must be there still when they are pinned.
    with store.in_use(f"mot promote, as {name}"):
        index = read_index(run_dir)
        student = final_student(store, index, method, seed, budget)
        outcome = track_run(store, run_dir)  # what is there already stays
        if outcome.problem is not None:
            raise StoreError(f"run {run_dir.name} is not in the tracker {outcome.tracking_uri}: {outcome.problem}")
        tags = _lineage(store, index, student)
        card = card_of(store, index, student)
        uri = tracking_uri(store)
        place = student["student"]
        # Before there is a version: a registry's weights never go, whatever becomes of their run.
        pin(store, place["identity"], place["subdirectory"], f"registered as {name} (mot promote)")
        with tracker(uri) as client:
            known = {model.name for model in client.search_registered_models(f"name = '{name}'")}
            if name not in known:
                client.create_registered_model(name)
            same = [one for one in client.search_model_versions(f"name = '{name}'") if _is(one, tags)]
            version = same[0] if same else _registered(client, index, student, name, tags, card)
            if alias is not None:
                client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)


def _is(version: Any, tags: dict[str, str]) -> bool:
    return all(version.tags.get(key) == tags[key] for key in ("mot.identity", "mot.sha256", "mot.student"))


def _registered(
    client: Any, index: dict[str, Any], student: dict[str, Any], name: str, tags: dict[str, str], card: str
) -> Any:
    """A new version, of a logged model whose run is that of the student's method and seed."""
    where = f"tags.`{SPEC}` = '{index['spec_identity']}' and tags.`mot.role` = 'method'"
    experiment = client.get_experiment_by_name(index["spec"]["name"])
    key = f"budget={student['budget']}/method={student['method']}/seed={student['seed']}"
    runs = client.search_runs([experiment.experiment_id], filter_string=where, max_results=1_000)
    run = next((one for one in runs if one.data.tags.get(KEY) == key), None)
    if run is None:
        raise StoreError(f"the tracker holds no run {key} of {index['run_id']}; run the experiment again")
    model = client.create_logged_model(
        experiment.experiment_id, name=re.sub(r"[^\w\- ]", "-", name), source_run_id=run.info.run_id,
        model_type="promoted-student", tags=tags,
    )  # fmt: skip
    client.finalize_logged_model(model.model_id, "READY")
    return client.create_model_version(
        name, f"models:/{model.model_id}", run_id=run.info.run_id, tags=tags, model_id=model.model_id,
        description=card if len(card) <= _MOST_DESCRIPTION else f"{card[:_MOST_DESCRIPTION]}…",
    )  # fmt: skip


def _lineage(store: Store, index: dict[str, Any], student: dict[str, Any]) -> dict[str, str]:
    """What a version is: place and hash of the weights, the steps that they were made of, the run."""
    place = student["student"]
    manifest = store.manifest(place["identity"])
    assert manifest is not None  # it was verified
    inside = f"{place['subdirectory']}/" if place["subdirectory"] else ""
    steps = {
        "merges": [merge["identity"] for merge in student["merges"]],
        "branches": [branch["identity"] for branch in student["branches"]],
        "corpora": index["nodes"]["corpora"],
    }
    return {
        "mot.identity": place["identity"], "mot.sha256": weights_sha256(manifest.files, inside),
        "mot.student": f"{student['method']} {student['budget']} seed {student['seed']}",
        "mot.uri": directory_of(store, student).absolute().as_uri(), "mot.run_id": index["run_id"],
        "mot.spec": index["spec_identity"], "mot.lineage": short_text(canonical_json(steps), 4_900),
        **({"mot.git_commit": commit} if (commit := index["provenance"].get("commit")) else {}),
    }  # fmt: skip
