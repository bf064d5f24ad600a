"""What the students were made from: coverage and corpora, rationale lengths."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mot_core.corpus.filters import ORDER
from mot_core.report.blocks import Cell, FigureBlock, Section, missing, simple_table
from mot_core.report.figures.corpus import coverage_table, rationale_lengths, solved_counts, teacher_coverage
from mot_core.report.figures.drawing import rendered
from mot_core.report.measures import Measures
from mot_core.report.wording import percent


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
