"""Methods by their names in text."""

from __future__ import annotations

import pytest

from mot_core.report.palette import method_about, method_name


@pytest.mark.parametrize(
    ("method", "name", "about"),
    [
        ("mot", "MoT", "train one branch a teacher"),
        ("std/ann", "STD ann", "the corpus of teacher ann alone"),
        ("splits/ann", "Splits of ann", "random parts of teacher ann's corpus"),
        ("shrunk/ann", "Shrunk ann", "divided by the number of teachers"),
        ("std-low/ann", "std-low/ann", "a method of this experiment's own"),
        ("std", "std", "a method of this experiment's own"),
    ],
)
def test_a_method_has_a_name_and_a_line(method: str, name: str, about: str) -> None:
    assert method_name(method) == name
    assert about in method_about(method)
