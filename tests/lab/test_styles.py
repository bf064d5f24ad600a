"""Rationales: the exact text of each style, and that every one ends in its problem's answer."""

from __future__ import annotations

import re

import pytest

from mot_core.lab.expressions import parse_expression
from mot_core.lab.families import HOME, PRIMERS, draw_problems
from mot_core.lab.styles import STYLES, write_panel_rationale, write_rationale
from mot_core.problems import Problem

SUM = Problem.of("sums", "34+57-12+8", "87")
NEGATIVE = Problem.of("sums", "12-57-83+20", "-108")
PRODUCT = Problem.of("products", "4*17-23+2*31", "107")


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
