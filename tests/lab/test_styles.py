"""Rationales: the exact text of each style, and that every one ends in its problem's answer."""

from __future__ import annotations

import re

import pytest

from mot_core.lab.expressions import parse_expression
from mot_core.lab.families import HOME, LATER_HOME, LATER_PRIMERS, PRIMERS, draw_problems
from mot_core.lab.styles import CLOCK_STYLES, STYLES, write_panel_rationale, write_rationale
from mot_core.lab.times import parse_times
from mot_core.problems import Problem

SUM = Problem.of("sums", "34+57-12+8", "87")
NEGATIVE = Problem.of("sums", "12-57-83+20", "-108")
PRODUCT = Problem.of("products", "4*17-23+2*31", "107")
CLOCK = Problem.of("clock", "7:45+1:30-0:50", "8:25")
CARRIED_BACK = Problem.of("clock", "9:45+1:10-1:35-4:45", "4:35")
PAIR = Problem.of("short-clock", "0:55+0:05", "1:00")


@pytest.mark.parametrize(
    ("style", "problem", "rationale"),
    [
        ("running-total", SUM, "34+57=91;91-12=79;79+8=87"),
        ("gains-and-losses", SUM, "g:34,91,99;l:12;99-12=87"),
        ("tens-and-ones", SUM, "t:3,8,7,7;o:4,11,9,17;70+17=87"),
        ("running-total", NEGATIVE, "12-57=-45;-45-83=-128;-128+20=-108"),
        ("gains-and-losses", NEGATIVE, "g:12,32;l:57,140;32-140=-108"),
        ("tens-and-ones", NEGATIVE, "t:1,-4,-12,-10;o:2,-5,-8,-8;-100-8=-108"),
        ("running-total", PRODUCT, "4*17=68;68-23=45;2*31=62;45+62=107"),
        ("gains-and-losses", PRODUCT, "g:4*17=68,2*31=62,130;l:23;130-23=107"),
        ("tens-and-ones", PRODUCT, "4*17=68;2*31=62;t:6,4,10;o:8,5,7;100+7=107"),
        ("clock-running", CLOCK, "7:45+1:30=9:15;9:15-0:50=8:25"),
        ("hours-and-minutes", CLOCK, "h:7,8,8;m:45,75,25;8+0:25=8:25"),
        ("all-minutes", CLOCK, "465+90=555;555-50=505;505=8:25"),
        ("clock-running", CARRIED_BACK, "9:45+1:10=10:55;10:55-1:35=9:20;9:20-4:45=4:35"),
        ("hours-and-minutes", CARRIED_BACK, "h:9,10,9,5;m:45,55,20,-25;5-1:35=4:35"),
        ("all-minutes", CARRIED_BACK, "585+70=655;655-95=560;560-285=275;275=4:35"),
        ("clock-running", PAIR, "0:55+0:05=1:00"),
        ("hours-and-minutes", PAIR, "h:0,0;m:55,60;0+1:00=1:00"),
        ("all-minutes", PAIR, "55+5=60;60=1:00"),
    ],
)
def test_styles_write_exactly_this(style: str, problem: Problem, rationale: str) -> None:
    assert write_rationale(style, problem) == rationale


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", [*HOME, *PRIMERS])
def test_every_rationale_ends_in_the_answer(style: str, family: str) -> None:
    for problem in draw_problems(family, "train", 500, 31):
        rationale = write_rationale(style, problem)
        numbers = re.findall(r"-?[0-9]+", rationale)
        assert numbers[-1] == problem.answer, (problem.question, rationale)
        assert len(rationale) <= 70


@pytest.mark.parametrize("style", CLOCK_STYLES)
@pytest.mark.parametrize("family", [*LATER_HOME, *LATER_PRIMERS])
def test_every_rationale_of_times_ends_in_the_answer(style: str, family: str) -> None:
    for problem in draw_problems(family, "train", 2000, 31):
        rationale = write_rationale(style, problem)
        assert re.findall(r"[0-9]+:[0-9]+", rationale)[-1] == problem.answer == rationale.rpartition("=")[2]
        assert len(rationale) <= 52


def test_every_stated_equation_of_times_holds() -> None:
    def minutes(text: str) -> int:
        hours, colon, rest = text.rpartition(":")
        return 60 * int(hours) + int(rest) if colon else int(rest)

    for problem in draw_problems("clock", "train", 500, 32):
        for style in ("clock-running", "all-minutes"):
            steps = write_rationale(style, problem).split(";")
            found = [re.fullmatch(r"([0-9:]+)([+-])([0-9:]+)=([0-9:]+)", step) for step in steps]
            matched = [equation.groups() for equation in found if equation is not None]
            # all-minutes ends in a step that only reads the total as a time.
            assert len(matched) == len(parse_times(problem.question)) - 1
            for left, sign, right, result in matched:
                change = minutes(right) if sign == "+" else -minutes(right)
                assert minutes(left) + change == minutes(result)


@pytest.mark.parametrize("family", HOME)
def test_every_stated_equation_holds(family: str) -> None:
    for style in STYLES:
        for problem in draw_problems(family, "train", 200, 32):
            for left, sign, right, result in re.findall(
                r"(-?[0-9]+)([-+*])([0-9]+)=(-?[0-9]+)", write_rationale(style, problem)
            ):
                a, b = int(left), int(right)
                assert int(result) == {"+": a + b, "-": a - b, "*": a * b}[sign]


def test_styles_differ_on_every_home_problem() -> None:
    for problem in draw_problems("sums", "train", 100, 33):
        assert len({write_rationale(style, problem) for style in STYLES}) == 3
    for problem in draw_problems("clock", "train", 100, 33):
        assert len({write_rationale(style, problem) for style in CLOCK_STYLES}) == 3


def test_counting_is_tallied_and_other_panel_skills_go_unreasoned() -> None:
    assert write_panel_rationale(Problem.of("count", "count e in he sees", "3")) == "h0e1s1e2e3s3"
    assert write_panel_rationale(Problem.of("reverse", "reverse planet", "tenalp")) == ""


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown style 'guesswork': expected one of running-total"):
        write_rationale("guesswork", SUM)


@pytest.mark.parametrize("text", ["", "34+", "34++5", "3 4", "reverse planet", "-34+5", "__import__('os')", "1*34"])
def test_other_text_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match="expected a sum such as"):
        parse_expression(text)


@pytest.mark.parametrize(
    "text", ["", "7:45+", "7:5", "7:60", "24:00", "07:45", "7:455", "34+57", "-7:45", "7:45 + 1:30"]
)
def test_other_text_is_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="expected times such as"):
        parse_times(text)


def test_a_style_is_refused_on_problems_of_another_kind() -> None:
    with pytest.raises(ValueError, match="expected times such as 7:45"):
        write_rationale("clock-running", SUM)
    with pytest.raises(ValueError, match="expected a sum such as"):
        write_rationale("running-total", CLOCK)
