"""How branches were trained: loss curves, speed and size, and what was cut short or left out."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mot_core.report.blocks import Cell, FigureBlock, Section, missing, simple_table
from mot_core.report.figures.drawing import rendered
from mot_core.report.figures.training import MAX_POINTS, training_loss
from mot_core.report.measures import Measures
from mot_core.report.palette import budget_name, method_name
from mot_core.report.sections.outcome import slug
from mot_core.report.wording import listing
from mot_core.text import visible

_COUNTS = (
    "num_examples", "num_dropped_long", "num_cut_long", "num_held_out", "num_planned_steps", "num_steps", "best_step",
    "num_parameters", "num_trained_parameters", "num_carried_moments", "input_tokens", "tokens_per_second",
    "peak_memory_bytes",
)  # fmt: skip


def training_section(measures: Measures) -> Section:
    """Training loss by round and branch; what the branches took, and what they lost."""
    blocks: list[Any] = []
    for budget in measures.budgets:
        figure = training_loss(measures, budget)
        if figure is None:
            continue
        frame = measures.results.training
        frame = frame[frame["budget"] == budget]
        seeds = frame["seed"].nunique()
        looked = frame["held_out_loss"].notna().any()
        rings = (
            "Rings: the loss on examples of the same corpus that were held out of training, at the steps after which "
            "the early stop looked; the branch is published as it was at the lowest, and where seeds ended at different steps, "
            "the mean is of those that took the step. "
        )
        caption = (
            f"Loss on completion tokens, {visible(budget_name(budget))}, mean over {seeds} training "
            f"seed{'s' if seeds != 1 else ''}, by branch; dashed vertical lines are round boundaries (merges, where "
            f"the method merges). Raw steps, or means of consecutive steps where a path has more than {MAX_POINTS}; "
            f"no interval is drawn. {rings if looked else ''}Losses of different corpora are not comparable with each "
            "other."
        )
        name = f"training_loss_{slug(budget)}"
        blocks.append(FigureBlock(rendered(name, figure), "Training loss by branch, one panel a method.", caption))
    branches = distinct_branches(measures)
    if len(branches):
        blocks.append(_branch_table(branches))
        blocks += _loss_table(branches)
    return Section(
        "training",
        "Training",
        "Training",
        blocks or [missing("no branch was trained (tables 'training' and 'branches')")],
    )


def distinct_branches(measures: Measures) -> pd.DataFrame:
    """`branches` with numbers and each training once; `methods` names all that it is part of, as text."""
    frame = measures.results.branches
    frame = frame.assign(**{name: pd.to_numeric(frame[name], errors="coerce").astype(float) for name in _COUNTS})
    rank = {method: index for index, method in enumerate(measures.palette.methods)}
    names = {
        identity: listing(
            [method_name(method) for method in sorted(dict.fromkeys(methods), key=lambda m: rank.get(m, len(rank)))]
        )
        for identity, methods in frame.groupby("identity", sort=False)["method"]
    }
    return frame.drop_duplicates("identity").assign(methods=lambda rows: rows["identity"].map(names))


def _branch_table(branches: pd.DataFrame) -> Any:
    """One row a method: how many trainings, on how much, how fast; columns only for what was measured or differs."""
    groups = list(branches.groupby("methods", sort=False))
    titles = ["method", "trainings", "examples", "steps", "input tokens", "tokens/s"]
    rows: list[list[Any]] = [
        [name, len(rows), *(_span(rows[column]) for column in ("num_examples", "num_steps")),
         rows["input_tokens"].sum(), _number(rows["tokens_per_second"].median(), "{:,.0f}")]
        for name, rows in groups
    ]  # fmt: skip
    if branches["peak_memory_bytes"].notna().any():
        titles.append("peak memory (GiB)")
        for row, (_, group) in zip(rows, groups, strict=True):
            row.append(_number(group["peak_memory_bytes"].max() / 2**30, "{:,.2f}"))
    if branches["num_trained_parameters"].notna().any():
        titles.append("trained parameters")
        for row, (_, group) in zip(rows, groups, strict=True):
            row.append(_trained(group))
    if (branches["num_carried_moments"] > 0).any():
        titles.append("began with moments")
        for row, (_, group) in zip(rows, groups, strict=True):
            row.append(int((group["num_carried_moments"] > 0).sum()))
    caption = (
        "Trainings of branches over all seeds and rounds; one that several methods share is counted once. Examples and "
        "steps are of one training, tokens of all; tokens/s is the median"
        + (", peak memory the most allocated on one device" if "peak memory (GiB)" in titles else "")
        + (". Moments are the optimizer's, of the round before" if "began with moments" in titles else "")
        + "."
    )
    return simple_table(caption, titles, rows, "branches-table")


def _loss_table(branches: pd.DataFrame) -> list[Any]:
    """Branches that ended early, or whose corpus lost examples to the length limit; none: no table."""
    ended = branches["num_steps"] < branches["num_planned_steps"]
    long = (branches["num_dropped_long"] > 0) | (branches["num_cut_long"] > 0)
    kept_earlier = branches["best_step"] < branches["num_steps"]
    told = branches.assign(ended=ended)[ended | long | kept_earlier]
    if told.empty:
        return []
    rows = []
    for (methods, branch), group in told.groupby(["methods", "branch"], sort=False):
        rows.append(
            [methods, str(branch), len(group), int(group["ended"].sum()), _span(group["num_steps"]),
             _span(group["num_planned_steps"]), _span(group["best_step"]), _span(group["num_examples"]),
             _span(group["num_held_out"]), _span(group["num_dropped_long"]), _span(group["num_cut_long"])]
        )  # fmt: skip
    titles = [
        "method", "branch", "trainings", "ended early", "steps taken", "planned", "published step", "examples", "held out",
        "dropped as too long", "cut",
    ]  # fmt: skip
    caption = (
        "Branches that ended before their planned steps, were published as they were at an earlier step, or whose corpus "
        "held examples over the length limit, over seeds and rounds; a range where these differ. — where there was no "
        "early stop."
    )
    return [simple_table(caption, titles, rows, "branch-losses-table")]


def _span(values: pd.Series[Any]) -> Cell:
    """One number, or the lowest and the highest."""
    low, high = values.min(), values.max()
    text = _number(low, "{:,.0f}").text
    return Cell(text if not low < high else f"{text}–{high:,.0f}", is_number=True)


def _number(value: float, form: str) -> Cell:
    return Cell("—" if pd.isna(value) else form.format(value), is_number=True)


def _trained(group: pd.DataFrame) -> Cell:
    trained, total = group["num_trained_parameters"].max(), group["num_parameters"].max()
    if pd.isna(trained):
        return Cell("—", is_number=True)
    return Cell(
        f"{trained:,.0f}", "all" if trained == total else f"{trained / total:.2%} of {total:,.0f}", is_number=True
    )
