"""What `mot plan --cluster` prints beside a node's plan: branch by branch, node by node, and what bounds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from flows.show import _bytes, _hours, _table, _time
from mot_core.cluster_planning import (
    Bounds,
    Outlook,
    bounds,
    branch_by_branch,
    by_node,
    device_seconds,
    idle_share,
    outlooks,
    saturation,
)
from mot_core.node_planning import NodePlan

PARTS = ("students", "merges", "rows")


def cluster_tables(plan: NodePlan, list_steps: bool) -> Iterator[Table | Text]:
    """Branch by branch, node by node, other numbers of nodes, and in words what bounds the whole."""
    machine = f"{plan.num_nodes}x{plan.node}"
    if plan.places is None:
        yield Text(f"{machine}: no schedule, since hours are unknown or a step takes more GPUs than a node has")
        return
    yield _branch_table(plan, machine, list_steps)
    yield _node_table(plan)
    found = outlooks(plan)
    yield _outlook_table(found, plan)
    yield Text(_in_words(plan, bounds(plan), machine))


def _branch_table(plan: NodePlan, machine: str, evaluations: bool) -> Table:
    table = _table(
        f"branch by branch, {machine}; hours from the beginning", "step", "node", "GPUs", "start", "end", "takes"
    )
    for one, place in branch_by_branch(plan, evaluations):
        table.add_row(
            Text(one.step.label), str(place.node), _spans(place.devices), _hours(place.start), _hours(place.end),
            _time(place.end - place.start),
        )  # fmt: skip
    return table


def _node_table(plan: NodePlan) -> Table:
    columns = ["steps", "branches", "merges", "GPU hours", "idle", "written:", *PARTS, "read:", *PARTS]
    table = _table("by node; what passes the shared store", "node", *columns)
    span = (plan.seconds or 0.0) * plan.node.count
    for share in by_node(plan):
        table.add_row(
            str(share.number), str(share.steps), str(share.branches), str(share.merges), _hours(share.device_seconds),
            _percent(1.0 - share.device_seconds / span if span else 0.0),
            "", *(_bytes(share.traffic.written.get(part, 0.0)) for part in PARTS),
            "", *(_bytes(share.traffic.read.get(part, 0.0)) for part in PARTS),
        )  # fmt: skip
    return table


def _outlook_table(found: Sequence[Outlook], plan: NodePlan) -> Table:
    columns = ["hours", "speed-up", "GPU hours held", "idle", "no schedule beats", "nodes that train", ""]
    table = _table("the same steps on fewer or more nodes", "nodes", *columns)
    alone, best = found[0].seconds, float("inf")
    for one in found:
        note = "this plan" if one.num_nodes == plan.num_nodes else ""
        if one.seconds > best:
            note = f"{note} slower than with fewer: the order of jobs is the run's, not the best one".strip()
        best = min(best, one.seconds)
        table.add_row(
            str(one.num_nodes), _hours(one.seconds), f"{alone / one.seconds:.2f}" if one.seconds else "–",
            _hours(one.seconds * one.num_nodes * plan.node.count), _percent(one.idle_share), _hours(one.bound_seconds),
            str(one.training_nodes), note,
        )  # fmt: skip
    return table


def _in_words(plan: NodePlan, found: Bounds, machine: str) -> str:
    seconds = plan.seconds or 0.0
    parts = ", ".join(f"{count} × {kind} {_hours(took)} h" for kind, count, took in found.path_parts())
    bound = "the critical path" if found.path_seconds > found.work_seconds else "the work"
    moved = sum(sum(side.values()) for share in by_node(plan) for side in (share.traffic.written, share.traffic.read))
    rate = moved / seconds if seconds else 0.0
    return (
        f"{machine}: {_hours(seconds)} h, {_hours(device_seconds(plan))} GPU hours of jobs, {_percent(idle_share(plan))} of the "
        f"GPUs' time idle.\nBounded by {bound}: the jobs shared out evenly take {_hours(found.work_seconds)} h, the critical path "
        f"{_hours(found.path_seconds)} h ({parts}).\nFrom {saturation(plan)} nodes on the critical path is the longer of the two, "
        f"and the hours cannot fall below it.\nThe shared store: {_bytes(moved)} in both directions, {_bytes(rate)} a second on "
        "average; each node is taken to have disk_bytes_per_second of it at any time. Models that the hub gives are not counted.\n"
        "A job lies within one node: one teacher is sampled by one node, and one student is evaluated by one."
    )


def _spans(devices: Sequence[str]) -> str:
    """`0–3, 6` for devices 0, 1, 2, 3 and 6; none for a step that takes none."""
    spans: list[list[int]] = []
    for device in sorted(map(int, devices)):
        if spans and device == spans[-1][-1] + 1:
            spans[-1].append(device)
        else:
            spans.append([device])
    return ", ".join(f"{span[0]}–{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans) or "none"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
