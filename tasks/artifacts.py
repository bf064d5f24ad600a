"""What a person sees on a flow run's Artifacts page: the score table of each round, links to report and tracker.

Text is markdown that Prefect's page renders, so everything that a spec or a model wrote is escaped.
"""

from __future__ import annotations

import json
import re
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from mot_core.report.text import markdown_text as markdown_text
from tasks.invocation import invocation_of
from tasks.tracking_views import server_command, view_links


def artifact_key(*parts: str) -> str:
    """A key as Prefect wants it: lowercase letters, digits and dashes; equal keys build a history."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


@task(name="score table", cache_policy=NO_CACHE, persist_result=False)
def score_table(run_id: str, experiment_name: str, round_index: float, wanted: list[str]) -> None:
    """Publish one round's scores, a row a student and benchmark."""
    invocation = invocation_of(run_id)
    rows = []
    for identity in wanted:
        step = invocation.steps[identity]
        if step.kind == "evaluation" and step.facts["round"] == round_index:
            rows.append((step.facts, invocation.records[identity].counts))
    rows.sort(key=lambda row: (row[0]["split"], row[0]["benchmark"], row[0]["method"], row[0]["seed"]))
    lines = [
        "| method | seed | benchmark | split | avg@k | k | problems |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {markdown_text(facts['method'])} | {facts['seed']} | {markdown_text(facts['benchmark'])} "
        f"| {facts['split']} | {counts['avg_at_k']:.3f} | {counts['k']} | {counts['num_problems']} |"
        for facts, counts in rows
    ]
    create_markdown_artifact(
        key=artifact_key("scores", experiment_name, f"round-{round_index}"),
        markdown="\n".join(lines),
        description=f"Scores after round {round_index} of {markdown_text(experiment_name)}",
    )


def publish_markdown(key: str, name: str, markdown: str, description: str) -> None:
    """Publish a text whose parts are escaped already."""
    create_markdown_artifact(key=artifact_key(key, name), markdown=markdown, description=markdown_text(description))


def publish_rows(key: str, name: str, rows: list[dict[str, Any]], description: str) -> None:
    """Publish rows as a table; whatever is not a number or a short text is left out."""
    columns = list(
        dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float | str))
    )
    lines = [f"| {' | '.join(markdown_text(name) for name in columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(markdown_text(_cell(row.get(name, ''))) for name in columns)} |" for row in rows]
    publish_markdown(key, name, "\n".join(lines), description)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]


@task(name="compare and report", cache_policy=NO_CACHE, persist_result=False)
def report(run_id: str, experiment_name: str) -> None:
    """Conclude the invocation (comparison, report, tracking), then say where to look."""
    invocation = invocation_of(run_id)
    invocation.conclude()
    run_dir = invocation.store.root / "runs" / run_id
    tracked = json.loads((run_dir / "tracking.json").read_text()) if (run_dir / "tracking.json").is_file() else {}
    place = markdown_text(tracked.get("uri", "not tracked"))
    lines = [f"- report: `{run_dir / 'report.html'}`", f"- MLflow: {place}", *view_lines(tracked)]
    create_markdown_artifact(
        key=artifact_key("links", experiment_name),
        markdown="\n".join(lines) + "\n",
        description=f"Where to look at {markdown_text(experiment_name)}",
    )


def view_lines(tracked: dict[str, str]) -> list[str]:
    """Links to the experiment's views in MLflow, and of a database the command that serves them."""
    if "experiment_id" not in tracked:
        return []
    links = view_links(tracked["uri"], tracked["experiment_id"])
    command = server_command(tracked["uri"])
    return [
        *(f"- [{name}]({link})" for name, link in links.items()),
        *([f"- these links hold while this runs: `{command}`"] if command else []),
    ]


@task(name="figure, table and text", cache_policy=NO_CACHE, persist_result=False)
def study_report(run_id: str, study_name: str) -> None:
    """Conclude a study, then show its paragraph and table."""
    invocation = invocation_of(run_id)
    invocation.conclude()
    run_dir = invocation.store.root / "runs" / run_id
    record = json.loads((run_dir / "study.json").read_text())
    columns = record["columns"]
    lines = [
        f"| {' | '.join(markdown_text(name) for name in columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(markdown_text(cell) for cell in row)} |" for row in record["rows"]),
    ]
    create_markdown_artifact(
        key=artifact_key("study", study_name),
        markdown="\n".join([markdown_text(record["text"]), "", *lines, "", f"- page: `{run_dir / 'study.html'}`"]),
        description=f"What the study {markdown_text(study_name)} found",
    )
