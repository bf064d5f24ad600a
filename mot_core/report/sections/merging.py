"""What merging did: drift, agreement, effective rank and loss barrier, beside the change in accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from mot_core.report.blocks import Cell, FigureBlock, Section, missing, simple_table
from mot_core.report.figures.barrier import barrier_lines, merge_barrier
from mot_core.report.figures.drawing import rendered
from mot_core.report.figures.merging import merge_agreement, merge_drift
from mot_core.report.figures.rank import merge_rank
from mot_core.report.measures import Measures
from mot_core.report.palette import budget_name, method_name
from mot_core.report.sections.outcome import slug
from mot_core.report.wording import INTERVAL
from mot_core.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TABLES = ("merge_drift", "merge_agreement", "merge_cosine", "merge_rank", "merge_barrier")


def merge_section(measures: Measures) -> Section:
    """Drift, agreement, effective rank and barrier of merges, each beside the change in accuracy; what is measured."""
    blocks: list[Any] = []
    change = f"the change in home accuracy in the same round on {_followed_split(measures)} (bars: {INTERVAL}, paired)"
    for budget, others in _distinct_merges(measures):
        name = visible(" and ".join(budget_name(each) for each in [budget, *others]))
        name += " (the same merges)" if others else ""
        drift, agreement = merge_drift(measures, budget), merge_agreement(measures, budget)
        rank, barrier = merge_rank(measures, budget), merge_barrier(measures, budget)
        if drift is not None:
            caption = (
                f"MoT, {name}: L2 norm of the update from the round's start, relative to the start's norm, of each "
                "branch and of the merge (mean over seeds; no interval). A mean moves less than its branches where "
                "their updates disagree. The start's norm is of the tensors that moved: with adapters, of those adapted."
            )
            blocks.append(_figure("merge_drift", budget, drift, "Drift by round and by layer.", caption))
        if agreement is not None:
            caption = (
                f"Methods that merge, {name}: mean pairwise cosine of the branches' updates, share of coordinates "
                "on which all branches' updates share a sign (sign conflict is the rest), share of the mean update "
                f"energy kept by the merge (means over seeds), and {change}."
            )
            blocks.append(_figure("merge_agreement", budget, agreement, "Agreement of branches by round.", caption))
        blocks += _cosine_table(measures, budget, name)
        if rank is not None:
            rows = measures.results.merge_rank
            most = int(pd.to_numeric(rows.loc[rows["budget"] == budget, "num_rows"]).max())
            caption = (
                f"MoT, {name}: effective rank of each branch's update and of the merge's, in a sample of the matrices "
                f"inside the layers, up to {most} rows of each, which is the most a rank can be (means over seeds, and "
                "over matrices of one layer and kind; no interval), and "
                f"{change}. Where the merge lies above its branches, their updates point in different directions."
            )
            blocks.append(_figure("merge_rank", budget, rank, "Effective rank of updates.", caption))
        if barrier is not None:
            caption = (
                f"MoT, {name}: mean loss on completion tokens of a few corpus examples, along the straight lines between "
                "weights from the round's start to each branch and on to the merge, and, dotted, from start to merge; "
                "the barrier by round, which is how far the loss rises above the straight line between a line's ends (of "
                f"a branch's two lines the higher; 0: no rise); and {change}. Means over seeds."
            )
            blocks.append(_figure("merge_barrier", budget, barrier, "Loss along lines between models.", caption))
        blocks += _barrier_table(measures, budget, name)
    reason = "no merge was measured (tables 'merge_drift' and 'merge_agreement')"
    return Section("merge", "Merges", "Merges", blocks or [missing(reason)])


def _figure(name: str, budget: str, figure: Figure, title: str, caption: str) -> FigureBlock:
    return FigureBlock(rendered(f"{name}_{slug(budget)}", figure), title, caption)


def _cosine_table(measures: Measures, budget: str, name: str) -> list[Any]:
    """By pair, where there are several; of one pair the figure of agreement says all."""
    frame = measures.results.merge_cosine
    frame = frame[frame["budget"] == budget]
    if frame.empty or not (frame.groupby(["method", "seed", "round"]).size() > 1).any():
        return []
    caption = f"Cosine of each pair of branches' updates by round, {name}; mean over seeds."
    return [_round_table(measures, frame, ["a", "b"], "cosine", caption, f"cosine-{slug(budget)}", "{:+.3f}".format)]


def _barrier_table(measures: Measures, budget: str, name: str) -> list[Any]:
    frame = measures.results.merge_barrier
    frame = frame[frame["budget"] == budget]
    if frame.empty:
        return []
    lines = barrier_lines(frame).drop_duplicates(["method", "round", "from", "to"])
    caption = f"Barrier of each line by round (nats a completion token), {name}; mean over seeds."
    return [
        _round_table(measures, lines, ["from", "to"], "barrier", caption, f"barrier-{slug(budget)}", "{:.4f}".format)
    ]


def _round_table(
    measures: Measures, frame: pd.DataFrame, ends: list[str], value: str, caption: str, element_id: str,
    form: Callable[[float], str],
) -> Any:  # fmt: skip
    """One row a method and pair, one column a round; — where a method has no merge."""
    numbers = frame.assign(
        **{value: pd.to_numeric(frame[value]).astype(float)}, round=pd.to_numeric(frame["round"]).astype(int)
    )
    rank = {method: index for index, method in enumerate(measures.palette.methods)}
    means = numbers.groupby(["method", *ends, "round"], sort=False)[value].mean().unstack("round").sort_index(axis=1)
    pairs = numbers.drop_duplicates(["method", *ends])[["method", *ends]]
    pairs = pairs.sort_values("method", key=lambda names: names.map(rank), kind="stable")
    means = means.loc[list(pairs.itertuples(index=False, name=None))]
    rows = [
        [method_name(key[0]), *key[1:],
         *(Cell("—" if pd.isna(one) else form(one).replace("-", "−"), is_number=True) for one in row)]
        for key, row in zip(means.index, means.to_numpy(), strict=True)
    ]  # fmt: skip
    titles = ["method", *ends, *(f"round {number}" for number in means.columns)]
    return simple_table(caption, titles, rows, element_id)


def _distinct_merges(measures: Measures) -> list[tuple[str, list[str]]]:
    """Each budget with merges of its own, and the later budgets that hold the very same: merging students are
    not lengthened under matched compute, so there they are one set of students under two names."""
    found: list[tuple[str, list[str], list[pd.DataFrame]]] = []
    changes = measures.home_change_by_round
    agreement = measures.results.merge_agreement
    changes = changes[changes["method"].isin(agreement["method"].unique())]
    for budget in measures.budgets:
        frames = [
            frame[frame["budget"] == budget].drop(columns="budget").reset_index(drop=True)
            for frame in (*(getattr(measures.results, name) for name in _TABLES), changes)
        ]
        for _, others, earlier in found:
            if all(mine.equals(theirs) for mine, theirs in zip(frames, earlier, strict=True)):
                others.append(budget)
                break
        else:
            found.append((budget, [], frames))
    return [(budget, others) for budget, others, _ in found]


def _followed_split(measures: Measures) -> str:
    home = measures.curves[measures.curves["role"] == "home"]
    return " and ".join(sorted(set(home["split"]))) or "no split"
