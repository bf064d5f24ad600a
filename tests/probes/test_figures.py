"""The probes' panels: the rows' own numbers are in them."""

from __future__ import annotations

from typing import Any

from mot_core.analysis.drawing import panels
from mot_core.probes.figures import confidence_panel, lines_panel, plane_panel, sharpness_panel
from mot_core.probes.rows import MEASURES
from mot_core.report.figures.drawing import rendered, style

Row = dict[str, Any]


def confidence(student: str, teacher: str, kind: str, value: float, num_tokens: int = 1) -> Row:
    means = {"mean_log_prob": -value, "mean_confidence": value, "mean_entropy": 2 * value}
    return {"student": student, "teacher": teacher, "class": kind, "num_tokens": num_tokens, **means}


def points_of(axes: Any) -> dict[str, list[float]]:
    """The values of each series that has a name."""
    return {
        line.get_label(): [float(y) for y in line.get_ydata()]
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def confidence_figure(rows: list[Row]) -> Any:
    figure, grid = panels(len(MEASURES))
    for axes, measure in zip(grid, MEASURES, strict=True):
        confidence_panel(axes, rows, measure)
    return figure


def test_one_students_series_are_teachers_and_severals_are_students() -> None:
    rows = [
        confidence("MoT", "ann", "shared", 0.5), confidence("MoT", "ann", "specific", 0.25),
        confidence("MoT", "bob", "shared", 0.75, num_tokens=3),
    ]  # fmt: skip
    with style():
        alone = confidence_figure(rows)
        both = confidence_figure([*rows, confidence("STD", "bob", "answer", 0.125)])
        assert rendered("alone", alone).png[:4] == b"\x89PNG" and rendered("both", both).svg
    assert [axes.get_title(loc="left") for axes in alone.axes] == [
        "Log-probability of the token (nats)", "Confidence: largest probability", "Entropy (nats)",
    ]  # fmt: skip
    assert points_of(alone.axes[1]) == {"ann": [0.5, 0.25], "bob": [0.75]}
    # Means over tokens: (0.5 + 3 × 0.75) / 4.
    assert points_of(both.axes[1]) == {"MoT": [0.6875, 0.25], "STD": [0.125]}


def test_a_landscape_has_a_panel_for_each_thing_measured() -> None:
    def line(student: str, direction: str, kind: str, losses: list[float]) -> list[Row]:
        return [
            {"student": student, "measure": "line", "line": kind, "direction": direction, "kind": kind, "x": x / 2, "loss": loss}
            for x, loss in enumerate(losses)
        ]  # fmt: skip

    where = {"student": "MoT", "plane": 0, "x_direction": "ann", "y_direction": "bob"}
    plane = [
        {**where, "measure": "plane", "x": float(x), "y": float(y), "loss": 1.0 + x + 2 * y}
        for x in (0, 1)
        for y in (0, 1)
    ]
    marks = [
        {**where, "measure": "mark", "direction": name, "x": x, "y": y, "off_plane": off}
        for name, x, y, off in (("ann", 1.0, 0.0, 0.0), ("cat", 0.5, 0.5, 0.3), ("far", 9.0, 0.0, 0.0))
    ]
    sharp = [
        {"student": "MoT", "measure": "sharpness", "distance": d, "mean_rise": 100 * d * d, "standard_error": d * d}
        for d in (0.1, 0.2)
    ]
    with style():
        figure, grid = panels(4, max_columns=2)
        lines_panel(grid[0], line("MoT", "ann", "to", [1.0, 3.0, 2.0]), ["MoT"])
        lines_panel(grid[1], line("MoT", "noise", "random", [1.0, 4.0, 9.0]), ["MoT"])
        sharpness_panel(grid[2], sharp, ["MoT"])
        plane_panel(grid[3], [*plane, *marks], "MoT", False)
        assert rendered("landscape", figure).png[:4] == b"\x89PNG"
        between, random, sharpness, flat, bar = figure.axes
        assert points_of(between) == {"ann": [1.0, 3.0, 2.0]} and points_of(random) == {"noise": [1.0, 4.0, 9.0]}
        assert sharpness.get_xscale() == sharpness.get_yscale() == "log"
        assert [text.get_text() for text in flat.get_legend().get_texts()] == ["1 MoT", "2 ann", "3 cat, 30 % off"], (
            "a student outside is not marked"
        )
        assert bar.get_ylabel() == "loss (nats a token)"
        falling, (only,) = panels(1)
        sharpness_panel(only, [{**row, "mean_rise": -row["mean_rise"]} for row in sharp], ["MoT"])
        assert len(falling.axes) == 1 and only.get_yscale() == "linear"
        level, (flat,) = panels(1)
        plane_panel(flat, [{**row, "loss": 1.0} for row in plane], "MoT", False)
        assert rendered("level", level).png
