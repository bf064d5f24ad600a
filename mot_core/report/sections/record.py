"""The record: example answers, the steps of the DAG, the spec and the provenance."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mot_core.report.blocks import Answer, AnswersBlock, CodeBlock, Section, TextBlock, missing, simple_table
from mot_core.report.measures import Measures
from mot_core.report.palette import budget_name, method_name
from mot_core.report.text import as_yaml, clipped
from mot_core.text import visible

MAX_PROBLEMS = 8
MAX_ANSWERS = 24  # of one problem
MAX_TEXT_CHARS = 1_200
MAX_IDENTITIES = 80


def answers_section(measures: Measures) -> Section:
    """What branches and students answered on a few problems; untrusted text, clipped."""
    answers = measures.results.answers
    if answers.empty:
        return Section("answers", "Answers", "Answers", [missing("no answers were kept (table 'answers')")])
    groups = list(answers.groupby(["benchmark", "problem_id"], sort=False))
    blocks: list[Any] = [
        _problem(str(problem_id), group, measures, is_open=index == 0)
        for index, ((_, problem_id), group) in enumerate(groups[:MAX_PROBLEMS])
    ]
    shown = f"{len(blocks)} of {len(groups)} problems" if len(groups) > MAX_PROBLEMS else f"{len(groups)} problems"
    intro = (
        f"Model output on {shown}, as written: control and other invisible characters are shown as symbols, texts "
        f"longer than {MAX_TEXT_CHARS:,} characters are clipped. All of it is in tables/answers.csv."
    )
    return Section("answers", "Answers on a few problems", "Answers", [TextBlock(intro), *blocks])


def steps_section(measures: Measures) -> Section:
    """How many steps ran or were reused, and the compute by kind."""
    steps = measures.results.steps
    if steps.empty:
        return Section("steps", "Steps", "Steps", [missing("the run recorded no steps (table 'steps')")])
    frame = steps.assign(
        seconds=pd.to_numeric(steps["seconds"], errors="coerce").fillna(0.0), state=steps["state"].astype(str)
    )
    rows = []
    for kind, group in [*frame.groupby("kind", sort=False), ("all", frame)]:
        run = group["state"] == "run"
        reused = group["state"] == "reused"
        seconds_run, seconds_reused = group.loc[run, "seconds"].sum(), group.loc[reused, "seconds"].sum()
        rows.append([str(kind), int(run.sum()), int(reused.sum()), round(seconds_run, 1), round(seconds_reused, 1)])
    columns = ["kind", "run", "reused", "seconds run", "seconds when first run (reused)"]
    caption = "Steps of the DAG by kind. Seconds are compute, not waiting."
    return Section("steps", "Steps and compute", "Steps", [simple_table(caption, columns, rows, "steps-table")])


def record_section(measures: Measures) -> Section:
    """Spec, provenance and the final students' identities."""
    results = measures.results
    blocks: list[Any] = []
    for title, value in (
        ("Spec", results.spec),
        ("Provenance", results.provenance),
        ("Summary", results.summary),
    ):
        if value:
            blocks.append(CodeBlock(title, as_yaml(value), is_open=title != "Summary"))
        else:
            blocks.append(missing(f"the run recorded no {title.lower()}"))
    finals = measures.scores[measures.scores["is_final"]].drop_duplicates(["budget", "method", "seed", "identity"])
    if len(finals):
        rows = [
            [
                budget_name(row.budget),
                method_name(row.method),
                str(row.seed),
                str(row.round),
                str(row.identity),
            ]
            for row in finals.head(MAX_IDENTITIES).itertuples(index=False)
        ]
        more = f" First {MAX_IDENTITIES} of {len(finals):,}." if len(finals) > MAX_IDENTITIES else ""
        columns = ["budget", "method", "seed", "round", "identity"]
        caption = f"Identities of final students' evaluations (hash of spec, parents and code version).{more}"
        blocks.append(simple_table(caption, columns, rows, "identity-table"))
    return Section("record", "Spec and provenance", "Record", blocks)


def _problem(problem_id: str, group: pd.DataFrame, measures: Measures, *, is_open: bool) -> AnswersBlock:
    first = group.iloc[0]
    question, note = clipped(first["question"], MAX_TEXT_CHARS)
    answers = []
    for row in group.head(MAX_ANSWERS).itertuples(index=False):
        text, cut = clipped("" if row.text is None else row.text, MAX_TEXT_CHARS)
        # An STD student is its only branch, so naming the branch would say the teacher twice.
        branch = "" if str(row.method).startswith("std/") else _present(row.branch)
        look = measures.palette.teacher(branch) if branch else measures.palette.method(str(row.method))
        answers.append(
            Answer(_who(row, branch), look.colour, visible(row.verdict), text, f"Clipped: {cut}." if cut else "")
        )
    title = f"{visible(first['benchmark'])}: {visible(problem_id)}"
    if len(group) > MAX_ANSWERS:
        title += f" ({MAX_ANSWERS} of {len(group)} answers)"
    question += f" [clipped: {note}]" if note else ""
    return AnswersBlock(title, question, visible(first["gold"]), answers, is_open)


def _who(row: Any, branch: str) -> str:
    round_index = _present(row.round)
    parts = [method_name(str(row.method)), budget_name(str(row.budget)), f"seed {row.seed}"]
    parts += [f"round {float(round_index):.0f}"] if round_index else []
    parts += ["merged" if branch == "merged" else f"branch {branch}"] if branch else []
    return visible(" · ".join(parts))


def _present(value: Any) -> str:
    return "" if value is None or value != value else str(value)
