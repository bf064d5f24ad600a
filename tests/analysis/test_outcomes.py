"""Arms and their differences: values by hand, pairing, what is refused, words that follow the sign."""

from __future__ import annotations

import pytest

from mot_core.analysis.outcomes import Arm, Outcomes, corrected, difference, estimate
from mot_core.analysis.ranking import Ranking
from mot_core.analysis.wording import described, sizes, tally
from mot_core.errors import StoreError
from tests.analysis.made import outcomes_of, results_of

LOW, HIGH = [0.0, 0.25] * 20, [0.75, 1.0] * 20


def test_an_estimate_is_the_mean_over_problems_and_seeds() -> None:
    outcomes = Outcomes()
    outcomes.add("one", {}, results_of({"mot": [0.0, 0.5, 1.0, 0.25]}, seeds=(1, 2)))
    found = outcomes.estimate(Arm("one", "mot"))
    assert found.mean == pytest.approx(1.75 / 4)
    assert found.low < found.mean < found.high
    assert (found.num_problems, found.num_seeds) == (4, 2)


def test_a_difference_is_paired_by_problem() -> None:
    # Every problem gains, though less than problems differ: unpaired, the gain would drown in their spread.
    before, gain = [0.0, 0.25, 0.5, 0.75] * 10, [0.25, 0.0] * 20
    after = [share + more for share, more in zip(before, gain, strict=True)]
    outcomes = outcomes_of({"a": {"mot": after}, "b": {"mot": before}})
    found = outcomes.difference(Arm("a", "mot"), Arm("b", "mot"))
    assert found.delta == 0.125
    assert 0.08 < found.low < 0.125 < found.high < 0.17
    assert found.p_value < 0.001 and found.verdict == "higher"
    turned = outcomes.difference(Arm("b", "mot"), Arm("a", "mot"))
    assert (turned.delta, turned.verdict, turned.p_value) == (-0.125, "lower", found.p_value)


def test_arms_with_other_problems_cannot_be_paired() -> None:
    with pytest.raises(StoreError, match=r"a and b were asked different problems \(1 differ\)"):
        difference("a", {("sums", "p0"): 1.0}, "b", {("sums", "p0"): 1.0, ("sums", "p1"): 0.0}, 1)


def test_an_arm_that_is_not_there_is_named_with_those_that_are() -> None:
    outcomes = outcomes_of({"one": {"mot": LOW, "mtd": HIGH}})
    with pytest.raises(StoreError, match="no test scores of std/x in one.*the cell has mot, mtd"):
        outcomes.by_problem(Arm("one", "std/x"))
    with pytest.raises(StoreError, match="has no single teacher's student"):
        outcomes.best_teacher("one")


def test_roles_and_benchmarks_are_kept_apart() -> None:
    outcomes = Outcomes()
    outcomes.add("one", {}, results_of({"mot": LOW, "mot@panel": HIGH}, roles={"panel": "panel"}))
    arm = Arm("one", "mot")
    assert outcomes.estimate(arm).mean == 0.125
    assert outcomes.estimate(arm, role="panel").mean == 0.875
    assert outcomes.estimate(arm, role=None).mean == 0.5


def test_holm_over_a_table_lifts_what_stood_alone() -> None:
    slight = [0.25] * 6 + [0.0] * 34
    outcomes = outcomes_of({"a": {"mot": slight}, "b": {"mot": [0.0] * 40}})
    alone = outcomes.difference(Arm("a", "mot"), Arm("b", "mot"))
    assert alone.p_value < 0.05 and alone.verdict == "higher"
    table = corrected([alone] * 4)
    assert [one.adjusted for one in table] == pytest.approx([min(1.0, 4 * alone.p_value)] * 4)
    assert {one.verdict for one in table} == {"open"}
    assert corrected([]) == []


def test_words_follow_the_sign() -> None:
    outcomes = outcomes_of({"a": {"mot": HIGH}, "b": {"mot": LOW}})
    up = outcomes.difference(Arm("a", "mot"), Arm("b", "mot"))
    down = outcomes.difference(Arm("b", "mot"), Arm("a", "mot"))
    level = outcomes.difference(Arm("a", "mot"), Arm("a", "mot"))
    assert described(up).startswith("+75.0 points [") and "not decided" not in described(up)
    assert described(down).startswith("−75.0 points [")
    assert described(level).endswith("not decided")
    assert tally([up, down, down, level], "in favour", "against") == (
        "of 4 differences 1 is in favour, 2 are against and 1 is not decided"
    )
    assert tally([up], "in favour", "against") == "the difference is in favour"
    assert sizes([up, estimate({("sums", "p0"): 1.0}, 3)]) == "n = 1 to 40 problems, 1 to 3 training seeds"


@pytest.mark.parametrize("turned", [False, True])
def test_a_ranking_says_which_side_each_arm_is_on(turned: bool) -> None:
    good, bad = ("b", "a") if turned else ("a", "b")
    outcomes = outcomes_of({good: {"mot": HIGH}, bad: {"mot": LOW}, "mid": {"mot": [0.5] * 40}})
    ranking = Ranking(outcomes, {name: Arm(name, "mot") for name in ("a", "b", "mid")}, "mid")
    said = ranking.sentences()
    assert f"Higher than mid at the 5 % level: {good} (+37.5 points" in said
    assert f"Lower than mid at the 5 % level: {bad} (−37.5 points" in said
    rows = ranking.rows(note={"a": "first"})
    assert list(rows["what"]) == ["a", "b", "mid (reference)"]
    assert list(rows["note"]) == ["first", "", ""]
    assert list(rows["against mid"])[2] == ""
