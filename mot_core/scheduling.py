"""When and where a plan's steps run: the run's own rule for who goes next, over one machine or several.

Invariants: a step starts when its parents have ended; a job lies within one node, and no device is in two jobs; one that
waits keeps what it needs, on one node, from every later job. Over one node this is `mot_core.workers.slots` and nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mot_core.nodes import Node
from mot_core.steps import Step
from mot_core.workers.slots import Slots, Turn


@dataclass(frozen=True)
class NodeStep:
    """One step on a node. `seconds` are None where the node's rates are not known; `money` where nothing is paid."""

    step: Step
    devices: int
    tokens: float = 0.0
    flops: float = 0.0
    disk_bytes: float = 0.0
    host_bytes: float = 0.0
    seconds: float | None = 0.0
    money: float | None = None


@dataclass(frozen=True)
class Place:
    """Start and end of a step, seconds from the beginning; its node, by number, and its devices there."""

    start: float
    end: float
    node: int
    devices: tuple[str, ...]


def schedule(
    planned: Sequence[NodeStep], node: Node, urgency: Mapping[str, int], num_nodes: int = 1
) -> list[Place]:  # fmt: skip
    """The place of each step on so many nodes of one kind. `urgency`: of each kind of step, the lowest first."""
    return _Schedule(planned, node, urgency, num_nodes).run()


def together(step: Step) -> str | None:
    """What steps share that a run computes in one worker, and so on one node: the student that is evaluated."""
    if step.kind not in ("evaluation", "harness"):
        return None
    student = next((parent.identity for role, parent in step.parents if role == "student"), step.spec.get("student"))
    return f"{student}/{step.spec.get('student_subdirectory')}"


def parents_within(planned: Sequence[NodeStep]) -> list[set[int]]:
    """Of each step, the numbers of its parents that are planned as well."""
    number = {one.step.identity: index for index, one in enumerate(planned)}
    return [{number[up.identity] for _, up in one.step.parents if up.identity in number} for one in planned]


@dataclass
class _Schedule:
    planned: Sequence[NodeStep]
    node: Node
    urgency: Mapping[str, int]
    num_nodes: int
    waiting: set[Turn] = field(default_factory=set)
    ending: list[tuple[float, int]] = field(default_factory=list)
    places: dict[int, Place] = field(default_factory=dict)
    bound: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [str(index) for index in range(self.node.count)]
        self.slots = [Slots(names, self.node.count, shared=False) for _ in range(self.num_nodes)]
        self.parents = parents_within(self.planned)

    def run(self) -> list[Place]:
        missing = [len(parents) for parents in self.parents]
        children: dict[int, list[int]] = {}
        for index, parents in enumerate(self.parents):
            for parent in parents:
                children.setdefault(parent, []).append(index)
            if not parents:
                self.enter(index)
        now = 0.0
        while self.waiting or self.ending:
            self.start_what_may(now)
            now, done = heapq.heappop(self.ending)
            self.slots[self.places[done].node].give_back(self.places[done].devices)
            for child in children.get(done, []):
                missing[child] -= 1
                if missing[child] == 0:
                    self.enter(child)
        return [self.places[index] for index in range(len(self.planned))]

    def enter(self, index: int) -> None:
        self.waiting.add((self.urgency[self.planned[index].step.kind], index))

    def start_what_may(self, now: float) -> None:
        """Most urgent first. A node where one has to wait is closed to every later one of its sort."""
        closed: dict[bool, set[int]] = {False: set(), True: set()}
        for turn in sorted(self.waiting):
            one = self.planned[turn[1]]
            shut = closed[one.devices > 0]
            open_nodes = [number for number in self.preferred(turn[1]) if number not in shut]
            for number in open_nodes:
                devices = self.take(number, turn, one.devices)
                if devices is not None:
                    self.begin(turn, Place(now, now + (one.seconds or 0.0), number, devices))
                    break
            else:
                if open_nodes:
                    shut.add(max(open_nodes, key=lambda number: self.slots[number].num_free))
            if all(len(nodes) == self.num_nodes for nodes in closed.values()):
                return

    def take(self, number: int, turn: Turn, num_devices: int) -> tuple[str, ...] | None:
        slots = self.slots[number]
        slots.enter(turn, num_devices)
        devices = slots.take(turn)
        slots.leave(turn)
        return devices

    def begin(self, turn: Turn, place: Place) -> None:
        self.waiting.discard(turn)
        self.places[turn[1]] = place
        heapq.heappush(self.ending, (place.end, turn[1]))
        shared = together(self.planned[turn[1]].step)
        if shared is not None:
            self.bound.setdefault(shared, place.node)

    def preferred(self, index: int) -> list[int]:
        """Nodes, the best first. Branches spread over nodes; what else takes devices goes where the fewest are free that
        will do, so that whole nodes stay free; what takes none, where most of its parents were made."""
        one, numbers = self.planned[index], list(range(self.num_nodes))
        bound = self.bound.get(together(one.step) or "")
        if bound is not None:
            return [bound]
        free = [slots.num_free for slots in self.slots]
        if one.devices == 0:
            made = [self.places[parent].node for parent in self.parents[index]]
            return sorted(numbers, key=lambda number: -made.count(number))
        if one.step.kind in ("branch", "on-policy"):
            return sorted(numbers, key=lambda number: -free[number])
        return sorted(numbers, key=lambda number: (free[number] < one.devices, free[number]))
