"""How the students were made: coverage and corpora, rationale lengths, training loss, merges."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mot_core.corpus.filters import ORDER
from mot_core.report.blocks import Cell, FigureBlock, Section, missing, simple_table
from mot_core.report.figures.corpus import coverage_table, rationale_lengths, solved_counts, teacher_coverage
from mot_core.report.figures.drawing import rendered
from mot_core.report.figures.merging import merge_agreement, merge_drift
from mot_core.report.figures.training import MAX_POINTS, training_loss
from mot_core.report.measures import Measures
from mot_core.report.palette import budget_name
from mot_core.report.sections.outcome import slug
from mot_core.report.text import visible
from mot_core.report.wording import INTERVAL, percent


def coverage_section(measures: Measures) -> Section:
    """Which teacher solves which problem, and what was dropped on the way to the corpora."""
    blocks: list[Any] = []
    figure = teacher_coverage(measures)
    if figure is None:
        blocks.append(missing("no teacher was sampled (table 'coverage')"))
    else:
        samples = pd.to_numeric(measures.results.coverage["num_samples"])
        table, counts = coverage_table(measures), solved_counts(measures).sum()
        drawn = (
            f"{samples.min():,.0f}"
            if samples.min() == samples.max()
            else f"{samples.min():,.0f} to {samples.max():,.0f}"
        )
        caption = (
            f"Share of correct rationales for each teacher and problem: {table.shape[1]:,} training problems, most "
            f"solved first, {drawn} samples a teacher and problem. All {len(table)} teachers solve "
            f"{counts['all']:,} problems at least once, some solve {counts['some']:,}, none solves "
            f"{counts['none']:,}. Right: problems solved at least once (number at the bar) and, dark, the share of "
            "correct rationales. Counts are exact, so no interval is drawn. Sand: not sampled."
        )
        blocks.append(FigureBlock(rendered("teacher_coverage", figure), "Matrix of teachers by problems.", caption))
        blocks.append(_teacher_totals(table))
    if not measures.results.teachers.empty:
        blocks.append(_teachers_table(measures))
    ledger = measures.results.corpus_ledger
    if ledger.empty:
        blocks.append(missing("no corpus was selected (table 'corpus_ledger')"))
    else:
        rows = [[str(row.filter), row.num_dropped, row.num_left] for row in ledger.itertuples(index=False)]
        caption = "Problems that were dropped on the way to the corpora, filter by filter, in order."
        blocks.append(simple_table(caption, ["filter", "dropped", "left"], rows, "ledger-table"))
    if not measures.results.rejections.empty:
        blocks.append(_rejections_table(measures))
    return Section("coverage", "Teachers × problems", "Coverage", blocks)


def _teachers_table(measures: Measures) -> Any:
    """What each teacher was asked for and at what price; cost and a judge's disagreement where there is any."""
    frame = measures.results.teachers
    titles = ["teacher", "requests", "failed", "absent", "prompt tokens", "completion tokens"]
    columns = ["teacher", "num_requests", "num_failed", "num_absent", "prompt_tokens", "completion_tokens"]
    rows: list[list[Any]] = [[str(row[0]), *row[1:]] for row in frame[columns].itertuples(index=False)]
    for column, title, form in (("cost", "cost", "{:,.2f}"), ("judge_disagreement", "judge disagrees", "{:.1%}")):
        values = pd.to_numeric(frame[column])
        if values.notna().any():
            titles.append(title)
            for row, value in zip(rows, values, strict=True):
                row.append("–" if pd.isna(value) else form.format(value))
    caption = (
        "What the teachers were asked. A failed request has no answer; an absent one is a problem that existing rationales "
        "do not cover. Cost is by the spec's prices, whenever it was paid; a judge changes no verdict."
    )
    return simple_table(caption, titles, rows, "teachers-table")


def lengths_section(measures: Measures) -> Section:
    """How long the teachers' rationales are, and what became of them."""
    figure, rationales = rationale_lengths(measures), measures.results.rationales
    if figure is None:
        return Section(
            "lengths",
            "Rationale lengths",
            "Lengths",
            [missing("no rationale was drawn (table 'rationales')")],
        )
    chosen = rationales["selected"].map(lambda value: value is True or value == 1).astype(bool)
    caption = (
        f"Length of {len(rationales):,} rationales drawn and of the {int(chosen.sum()):,} marked selected, by "
        "teacher. Thick bars are quartiles, thin ones the 5th to the 95th percentile of the rationales themselves, "
        "not uncertainty."
    )
    verdicts = pd.crosstab(rationales["teacher"], rationales["verdict"])
    first = [name for name in ("correct", "incorrect", "unparseable", "truncated", "grader_failed") if name in verdicts]
    verdicts = verdicts[[*first, *(name for name in verdicts.columns if name not in first)]]
    order = [teacher for teacher in measures.palette.teachers if teacher in verdicts.index]
    verdicts = verdicts.loc[[*order, *(teacher for teacher in verdicts.index if teacher not in order)]]
    rows = [[str(teacher), *row] for teacher, row in zip(verdicts.index, verdicts.to_numpy(), strict=True)]
    titles = [str(name).replace("_", " ") for name in verdicts.columns]
    table = simple_table("Verdicts on the rationales drawn.", ["teacher", *titles], rows, "verdict-table")
    alt = "Quantiles of rationale length by teacher."
    return Section(
        "lengths",
        "Rationale lengths",
        "Lengths",
        [FigureBlock(rendered("rationale_lengths", figure), alt, caption), table],
    )


def training_section(measures: Measures) -> Section:
    """Training loss by round and branch."""
    blocks: list[Any] = []
    for budget in measures.budgets:
        figure = training_loss(measures, budget)
        if figure is None:
            continue
        frame = measures.results.training
        seeds = frame.loc[frame["budget"] == budget, "seed"].nunique()
        caption = (
            f"Loss on completion tokens, {visible(budget_name(budget))}, mean over {seeds} training "
            f"seed{'s' if seeds != 1 else ''}, by branch; dashed vertical lines are round boundaries (merges, where "
            f"the method merges). Raw steps, or means of consecutive steps where a path has more than {MAX_POINTS}; "
            "no interval is drawn. Losses of different corpora are not comparable with each other."
        )
        name = f"training_loss_{slug(budget)}"
        blocks.append(FigureBlock(rendered(name, figure), "Training loss by branch, one panel a method.", caption))
    return Section(
        "training",
        "Training loss",
        "Training",
        blocks or [missing("no branch was trained (table 'training')")],
    )


def merge_section(measures: Measures) -> Section:
    """Drift of branches and merges, and agreement beside the change in accuracy."""
    blocks: list[Any] = []
    for budget, others in _distinct_merges(measures):
        name = visible(" and ".join(budget_name(each) for each in [budget, *others]))
        name += " (the same merges)" if others else ""
        drift, agreement = merge_drift(measures, budget), merge_agreement(measures, budget)
        if drift is not None:
            caption = (
                f"MoT, {name}: L2 norm of the update from the round's start, relative to the start's norm, of each "
                "branch and of the merge (mean over seeds; no interval). A mean moves less than its branches where "
                "their updates disagree."
            )
            blocks.append(
                FigureBlock(rendered(f"merge_drift_{slug(budget)}", drift), "Drift by round and by layer.", caption)
            )
        if agreement is not None:
            caption = (
                f"Methods that merge, {name}: mean pairwise cosine of the branches' updates, share of coordinates "
                "on which all branches' updates share a sign, share of the mean update energy kept by the merge "
                "(means over seeds), and the change in home accuracy in the same round on "
                f"{_followed_split(measures)} (bars: {INTERVAL}, paired)."
            )
            blocks.append(
                FigureBlock(
                    rendered(f"merge_agreement_{slug(budget)}", agreement),
                    "Agreement of branches by round.",
                    caption,
                )
            )
    reason = "no merge was measured (tables 'merge_drift' and 'merge_agreement')"
    return Section("merge", "Merges", "Merges", blocks or [missing(reason)])


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
            for frame in (measures.results.merge_drift, agreement, changes)
        ]
        for _, others, earlier in found:
            if all(mine.equals(theirs) for mine, theirs in zip(frames, earlier, strict=True)):
                others.append(budget)
                break
        else:
            found.append((budget, [], frames))
    return [(budget, others) for budget, others, _ in found]


def _rejections_table(measures: Measures) -> Any:
    """Rationales that are in no corpus, teachers by filters in order; problems, which have no teacher, in the last row."""
    counts = measures.results.rejections.pivot_table(
        index="teacher", columns="filter", values="num_rejected", aggfunc="sum", fill_value=0, sort=False
    )
    counts = counts[[*(name for name in ORDER if name in counts), *(name for name in counts if name not in ORDER)]]
    teachers = [teacher for teacher in counts.index if teacher != ""]
    order = [teacher for teacher in measures.palette.teachers if teacher in teachers]
    order += [teacher for teacher in teachers if teacher not in order]
    rows = [[str(teacher), *counts.loc[teacher]] for teacher in order]
    if "" in counts.index:
        rows.append(["(problems)", *counts.loc[""]])
    titles = [str(name).replace("_", " ") for name in counts.columns]
    caption = "Rationales in no corpus, by the filter at which each fell; in the last row, problems."
    return simple_table(caption, ["teacher", *titles], rows, "rejections-table")


def _teacher_totals(table: pd.DataFrame) -> Any:
    sampled, solved = table.notna().sum(axis=1), (table > 0).sum(axis=1)
    alone = (table > 0) & ((table > 0).sum() == 1)
    rows = [
        [
            str(teacher),
            int(sampled[teacher]),
            int(solved[teacher]),
            int(alone.loc[teacher].sum()),
            Cell(percent(table.loc[teacher].mean()), is_number=True),
        ]
        for teacher in table.index
    ]
    columns = [
        "teacher",
        "problems sampled",
        "solved at least once",
        "solved by it alone",
        "rationales correct (%)",
    ]
    return simple_table("Totals by teacher.", columns, rows, "teacher-table")


def _followed_split(measures: Measures) -> str:
    home = measures.curves[measures.curves["role"] == "home"]
    return " and ".join(sorted(set(home["split"]))) or "no split"
