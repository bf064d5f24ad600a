"""One study from its cells to its page: what `mot study` does, as a Python call.

The cells of a phase are experiments in one graph: what two of them share is one step. Invariant: the study's figure, table
and text are functions of what is published; nothing that a cell found is kept anywhere else.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.experiment import experiment
from flows.index import index_of, kept_of, provenance_of
from flows.run import Announce, RunOptions, check_devices, outline_of, pool_of, registered
from flows.studies.base import Cell, Findings, Planned, Probe, Setup, Study, study_identity
from mot_core.analysis.outcomes import Outcomes
from mot_core.analysis.page import write_study
from mot_core.analysis.wording import counted
from mot_core.artifacts import Published, Store
from mot_core.dag import Do
from mot_core.errors import SpecError
from mot_core.files import entry_name, explain_disk_errors, write_atomically
from mot_core.node_planning import NodePlan
from mot_core.nodes import Cluster, Node
from mot_core.planning import Plan
from mot_core.prepare import prepare
from mot_core.retention import Place
from mot_core.runs import CELLS, new_run_dir, write_index, write_steps
from mot_core.spec_files import spec_to_yaml
from mot_core.steps import Step, walk
from mot_core.tables import collect
from mot_core.workers.pool import union_seconds
from mot_core.world import World, resolve
from tasks.invocation import Invocation, Watcher


@dataclass
class _Running:
    """A study under way: its phases, one after the other, and what they found."""

    study: Study
    findings: Findings
    store: Store
    run_dir: Path
    invocation: Invocation
    announce: Announce
    num_steps: int = 0
    seen: set[str] = field(default_factory=set)
    kept: set[Place] = field(default_factory=set)
    models: set[str] = field(default_factory=set)

    def phases(self) -> Iterator[Callable[[Do], None]]:
        """What to submit, phase by phase; asked for the next one, a phase that has been computed is read."""
        for number, phase in enumerate(self.study.phases, 1):
            cells = list(phase(self.findings.setup, self.findings))
            check_cells(self.study.name, [*self.findings.outcomes.coordinates, *(cell.name for cell in cells)])
            worlds, planned, drawn = [], [], []
            for cell in cells:
                check_devices(cell.spec, self.invocation.pool.devices)
                world, published = prepare(cell.spec, resolve(cell.spec), self.store, publish=True)
                outline, steps = outline_of(cell.spec, world)
                worlds.append((world, steps))
                planned.append(Planned(cell, outline))
                self.kept |= kept_of(cell.spec, outline, steps)
                self.models |= world.locators
                drawn += published
            probes = self.study.probes(self.findings.setup, planned)
            self._look_up(number, [steps for _, steps in worlds], [probe.step for probe in probes], drawn)
            yield self._submitting(cells, worlds, probes)
            for one, (world, steps) in zip(planned, worlds, strict=True):
                self._read(one, world, steps)
            self.findings.probes += [(probe, str(self.store.object_dir(probe.step.identity))) for probe in probes]

    def _look_up(self, number: int, of_cells: list[list[Step]], probes: list[Step], drawn: list[Published]) -> None:
        every = {step.identity: step for steps in of_cells for step in steps}
        every.update((step.identity, step) for step in walk(probes))
        fresh = [step for identity, step in every.items() if identity not in self.seen]
        missing = self.invocation.look_up(fresh, drawn, self.kept)
        self.name_steps(finished=False)
        self.seen.update(every)
        self.num_steps += len(fresh)
        todo = missing + len({record.identity for record in drawn})
        which = f", phase {number} of {len(self.study.phases)}" if len(self.study.phases) > 1 else ""
        self.announce(
            f"{self.run_dir.name}{which}: {counted(len(of_cells), 'cell')}, {len(fresh)} steps, {todo} to run, "
            f"{len(fresh) - todo} reused; store {self.store.root}", self.num_steps,
        )  # fmt: skip
        if missing:
            self.invocation.pool.start()

    def name_steps(self, *, finished: bool) -> None:
        """Say which steps are this study's, cells' and probes' alike, and which models it takes, before its cells' indexes do."""
        keep = self.findings.setup.base.keep
        write_steps(self.run_dir, self.invocation.steps.values(), self.models, keep, finished=finished)

    def _submitting(
        self, cells: Sequence[Cell], worlds: Sequence[tuple[World, list[Step]]], probes: Sequence[Probe]
    ) -> Callable[[Do], None]:
        def submit(do: Do) -> None:
            for cell, (world, _) in zip(cells, worlds, strict=True):
                experiment(cell.spec, world, do)
            for probe in probes:
                do(probe.step)

        return submit

    def _read(self, planned: Planned, world: World, steps: list[Step]) -> None:
        cell = planned.cell
        directory = self.run_dir / CELLS / entry_name(cell.name, "cell")
        directory.mkdir(parents=True)
        write_atomically(directory / "spec.yaml", spec_to_yaml(cell.spec))
        write_index(directory, index_of(cell.spec, world, planned.outline, steps, self.invocation))
        results = collect(self.store, directory, {}, compare=False)
        self.findings.outcomes.add(cell.name, cell.coordinates, results)
        self.findings.planned[cell.name] = planned


def plan_study(study: Study, setup: Setup, store: Store | None, workers: int) -> list[tuple[Cell, Plan]]:
    """What the first phase's cells would run and reuse, and what that costs, nothing being computed; a step counts in the
    first cell that has it. Later phases, where a study has them, depend on what the first one finds, and probes are left out.
    """
    from mot_core.planning import plan
    from mot_core.prepare import world_of

    seen: set[str] = set()
    plans = []
    for cell in study.phases[0](setup, Findings(setup, Outcomes())):
        world = world_of(cell.spec, store)
        outline, steps = outline_of(cell.spec, world)
        made = plan(cell.spec, world, steps, store, workers, kept_of(cell.spec, outline, steps))
        fresh = [one for one in made.steps if one.step.identity not in seen]
        seen.update(one.step.identity for one in fresh)
        plans.append((cell, Plan(fresh, workers)))
    return plans


def plan_study_for(
    study: Study, setup: Setup, machine: Node | Cluster, store: Store | None
) -> list[tuple[Cell, NodePlan]]:
    """The same for another machine or several, from nothing: what each cell of the first phase adds there. Needs no model,
    data or key.

    Raises:
        SpecError: a cell that does not fit, with the smallest change that would.
    """
    from mot_core.node_planning import imagined_world, plan_for_node
    from tasks.invocation import PRIORITY

    seen: set[str] = set()
    plans, refused = [], []
    manifests = list(store.manifests()) if store is not None else []
    node, num_nodes = (machine.node, machine.count) if isinstance(machine, Cluster) else (machine, 1)
    for cell in study.phases[0](setup, Findings(setup, Outcomes())):
        _, steps = outline_of(cell.spec, imagined_world(cell.spec))
        fresh = [step for step in steps if step.identity not in seen]
        seen.update(step.identity for step in fresh)
        made = plan_for_node(cell.spec, fresh, node, PRIORITY, manifests=manifests, num_nodes=num_nodes)
        refused += [f"cell {cell.name} does not fit {machine}: {line}" for line in made.refusals]
        plans.append((cell, made))
    if refused:
        raise SpecError("\n".join(dict.fromkeys(refused)))
    return plans


def check_cells(study: str, names: Sequence[str]) -> None:
    """Raise `SpecError` if two cells have one name, or there is none."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not names:
        raise SpecError(f"study {study}: {f'two cells are called {repeated[0]}' if repeated else 'its grid is empty'}")


def run_study(
    study: Study, setup: Setup, options: RunOptions | None = None, watch: Watcher = lambda step, event: None,
    announce: Announce = lambda line, num_steps: None,
) -> Path:  # fmt: skip
    """Run a study to its page; the run's directory, with study.json, study.md, study.html, table.csv and the figure.

    Raises:
        MotError: the first failure. What was published stays; the same call goes on from it.
    """
    options = options or RunOptions()
    clock = time.monotonic()
    store = Store(options.store).open()
    identity = study_identity(study, setup)
    with explain_disk_errors(f"store {store.root}"):
        run_dir = new_run_dir(store, f"study-{study.name}-{setup.label}", identity)
    with (
        contextlib.closing(pool_of(store, options)) as pool,
        registered(
            Invocation(run_dir.name, store, pool, None, watch, shards=options.shards), options.halt
        ) as invocation,
    ):
        running = _Running(study, Findings(setup, Outcomes()), store, run_dir, invocation, announce)

        def conclude() -> None:
            pool.close()
            running.name_steps(finished=True)
            write_study(run_dir, _record(running, clock, identity), *_said(study, running.findings))
            from tasks.tracking import track_run

            track_run(store, run_dir)

        phases = running.phases()
        first = next(phases)  # before Prefect is imported, so that both load at the same time
        invocation.phases = itertools.chain([first], phases)
        invocation.conclude = conclude
        from flows.orchestrate import in_flow_run
        from flows.orchestrate import run_study as study_flow

        in_flow_run(study_flow, invocation, study.name)
    return run_dir


def _said(study: Study, findings: Findings) -> tuple[Any, Any, str]:
    """The study's table, figure and paragraph."""
    from mot_core.report.figures.drawing import rendered, style

    table = study.table(findings)
    with style():
        figure = rendered(study.name, study.figure(findings))
    return table, figure, study.text(findings)


def _record(running: _Running, clock: float, identity: str) -> dict[str, Any]:
    """What a study was: enough to read its page, and to log it."""
    study, setup, invocation = running.study, running.findings.setup, running.invocation
    outcomes = running.findings.outcomes
    return {
        "study": study.name, "size": setup.size, "claim": study.claim, "question": study.question, "identity": identity,
        "run_id": invocation.run_id, "base": setup.base.model_dump(mode="json"),
        "options": setup.options.model_dump(mode="json"),
        "cells": [
            {"name": name, "coordinates": outcomes.coordinates[name], "spec_identity": planned.cell.spec.identity}
            for name, planned in running.findings.planned.items()
        ],
        "step_counts": invocation.step_counts(),
        "compute_seconds": union_seconds(invocation.pool.compute_intervals),
        "wall_seconds": time.monotonic() - clock,
        "provenance": provenance_of(invocation),
    }  # fmt: skip
