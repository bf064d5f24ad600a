"""What studies say about made-up results: the words follow the figures, whichever way they point."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flows.studies import best_teacher, filters, forgetting, merges, rounds, samples, study_named
from flows.studies.base import Findings, Study, setup_of
from mot_core.analysis.outcomes import Outcomes
from tests.analysis.made import Shares, results_of

LOW, MID, HIGH = [0.0, 0.25] * 20, [0.5] * 40, [0.75, 1.0] * 20
TEACHERS = ("running-total", "tens-and-ones")


def findings_of(
    study: Study, cells: dict[str, dict[str, Shares]], coordinates: dict[str, dict[str, Any]], **more: Any
) -> Findings:
    found = Findings(setup_of(study, "smoke"), Outcomes())
    for name, methods in cells.items():
        found.outcomes.add(name, coordinates[name], results_of(methods, seeds=(1, 2), **more.get(name, {})))
    return found


def std(first: Shares, second: Shares, **others: Shares) -> dict[str, Shares]:
    return {"base": LOW, f"std/{TEACHERS[0]}": first, f"std/{TEACHERS[1]}": second, **others}


COORDINATES = {"a": {"student": "s", "dataset": "x"}, "b": {"student": "s", "dataset": "y"}}


def test_best_teachers_that_differ_are_told_apart() -> None:
    found = findings_of(best_teacher.STUDY, {"a": std(HIGH, MID), "b": std(MID, HIGH)}, COORDINATES)
    said = best_teacher.text(found)
    assert "s on x: running-total; s on y: tens-and-ones" in said
    assert "2 teachers (running-total and tens-and-ones) are best somewhere" in said
    assert "decides, 2 (running-total and tens-and-ones)" in said


def test_one_teacher_that_is_best_everywhere_is_said_to_be() -> None:
    found = findings_of(best_teacher.STUDY, {"a": std(HIGH, MID), "b": std(HIGH, MID)}, COORDINATES)
    assert "The same teacher, running-total, is best in all 2 cells." in best_teacher.text(found)


def test_a_lead_that_is_not_decided_is_no_winner() -> None:
    slight = [0.5] * 39 + [0.75]
    found = findings_of(best_teacher.STUDY, {"a": std(slight, MID), "b": std(HIGH, MID)}, COORDINATES)
    said = best_teacher.text(found)
    assert "s on x: running-total (lead not decided)" in said
    assert best_teacher.holds_up(found, "a") == {"test": True, "each seed": True}


def test_teachers_that_harm_are_named() -> None:
    cells = {"a": {**std(HIGH, LOW), "base": MID}, "b": {**std(HIGH, MID), "base": MID}}
    said = best_teacher.text(findings_of(best_teacher.STUDY, cells, COORDINATES))
    assert "Below the untrained student (uncorrected interval below zero) end: tens-and-ones for s on x." in said


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({1: LOW, 2: HIGH, 3: HIGH}, "it is first ahead after round 2"),
        ({1: LOW, 2: LOW, 3: LOW}, "it is never ahead"),
    ],
)
def test_where_mot_overtakes_is_told(after: dict[int, Shares], told: str) -> None:
    cells = {
        "rounds-1": std(MID, LOW, mtd=LOW, mot=LOW), "rounds-2": std(MID, LOW, mtd=LOW, mot=HIGH),
        "long": std(MID, LOW, mtd=LOW, mot=after[3]),
    }  # fmt: skip
    along = {name: dict.fromkeys((1, 2, 3), shares) for name, shares in ((f"std/{TEACHERS[0]}", MID), ("mtd", LOW))}
    coordinates = {name: {"rounds": int(name[-1]) if name != "long" else 3, "steps_per_round": 2} for name in cells}
    found = findings_of(rounds.STUDY, cells, coordinates, long={"rounds": {**along, "mot": after}})
    said = rounds.text(found)
    assert told in said
    assert "MoT is highest with 2 round(s), at 87.5 %" in said
    assert "1: −37.5 points" in said and "2: +37.5 points" in said
    assert re.search(r"MTD peaks after round 1 and ends 0\.0 points \[[^]]*\] from there", said)


def test_what_more_rationales_bring_is_told() -> None:
    counts = {"steps-4": LOW, "steps-8": MID, "epochs-4": LOW}
    cells = {name: std(MID, LOW, mtd=LOW, mot=shares) for name, shares in counts.items()}
    coordinates = {
        name: {
            "axis": samples.STEPS if name.startswith("steps") else samples.EPOCHS,
            "rationales": int(name[-1]),
            "steps_per_round": 2,
        }
        for name in cells
    }
    said = samples.text(findings_of(samples.STUDY, cells, coordinates))
    assert "MoT is highest with 8 rationales a teacher, picked afterwards" in said
    assert "With 4 rationales, seeing them as often as the reference does (fewer steps) gives 12.5 %" in said


@pytest.mark.parametrize(("mot", "verdict"), [(HIGH, "+"), (LOW, "−")])
def test_who_forgets_less_is_told(mot: Shares, verdict: str) -> None:
    panel = {
        "base@panel": HIGH,
        f"std/{TEACHERS[0]}@panel": MID,
        f"std/{TEACHERS[1]}@panel": MID,
        "mtd@panel": MID,
        "mot@panel": mot,
    }
    cells = {"rate-0.001": {**std(MID, LOW, mtd=LOW, mot=MID), **panel}}
    found = findings_of(
        forgetting.STUDY,
        cells,
        {"rate-0.001": {"learning_rate": 0.001}},
        **{"rate-0.001": {"roles": {"panel": "panel"}}},
    )
    said = forgetting.text(found)
    assert f"best STD at 0.001: {verdict}37.5 points" in said and f"mtd at 0.001: {verdict}37.5 points" in said
    assert "not decided" not in said.partition("MoT's panel minus theirs")[2]


def test_merges_and_filters_are_ranked_against_their_reference() -> None:
    cells = {"mean": std(MID, LOW, mot=MID), "ties": std(MID, LOW, mot=HIGH)}
    said = merges.text(findings_of(merges.STUDY, cells, {name: {"merge": name} for name in cells}))
    assert "Higher than mean at the 5 % level: ties (+37.5 points" in said and "Not decided: best STD." in said
    cells = {"first-correct": {"mot": MID}, "no-filter": {"mot": LOW}}
    named = {"first-correct": {"filter": "first correct"}, "no-filter": {"filter": "no filter"}}
    said = filters.text(findings_of(filters.STUDY, cells, named))
    assert "Lower than first correct at the 5 % level: no filter (−37.5 points" in said


def test_subsets_are_all_of_them() -> None:
    from flows.studies.teachers import subsets_of

    assert subsets_of(["a", "b", "c"]) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert study_named("teachers").name == "teachers"
