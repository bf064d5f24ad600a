"""Looks and pictures of studies: no two series of a colour, and no colour lost to a small file."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from mot_core.analysis import page
from mot_core.analysis.drawing import bars, looks_of, panels
from mot_core.analysis.outcomes import Estimate
from mot_core.analysis.page import compact
from mot_core.report.figures.drawing import rendered, style


@pytest.mark.parametrize("names", [["mot", "best STD", "mtd"], ["base", "mot", "a", "b", "c", "d"], list("abcdefghi")])
def test_series_differ_in_colour(names: list[str]) -> None:
    looks = looks_of(names)
    assert list(looks) == names and len({look.colour for look in looks.values()}) == len(names)


def test_series_beyond_the_colours_differ_in_their_markers() -> None:
    teachers = [f"std/t{number}" for number in range(3)]
    names = [
        "base",
        *teachers,
        "mtd",
        "merge_once",
        "mot",
        "shuffled",
        "ensemble",
        *(f"m{number}" for number in range(8)),
    ]
    for wanted in (names, ["mot", *(f"m{number}" for number in range(60))]):
        looks = looks_of(wanted)
        assert len({(look.colour, look.marker) for look in looks.values()}) == len(wanted)


@pytest.mark.parametrize("most_bytes", [150_000, 1])
def test_a_picture_keeps_the_colours_of_small_marks(monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    monkeypatch.setattr(page, "_MOST_BYTES", most_bytes)
    names = [f"method {number}" for number in range(9)]
    looks = looks_of(names)
    with style():
        figure, grid = panels(2)
        for axes in grid:
            bars(axes, names, [Estimate(0.2 + 0.01 * n, 0.1, 0.3, 10, 2) for n in range(9)], looks, names)
        png = rendered("colours", figure).png
    small = compact(png)
    with Image.open(io.BytesIO(small)) as opened:
        assert (opened.mode, len(small) < len(png)) == ("P" if most_bytes == 1 else "RGB", True)
        kept = {colour for _, colour in opened.convert("RGB").getcolors(1 << 20) or ()}
    for name, look in looks.items():
        wanted = tuple(int(look.colour[place : place + 2], 16) for place in (1, 3, 5))
        near = min(max(abs(a - b) for a, b in zip(wanted, colour, strict=True)) for colour in kept)
        assert near <= 6, f"{name}: {look.colour} is gone"
