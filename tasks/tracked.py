"""Runs read back from the tracker: by MLflow's id, by the id that `mot run` printed, or the newest of an experiment.

Invariant: nothing but the tracker is read, so a comparison works where no store is.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mot_core.analysis.compared import TABLES, Held
from mot_core.errors import StoreError
from mot_core.spec import nearest
from tasks.tracking import COMPLETE, tracker

_ROLE = "tags.`mot.role` = 'experiment'"


def tracked_runs(uri: str, references: Sequence[str], directory: Path) -> list[Held]:
    """The runs that references name, with their tables in directories below this one.

    Raises:
        StoreError: the tracker cannot be read, or a reference names no finished run of an experiment.
    """
    held: list[Held] = []
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise StoreError(f"{uri} is not there: nothing was tracked to it yet; set MLFLOW_TRACKING_URI, or --store")
    with tracker(uri) as client:
        experiments = {one.experiment_id: one.name for one in client.search_experiments()}
        for number, reference in enumerate(references):
            run = _found(client, experiments, reference)
            place = directory / str(number)
            (place / "fetched").mkdir(parents=True)
            listed = {one.path for one in client.list_artifacts(run.info.run_id, "tables")}
            for name in (f"{table}.csv" for table in TABLES):
                if f"tables/{name}" in listed:
                    # Where it lands differs by kind of artifact store.
                    fetched = client.download_artifacts(run.info.run_id, f"tables/{name}", str(place / "fetched"))
                    shutil.move(fetched, place / name)
            name = str(run.data.tags.get("mot.run_id", run.info.run_name))
            taken = {one.name for one in held}
            held.append(Held(f"{name} ({number + 1})" if name in taken else name, dict(run.data.params), place))
    return held


def _found(client: Any, experiments: dict[str, str], reference: str) -> Any:
    """The newest finished run that a reference names."""
    by_name = [key for key, name in experiments.items() if name == reference]
    quoted = reference.replace("'", "")
    tries = [
        (list(experiments), f"attributes.run_id = '{quoted}'"),
        (list(experiments), f"tags.`mot.run_id` = '{quoted}'"),
    ]
    for where, condition in [*tries, *([(by_name, "")] if by_name else [])]:
        query = " and ".join(part for part in (_ROLE, condition) if part)
        found = client.search_runs(where, filter_string=query, order_by=["attributes.start_time DESC"], max_results=50)
        done = [run for run in found if COMPLETE in run.data.tags]
        if done:
            return done[0]
    recent = client.search_runs(list(experiments), filter_string=_ROLE, max_results=50)
    known = [str(run.data.tags.get("mot.run_id", run.info.run_id)) for run in recent]
    raise StoreError(
        f"the tracker holds no finished run of an experiment named {reference!r}; {nearest(reference, known)}it has "
        f"{', '.join(known[:5]) or 'none yet'}; give a run's id in MLflow, the id that `mot run` printed, or an experiment's name"
    )
