"""Consensus: whether merging keeps what teachers share, and whether it is more than dilution (claim C7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from flows.experiment import Evaluated
from flows.studies.base import (
    PATH_BUDGET,
    Cell,
    Findings,
    Options,
    Planned,
    Probe,
    Setup,
    Study,
    only_methods,
    with_fields,
)
from mot_core.analysis.drawing import differences, panels
from mot_core.analysis.outcomes import Arm, Difference, corrected, difference
from mot_core.analysis.wording import described, estimated, points, sizes
from mot_core.dag import StudentAt
from mot_core.probes.figures import confidence_panel, lines_panel, plane_panel, sharpness_panel
from mot_core.probes.nodes import Line, Plane, RandomDirection, Sharpness, confidence_step, landscape_step
from mot_core.probes.rows import confidence_rows_by_problem, landscape_rows, pooled
from mot_core.report.palette import method_name
from mot_core.spec import Scalar

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CELL = "consensus"
METHODS = ("base", "std", "mtd", "mot", "shuffled", "splits", "shrunk")
_PROBED = ("base", "std", "mtd", "mot", "shuffled")


class ConsensusOptions(Options):
    """How much the probes read: problems whose rationales are read token by token, examples of each corpus for losses,
    relative distances for sharpness, points of lines and of the plane."""

    confidence_problems: int = Field(80, ge=2)
    loss_examples: int = Field(32, ge=1)
    distances: tuple[float, ...] = (0.02, 0.05)
    num_directions: int = Field(6, ge=2)
    line_points: int = Field(9, ge=2)
    plane_points: int = Field(9, ge=2)


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """One experiment: the methods, and the controls for dilution."""
    return [Cell(CELL, with_fields(setup.base, CELL, methods=only_methods(setup.base, METHODS), budgets=PATH_BUDGET))]


# -- probes --------------------------------------------------------------------------------------------------


def probes(setup: Setup, planned: Sequence[Planned]) -> list[Probe]:
    """Token confidence and sharpness of each probed student; lines and a plane around the first seed's MoT student."""
    outline, options = planned[0].outline, setup.options
    teachers = [teacher.name for teacher in setup.base.teachers]
    limit = setup.base.training.max_example_tokens
    made = []
    for one in _probed(outline.students):
        label = one.path.label
        facts = {"method": label, "seed": one.seed}
        common: dict[str, Any] = {"max_example_tokens": limit, "name": label, "facts": facts}
        coordinates: dict[str, Scalar] = {"method": label, "seed": one.seed}
        if len(teachers) > 1:
            step = confidence_step(
                one.student, outline.corpora, teachers, num_examples=options.confidence_problems,
                label=f"confidence of {label}, seed {one.seed}", **common,
            )  # fmt: skip
            made.append(Probe(step, {"probe": "confidence", **coordinates}))
        sharp = landscape_step(
            one.student, outline.corpora, teachers, directions={}, num_examples=options.loss_examples,
            sharpness=Sharpness(distances=options.distances, num_directions=options.num_directions),
            label=f"sharpness of {label}, seed {one.seed}", **common,
        )  # fmt: skip
        made.append(Probe(sharp, {"probe": "sharpness", **coordinates}))
    return [*made, _landscape(setup, outline)]


def _probed(students: Sequence[Evaluated]) -> Iterator[Evaluated]:
    """Final students of the probed methods; the untrained one once."""
    seen = False
    for one in students:
        if not one.is_final or one.method not in _PROBED or (one.method == "base" and seen):
            continue
        seen = seen or one.method == "base"
        yield one


def _landscape(setup: Setup, outline: Any) -> Probe:
    """Around MoT's student of the first seed: to its last branches, to the single teachers' students, at random."""
    options, seed = setup.options, setup.options.training_seeds[0]
    own = {one.path.label: one for one in outline.students if one.is_final and one.seed == seed}
    mot = own["mot"]
    teachers = [teacher.name for teacher in setup.base.teachers]
    last = [step for step in mot.path.branches if step.facts["round"] == mot.round_index]
    directions: dict[str, StudentAt | RandomDirection] = {
        f"last branch {step.facts['teacher']}": StudentAt(step) for step in last
    }
    directions |= {f"STD {name}": own[f"std/{name}"].student for name in teachers}
    directions |= {f"random {number}": RandomDirection(seed=number) for number in (1, 2)}
    names = list(directions)
    lines = [
        Line(direction=name, low=-1.0, high=2.0, num_points=options.line_points) if "random" not in name
        else Line(direction=name, low=-max(options.distances), high=max(options.distances), num_points=options.line_points)
        for name in names
    ]  # fmt: skip
    ends = [name for name in names if name.startswith("STD")][:2]
    planes = [Plane(x=ends[0], y=ends[1], num_points=options.plane_points)] if len(ends) > 1 else []
    step = landscape_step(
        mot.student, outline.corpora, teachers, directions=directions, lines=lines, planes=planes,
        num_examples=options.loss_examples, max_example_tokens=setup.base.training.max_example_tokens, name="mot",
        label=f"landscape around mot, seed {seed}", facts={"method": "mot", "seed": seed},
    )  # fmt: skip
    return Probe(step, {"probe": "landscape", "method": "mot", "seed": seed})


def _rows(findings: Findings, kind: str) -> Iterator[tuple[Probe, list[dict[str, Any]]]]:
    read = confidence_rows_by_problem if kind == "confidence" else landscape_rows
    for probe, directory in findings.probes:
        if probe.coordinates["probe"] == kind:
            yield probe, read(directory, probe.step)


def confidence(findings: Findings) -> dict[str, dict[str, dict[tuple[str, str], float]]]:
    """Method → class of token → problem → mean confidence (the highest probability), teachers and seeds pooled."""
    sums: dict[str, dict[str, dict[str, list[tuple[float, int]]]]] = {}
    for probe, rows in _rows(findings, "confidence"):
        for row in rows:
            by_problem = sums.setdefault(str(probe.coordinates["method"]), {}).setdefault(row["class"], {})
            by_problem.setdefault(row["problem_id"], []).append((row["mean_confidence"], row["num_tokens"]))
    return {
        method: {
            name: {
                ("confidence", problem): sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
                for problem, pairs in sorted(by_problem.items())
            }
            for name, by_problem in classes.items()
        }
        for method, classes in sums.items()
    }


def confidence_gaps(findings: Findings) -> dict[str, dict[tuple[str, str], float]]:
    """Method → problem → confidence on specific tokens minus that on shared ones, where a problem has both."""
    gaps = {}
    for method, classes in confidence(findings).items():
        specific, shared = classes.get("specific", {}), classes.get("shared", {})
        gaps[method] = {key: specific[key] - shared[key] for key in specific if key in shared}
    return gaps


def sharpness(findings: Findings) -> list[dict[str, Any]]:
    """Rows `student` (a method), `distance`, `mean_rise` of the loss in nats and its `standard_error` over directions: means
    over training seeds."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for probe, rows in _rows(findings, "sharpness"):
        for row in (one for one in rows if one["measure"] == "sharpness"):
            groups.setdefault((str(probe.coordinates["method"]), row["distance"]), []).append(row)
    return [
        {
            "student": method, "distance": distance, "mean_rise": float(np.mean([row["mean_rise"] for row in own])),
            "standard_error": float(np.sqrt(np.sum([row["standard_error"] ** 2 for row in own])) / len(own)),
        }
        for (method, distance), own in groups.items()
    ]  # fmt: skip


# -- what is said --------------------------------------------------------------------------------------------


def against_controls(findings: Findings) -> dict[str, Difference]:
    """MoT minus each control on home, Holm over them."""
    names = [
        name for name in findings.outcomes.methods(CELL) if name.partition("/")[0] in ("shuffled", "splits", "shrunk")
    ]
    found = corrected([findings.outcomes.difference(Arm(CELL, "mot"), Arm(CELL, name)) for name in names])
    return dict(zip(names, found, strict=True))


def gap_differences(findings: Findings) -> dict[str, Difference]:
    """The confidence gap of MoT minus that of every other probed student, Holm over them."""
    gaps = confidence_gaps(findings)
    if "mot" not in gaps:
        return {}
    seeds = len(findings.setup.options.training_seeds)
    others = [name for name in gaps if name != "mot"]
    found = corrected([difference("mot", gaps["mot"], name, gaps[name], seeds) for name in others])
    return dict(zip(others, found, strict=True))


def table(findings: Findings) -> pd.DataFrame:
    """A row a method: home accuracy, MoT against it, confidence by class, gap, sharpness."""
    import pandas as pd

    outcomes, against = findings.outcomes, against_controls(findings)
    classes, gaps, rises = confidence(findings), gap_differences(findings), sharpness(findings)
    rows = []
    for method in outcomes.methods(CELL):
        of = {name: np.mean(list(values.values())) for name, values in classes.get(method, {}).items()}
        rows.append(
            {
                "method": method_name(method), "home": estimated(outcomes.estimate(Arm(CELL, method))),
                "MoT minus control": described(against[method]) if method in against else "",
                "confidence, specific": f"{of['specific']:.3f}" if "specific" in of else "",
                "confidence, shared": f"{of['shared']:.3f}" if "shared" in of else "",
                "MoT's gap minus its gap": described(gaps[method]) if method in gaps else "",
                **{
                    f"rise at {row['distance']:g}": f"{row['mean_rise']:.4f} ± {row['standard_error']:.4f}"
                    for row in rises if row["student"] == method
                },
            }
        )  # fmt: skip
    return pd.DataFrame(rows).fillna("")


def figure(findings: Findings) -> Figure:
    """MoT minus the controls; confidence by class; the loss along lines to students and at random; sharpness by method; the
    plane of two single teachers' students."""
    against = against_controls(findings)
    around = [row for _, rows in _rows(findings, "landscape") for row in rows]
    planes = [row for row in around if row["measure"] in ("plane", "mark")]
    drawn, axes = panels(5 + bool(planes), height=3.6, max_columns=2)
    differences(axes[0], list(against.values()), [method_name(name) for name in against])
    axes[0].set_title("MoT minus controls (home, test)")
    read = [
        {**row, "student": method_name(row["student"])} for _, rows in _rows(findings, "confidence") for row in rows
    ]
    confidence_panel(axes[1], pooled(read, ("student", "teacher", "class")), "mean_confidence")
    axes[1].set_title("Confidence on teachers' rationales")
    lines = [row for row in around if row["measure"] == "line"]
    lines_panel(axes[2], [row for row in lines if row["kind"] == "to"], ["mot"])
    axes[2].set_title("Loss from MoT (0) to students (1)")
    lines_panel(axes[3], [row for row in lines if row["kind"] == "random"], ["mot"])
    axes[3].set_title("Loss from MoT in random directions")
    sharp = [{**row, "student": method_name(row["student"])} for row in sharpness(findings)]
    sharpness_panel(axes[4], sharp, list(dict.fromkeys(row["student"] for row in sharp)))
    if planes:
        plane_panel(axes[5], planes, method_name("mot"), False)
        axes[5].set_title("Loss on a plane of two STD students")
    for panel in axes[1:5]:
        panel.legend(fontsize=7)
    return drawn


def text(findings: Findings) -> str:
    """The controls, then confidence, then flatness."""
    outcomes, against, gaps = findings.outcomes, against_controls(findings), gap_differences(findings)
    sentences = [
        f"MoT reaches {estimated(outcomes.estimate(Arm(CELL, 'mot')))} on home. Minus the controls for dilution: "
        + "; ".join(f"{method_name(name)} {described(one)}" for name, one in against.items()) + "."
    ]  # fmt: skip
    if gaps:
        own = np.mean(list(confidence_gaps(findings)["mot"].values()))
        sentences.append(
            f"Read on the training rationales, confidence on tokens of one teacher's own minus that on shared tokens is "
            f"{points(own)} points for MoT; MoT's gap minus that of others (negative: MoT is less sure of what only one teacher writes): "
            + "; ".join(f"{method_name(name)} {described(one)}" for name, one in gaps.items()) + "."
        )  # fmt: skip
    rises = sharpness(findings)
    for distance in findings.setup.options.distances:
        parts = [
            f"{method_name(row['student'])} {row['mean_rise']:.4f} ± {row['standard_error']:.4f}"
            for row in rises if row["distance"] == distance
        ]  # fmt: skip
        sentences.append(
            f"At a relative distance of {distance:g} the loss rises along random directions by, in nats (± standard error over "
            f"directions): {'; '.join(parts)}."
        )
    sentences.append(f"{sizes(list(against.values())).capitalize()}; Holm's correction over each list.")
    return " ".join(sentences)


STUDY = Study(
    name="consensus", claim="claim C7", options=ConsensusOptions, phases=(cells,), probes=probes, table=table, figure=figure,
    text=text,
    question="Is the merged student less sure of what one teacher alone writes, does it lie flatter, and is it more than dilution?",
)  # fmt: skip
