"""What a plan for several nodes says beside a node's: which branch goes where, what bounds the whole, what passes the shared
store, and what fewer or more nodes would give.

Invariant: nothing is counted anew; all of it follows from a `NodePlan`'s steps and places. Formulas are in docs/scale.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from dataclasses import dataclass

from mot_core.node_planning import ROW_COPIES, NodePlan
from mot_core.scheduling import NodeStep, Place, parents_within, schedule, together

STUDENT_KINDS = ("branch", "on-policy")
NODE_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Traffic:
    """Bytes between one node and the shared store."""

    written: dict[str, float]
    """By what it is: students (with snapshots and moments), merges, rows."""
    read: dict[str, float]


@dataclass(frozen=True)
class NodeShare:
    """What one node does of a plan."""

    number: int
    steps: int
    branches: int
    merges: int
    device_seconds: float
    traffic: Traffic


@dataclass(frozen=True)
class Bounds:
    """What no schedule can beat: the longest chain of steps that follow from each other, and all work shared out evenly."""

    path: list[NodeStep]
    path_seconds: float
    work_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.path_seconds, self.work_seconds)

    def path_parts(self) -> list[tuple[str, int, float]]:
        """Of the path, in order: the kind of step, how many of them, their seconds; such as take time alone."""
        counts, seconds = Counter[str](), defaultdict[str, float](float)
        for one in self.path:
            if one.seconds:
                counts[one.step.kind] += 1
                seconds[one.step.kind] += one.seconds
        return [(kind, count, seconds[kind]) for kind, count in counts.items()]


@dataclass(frozen=True)
class Outlook:
    """The same plan on another number of nodes."""

    num_nodes: int
    seconds: float
    bound_seconds: float
    idle_share: float
    training_nodes: int
    """How many of them train a branch at some time."""


def device_seconds(plan: NodePlan) -> float:
    """Of all jobs together."""
    return sum(one.devices * (one.seconds or 0.0) for one in plan.steps)


def idle_share(plan: NodePlan) -> float:
    """Of the devices' time from the first step's start to the last one's end, what no job has."""
    held = (plan.seconds or 0.0) * plan.num_nodes * plan.node.count
    return 1.0 - device_seconds(plan) / held if held else 0.0


def bounds(plan: NodePlan) -> Bounds:
    """The critical path and the work of a plan. Evaluations of one student stay on one node: those that cannot run beside
    each other there follow from each other, which counts where neither could have begun before the other's parents ended."""
    starts: list[float] = []
    ends: list[float] = []
    via: list[int | None] = []
    chained: list[float] = []
    """No earlier than this does the last one of a student's evaluations end; no bound on what depends on one of them."""
    before: dict[str, int] = {}
    after: dict[int, int] = {}
    for index, (one, parents) in enumerate(zip(plan.steps, parents_within(plan.steps), strict=True)):
        latest = max(parents, key=lambda number: ends[number], default=None)
        via.append(latest)
        starts.append(ends[latest] if latest is not None else 0.0)
        ends.append(starts[index] + (one.seconds or 0.0))
        chained.append(ends[index])
        shared = together(one.step)
        if shared is None:
            continue
        last = before.get(shared)
        before[shared] = index
        if last is None or plan.steps[last].devices + one.devices <= plan.node.count:
            continue
        if starts[last] <= starts[index] and chained[last] + (one.seconds or 0.0) > chained[index]:
            chained[index] = chained[last] + (one.seconds or 0.0)
            after[index] = last
    path: list[NodeStep] = []
    at = max(range(len(chained)), key=chained.__getitem__, default=None)
    while at is not None:
        path.append(plan.steps[at])
        at = after.get(at, via[at])
    work = device_seconds(plan) / (plan.num_nodes * plan.node.count)
    return Bounds(path[::-1], max(chained, default=0.0), work)


def on_nodes(plan: NodePlan, num_nodes: int) -> NodePlan:
    """The same steps on so many nodes."""
    places = schedule(plan.steps, plan.node, plan.urgency, num_nodes) if plan.places is not None else None
    return dataclasses.replace(plan, places=places, num_nodes=num_nodes)


def outlooks(plan: NodePlan) -> list[Outlook]:
    """On one, two, four and eight nodes, and on as many as the plan has."""
    made = []
    for count in sorted({*NODE_COUNTS, plan.num_nodes}):
        other = on_nodes(plan, count)
        assert other.places is not None and other.seconds is not None
        used = {p.node for one, p in zip(other.steps, other.places, strict=True) if one.step.kind in STUDENT_KINDS}
        made.append(Outlook(count, other.seconds, bounds(other).seconds, idle_share(other), len(used)))
    return made


def by_node(plan: NodePlan) -> list[NodeShare]:
    """What each node does, and what it writes to and reads from the store."""
    assert plan.places is not None
    shares = []
    for number in range(plan.num_nodes):
        own = [index for index, place in enumerate(plan.places) if place.node == number]
        kinds = Counter(plan.steps[index].step.kind for index in own)
        shares.append(
            NodeShare(
                number, len(own), sum(kinds[kind] for kind in STUDENT_KINDS), kinds["merge"],
                sum(plan.steps[index].devices * (plan.steps[index].seconds or 0.0) for index in own),
                _traffic(plan, own),
            )
        )  # fmt: skip
    return shares


def _traffic(plan: NodePlan, own: list[int]) -> Traffic:
    """Every step reads its parents once, whichever node made them; evaluations of one student load it once, as a run's
    worker does. What a node keeps in its own memory is counted as read all the same."""
    planned = {one.step.identity: one for one in plan.steps}
    written, read = defaultdict[str, float](float), defaultdict[str, float](float)
    loaded: set[str] = set()
    for one in (plan.steps[index] for index in own):
        written[_what(one)] += one.disk_bytes
        shared = together(one.step)
        for moments, identity in {(role.startswith("optimizer/"), up.identity) for role, up in one.step.parents}:
            parent = planned.get(identity)
            if parent is None:
                continue
            what = _what(parent)
            if what == "rows":
                read[what] += parent.disk_bytes / (ROW_COPIES if parent.tokens else 1)
            elif shared is None or shared not in loaded:
                read[what] += plan.student_bytes * (2 if moments else 1)  # two moments, each as long as the weights
        if shared is not None:
            loaded.add(shared)
    return Traffic(dict(written), dict(read))


def _what(one: NodeStep) -> str:
    return "students" if one.step.kind in STUDENT_KINDS else "merges" if one.step.kind == "merge" else "rows"


def branch_by_branch(plan: NodePlan, evaluations: bool = False) -> list[tuple[NodeStep, Place]]:
    """What samples teachers, trains and merges, and what evaluates where that is asked for, in the order of its start;
    steps that take no time are left out."""
    assert plan.places is not None
    stages = ("generation", "training", "merging", *(("evaluation",) if evaluations else ()))
    rows = [
        (one, place) for one, place in zip(plan.steps, plan.places, strict=True)
        if one.step.facts.get("stage") in stages and place.end > place.start
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row[1].start, row[1].node))


def saturation(plan: NodePlan) -> int:
    """From so many nodes on, the critical path is longer than the work shared out."""
    found = bounds(plan)
    if found.path_seconds == 0.0:
        return 1
    return max(1, math.ceil(found.work_seconds * plan.num_nodes / found.path_seconds))
