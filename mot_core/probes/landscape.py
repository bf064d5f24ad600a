"""The landscape stage: a student's loss along lines, on planes, and at distances in random directions.

Invariant: every loss is over the same completion tokens, in fp32 and without gradients, so that losses of one step, and
of steps with the same sample, differ by weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mot_core.errors import ModelError
from mot_core.files import write_jsonl
from mot_core.identity import derive_seed
from mot_core.merging.barrier import Losses, Weights
from mot_core.merging.plan import BranchFiles, inspect, make_plan
from mot_core.models import load_model, load_tokenizer, local_copy
from mot_core.probes.directions import gram_matrix, place_on_plane, random_direction, weight_norms
from mot_core.probes.nodes import direction_role
from mot_core.probes.rows import LANDSCAPE, Rows
from mot_core.probes.sample import examples_of_each

if TYPE_CHECKING:
    from mot_core.runner import StepContext

PASS_TOKENS = (
    1024  # of few tokens a pass stays in a core's cache: 0.28 s against 0.31 at 4,096, 129 laboratory examples
)

Point = Mapping[int, float]
"""A place by its coordinates: direction → how far along it, in units of its length. Absent: 0."""


def measure_landscape(context: StepContext) -> dict[str, Any]:
    """Runner of `landscape`: `landscape.jsonl` (columns: `mot_core.probes.rows`); loss, norms and sharpness in the manifest.

    Raises:
        MergeError: students of different shapes.
        ModelError: weights that the files do not name as the model does, or a loss that is not finite.
    """
    spec = context.spec
    place = _files_of(context, "student")
    examples = examples_of_each(load_tokenizer(str(place)), context.parent_dir("corpora"), spec)
    centre, others = _students(context, place)
    losses = Losses(load_model(str(place), None, context.settings.device), examples, PASS_TOKENS)
    unnamed = sorted(set(losses.parameters) - set(centre.entries))
    if unnamed:
        raise ModelError(
            f"landscape of {place}: its files do not hold the weight {unnamed[0]!r}; save it with transformers"
        )
    directions = [
        others[index] if one["kind"] == "to" else random_direction(losses, centre, one["seed"], one["normalize"])
        for index, one in enumerate(spec["directions"])
    ]
    total = num_losses(spec)
    surface = Surface(losses, centre, directions, lambda done: context.progress(done, total, "losses"))
    norm, filter_norm = weight_norms(losses, centre)
    measured: dict[str, Any] = {
        "loss": surface.at({}), "num_examples": len(examples), "num_tokens": losses.num_targets, "weight_norm": norm,
        "filter_norm": filter_norm,
    }  # fmt: skip
    rows = [{"measure": "centre", **measured}, *geometry_rows(spec, surface, norm), *line_rows(spec, surface)]
    rows += plane_rows(spec, surface)
    if "sharpness" in spec:
        sharp = sharpness_rows(spec["sharpness"], surface)
        rows += sharp
        measured["sharpness"] = [row for row in sharp if row["measure"] == "sharpness"]
    write_jsonl(context.work_dir / LANDSCAPE, rows)
    return measured


def _files_of(context: StepContext, role: str) -> Path:
    return local_copy(context.model_dir(role), context.step.locators.get(f"{role}_revision"))


def _students(context: StepContext, place: Path) -> tuple[BranchFiles, dict[int, BranchFiles]]:
    """The centre, and the students that directions lead to, by direction: all of one shape."""
    names = context.step.facts.get("directions") or [str(index) for index in range(len(context.spec["directions"]))]
    towards = {
        index: inspect(names[index], _files_of(context, direction_role(index)))
        for index, one in enumerate(context.spec["directions"])
        if one["kind"] == "to"
    }
    plan = make_plan(inspect("centre", place), list(towards.values()), strict=False, dtype="float32")
    assert plan.start is not None, "the centre was given"
    return plan.start, dict(zip(towards, plan.branches, strict=True))


class Surface:
    """The loss as a function of coordinates along directions from a centre. No place is measured twice."""

    def __init__(
        self, losses: Losses, centre: BranchFiles, directions: Sequence[Weights],
        tell: Callable[[int], None] = lambda done: None,
    ) -> None:  # fmt: skip
        self.losses, self.centre, self.directions = losses, centre, directions
        self._tell, self._done = tell, 0
        self._known: dict[tuple[tuple[int, float], ...], float] = {}

    def at(self, point: Point) -> float:
        """The loss at a place, in nats a token."""
        key = place_key(point)
        if key not in self._known:
            moves = [(share, self.directions[index]) for index, share in key]
            towards = sum(share for share, move in moves if isinstance(move, BranchFiles))
            self._known[key] = self._measured(1.0 - towards, moves)
        return self._known[key]

    def both_ways(self, direction: Weights, distance: float) -> float:
        """The mean of the losses at a distance along a random direction and against it."""
        return (self._measured(1.0, [(distance, direction)]) + self._measured(1.0, [(-distance, direction)])) / 2

    def _measured(self, own: float, moves: Sequence[tuple[float, Weights]]) -> float:
        loss = self.losses.at((own, self.centre), *moves)
        if not math.isfinite(loss):
            where = ", ".join(f"{share:g}" for share, _ in moves) or "the centre"
            raise ModelError(f"landscape: the loss at {where} is {loss}; expected a number; ask for a smaller range")
        self._done += 1
        self._tell(self._done)
        return loss


def place_key(point: Point) -> tuple[tuple[int, float], ...]:
    """One key a place, however it is written."""
    return tuple(sorted((index, share) for index, share in point.items() if share != 0.0))


def evenly(low: float, high: float, num_points: int) -> list[float]:
    """Evenly spaced coordinates, ends included; rounded, so that 0 and 1 are met where they are meant."""
    return [round(low + (high - low) * place / (num_points - 1), 12) for place in range(num_points)]


def num_losses(spec: Mapping[str, Any]) -> int:
    """How many places a landscape measures."""
    places = {place_key({})}
    places |= {place_key({line["direction"]: x}) for line in spec["lines"] for x in _along(line)}
    places |= {place_key({plane["x"]: x, plane["y"]: y}) for plane in spec["planes"] for x, y in _grid(plane)}
    sharp = spec.get("sharpness")
    return len(places) + (2 * sharp["num_directions"] * len(sharp["distances"]) if sharp else 0)


def _along(line: Mapping[str, Any]) -> list[float]:
    return evenly(line["low"], line["high"], line["num_points"])


def _grid(plane: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    xs, ys = (evenly(low, high, plane["num_points"]) for low, high in (plane["x_range"], plane["y_range"]))
    yield from ((x, y) for y in ys for x in xs)


def geometry_rows(spec: Mapping[str, Any], surface: Surface, norm: float) -> Rows:
    """How long directions are, and where the students they lead to lie on each plane."""
    if not surface.directions:
        return []
    gram_DD = gram_matrix(surface.losses, surface.centre, surface.directions)
    rows: Rows = []
    for index, one in enumerate(spec["directions"]):
        length = float(gram_DD[index, index]) ** 0.5
        rows.append(
            {"measure": "direction", "direction": index, "kind": one["kind"], "length": length, "relative_length": length / norm}
        )  # fmt: skip
    for number, plane in enumerate(spec["planes"]):
        for index, one in enumerate(spec["directions"]):
            found = place_on_plane(gram_DD, plane["x"], plane["y"], index) if one["kind"] == "to" else None
            if found is not None:
                x, y, off_plane = found
                where = {"plane": number, "x_direction": plane["x"], "y_direction": plane["y"], "direction": index}
                rows.append({"measure": "mark", **where, "x": x, "y": y, "off_plane": off_plane})
    return rows


def line_rows(spec: Mapping[str, Any], surface: Surface) -> Rows:
    """A row a point of each line."""
    return [
        {
            "measure": "line", "line": number, "direction": line["direction"],
            "kind": spec["directions"][line["direction"]]["kind"], "x": x, "loss": surface.at({line["direction"]: x}),
        }
        for number, line in enumerate(spec["lines"])
        for x in _along(line)
    ]  # fmt: skip


def plane_rows(spec: Mapping[str, Any], surface: Surface) -> Rows:
    """A row a point of each plane."""
    return [
        {
            "measure": "plane", "plane": number, "x_direction": plane["x"], "y_direction": plane["y"], "x": x, "y": y,
            "loss": surface.at({plane["x"]: x, plane["y"]: y}),
        }
        for number, plane in enumerate(spec["planes"])
        for x, y in _grid(plane)
    ]  # fmt: skip


def sharpness_rows(asked: Mapping[str, Any], surface: Surface) -> Rows:
    """The rise of each draw at each distance, then the mean over draws with its standard error.

    A rise is ½ (L(θ + ρ d) + L(θ − ρ d)) − L(θ): the part that is odd in ρ, the slope's, cancels in each draw.
    """
    at_centre = surface.at({})
    rises: dict[float, list[float]] = {distance: [] for distance in asked["distances"]}
    for draw in range(asked["num_directions"]):
        seed = derive_seed("sharpness", asked["seed"], draw)
        direction = random_direction(surface.losses, surface.centre, seed, asked["normalize"])
        for distance, own in rises.items():
            own.append(surface.both_ways(direction, distance) - at_centre)
    rows: Rows = [
        {"measure": "rise", "distance": distance, "draw": draw, "rise": rise}
        for distance, own in rises.items()
        for draw, rise in enumerate(own)
    ]
    for distance, own in rises.items():
        spread = {"mean_rise": mean(own), "standard_error": stdev(own) / len(own) ** 0.5}
        rows.append({"measure": "sharpness", "distance": distance, "num_directions": len(own), **spread})
    return rows
