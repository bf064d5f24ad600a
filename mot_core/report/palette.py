"""One name, colour, marker and place for each method, everywhere in the report.

The colours are Okabe and Ito's and, beyond them, Paul Tol's 'muted' set: told apart with any common colour
blindness. Markers and dashes repeat the distinction, for greyscale print. A teacher has the look of the
student trained on it alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_FIXED_COLOURS = {
    "base": "#767676", "mtd": "#0072B2", "merge_once": "#009E73", "shuffled": "#AA4499",
    "ensemble": "#000000", "mot": "#D55E00", "merged": "#D55E00",
}  # fmt: skip
_TEACHER_COLOURS = ("#56B4E9", "#E69F00", "#882255", "#999933", "#332288", "#88CCEE", "#CC79A7", "#44AA99")
_OTHER_COLOURS = ("#117733", "#CC6677", "#661100", "#6699CC")
_FIXED_MARKERS = {"base": "_", "mtd": "s", "merge_once": "D", "shuffled": "X", "ensemble": "*", "mot": "o"}
_TEACHER_MARKERS = ("^", "v", "<", ">", "p", "h", "d", "8")
_NAMES = {
    "base": "Base", "mtd": "MTD", "merge_once": "Merge once", "shuffled": "Shuffled", "ensemble": "Ensemble",
    "mot": "MoT", "opd": "On-policy", "mot_opd": "MoT, then on-policy",
}  # fmt: skip
_ABOUT = {
    "base": "the student before any training",
    "mtd": "one student trained on the union of all teachers' corpora",
    "merge_once": "one student a teacher, trained apart for the full length and merged once at the end",
    "shuffled": "MoT with the teachers' rationales dealt at random to the branches",
    "ensemble": "majority vote over the STD students; needs all of them at inference",
    "mot": "Merge-of-Thought: branch from the last merge, train one branch a teacher, merge, repeat",
    "opd": "the student trained on its own samples, towards the teachers' distributions of each token",
    "mot_opd": "the last MoT student, trained further on its own samples towards the teachers' distributions",
}
_OF_A_TEACHER = {
    "std": ("STD {}", "the student trained on the corpus of teacher {} alone"),
    "splits": ("Splits of {}", "MoT with its branches on random parts of teacher {}'s corpus"),
    "shrunk": (
        "Shrunk {}",
        "the update of one student trained on teacher {}'s corpus, divided by the number of teachers",
    ),
}
BUDGET_NAMES = {"matched_path": "matched path", "matched_compute": "matched compute"}


@dataclass(frozen=True)
class Look:
    """How a method or teacher is drawn."""

    colour: str
    marker: str
    dashes: str
    width: float


class Palette:
    """The looks of one run's methods and teachers, assigned once from their names."""

    def __init__(self, methods: Iterable[str], teachers: Iterable[str]) -> None:
        seen = list(dict.fromkeys(methods))
        named = [method.removeprefix("std/") for method in seen if method.startswith("std/")]
        self.teachers = list(dict.fromkeys([*teachers, *named]))
        others = [method for method in seen if not method.startswith("std/") and method not in _FIXED_COLOURS]
        self._looks = {
            name: Look(colour, _FIXED_MARKERS.get(name, "o"), "-", 1.4) for name, colour in _FIXED_COLOURS.items()
        }
        self._looks["mot"] = Look(_FIXED_COLOURS["mot"], "o", "-", 2.4)
        self._looks["merged"] = Look(_FIXED_COLOURS["mot"], "o", "-", 2.4)
        for index, teacher in enumerate(self.teachers):
            colour = _TEACHER_COLOURS[index % len(_TEACHER_COLOURS)]
            self._looks[f"std/{teacher}"] = Look(colour, _TEACHER_MARKERS[index % len(_TEACHER_MARKERS)], "--", 1.2)
        for index, method in enumerate(others):
            self._looks[method] = Look(_OTHER_COLOURS[index % len(_OTHER_COLOURS)], "P", "-.", 1.4)
        first, last = ["base"], ["mtd", "merge_once", "shuffled", "ensemble"]
        order = [*first, *(f"std/{teacher}" for teacher in self.teachers), *last, *others, "mot"]
        self.methods = [method for method in order if method in seen]

    def method(self, method: str) -> Look:
        return self._looks.get(method, Look("#444444", "P", ":", 1.2))

    def has_own(self, method: str) -> bool:
        """Whether a method has a look of its own everywhere, and not one by its place among others."""
        return method in _FIXED_COLOURS or method.startswith("std/")

    def teacher(self, teacher: str) -> Look:
        """A teacher's look; for a branch that is no teacher's ('merged', a shuffled part) the method's."""
        return self._looks.get(f"std/{teacher}", self.method(teacher))


def method_name(method: str) -> str:
    """A method's name in text: 'std/x' is 'STD x', a user's own method is as the user wrote it."""
    name, of, teacher = method.partition("/")
    return _OF_A_TEACHER[name][0].format(teacher) if of and name in _OF_A_TEACHER else _NAMES.get(method, method)


def method_about(method: str) -> str:
    """One line on what a method is."""
    name, of, teacher = method.partition("/")
    if of and name in _OF_A_TEACHER:
        return _OF_A_TEACHER[name][1].format(teacher)
    return _ABOUT.get(method, "a method of this experiment's own")


def budget_about(budget: str) -> str:
    """What a budget equalises, in parentheses; nothing for a budget that is not known here."""
    return {
        "matched_path": " (every path has the same number of optimizer steps)",
        "matched_compute": " (paths of one branch get as many steps as all of MoT's branches together)",
    }.get(budget, "")


def budget_name(budget: str) -> str:
    return BUDGET_NAMES.get(budget, budget)
