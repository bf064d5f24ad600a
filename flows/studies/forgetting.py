"""Forgetting: the panel before, after and along the path, at a rate that suits and above it (claim C5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from flows.studies.base import PATH_BUDGET, Cell, Findings, Options, Setup, Study, only_methods, with_fields
from mot_core.analysis.drawing import legend, looks_of, panels
from mot_core.analysis.outcomes import Arm, Difference, corrected
from mot_core.analysis.wording import described, estimated, points, ranged, sizes
from mot_core.errors import SpecError
from mot_core.report.figures.drawing import label, line_style, whiskers
from mot_core.report.palette import method_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class ForgettingOptions(Options):
    """Learning rates, each for all methods: what is not forgotten at a rate that suits may be at a higher one."""

    learning_rates: tuple[float, ...] = Field((2e-4, 1e-3, 4e-3), min_length=1)


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """A cell a rate, with every round evaluated.

    Raises:
        SpecError: a base without a panel: there is nothing that could be seen to be forgotten.
    """
    base = setup.base
    if not any(benchmark.role == "panel" for benchmark in base.evaluation.benchmarks):
        raise SpecError(
            f"experiment {base.name} has no benchmark of role 'panel', which the study forgetting is about; add one"
        )
    path = {**base.evaluation.path.model_dump(mode="json"), "rounds": "all", "methods": ["std", "mtd", "mot"]}
    made = []
    for rate in setup.options.learning_rates:
        methods = only_methods(base, ["base", "std", "mtd", "mot"])
        for method in methods[1:]:
            method["learning_rate"] = rate
        name = f"rate-{rate:g}"
        spec = with_fields(base, name, methods=methods, budgets=PATH_BUDGET, evaluation={"path": path})
        made.append(Cell(name, spec, {"learning_rate": rate}))
    return made


def against_mot(findings: Findings) -> dict[tuple[str, str], Difference]:
    """MoT minus the best STD and MTD on the panel, by cell, Holm over all."""
    outcomes, found = findings.outcomes, {}
    for cell in outcomes.coordinates:
        for name, method in outcomes.rivals(cell).items():
            if name != "mot":
                found[cell, name] = outcomes.difference(Arm(cell, "mot"), Arm(cell, method), role="panel")
    return dict(zip(found, corrected(list(found.values())), strict=True))


def table(findings: Findings) -> pd.DataFrame:
    """A row a rate and method: home and panel after, the panel's change, MoT's panel against it."""
    import pandas as pd

    outcomes, rows, against = findings.outcomes, [], against_mot(findings)
    for cell, where in outcomes.coordinates.items():
        base = Arm(cell, "base")
        rows.append(
            {
                "rate": f"{where['learning_rate']:g}", "method": "untrained", "home": estimated(outcomes.estimate(base)),
                "panel": estimated(outcomes.estimate(base, role="panel")), "change of the panel": "", "MoT's panel minus it": "",
            }
        )  # fmt: skip
        for name, method in outcomes.rivals(cell).items():
            change = outcomes.difference(Arm(cell, method), base, role="panel")
            rows.append(
                {
                    "rate": f"{where['learning_rate']:g}", "method": method_name(name) if name != "best STD" else f"best {method_name(method)}",
                    "home": estimated(outcomes.estimate(Arm(cell, method))),
                    "panel": estimated(outcomes.estimate(Arm(cell, method), role="panel")),
                    "change of the panel": ranged(change),
                    "MoT's panel minus it": described(against[cell, name]) if (cell, name) in against else "",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def figure(findings: Findings) -> Figure:
    """Left: the panel against home, a line along the rounds (dev) for each method and rate. Right: the panel after, by
    rate."""
    outcomes = findings.outcomes
    drawn, (left, right) = panels(2, height=3.8)
    names = list(outcomes.rivals(next(iter(outcomes.coordinates))))
    looks = looks_of(names)
    for index, cell in enumerate(outcomes.coordinates):
        for name, method in outcomes.rivals(cell).items():
            scores = outcomes.results[cell].scores
            rounds = sorted(set(scores[(scores["method"] == method) & (scores["split"] == "dev")]["round"]))
            places = [
                (
                    outcomes.estimate(Arm(cell, "base"), split="dev").mean,
                    outcomes.estimate(Arm(cell, "base"), split="dev", role="panel").mean,
                )
            ]
            places += [
                (
                    outcomes.estimate(Arm(cell, method), split="dev", round_index=r).mean,
                    outcomes.estimate(Arm(cell, method), split="dev", role="panel", round_index=r).mean,
                )
                for r in rounds
            ]
            style = {
                **line_style(looks[name]),
                "linestyle": ("-", "--", ":", "-.")[index % 4],
                "markersize": 4,
                "alpha": 0.85,
            }
            left.plot([100 * x for x, _ in places], [100 * y for _, y in places], **style,
                      label=label(f"{method_name(name)}, rate {outcomes.coordinates[cell]['learning_rate']:g}", 30))  # fmt: skip
    left.set_xlabel("home accuracy (dev, %)")
    left.set_ylabel("panel accuracy (dev, %)")
    left.set_title("Along the path, from the untrained student")
    cells_ = list(outcomes.coordinates)
    for place, name in enumerate(names):
        xs = [index + 0.12 * (place - 1) for index in range(len(cells_))]
        values = [outcomes.estimate(Arm(cell, outcomes.rivals(cell)[name]), role="panel") for cell in cells_]
        right.plot(xs, [100 * one.mean for one in values], **{**line_style(looks[name]), "linestyle": ""})
        for x, one in zip(xs, values, strict=True):
            whiskers(right, x, 100 * one.low, 100 * one.high, looks[name].colour)
    right.axhline(
        100 * outcomes.estimate(Arm(cells_[0], "base"), role="panel").mean,
        color="#767676",
        linewidth=0.8,
        linestyle=":",
    )
    right.set_xticks(range(len(cells_)), [f"{outcomes.coordinates[cell]['learning_rate']:g}" for cell in cells_])
    right.set_xlabel("learning rate of all methods")
    right.set_ylabel("panel accuracy (test, %)")
    right.set_title("Panel after training (dotted: untrained)")
    legend(left, fontsize=7)
    return drawn


def text(findings: Findings) -> str:
    """What is forgotten at each rate, and by whom."""
    outcomes, against, sentences = findings.outcomes, against_mot(findings), []
    for cell, where in outcomes.coordinates.items():
        parts = []
        for name, method in outcomes.rivals(cell).items():
            change = outcomes.difference(Arm(cell, method), Arm(cell, "base"), role="panel")
            home = outcomes.difference(Arm(cell, method), Arm(cell, "base"))
            parts.append(
                f"{method_name(name)} {points(change.delta)} [{points(change.low)}, {points(change.high)}] "
                f"(home {points(home.delta)})"
            )
        sentences.append(
            f"At a rate of {where['learning_rate']:g} the panel changes by, in points: {'; '.join(parts)}."
        )
    found = [
        f"{name} at {outcomes.coordinates[cell]['learning_rate']:g}: {described(one)}"
        for (cell, name), one in against.items()
    ]
    sentences.append(f"MoT's panel minus theirs: {'; '.join(found)}.")
    sentences.append(
        f"{sizes(list(against.values())).capitalize()} of the panel; Holm's correction over {len(against)} differences."
    )
    return " ".join(sentences)


STUDY = Study(
    name="forgetting", claim="claim C5", options=ForgettingOptions, phases=(cells,), table=table, figure=figure, text=text,
    question="Does MoT forget less of what the student could do before than a single teacher or the union?",
)  # fmt: skip
