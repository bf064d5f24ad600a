"""A study's page: its paragraph, figure and table, in one HTML file and beside it as files that other documents take.

Invariant: equal findings give equal bytes of text, table and figure; only `study.json` holds clocks and hosts. The page
loads nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mot_core.analysis.wording import counted
from mot_core.files import write_atomically
from mot_core.report.figures.drawing import RenderedFigure
from mot_core.report.html import template
from mot_core.text import visible

if TYPE_CHECKING:
    import pandas as pd

STUDY = "study.json"
_MOST_BYTES = 150_000


def write_study(run_dir: Path, record: dict[str, Any], table: pd.DataFrame, figure: RenderedFigure, text: str) -> Path:
    """Write study.md, study.html, table.csv and the figure as PNG and SVG, study.json last; the page's path."""
    columns = [visible(name) for name in table.columns]
    rows = [[visible(_cell(value)) for value in row] for row in table.itertuples(index=False)]
    document = {**record, "text": visible(text, keep_layout=True), "columns": columns, "rows": rows}
    table.to_csv(run_dir / "table.csv", index=False, lineterminator="\n")
    (run_dir / "figure.svg").write_bytes(figure.svg)
    (run_dir / "figure.png").write_bytes(compact(figure.png))
    write_atomically(run_dir / "study.md", markdown(document))
    page = template("study.html.j2").render(document, figure=figure.svg, facts=_facts(document))
    write_atomically(run_dir / "study.html", page)
    write_atomically(run_dir / STUDY, json.dumps(document, indent=1) + "\n")
    return run_dir / "study.html"


def compact(png: bytes) -> bytes:
    """The same picture in fewer bytes: without transparency, and in 256 colours of its own if that leaves more than
    `_MOST_BYTES`. Fewer colours would change those of small marks."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    small = _as_png(picture)
    if len(small) > _MOST_BYTES:
        small = _as_png(picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE))
    return small


def _as_png(picture: Any) -> bytes:
    import io

    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def markdown(document: dict[str, Any], picture: str = "![figure](figure.png)") -> str:
    """Question, paragraph, picture and table as Markdown, without a heading of its own."""
    columns = [_escaped(name) for name in document["columns"]]
    lines = [
        f"*{_escaped(document['question'])}* ({document['claim']}; {_facts(document)})", "", _escaped(document["text"]), "", picture, "",
        f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in document["rows"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _facts(document: dict[str, Any]) -> str:
    """Size, seeds and cost of the study, in a few words."""
    seeds, counts = document["options"]["training_seeds"], document["step_counts"]
    return (
        f"size {document['size']}, base {document['base']['name']}, training seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}, {counted(len(document['cells']), 'cell')}, {counts['run'] + counts['reused']} steps"
    )


def _cell(value: Any) -> str:
    """A table's cell: shares with three digits, absent values as a dash."""
    if value is None or value != value:
        return "—"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
