"""Teachers: every subset of the home teachers on one matched set, then others added to them (claim C6)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from flows.studies.base import PATH_BUDGET, Cell, Findings, Options, Setup, Study, only_methods, with_fields
from mot_core.analysis.drawing import bars, differences, look, panels
from mot_core.analysis.outcomes import Arm, Difference, corrected
from mot_core.analysis.wording import described, estimated, listing, percent, points, sizes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CELL = "teachers"


class TeachersOptions(Options):
    """`added` are further teachers by what is special about them, each the fields of a teacher. They write on the problems
    that the home teachers all got right, and what they write is not filtered."""

    added: dict[str, dict[str, Any]] = Field(default_factory=dict)


def _home(setup: Setup) -> list[str]:
    return [teacher.name for teacher in setup.base.teachers]


def subsets_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All that are not empty, small ones first."""
    return [one for size in range(1, len(names) + 1) for one in itertools.combinations(names, size)]


def _variants(setup: Setup) -> dict[str, tuple[str, ...]]:
    """MoT's variants by method name: who teaches."""
    home, added = _home(setup), list(setup.options.added)
    found = {f"mot-{'-'.join(str(home.index(name) + 1) for name in one)}": one for one in subsets_of(home)}
    found |= {f"mot-plus-{name}": (*home, name) for name in added}
    if len(added) > 1:
        found["mot-plus-all"] = (*home, *added)
    return found


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """One experiment: every variant trains on the same corpora."""
    base, options = setup.base, setup.options
    home = _home(setup)
    methods = [
        *only_methods(base, ["base", "std"]),
        *({"name": name, "variant_of": "mot", "teachers": list(teachers), "learning_rate": base.learning_rate("mot")}
          for name, teachers in _variants(setup).items()),
    ]  # fmt: skip
    added = [{"name": name, **fields} for name, fields in options.added.items()]
    teachers = [*(teacher.model_dump(mode="json") for teacher in base.teachers), *added]
    spec = with_fields(base, CELL, methods=methods, budgets=PATH_BUDGET, teachers=teachers, corpus={"match_over": home})
    return [Cell(CELL, spec)]


def _label(setup: Setup, name: str) -> str:
    variants = _variants(setup)
    if name == "mot-plus-all":
        return "all home and all added"
    if name.startswith("mot-plus-"):
        return f"home + {name.removeprefix('mot-plus-')}"
    if name == _whole(setup):
        return "all home teachers"
    return " + ".join(variants[name])


def _whole(setup: Setup) -> str:
    return f"mot-{'-'.join(str(index + 1) for index in range(len(_home(setup))))}"


def against_whole(findings: Findings) -> dict[str, Difference]:
    """Every variant minus MoT over all home teachers, Holm over the table."""
    whole = _whole(findings.setup)
    names = [name for name in _variants(findings.setup) if name != whole]
    found = corrected([findings.outcomes.difference(Arm(CELL, name), Arm(CELL, whole)) for name in names])
    return dict(zip(names, found, strict=True))


def table(findings: Findings) -> pd.DataFrame:
    """A row a set of teachers; then each teacher alone, with how often it is right."""
    import pandas as pd

    outcomes, setup, against = findings.outcomes, findings.setup, against_whole(findings)
    rows = [
        {
            "teachers": _label(setup, name), "K": len(teachers), "MoT": estimated(outcomes.estimate(Arm(CELL, name))),
            "against all home teachers": described(against[name]) if name in against else "reference",
        }
        for name, teachers in _variants(setup).items()
    ]  # fmt: skip
    coverage = outcomes.results[CELL].coverage
    right = coverage.groupby("teacher")["num_correct"].sum() / coverage.groupby("teacher")["num_samples"].sum()
    for name in [*_home(setup), *setup.options.added]:
        rows.append(
            {
                "teachers": f"STD {name} (right on {percent(right[name])} % of what it was asked)", "K": 1,
                "MoT": estimated(outcomes.estimate(Arm(CELL, f"std/{name}"))), "against all home teachers": "",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def figure(findings: Findings) -> Figure:
    """Left: accuracy by set of teachers, each teacher's STD student below; right: differences from all home teachers."""
    outcomes, setup = findings.outcomes, findings.setup
    variants = list(_variants(setup))
    alone = [f"std/{name}" for name in [*_home(setup), *setup.options.added]]
    drawn, (left, right) = panels(2, height=1.4 + 0.2 * (len(variants) + len(alone)))
    names = [
        *(f"MoT: {_label(setup, name)}" for name in variants),
        *(f"STD: {name.removeprefix('std/')}" for name in alone),
    ]
    keys = [*variants, *alone]
    looks = {key: look(1 if key in variants else 0) for key in keys}
    bars(left, names, [outcomes.estimate(Arm(CELL, key)) for key in keys], looks, keys)
    left.axvline(100 * outcomes.estimate(Arm(CELL, "base")).mean, color="#767676", linewidth=0.8, linestyle=":")
    left.set_xlabel("accuracy (%); dotted: untrained")
    left.set_title("By teachers (home, test)")
    against = against_whole(findings)
    differences(right, list(against.values()), [_label(setup, name) for name in against])
    right.set_title("Minus all home teachers")
    return drawn


def text(findings: Findings) -> str:
    """Whether adding a teacher helps, and which additions hurt."""
    outcomes, setup, against = findings.outcomes, findings.setup, against_whole(findings)
    variants, whole = _variants(setup), _whole(setup)
    values = {name: outcomes.estimate(Arm(CELL, name)) for name in variants}
    inside = [name for name in variants if "plus" not in name]
    best = max(inside, key=lambda name: values[name].mean)
    up, steps = 0, 0
    for small, large in itertools.product(inside, inside):
        if len(variants[large]) == len(variants[small]) + 1 and set(variants[small]) < set(variants[large]):
            steps += 1
            up += values[large].mean > values[small].mean
    sentences = [
        f"Among the {len(inside)} subsets of the home teachers the highest mean, picked afterwards, is that of {_label(setup, best)}, "
        f"{estimated(values[best])}"
        + ("." if best == whole else f"; all home teachers reach {estimated(values[whole])}."),
        f"Adding one home teacher raises the mean in {up} of {steps} cases.",
    ]
    added = [name for name in variants if "plus" in name]
    if added:
        sentences.append(
            "Added to all home teachers: "
            + "; ".join(f"{_label(setup, name).removeprefix('home + ')} {described(against[name])}" for name in added)
            + "."
        )
    lower = [_label(setup, name) for name, one in against.items() if one.verdict == "lower"]
    higher = [_label(setup, name) for name, one in against.items() if one.verdict == "higher"]
    sentences.append(
        f"Significantly above all home teachers: {listing(higher)}; below: {listing(lower)}. The untrained student has "
        f"{percent(outcomes.estimate(Arm(CELL, 'base')).mean)} %, the best single teacher (on dev) "
        f"{points(outcomes.difference(Arm(CELL, outcomes.best_teacher(CELL)), Arm(CELL, whole)).delta)} points from all home "
        "teachers."
    )
    sentences.append(f"{sizes(list(values.values())).capitalize()}; Holm's correction over {len(against)} differences.")
    return " ".join(sentences)


STUDY = Study(
    name="teachers", claim="claim C6", options=TeachersOptions, phases=(cells,), table=table, figure=figure, text=text,
    question="Does every further teacher help, a shifted, a peer-level, a weak or a wrong one included?",
)  # fmt: skip
