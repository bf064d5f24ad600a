"""The report as a reader and an attacker meet it: complete, self-contained, escaped, the same twice."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mot_core.report.html import write_report
from mot_core.report.measures import Measures
from mot_core.report.palette import method_name
from mot_core.report.tables import headline_frame, headline_latex
from mot_core.report.wording import headline_paragraph, points
from mot_core.results import TABLE_COLUMNS, Results

from .fixtures import Shape, build_results, empty_results, without

SECTIONS = (
    "headline", "rounds", "cost", "coverage", "forgetting", "lengths", "training", "merge",
    "answers", "steps", "record",
)  # fmt: skip
ATTACK = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def results() -> Results:
    return build_results()


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results, tmp_path_factory.mktemp("report"))


def test_page_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b", text)
    assert "@import" not in text
    assert "url(" not in text
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert sources
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert "default-src 'none'" in text


def test_every_section_and_method_is_there(results: Results, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for section in SECTIONS:
        assert f'<section id="{section}">' in text
        assert f'<a href="#{section}">' in text
    for method in results.scores["method"].unique():
        assert html.escape(method_name(method)) in text
    assert "Not measured in this run" not in text


def test_deltas_on_the_page_are_those_of_the_comparisons(results: Results, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    best = results.summary["best_single_teacher"]["dev"]
    expected = results.comparisons[results.comparisons["b"] == best]
    for budget in ("matched_path", "matched_compute"):
        table = re.search(rf'id="headline-{budget}">.*?</table>', text, re.DOTALL)
        assert table is not None
        shown = [float(value) for value in re.findall(r'data-value="(-?[0-9.e-]+)"', table.group())]
        for row in expected[expected["budget"] == budget].itertuples():
            assert row.delta in shown
            assert f">{points(row.delta)}" in table.group()


def test_files_beside_the_page(results: Results, page: Path) -> None:
    tables = {path.name for path in (page.parent / "tables").iterdir()}
    assert tables == {f"{name}.csv" for name in TABLE_COLUMNS} | {"headline.csv", "headline.tex"}
    figures = {path.name for path in (page.parent / "figures").iterdir()}
    assert {
        "accuracy_by_round_matched_path.svg",
        "teacher_coverage.png",
        "merge_agreement_matched_path.svg",
        "merge_rank_matched_path.svg",
        "merge_barrier_matched_path.svg",
    } <= figures
    assert {Path(name).stem for name in figures if name.endswith("svg")} == {
        Path(name).stem for name in figures if name.endswith("png")
    }
    headline = pd.read_csv(page.parent / "tables" / "headline.csv")
    scores = results.scores[results.scores["is_final"] & (results.scores["split"] == "test")]
    means = scores.groupby(["budget", "method", "benchmark"])["avg_at_k"].mean()
    assert len(headline) == len(means)
    for row in headline.itertuples():
        assert row.mean == pytest.approx(means[row.budget, row.method, row.benchmark])
        assert row.ci_low <= row.mean <= row.ci_high


def test_two_renderings_are_byte_identical(results: Results, page: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path)
    first = {path.relative_to(page.parent): path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
    second = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert second == first


def test_rendering_leaves_matplotlib_as_it_was(results: Results, page: Path) -> None:
    import matplotlib

    assert matplotlib.rcParams["svg.hashsalt"] != "mot-report"
    assert matplotlib.rcParams["text.parse_math"] is True


def test_nothing_measured_is_said_and_does_not_crash(tmp_path: Path) -> None:
    text = write_report(empty_results(), tmp_path).read_text(encoding="utf-8")
    for section in SECTIONS:
        assert f'<section id="{section}">' in text
    assert text.count("Not measured in this run") >= len(SECTIONS) - 1
    assert (tmp_path / "tables" / "scores.csv").read_text().strip() == ",".join(TABLE_COLUMNS["scores"])


@pytest.mark.parametrize("name", list(TABLE_COLUMNS))
def test_any_one_table_may_be_empty(
    results: Results, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is tested here is the logic around the figures; drawing each of them 14 times would take a minute.
    for section in ("outcome", "making", "training", "merging"):
        monkeypatch.setattr(f"mot_core.report.sections.{section}.rendered", _not_rendered)
    monkeypatch.setattr("mot_core.report.measures._FINAL_RESAMPLES", 200)
    monkeypatch.setattr("mot_core.report.measures._POINT_RESAMPLES", 200)
    assert write_report(without(results, name), tmp_path).is_file()


def test_hostile_names_and_texts_are_escaped_everywhere(tmp_path: Path) -> None:
    hostile = "r1" + ATTACK + "\x07$x_{1}\u202e字"
    shape = Shape(
        teachers=("plain", hostile),
        seeds=(0,),
        budgets=("matched_path",),
        rounds=2,
        num_dev_problems=6,
        num_test_problems=6,
    )
    results = build_results(shape)
    answers = results.answers.assign(
        question=ATTACK,
        gold=ATTACK,
        verdict=ATTACK,
        problem_id=ATTACK,
    )
    # pandas' own strings refuse a lone surrogate; a column of objects does not.
    answers["text"] = pd.Series([ATTACK + "\x1b[31m\ud800\x00" + "z" * 5000] * len(answers), dtype=object)
    results = replace(
        results,
        run_id=ATTACK,
        answers=answers,
        spec={
            "name": ATTACK,
            "description": ATTACK,
            "nested": {ATTACK: [ATTACK, "\x07", ("tuple", Path("p"))]},
        },
        provenance={"host": {"name": ATTACK}},
        summary={"best_single_teacher": {"dev": f"std/{hostile}"}},
        scores=results.scores.replace("arithmetic", ATTACK),
        problem_scores=results.problem_scores.replace("arithmetic", ATTACK),
        comparisons=results.comparisons.replace("arithmetic", ATTACK),
        corpus_ledger=results.corpus_ledger.assign(filter=ATTACK),
        steps=results.steps.assign(kind=ATTACK),
    )
    page = write_report(results, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert html.escape(ATTACK) in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    assert "␛[31m⟨U+D800⟩␀" in text
    assert "Clipped: first 1,200 of 5,032 characters." in text
    assert "z" * 1200 not in text
    assert "<script" not in (tmp_path / "figures" / "teacher_coverage.svg").read_text(encoding="utf-8")
    tex = (tmp_path / "tables" / "headline.tex").read_text(encoding="utf-8")
    assert tex.isascii()
    assert r"\textless{}script\textgreater{}" in tex
    assert r"\$x\_\{1\}" in tex


def test_best_teacher_may_be_given_by_budget_or_not_at_all(results: Results) -> None:
    by_budget = {"matched_path": {"dev": "std/qwq"}, "matched_compute": {"dev": "std/r1"}}
    for recorded in (by_budget, {"dev": "std/qwq", "by_budget": by_budget}):
        measures = Measures(replace(results, summary={"best_single_teacher": recorded}))
        assert [measures.best_teacher(budget) for budget in measures.budgets] == ["std/qwq", "std/r1"]
    scores = results.scores
    dev = scores[scores["is_final"] & (scores["split"] == "dev") & (scores["role"] == "home")]
    dev = dev[(dev["budget"] == "matched_path") & dev["method"].str.startswith("std/")]
    assert (
        Measures(replace(results, summary={})).best_teacher("matched_path")
        == dev.groupby("method")["avg_at_k"].mean().idxmax()
    )


@pytest.mark.parametrize(
    ("delta", "p_holm", "said"),
    [
        (0.05, 0.001, "3 are significant in MoT's favour and 0 are against it"),
        (-0.05, 0.001, "0 are significant in MoT's favour and 3 are against it"),
        (0.05, 0.4, "none of the 3 differences is significant"),
        (-0.05, None, "none of the 3 differences is significant"),
    ],
)
def test_headline_says_what_was_found(results: Results, delta: float, p_holm: float | None, said: str) -> None:
    rows = results.comparisons["budget"] == "matched_path"
    found = results.comparisons[rows].assign(delta=delta, p_value_holm=p_holm)
    measures = Measures(replace(results, comparisons=found))
    paragraph = headline_paragraph(measures, headline_frame(measures))
    assert said in paragraph
    assert "chosen on dev" in paragraph
    assert "With hindsight" in paragraph
    assert f"a difference of {points(delta)} points" in paragraph


def test_a_comparison_the_other_way_round_is_turned(results: Results) -> None:
    best = results.summary["best_single_teacher"]["dev"]
    turned = results.comparisons.rename(columns={"a": "b", "b": "a"}).assign(
        delta=-results.comparisons["delta"],
        ci_low=-results.comparisons["ci_high"],
        ci_high=-results.comparisons["ci_low"],
    )
    assert set(turned["a"]) == {best}
    pd.testing.assert_frame_equal(
        headline_frame(Measures(replace(results, comparisons=turned))), headline_frame(Measures(results))
    )


def test_headline_latex_marks_the_best_value(results: Results) -> None:
    measures = Measures(results)
    headline = headline_frame(measures)
    tex = headline_latex(measures, headline)
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1
    assert tex.count(r"\textbf{") == int(headline["is_best"].sum())
    rows = [line for line in tex.splitlines() if " & " in line and line.startswith(("MoT", "Base", "STD"))]
    assert all(line.count(" & ") == 6 for line in rows)


def _not_rendered(name: str, figure: object) -> object:
    from mot_core.report.figures.drawing import RenderedFigure

    return RenderedFigure(name, b"<svg/>", b"")
