"""Runs side by side on made-up tables: what is paired, what is not, and what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mot_core.analysis.compared import Held, compare_runs, differing_settings, figure
from mot_core.errors import StoreError
from mot_core.report.figures.drawing import rendered, style
from tests.analysis.made import Shares, results_of

LOW, HIGH = [0.0, 0.25] * 20, [0.75, 1.0] * 20


def held(directory: Path, name: str, methods: dict[str, Shares], **settings: str) -> Held:
    tables = directory / name
    tables.mkdir()
    results = results_of(methods, seeds=(1, 2), roles={"panel": "panel"})
    for table in ("scores", "problem_scores"):
        getattr(results, table).to_csv(tables / f"{table}.csv", index=False)
    return Held(name, settings, tables)


def test_methods_are_compared_with_the_first_run_and_corrected_together(tmp_path: Path) -> None:
    first = held(tmp_path, "one", {"base": LOW, "mot": LOW, "mot@panel": HIGH}, rate="1", corpus="x")
    second = held(tmp_path, "two", {"base": LOW, "mot": HIGH, "mot@panel": HIGH}, rate="2", corpus="x")
    third = held(tmp_path, "three", {"mtd": LOW, "mot": LOW[:10], "mot@panel": HIGH}, corpus="x")
    runs = [first, second, third]
    rows = {(row.method, row.role): row for row in compare_runs(runs)}
    mot = rows["mot", "home"]
    assert [value and value.mean for value in mot.values] == [0.125, 0.875, 0.125]
    higher, unpaired = mot.differences
    assert higher is not None and (higher.delta, higher.num_problems, higher.num_seeds) == (0.75, 40, 2)
    assert unpaired is None, "it was asked ten of the problems"
    same = rows["base", "home"].differences[0]
    assert same is not None and same.delta == 0.0 and same.verdict == "open"
    compared = [one for row in rows.values() for one in row.differences if one is not None]
    assert higher.adjusted == pytest.approx(len(compared) * higher.p_value) and higher.verdict == "higher"
    assert [value is None for value in rows["mtd", "home"].values] == [True, True, False]
    assert rows["mtd", "home"].differences == (None, None)
    assert rows["mot", "panel"].differences[1] is not None
    assert differing_settings(runs) == [("rate", ("1", "2", ""))]
    with style():
        drawn = figure(list(rows.values()), ["one", "two", "three"])
        assert rendered("comparison", drawn).png[:4] == b"\x89PNG"
        assert [axes.get_title(loc="left") for axes in drawn.axes[:3]] == [
            "Home, test",
            "two minus the first",
            "three minus the first",
        ]


def test_the_same_evaluation_is_no_comparison(tmp_path: Path) -> None:
    runs = [held(tmp_path, name, {"base": LOW, "mot": shares}) for name, shares in (("one", LOW), ("two", HIGH))]
    for run in runs:
        scores = (run.tables / "scores.csv").read_text().splitlines()
        head = scores[0].split(",").index("identity")
        rows = [line.split(",") for line in scores[1:]]
        for row in rows:
            row[head] = "e1" if "base" in row else f"e-{run.name}"
        (run.tables / "scores.csv").write_text("\n".join([scores[0], *(",".join(row) for row in rows)]) + "\n")
    rows_by = {row.method: row for row in compare_runs(runs)}
    assert (rows_by["base"].same, rows_by["base"].differences) == ((True,), (None,))
    (found,) = rows_by["mot"].differences
    assert rows_by["mot"].same == (False,) and found is not None and found.adjusted == found.p_value


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = held(tmp_path, "one", {"mot": LOW})
    with pytest.raises(StoreError, match="two runs or more, got 1"):
        compare_runs([one])
    bare = Held("bare", {}, tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"run bare: the tracker holds no tables/scores.csv"):
        compare_runs([one, bare])
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "scores.csv").write_text("budget,method\n")
    with pytest.raises(StoreError, match=r"run cut: tables/scores.csv has no column 'benchmark'"):
        compare_runs([one, Held("cut", {}, tmp_path / "cut")])
