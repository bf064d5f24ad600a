"""Which cell comes next, and why: what has never run, what other code ran, then where intervals still overlap.

Invariant: the order is a function of what the store knows and of costs; equal knowledge gives an equal order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from mot_core.nightly.results import Finished, Margin, margins_of
from mot_core.nightly.spec import Cell, Reference
from mot_core.spec import Experiment

Kind = Literal[
    "never run", "other code", "undecided", "undecided, no seed left", "decided", "not compared", "not planned"
]


@dataclass(frozen=True)
class Standing:
    """Where a cell stands. `visit` is what a night would run of it; None where nothing is left to do."""

    cell: Cell
    kind: Kind
    why: str
    visit: Experiment | None = None
    finished: Finished | None = None
    margins: tuple[Margin, ...] = ()

    @property
    def overlap(self) -> float:
        return max((margin.overlap for margin in self.margins), default=0.0)


def standing_of(
    cell: Cell, finished: Finished | None, steps_now: Collection[str], reference: Reference, max_seeds: int
) -> Standing:
    """Where a cell stands. `steps_now` are the identities of its steps by the code of today, with the seeds of its finished
    run: they differ from that run's where an algorithm's version was raised."""
    if finished is None:
        return Standing(cell, "never run", "has never run", cell.spec)
    margins = margins_of(finished.summary, cell.spec, reference)
    num_seeds = len(finished.seeds)
    if finished.steps != frozenset(steps_now):
        num_other = len(frozenset(steps_now) - finished.steps)
        why = f"ran with other code: {num_other} of its {len(steps_now)} steps are others today"
        return Standing(cell, "other code", why, cell.with_seeds(num_seeds), finished, margins)
    if not margins:
        why = f"its run compares {reference.method} with none of its rivals"
        return Standing(cell, "not compared", why, None, finished)
    worst = max(margins, key=lambda margin: margin.overlap)
    if not worst.is_undecided:
        return Standing(cell, "decided", "every interval excludes 0", None, finished, margins)
    num_open = sum(margin.is_undecided for margin in margins)
    why = f"{num_open} of {len(margins)} intervals hold 0, most evenly {reference.method} − {worst.rival} on {worst.benchmark}"
    if num_seeds >= max_seeds:
        return Standing(
            cell, "undecided, no seed left", f"{why}; it has {num_seeds} training seeds", None, finished, margins
        )
    visit = cell.with_seeds(num_seeds + 1)
    why = f"{why}; training seed {visit.training_seeds[-1]} is added"
    return Standing(cell, "undecided", why, visit, finished, margins)


def in_order(
    standings: Sequence[Standing], failed: Collection[str], seconds: Callable[[Standing], float]
) -> list[Standing]:
    """The cells that there is something to do for. `failed` are the keys of those that failed when last tried: they come
    after what else has never run."""
    never = [standing for standing in standings if standing.kind == "never run"]
    seen = {value for standing in standings if standing.finished for value in standing.cell.values}
    fresh = unseen_first([one for one in never if one.cell.key not in failed], seen, seconds)
    again = unseen_first([one for one in never if one.cell.key in failed], seen, seconds)
    other = [standing for standing in standings if standing.kind == "other code"]
    undecided = [standing for standing in standings if standing.kind == "undecided"]
    return [*fresh, *again, *other, *sorted(undecided, key=lambda one: -one.overlap)]


def unseen_first(
    standings: Sequence[Standing], seen: Collection[tuple[str, str]], seconds: Callable[[Standing], float]
) -> list[Standing]:
    """Each next cell is the one with the most values that no cell before it had, of equals the cheapest, of equals the
    first: a grid cut short has shown every value before any combination twice."""
    shown, left, ordered = set(seen), list(standings), []
    cost = {standing.cell.key: seconds(standing) for standing in standings}
    while left:
        chosen = min(left, key=lambda one: (-len(set(one.cell.values) - shown), cost[one.cell.key]))
        first = [f"{field}={value}" for field, value in chosen.cell.values if (field, value) not in shown]
        why = f"has never run; the first cell with {', '.join(first)}" if first else "has never run"
        ordered.append(Standing(chosen.cell, chosen.kind, why, chosen.visit))
        shown.update(chosen.cell.values)
        left.remove(chosen)
    return ordered
