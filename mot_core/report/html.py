"""One run as one self-contained page, with its figures and tables beside it.

Invariant: equal results give equal bytes, and the page loads nothing: styles are inline, figures are data
URIs (as images, so that no script in them could run), and a content policy forbids the rest.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from mot_core.report.blocks import FigureBlock, Section
from mot_core.report.figures.drawing import style
from mot_core.report.measures import Measures
from mot_core.report.sections import making, merging, outcome, record, training
from mot_core.report.tables import headline_frame, write_tables
from mot_core.results import Results
from mot_core.text import visible


def write_report(results: Results, out_dir: Path) -> Path:
    """Write report.html, figures/ and tables/ into `out_dir`; returns the page's path."""
    measures = Measures(results)
    headline = headline_frame(measures)
    write_tables(measures, headline, out_dir / "tables")
    with style():
        sections = _sections(measures, headline)
    _write_figures(sections, out_dir / "figures")
    path = out_dir / "report.html"
    path.write_text(_page(results, sections), encoding="utf-8", newline="\n")
    return path


def _sections(measures: Measures, headline: Any) -> list[Section]:
    return [
        outcome.headline_section(measures, headline),
        outcome.rounds_section(measures),
        outcome.cost_section(measures),
        making.coverage_section(measures),
        outcome.forgetting_section(measures),
        making.lengths_section(measures),
        training.training_section(measures),
        merging.merge_section(measures),
        record.answers_section(measures),
        record.steps_section(measures),
        record.record_section(measures),
    ]


def _write_figures(sections: list[Section], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for block in (block for section in sections for block in section.blocks if isinstance(block, FigureBlock)):
        (directory / f"{block.figure.name}.svg").write_bytes(block.figure.svg)
        (directory / f"{block.figure.name}.png").write_bytes(block.figure.png)


def _page(results: Results, sections: list[Section]) -> str:
    name = results.spec.get("name") or "experiment"
    page: str = template("report.html.j2").render(
        name=visible(name),
        description=visible(results.spec.get("description") or ""),
        run_id=visible(results.run_id),
        sections=sections,
    )
    return page


def template(name: str) -> Any:
    """A page's template: everything that goes in is escaped, and nothing may be missing; `base64` is a filter for bytes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mot_core.report", "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    return environment.get_template(name)
