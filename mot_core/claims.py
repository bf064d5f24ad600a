"""What of a store is wanted: the steps that runs, sweeps, studies and pins name, and the weights that they keep.

Invariant: nothing is guessed. A run that has not finished keeps everything, since it goes on from there; what cannot be
read stops whoever asks. Of several runs of one spec the newest says what is kept: to keep less of an old run, or more, run
its spec again with another `keep`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.errors import StoreError
from mot_core.files import write_atomically
from mot_core.retention import TOP, Place, is_weights, kept_places, lies_in
from mot_core.runs import CELLS, INDEX, STEPS, SUMMARY

PINS = "pins"


@dataclass(frozen=True)
class Claim:
    """Who wants what: `steps` stay published, and of their weights those in `places`."""

    name: str
    keeps: str
    """The policy, for people."""
    steps: frozenset[str]
    places: frozenset[Place]

    @cached_property
    def _directories(self) -> dict[str, list[str | None]]:
        grouped: dict[str, list[str | None]] = {}
        for identity, directory in self.places:
            grouped.setdefault(identity, []).append(directory)
        return grouped

    def keeps_file(self, identity: str, name: str) -> bool:
        """Whether a file of a step that it names has to stay."""
        return not is_weights(name) or any(lies_in(name, one) for one in self._directories.get(identity, ()))


def claims_of(store: Store, without: Collection[str] = ()) -> list[Claim]:
    """Every claim on a store's steps but those of the runs `without`; the runs of one spec make one claim.

    Raises:
        StoreError: a run's or pin's record that cannot be read.
    """
    series: dict[str, list[Path]] = {}
    for name in run_names(store):
        if name not in without and _has_record(store.root / "runs" / name):
            series.setdefault(series_of(name), []).append(store.root / "runs" / name)
    return [*(_claim_of_series(store, name, runs) for name, runs in series.items()), *_pins(store)]


def run_names(store: Store) -> list[str]:
    runs = store.root / "runs"
    return sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []


def series_of(run: str) -> str:
    """A run's name without its count: runs of one spec are a series (`mot_core.runs.new_run_dir`). A sweep's has none."""
    name, _, count = run.rpartition("-")
    return run if run.startswith("tune-") else name or count


def pin(store: Store, identity: str, subdirectory: str | None, why: str) -> None:
    """Keep a student's weights, whatever becomes of its run; `why` is what people are told."""
    path = store.root / PINS / f"{identity}.json"
    path.parent.mkdir(exist_ok=True)
    with store.lock("pins"):
        places: dict[str, list[str]] = _read(path) if path.is_file() else {}
        reasons = places.setdefault(subdirectory or TOP, [])
        if why not in reasons:
            reasons.append(why)
            write_atomically(path, json.dumps(places, indent=1, sort_keys=True) + "\n")


def _claim_of_series(store: Store, series: str, runs: list[Path]) -> Claim:
    """What the runs of one spec want, by the newest one's policy."""
    keep, told = _policy(max(runs, key=lambda run: (len(run.name), run.name)))
    steps: set[str] = set()
    places: set[Place] = set()
    for run_dir in runs:
        own, kept = _wants(store, run_dir, keep)
        steps |= own | {identity for identity, _ in kept}
        places |= kept
    name = runs[0].name if len(runs) == 1 else f"{series} ({len(runs)} runs)"
    return Claim(name, told, frozenset(steps), frozenset(places))


def _has_record(run_dir: Path) -> bool:
    """Not one that ended before anything was planned."""
    return (run_dir / INDEX).is_file() or (run_dir / STEPS).is_file() or (run_dir / CELLS).is_dir()


def _policy(run_dir: Path) -> tuple[str, str]:
    """What the run keeps, and how that is said."""
    if (run_dir / STEPS).is_file():
        document = _read(run_dir / STEPS)
        keep, finished = document["keep"], document["finished"]
    else:
        index = _read(run_dir / INDEX) if (run_dir / INDEX).is_file() else {}
        # Indexes of earlier versions know no `keep`, and their studies have neither file: all stays.
        keep, finished = index.get("spec", {}).get("keep", "all"), not index or (run_dir / SUMMARY).is_file()
    return (keep, keep) if finished else ("all", "all (it has not finished)")


def _wants(store: Store, run_dir: Path, keep: str) -> tuple[set[str], set[Place]]:
    """The steps that a run names, and the weights that it keeps; of a study with its cells' and its probes'."""
    paths = [run_dir / INDEX, *sorted((run_dir / CELLS).glob(f"*/{INDEX}"))]
    steps: set[str] = set()
    places: set[Place] = set()
    for index in (_read(path) for path in paths if path.is_file()):
        own = {row["identity"] for row in index["steps"]}
        students = index["students"]
        merges = [merge["identity"] for student in students for merge in student["merges"]]
        finals = [(one["student"]["identity"], one["student"]["subdirectory"]) for one in students if one["is_final"]]
        steps |= own
        models = [index["world"]["student"], *index["world"]["models"].values()]
        places |= kept_places(keep, own, merges, finals)
        places |= set(_outside_models(store, (model["locator"] for model in models)))
    if (run_dir / STEPS).is_file():
        document = _read(run_dir / STEPS)
        own = {row["identity"] for row in document["steps"]}
        steps |= own
        # Its students are its cells'; before there are cells, and of a sweep, all is kept or nothing.
        places |= kept_places(keep, own, (), ())
        places |= set(_outside_models(store, document.get("models", ())))  # records of earlier versions name none
    return steps, places


def _outside_models(store: Store, locators: Iterable[str]) -> Iterator[Place]:
    """Students of this store that a run takes as models from outside: its graph cannot be built without them."""
    objects = store.root / "objects"
    for path in map(Path, locators):
        if path.is_absolute() and path.is_relative_to(objects) and path != objects:
            identity, *inside = path.relative_to(objects).parts
            yield identity, "/".join(inside) or TOP


def _pins(store: Store) -> Iterator[Claim]:
    for path in sorted((store.root / PINS).glob("*.json")):
        for directory, reasons in _read(path).items():
            name = f"pin {path.stem[:12]}: {'; '.join(reasons)}"
            yield Claim(name, "its weights", frozenset({path.stem}), frozenset({(path.stem, directory)}))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}), so what it keeps is not known and nothing is removed; mend it, or remove it "
            "(of a run: mot gc --forget RUN) if what it names may go"
        ) from error
