"""A night: the canary from nothing, then cell after cell until nothing is left that fits, then the digest.

What is done is what the store holds, so a night that was stopped or killed goes on from what is published. Invariant: a night
yields: whatever asks for it, it stops at the next published step, and its digest is written in any case.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.agenda import Agenda, failed_before, settled
from flows.meter import Meter, Occupied, metered
from flows.run import Announce, RunOptions, run
from mot_core.artifacts import Store
from mot_core.errors import Halted
from mot_core.files import explain_disk_errors, write_atomically
from mot_core.identity import canonical_json
from mot_core.nightly.canary import CANARY, canary_record, changed_steps, judged
from mot_core.nightly.digest import Estimate, Remaining, digest_of
from mot_core.nightly.nights import Night, night_under_way
from mot_core.nightly.order import Standing
from mot_core.nightly.page import markdown, write_digest
from mot_core.nightly.results import KeptMeans
from mot_core.nightly.spec import Nightly, canary_of, cells_of
from mot_core.provenance import processor
from mot_core.runs import read_index
from mot_core.spec import Experiment
from mot_core.workers.pool import visible_devices
from tasks.invocation import Watcher

POLL_SECONDS = 5.0
CANARY_STORE = "canary-store"
log = logging.getLogger("mot.nightly")


@dataclass(frozen=True)
class Concluded:
    """What a night ends with. `state` is 'finished', 'stopped' or 'skipped'; `markdown` is the digest for people."""

    directory: Path
    state: str
    digest: dict[str, Any]
    markdown: str


def nightly(
    spec: Nightly, options: RunOptions | None = None, watch: Watcher = lambda step, event: None,
    announce: Announce = lambda line, num_steps: None, occupied: Occupied = lambda: None,
    poll_seconds: float = POLL_SECONDS,
) -> Concluded:  # fmt: skip
    """Work through a nightly for one night, or for the rest of one that was killed; its digest.

    Raises:
        SpecError: a cell or the canary is no experiment.
        StoreError: the store cannot serve, or another process is at this nightly.
        Halted: whoever asked it to stop means to go on with this same night.
    """
    options = options or RunOptions()
    cells, canary_spec = cells_of(spec), canary_of(spec)
    store = Store(options.store).open()
    with night_under_way(store, spec.name) as night:
        agenda = Agenda(spec, cells, store, options.workers, failed_before(night))
        night.visits = [settled(visit, cells, store, spec.max_seeds) for visit in night.visits]
        with metered(night, spec.budget, options.halt, occupied, poll_seconds) as meter:
            is_skipped = options.halt.reason is not None and not night.visits
            canary = keep_canary(canary_spec, night, meter, options, watch, announce)
            visit_cells(agenda, night, meter, options, watch, announce)
        if options.halt.resumes:
            raise Halted(f"night {night.name} of {spec.name}: {options.halt.reason}")  # no digest: it is not over
        state = "skipped" if is_skipped else "stopped" if options.halt.reason else "finished"
        return conclude(agenda, night, meter, state, options.halt.reason, canary)


# -- the canary ----------------------------------------------------------------------------------------


def keep_canary(
    spec: Experiment, night: Night, meter: Meter, options: RunOptions, watch: Watcher, announce: Announce
) -> dict[str, Any]:
    """The verdict on this night's canary, which is computed unless this night has done so before it was killed."""
    shutil.rmtree(night.directory / CANARY_STORE, ignore_errors=True)  # of an attempt that was killed
    known = night.canary()
    if known is not None:
        return dict(known["verdict"])
    if options.halt.reason is not None:
        return {"verdict": "not computed", "why": f"the night made way: {options.halt.reason}", "against": None}
    clock = time.monotonic()
    try:
        record = compute_canary(spec, night, meter, options, watch, announce)
        verdict = judged(record, night.earlier(CANARY), spec.evaluation.ci_resamples)
        if verdict["verdict"] == "changed":  # is it the change, or do results not repeat at all?
            again = compute_canary(spec, night, meter, options, watch, announce)
            verdict["repeats"] = not any(changed_steps(record, again))
    except Halted as halted:
        return {"verdict": "not computed", "why": f"the night stopped in it: {halted}", "against": None}
    except Exception as error:  # whatever it is, the cells are run and the digest says it
        log.exception("the canary failed")
        return {"verdict": "failed", "why": f"{type(error).__name__}: {error}", "against": None}
    verdict = {"since": night.name, **verdict, "seconds": time.monotonic() - clock}
    write_atomically(night.directory / CANARY, canonical_json({**record, "verdict": verdict}) + "\n")
    return verdict


def compute_canary(
    spec: Experiment, night: Night, meter: Meter, options: RunOptions, watch: Watcher, announce: Announce
) -> dict[str, Any]:
    """What the canary gives in a store of its own, which goes away."""
    place = night.directory / CANARY_STORE
    own = RunOptions(place, options.workers, options.checkpoint_seconds, options.halt, tracked=False)
    try:
        run_dir = run(spec, own, meter.watching(watch), announce)
        made = read_index(run_dir)["provenance"]
        facts = {
            "commit": made["commit"], "versions": made["versions"], "system": made["host"]["system"],
            "host_kind": {
                "machine": made["host"]["machine"], "processor": processor(), "cpus": made["host"]["cpus"],
                "threads_per_worker": made["threads_per_worker"], "devices": len(visible_devices()),
            },
        }  # fmt: skip
        return canary_record(Store(place), run_dir, spec, facts)
    finally:
        shutil.rmtree(place, ignore_errors=True)


# -- the cells -----------------------------------------------------------------------------------------


def visit_cells(
    agenda: Agenda, night: Night, meter: Meter, options: RunOptions, watch: Watcher, announce: Announce
) -> None:
    """Visit cells, each time the first that fits, until none does or the night is asked to stop."""
    while options.halt.reason is None:
        # One that failed, or whose run changed nothing here, would be the first again and again.
        failed = {visit["key"] for visit in night.visits if visit["state"] == "failed"}
        ran = {visit["spec_identity"] for visit in night.visits if visit["state"] == "finished"}
        for standing in agenda.ordered(agenda.standings()):
            assert standing.visit is not None, "only cells with something to do are in the order"
            if standing.cell.key in failed or standing.visit.identity in ran:
                continue
            if meter.fits(estimate := agenda.estimate(standing)):
                visit_cell(standing, estimate, night, meter, options, watch, announce)
                break
        else:
            return


def visit_cell(
    standing: Standing, estimate: Estimate, night: Night, meter: Meter, options: RunOptions, watch: Watcher,
    announce: Announce,
) -> None:  # fmt: skip
    """Run one cell, and write down what came of it; its failure is no other cell's."""
    assert standing.visit is not None
    clock, tokens = time.monotonic(), night.spent_tokens
    visit: dict[str, Any] = {
        "cell": standing.cell.name, "key": standing.cell.key, "why": standing.why, "state": "running", "run_id": None,
        "message": "", "spec_identity": standing.visit.identity, "started": time.time(), "seconds": 0.0, "tokens": 0,
        "estimated_seconds": estimate.seconds, "estimated_tokens": estimate.tokens,
    }  # fmt: skip
    night.visits.append(visit)
    night.save()
    try:
        visit["run_id"] = run(standing.visit, options, meter.watching(watch), announce).name
        visit["state"] = "finished"
    except Halted as halted:
        visit |= {"state": "stopped", "message": options.halt.reason or str(halted)}
    except Exception as error:  # whatever it is, the night goes on and the digest says it
        log.exception("cell %s failed", standing.cell.name)
        visit |= {"state": "failed", "message": f"{type(error).__name__}: {error}"}
    except BaseException as error:  # Prefect's pause, or whoever ends this process
        visit |= {"state": "stopped", "message": options.halt.reason or type(error).__name__}
        raise
    finally:
        visit |= {"seconds": time.monotonic() - clock, "tokens": night.spent_tokens - tokens}
        meter.note_time()
        night.save()


# -- the end -------------------------------------------------------------------------------------------


def conclude(
    agenda: Agenda, night: Night, meter: Meter, state: str, reason: str | None, canary: dict[str, Any]
) -> Concluded:
    """Write the digest, and tell the tracker."""
    from tasks.tracking import track_run

    assert agenda.store is not None
    kept, store = KeptMeans(night.root / "results"), agenda.store
    standings = agenda.standings()
    estimates = [(standing, agenda.estimate(standing)) for standing in agenda.ordered(standings)]
    remaining = [Remaining(standing, estimate, meter.fits(estimate)) for standing, estimate in estimates]
    meter.note_time()
    digest = digest_of(
        agenda.spec, night, state, reason, canary, standings, remaining,
        means_of=lambda finished: kept.keep(store, finished), means_before=kept.get,
    )  # fmt: skip
    night.save()
    with explain_disk_errors(str(night.directory)):
        write_digest(night.directory, digest)
    track_run(store, night.directory)
    return Concluded(night.directory, state, digest, markdown(digest))
