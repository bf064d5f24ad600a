"""Constructors for the steps that measure students: `confidence` and `landscape`. Formulas and sources: docs/probes.md.

Invariant: names of students, teachers' order and directions' names change no identity; what is measured does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mot_core.dag import StudentAt
from mot_core.errors import SpecError
from mot_core.spec import Seed, Spec, nearest
from mot_core.steps import Step

Normalize = Literal["filter", "layer"]


class RandomDirection(Spec):
    """A Gaussian direction, scaled to the norms of the centre's weights (Li et al. 2018, arXiv 1712.09913, section 4)."""

    seed: Seed = 0
    normalize: Normalize = "filter"


class Line(Spec):
    """Losses along one direction. The centre is at 0; a student that the direction leads to is at 1."""

    direction: str
    low: float = Field(0.0, le=0.0)
    high: float = Field(1.0, ge=0.0)
    num_points: int = Field(11, ge=2, description="evenly spaced, ends included")

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} and high {self.high:g} span nothing; give one that is not 0")
        return self


class Plane(Spec):
    """Losses on a grid over two directions, n × n points, in units of the directions' lengths."""

    x: str
    y: str
    x_range: tuple[float, float] = (-0.5, 1.5)
    y_range: tuple[float, float] = (-0.5, 1.5)
    num_points: int = Field(13, ge=2, description="along each direction, evenly spaced, ends included")

    @model_validator(mode="after")
    def _around_the_centre(self) -> Self:
        if self.x == self.y:
            raise ValueError(f"x and y are both {self.x!r}: a plane needs two directions")
        for name, (low, high) in (("x_range", self.x_range), ("y_range", self.y_range)):
            if not low <= 0.0 <= high or low == high:
                raise ValueError(f"{name} {low:g} to {high:g} must hold the centre, 0, and more")
        return self


class Sharpness(Spec):
    """The mean rise of the loss at distances from the centre, over random directions, each taken both ways."""

    distances: tuple[float, ...] = Field((0.1,), min_length=1, description="relative to the norm of the weights")
    num_directions: int = Field(8, ge=2, description="two at least: the standard error is over them")
    seed: Seed = 0
    normalize: Normalize = "filter"

    @model_validator(mode="after")
    def _distances(self) -> Self:
        if min(self.distances) <= 0.0 or len(set(self.distances)) < len(self.distances):
            raise ValueError(f"distances {list(self.distances)} must be above 0, each once")
        return self


def confidence_step(
    student: StudentAt, corpora: Step, teachers: Sequence[str], *, num_examples: int, ngram: int = 3, seed: int = 0,
    max_example_tokens: int | None = None, name: str, label: str, facts: Mapping[str, Any],
) -> Step:  # fmt: skip
    """A student's log-probability, confidence and entropy on the tokens of teachers' rationales, by class of token.

    `num_examples` is the number of problems, the same for all teachers: fewer where the corpora share fewer, or where
    a rationale is over `max_example_tokens`. `name` is what tables and figures call the student.

    Raises:
        SpecError: fewer than two teachers, an unknown one, or a number that is not positive.
    """
    _check_sample(label, corpora, teachers, num_examples, max_example_tokens)
    if len(teachers) < 2:
        raise SpecError(f"{label}: confidence needs two teachers or more, got {list(teachers)}: tokens typical of one "
                        "are those that the others do not write")  # fmt: skip
    if ngram < 1:
        raise SpecError(f"{label}: ngram is {ngram}; expected 1 or more")
    student_spec, student_parent, locators = student.bind()
    return Step(
        "confidence",
        {**student_spec, **_sample(teachers, num_examples, seed, max_example_tokens), "ngram": ngram},
        (*student_parent, ("corpora", corpora)),
        label=label,
        facts={"stage": "probe", "student": name, **facts},
        locators=locators,
    )


def landscape_step(
    student: StudentAt, corpora: Step, names: Sequence[str], *, directions: Mapping[str, StudentAt | RandomDirection],
    lines: Sequence[Line] = (), planes: Sequence[Plane] = (), sharpness: Sharpness | None = None, num_examples: int,
    seed: int = 0, max_example_tokens: int | None = None, name: str, label: str, facts: Mapping[str, Any],
) -> Step:  # fmt: skip
    """The loss around a student, the centre: along directions, on planes of two, and at distances in random ones.

    A direction is a student that it leads to, or random. The loss is over the completions of `num_examples` examples
    of each corpus in `names`. `name` is what tables and figures call the centre.

    Raises:
        SpecError: nothing to measure, a direction that is not known, or one that leads from the student to itself.
    """
    _check_sample(label, corpora, names, num_examples, max_example_tokens)
    if not lines and not planes and sharpness is None:
        raise SpecError(f"{label}: a landscape of no lines, planes or sharpness; give one of them")
    order = {direction: index for index, direction in enumerate(directions)}
    used = [line.direction for line in lines] + [end for plane in planes for end in (plane.x, plane.y)]
    for direction in used:
        if direction not in order:
            raise SpecError(f"{label}: there is no direction {direction!r}; {nearest(direction, order)}expected one of "
                            f"{list(order)}")  # fmt: skip
    record, parents, locators = student.bind()
    described: list[dict[str, Any]] = []
    for direction, index in order.items():
        towards = directions[direction]
        if isinstance(towards, RandomDirection):
            described.append({"kind": "random", **towards.model_dump(mode="json")})
            continue
        if (towards.source.identity, towards.subdirectory) == (student.source.identity, student.subdirectory):
            raise SpecError(f"{label}: direction {direction!r} leads from the student to itself; name another student")
        spec, parent, where = towards.bind()
        described.append({"kind": "to"})
        record |= {_of(index, key): value for key, value in spec.items()}
        parents = (*parents, *((_of(index, role), step) for role, step in parent))
        locators |= {_of(index, key): value for key, value in where.items()}
    return Step(
        "landscape",
        {
            **record,
            **_sample(names, num_examples, seed, max_example_tokens),
            "directions": described,
            "lines": [{**line.model_dump(mode="json"), "direction": order[line.direction]} for line in lines],
            "planes": [{**plane.model_dump(mode="json"), "x": order[plane.x], "y": order[plane.y]} for plane in planes],
            **({"sharpness": sharpness.model_dump(mode="json")} if sharpness is not None else {}),
        },
        (*parents, ("corpora", corpora)),
        label=label,
        facts={"stage": "probe", "student": name, "directions": list(order), **facts},
        locators=locators,
    )


def direction_role(index: int) -> str:
    """The role of the student that the index-th direction leads to."""
    return f"to/{index}"


def _of(index: int, key: str) -> str:
    """A key that `StudentAt.bind` gives for the role `student`, for a direction's role."""
    return direction_role(index) + key.removeprefix("student")


def _sample(names: Sequence[str], num_examples: int, seed: int, max_example_tokens: int | None) -> dict[str, Any]:
    """What says which examples are read; a limit that is absent leaves no trace."""
    limit = {} if max_example_tokens is None else {"max_example_tokens": max_example_tokens}
    return {"corpora": sorted(names), "num_examples": num_examples, "seed": seed, **limit}


def _check_sample(
    label: str, corpora: Step, names: Sequence[str], num_examples: int, max_example_tokens: int | None
) -> None:
    if not names or len(set(names)) < len(names):
        raise SpecError(f"{label}: corpora {list(names)}; expected one name or more, each once")
    held = [role.removeprefix("verdicts/") for role, _ in corpora.parents if role.startswith("verdicts/")]
    unknown = [name for name in names if held and name not in held]
    if unknown:
        raise SpecError(
            f"{label}: there is no corpus {unknown[0]!r}; {nearest(unknown[0], held)}expected some of {held}"
        )
    for field, number in (("num_examples", num_examples), ("max_example_tokens", max_example_tokens)):
        if number is not None and number < 1:
            raise SpecError(f"{label}: {field} is {number}; expected 1 or more")
