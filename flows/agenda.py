"""What a night has before it: where each cell stands in a store, in which order they come, what a visit costs.

Invariant: nothing is written, so a dry run asks the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from flows.run import outline_of
from mot_core.artifacts import Manifest, Store
from mot_core.errors import MotError
from mot_core.nightly.digest import Estimate
from mot_core.nightly.nights import Night
from mot_core.nightly.order import Standing, in_order, standing_of
from mot_core.nightly.results import finished_run, finished_run_of
from mot_core.nightly.spec import Cell, Nightly, cells_of
from mot_core.planning import Costs
from mot_core.prepare import world_of
from mot_core.spec import Experiment
from mot_core.steps import Step
from mot_core.world import World


@dataclass
class Agenda:
    """The cells of a nightly against a store (None: an empty one)."""

    spec: Nightly
    cells: tuple[Cell, ...]
    store: Store | None
    workers: int | None
    failed_before: frozenset[str]
    _graphs: dict[str, tuple[World, list[Step]]] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _surveyed: list[Manifest] | None = None

    def standings(self) -> list[Standing]:
        """Where each cell stands now, in the spec's order. Estimates from here on are by what is published now."""
        self._surveyed = None
        return [self._standing(cell) for cell in self.cells]

    def _standing(self, cell: Cell) -> Standing:
        finished = finished_run(self.store, cell, self.spec.max_seeds) if self.store is not None else None
        try:
            _, steps = self._graph(cell.spec if finished is None else cell.with_seeds(len(finished.seeds)))
        except MotError as error:
            return Standing(cell, "not planned", f"cannot be planned: {error}", None, finished)
        return standing_of(cell, finished, {step.identity for step in steps}, self.spec.reference, self.spec.max_seeds)

    def ordered(self, standings: list[Standing]) -> list[Standing]:
        """Those that there is something to do for, in the night's order."""
        return in_order(standings, self.failed_before, self._planned_seconds)

    def estimate(self, standing: Standing, counted: set[str] | None = None) -> Estimate:
        """What a visit costs by the rates of the store, with what is published by now. Steps among `counted` cost nothing,
        and those of this visit are put there."""
        assert standing.visit is not None, f"there is nothing to do for {standing.cell.name}"
        world, steps = self._graph(standing.visit)
        if self._surveyed is None:  # a store of thousands of steps takes seconds
            self._surveyed = list(self.store.manifests()) if self.store is not None else []
        done = {manifest.identity for manifest in self._surveyed} | (counted or set())
        missing = [step for step in steps if step.identity not in done]
        if counted is not None:
            counted.update(step.identity for step in missing)
        # Not a whole plan: why each step is missing would be asked of every manifest.
        costs = Costs(standing.visit, world, self._surveyed)
        each = [(step.kind, costs.of(step)) for step in missing]
        tokens = sum(cost[0] for kind, cost in each if kind not in ("branch", "merge"))
        return Estimate(sum(cost[4] for _, cost in each) / (self.workers or len(os.sched_getaffinity(0))), tokens)

    def _planned_seconds(self, standing: Standing) -> float:
        """For the order alone, so once a night is enough."""
        if standing.cell.key not in self._seconds:
            self._seconds[standing.cell.key] = self.estimate(standing).seconds
        return self._seconds[standing.cell.key]

    def _graph(self, spec: Experiment) -> tuple[World, list[Step]]:
        if spec.identity not in self._graphs:
            world = world_of(spec, self.store)
            self._graphs[spec.identity] = (world, outline_of(spec, world)[1])
        return self._graphs[spec.identity]


def failed_before(night: Night) -> frozenset[str]:
    """The cells that failed when the night before tried them."""
    last = night.last_digest() or {"visits": []}
    return frozenset(visit["key"] for visit in last["visits"] if visit["state"] == "failed")


def settled(visit: dict[str, Any], cells: tuple[Cell, ...], store: Store, max_seeds: int) -> dict[str, Any]:
    """A visit of a night that was killed: finished if its run had come to its end before, else killed."""
    if visit["state"] != "running":
        return visit
    cell = next((one for one in cells if one.key == visit["key"]), None)
    specs = [cell.with_seeds(number) for number in cell.seed_counts(max_seeds)] if cell is not None else []
    spec = next((one for one in specs if one.identity == visit["spec_identity"]), None)
    found = finished_run_of(store, spec) if spec is not None else None
    if found is not None and (found.run_dir / "summary.json").stat().st_mtime >= visit["started"]:
        return {**visit, "state": "finished", "run_id": found.run_dir.name}
    return {**visit, "state": "killed", "message": "its process was killed; what was published stays"}


def tonight(spec: Nightly, store: Store | None, workers: int | None = None) -> list[tuple[Standing, Estimate | None]]:
    """What a night would run, in its order, a step that cells share counted in the first of them; then where the other
    cells stand. Nothing is written or run."""
    agenda = Agenda(spec, cells_of(spec), store, workers, frozenset())
    standings = agenda.standings()
    ordered, counted = agenda.ordered(standings), set[str]()
    keys = {standing.cell.key for standing in ordered}
    rest = [(standing, None) for standing in standings if standing.cell.key not in keys]
    return [*((standing, agenda.estimate(standing, counted)) for standing in ordered), *rest]
