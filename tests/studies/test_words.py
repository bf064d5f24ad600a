"""What studies say about made-up results: the words follow the figures, whichever way they point."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pandas as pd
import pytest

from flows.studies import (
    best_teacher,
    consensus,
    filters,
    forgetting,
    merges,
    methods,
    on_policy,
    rounds,
    samples,
    study_named,
    teachers,
    transfer,
)
from flows.studies.base import Cell, Findings, Planned, Probe, Study, setup_of
from mot_core.analysis.outcomes import Outcomes
from tests.analysis.made import Shares, results_of

LOW, MID, HIGH = [0.0, 0.25] * 20, [0.5] * 40, [0.75, 1.0] * 20
TEACHERS = ("running-total", "tens-and-ones")


def findings_of(
    study: Study,
    cells: dict[str, dict[str, Shares]],
    coordinates: dict[str, dict[str, Any]],
    overrides: tuple[str, ...] = (),
    **more: Any,
) -> Findings:
    found = Findings(setup_of(study, "smoke", overrides), Outcomes())
    for name, shares in cells.items():
        found.outcomes.add(name, coordinates[name], results_of(shares, seeds=(1, 2), **more.get(name, {})))
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
    few = {"steps-4": HIGH, "steps-8": MID, "epochs-4": LOW}
    cells = {name: std(MID, LOW, mtd=LOW, mot=shares) for name, shares in few.items()}
    assert "the highest minus this: +37.5 points" in samples.text(findings_of(samples.STUDY, cells, coordinates))
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


@pytest.mark.parametrize(
    ("mot", "verdict", "leaders"),
    [(HIGH, "+", "No method has a higher mean"), (LOW, "−", "Above MoT's mean lie STD running-total")],
)
def test_mot_against_every_method_is_told(mot: Shares, verdict: str, leaders: str) -> None:
    cells = {"methods": std(MID, LOW, mtd=MID, mot=mot, shuffled=MID)}
    found = findings_of(methods.STUDY, cells, {"methods": {}}, ("options.budgets=[matched_path]",))
    said = methods.text(found)
    assert re.search(rf"the best single teacher on dev, 50\.0 % \[[^]]*\]: {re.escape(verdict)}37\.5 points", said)
    assert re.search(rf"MTD {re.escape(verdict)}37\.5 points \[[^]]*\], adjusted p = [<0-9. ]+;", said)
    assert leaders in said
    way = "in favour of MoT" if verdict == "+" else "against it"
    assert f"of 5 differences {'5 are' if verdict == '+' else '3 are'} {way}" in said
    assert "With hindsight" not in said
    assert list(methods.table(found)["SD over seeds"]) == ["0.0"] * 6  # two seeds that agree


def test_what_a_further_teacher_brings_is_told() -> None:
    cells = {"teachers": {**std(HIGH, LOW), "mot-1": HIGH, "mot-2": LOW, "mot-1-2": MID, "mot-plus-wrong": LOW}}
    found = findings_of(teachers.STUDY, cells, {"teachers": {}})
    said = teachers.text(found)
    assert "the highest mean, picked afterwards, is that of running-total, 87.5 %" in said
    assert "Adding one home teacher raises the mean in 1 of 2 cases." in said
    assert "Added to all home teachers: wrong −37.5 points" in said
    assert "above all home teachers: running-total; below: tens-and-ones and home + wrong." in said
    assert "the best single teacher (on dev) +37.5 points from all home teachers" in said


def test_on_policy_is_told_against_mot() -> None:
    singles = {"opd-running-total": MID, "opd-tens-and-ones": LOW}
    cells = {"mixture": std(MID, LOW, mtd=LOW, mot=MID, opd=LOW, mot_opd=HIGH, **singles)}
    said = on_policy.text(findings_of(on_policy.STUDY, cells, {"mixture": {}}))
    told, _, scale = said.partition("For scale:")
    assert "OPD, mixture −37.5 points" in told and "MoT, then OPD, mixture +37.5 points" in told
    assert re.search(r"best single OPD \(running-total\) 0\.0 points .*not decided", told)
    assert "MTD −37.5 points" in scale and "OPD, mixture" not in scale


def test_who_teaches_a_new_student_best_is_told() -> None:
    names = [*TEACHERS, transfer.MOT, transfer.BEST]
    shares = dict(zip(names, (HIGH, LOW, MID, LOW), strict=True))
    cells = {transfer.SECOND: {"base": LOW, **{f"std/{name}": share for name, share in shares.items()}}}
    found = findings_of(transfer.STUDY, cells, {transfer.SECOND: {}})
    asked = [(name, "sums", f"p{index}", 1, index < right, True) for name, right in zip(names, (4, 3, 2, 1), strict=True)
             for index in range(4)]  # fmt: skip
    results = found.outcomes.results[transfer.SECOND]
    coverage = pd.DataFrame(asked, columns=list(results.coverage.columns))
    found.outcomes.results[transfer.SECOND] = dataclasses.replace(results, coverage=coverage)
    spec = found.setup.base.model_copy(
        update={"teachers": [found.setup.base.teachers[0].model_copy(update={"name": name}) for name in names]}
    )
    found.planned[transfer.SECOND] = Planned(Cell(transfer.SECOND, spec), None)  # type: ignore[arg-type]
    said = transfer.text(found)
    assert "The MoT student itself is right on 50.0 % of the problems" in said and "student on 25.0 %." in said
    assert "Higher than from mot-student at the 5 % level: from running-total (+37.5 points" in said
    assert re.search(r"Lower than from mot-student at the 5 % level: .*from tens-and-ones \(−37\.5 points", said)


@pytest.mark.parametrize(("of_mot", "told"), [(0.2, "−60.0 points"), (0.9, "+10.0 points")])
def test_confidence_and_flatness_are_told(monkeypatch: pytest.MonkeyPatch, of_mot: float, told: str) -> None:
    controls = {"shuffled": LOW, "splits/running-total": MID, "shrunk/running-total": HIGH}
    found = findings_of(consensus.STUDY, {"consensus": std(MID, LOW, mtd=LOW, mot=MID, **controls)}, {"consensus": {}})
    specific, rises = {"mot": of_mot, "mtd": 0.8}, {"mot": 0.25, "mtd": 0.5}

    def confidence(method: str, step: Any) -> list[dict[str, Any]]:
        return [
            {"class": name, "problem_id": f"p{problem}", "mean_confidence": value, "num_tokens": 3}
            for name, value in (("shared", 1.0), ("specific", specific[method])) for problem in range(20)
        ]  # fmt: skip

    def landscape(method: str, step: Any) -> list[dict[str, Any]]:
        return [{"measure": "sharpness", "distance": 0.05, "mean_rise": rises[method], "standard_error": 0.01}]

    monkeypatch.setattr(consensus, "confidence_rows_by_problem", confidence)
    monkeypatch.setattr(consensus, "landscape_rows", landscape)
    for kind in ("confidence", "sharpness"):
        for method in ("mot", "mtd"):  # the directory stands for what lies in it
            found.probes.append((Probe(None, {"probe": kind, "method": method, "seed": 1}), method))  # type: ignore[arg-type]
    said = consensus.text(found)
    assert "Shuffled +37.5 points" in said and "Shrunk running-total −37.5 points" in said
    assert (
        f"MTD {told}" in said
        and "not decided" not in said.partition("what only one teacher writes):")[2].partition(". At a relative")[0]
    )
    assert "MoT 0.2500 ± 0.0100; MTD 0.5000 ± 0.0100" in said


def test_subsets_are_all_of_them() -> None:
    from flows.studies.teachers import subsets_of

    assert subsets_of(["a", "b", "c"]) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert study_named("teachers").name == "teachers"
