"""Rounds: how many, of how many steps, and what comes far past the paper's five (claim C4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from flows.studies.base import PATH_BUDGET, Cell, Findings, Options, Setup, Study, only_methods, with_fields
from mot_core.analysis.drawing import curve, legend, looks_of, panels
from mot_core.analysis.outcomes import Arm, Difference, Estimate, corrected, difference
from mot_core.analysis.wording import described, estimated, percent, points, ranged, sizes
from mot_core.errors import SpecError
from mot_core.report.figures.drawing import whole_number_axis
from mot_core.report.palette import method_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LONG = "long"


class RoundsOptions(Options):
    """`rounds_grid` are the numbers of rounds T at one product T × S; `long_rounds` goes on at the base's S."""

    rounds_grid: tuple[int, ...] = Field((1, 2, 5, 10, 20), min_length=2)
    product: int = Field(40, ge=1, description="T × S, optimizer steps along the path")
    long_rounds: int = Field(20, ge=2)
    followed: tuple[int, ...] | None = Field(
        None, description="rounds of the long path that are evaluated; absent: all"
    )


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """A cell for each T at the fixed product, evaluated at its end, and one long path, evaluated along it."""
    options, base = setup.options, setup.base
    methods = only_methods(base, ["base", "std", "mtd", "mot"])
    made: list[Cell] = []
    whole = {**base.evaluation.path.model_dump(mode="json"), "every_steps": None}
    for rounds in options.rounds_grid:
        if options.product % rounds:
            raise SpecError(
                f"study rounds: options.product is {options.product}, no multiple of {rounds} rounds; give divisors of it"
            )
        spec = with_fields(
            base, f"rounds-{rounds}", rounds=rounds, steps_per_round=options.product // rounds, methods=methods,
            budgets=PATH_BUDGET, evaluation={"path": {**whole, "rounds": "last", "methods": None}},
        )  # fmt: skip
        made.append(Cell(f"rounds-{rounds}", spec, {"rounds": rounds, "steps_per_round": spec.steps_per_round}))
    path = {"rounds": list(options.followed or ()) or "all", "methods": ["std", "mtd", "mot"]}
    long = with_fields(
        base, LONG, rounds=options.long_rounds, methods=methods, budgets=PATH_BUDGET,
        evaluation={"path": {**whole, **path}},
    )  # fmt: skip
    return [*made, Cell(LONG, long, {"rounds": long.rounds, "steps_per_round": long.steps_per_round})]


def _grid(findings: Findings) -> list[str]:
    return [name for name in findings.outcomes.coordinates if name != LONG]


def against_best(findings: Findings) -> list[Difference]:
    """MoT − best STD, by T at the fixed product, on test."""
    outcomes = findings.outcomes
    return corrected(
        [outcomes.difference(Arm(cell, "mot"), Arm(cell, outcomes.best_teacher(cell))) for cell in _grid(findings)]
    )


def along(findings: Findings, method: str) -> dict[int, Estimate]:
    """A method's dev accuracy by round on the long path."""
    outcomes = findings.outcomes
    scores = outcomes.results[LONG].scores
    rows = scores[(scores["method"] == method) & (scores["split"] == "dev")]
    arm = Arm(LONG, method)
    return {int(r): outcomes.estimate(arm, split="dev", round_index=r) for r in sorted(set(rows["round"]))}


def falls(findings: Findings) -> dict[str, tuple[int, Difference]]:
    """By method on the long path: the round of its highest dev accuracy, and the end minus that peak."""
    outcomes, found = findings.outcomes, {}
    for method in outcomes.rivals(LONG).values():
        values = along(findings, method)
        peak, last = max(values, key=lambda r: values[r].mean), max(values)
        arm = Arm(LONG, method)
        of_end, of_peak = (outcomes.by_problem(arm, split="dev", round_index=r) for r in (last, peak))
        found[method] = (peak, difference("end", of_end, "peak", of_peak, outcomes.num_seeds(arm)))
    return found


def table(findings: Findings) -> pd.DataFrame:
    """A row a cell of the grid on test, then the long path on dev at each of its rounds."""
    import pandas as pd

    outcomes, rows = findings.outcomes, []
    for cell, found in zip(_grid(findings), against_best(findings), strict=True):
        where = outcomes.coordinates[cell]
        values = {name: estimated(outcomes.estimate(Arm(cell, m))) for name, m in outcomes.rivals(cell).items()}
        rows.append(
            {
                "part": "fixed product, test", "rounds": where["rounds"], "steps a round": where["steps_per_round"],
                "MoT": values["mot"], "best STD": values["best STD"], "MTD": values["mtd"], "MoT − best STD": described(found),
            }
        )  # fmt: skip
    curves = {name: along(findings, method) for name, method in outcomes.rivals(LONG).items()}
    for round_index in curves["mot"]:
        rows.append(
            {
                "part": "long path, dev", "rounds": round_index,
                "steps a round": outcomes.coordinates[LONG]["steps_per_round"],
                "MoT": estimated(curves["mot"][round_index]), "best STD": estimated(curves["best STD"][round_index]),
                "MTD": estimated(curves["mtd"][round_index]), "MoT − best STD":
                points(curves["mot"][round_index].mean - curves["best STD"][round_index].mean) + " points",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def figure(findings: Findings) -> Figure:
    """Left: accuracy against T at the fixed product. Right: the long path."""
    outcomes, grid = findings.outcomes, _grid(findings)
    drawn, (left, right) = panels(2)
    followed = outcomes.rivals(LONG)
    looks = looks_of(list(followed))
    for place, name in enumerate(followed):
        arms = [Arm(cell, outcomes.rivals(cell)[name]) for cell in grid]
        xs = [float(outcomes.coordinates[cell]["rounds"]) for cell in grid]
        left.set_xscale("log")
        curve(
            left, xs, [outcomes.estimate(arm) for arm in arms], looks[name], method_name(name), dodge=0.03 * (place - 1)
        )
    left.set_xticks(
        [outcomes.coordinates[cell]["rounds"] for cell in grid],
        [str(outcomes.coordinates[cell]["rounds"]) for cell in grid],
    )
    left.minorticks_off()
    left.set_xlabel("rounds T at a fixed product T × S")
    left.set_title("Fixed product (home, test)")
    for place, (name, method) in enumerate(followed.items()):
        values = along(findings, method)
        curve(
            right,
            [float(r) for r in values],
            list(values.values()),
            looks[name],
            method_name(name),
            dodge=0.12 * (place - 1),
        )
    right.set_xlabel("round")
    whole_number_axis(right)
    right.set_title("A long path (home, dev)")
    for axes in (left, right):
        axes.set_ylabel("accuracy (%)")
    legend(left)
    return drawn


def text(findings: Findings) -> str:
    """What more rounds do, and how far each method falls from its peak."""
    outcomes, grid = findings.outcomes, _grid(findings)
    means = {cell: outcomes.estimate(Arm(cell, "mot")) for cell in grid}
    best = max(grid, key=lambda cell: means[cell].mean)
    spread = outcomes.difference(Arm(best, "mot"), Arm(grid[0], "mot")) if best != grid[0] else None
    compared = against_best(findings)
    dev = along(findings, "mot")
    first = outcomes.best_teacher(LONG)
    std = along(findings, first)
    sentences = [
        f"At a fixed product of {findings.setup.options.product} steps along the path, MoT is highest with "
        f"{outcomes.coordinates[best]['rounds']} round(s), at {estimated(means[best])}",
    ]
    if spread is not None:
        sentences[0] += (
            f"; that is {ranged(spread)} above "
            f"{outcomes.coordinates[grid[0]]['rounds']} round(s), the best of {len(grid)} picked afterwards"
        )
    sentences[0] += "."
    sentences.append(
        "Against the best single teacher (chosen on dev), MoT − STD by T: "
        + "; ".join(
            f"{outcomes.coordinates[cell]['rounds']}: {described(one)}"
            for cell, one in zip(grid, compared, strict=True)
        )
        + "."
    )
    gaps = {
        r: outcomes.difference(Arm(LONG, "mot"), Arm(LONG, first), split="dev", round_index=r) for r in dev if r in std
    }
    crossing = next((r for r in sorted(gaps) if gaps[r].delta > 0), None)
    start, end = gaps[min(gaps)], gaps[max(gaps)]
    sentences.append(
        f"On the long path, on dev, MoT is {ranged(start)} from the best single teacher after round {min(gaps)} and "
        f"{ranged(end)} after round {max(gaps)}; "
        + (f"it is first ahead after round {crossing}" if crossing is not None else "it is never ahead")
        + " (that teacher was chosen on the same dev problems, which favours it; intervals without a test)."
    )
    parts = []
    for method, (peak, fall) in falls(findings).items():
        parts.append(f"{method_name(method)} peaks after round {peak} and ends {ranged(fall)} from there")
    sentences.append(f"From peak to end: {'; '.join(parts)} (the peak is picked afterwards, so a fall is expected).")
    sentences.append(
        f"At a fixed product: {sizes(compared)}, Holm's correction over {len(compared)} differences; long path: "
        f"{sizes(list(dev.values()))} of dev, MoT at its last round {percent(dev[max(dev)].mean)} %."
    )
    return " ".join(sentences)


STUDY = Study(
    name="rounds", claim="claim C4", options=RoundsOptions, phases=(cells,), table=table, figure=figure, text=text,
    question="Do more, shorter rounds help at equal steps, does MoT overtake after starting lower, and does it overfit less?",
)  # fmt: skip
