"""Problems of reasoning-gym: any of its data sets by name, drawn by seed, graded by the data set's own scorer.

Invariant: a problem's reference answer holds all that grading needs (the data set, its settings, the item), as JSON, so
that an answer can be graded in another process and after the run, without making the item again. The split of a problem
is a function of its question's hash, so no two splits share one, whatever the seeds; an item whose scorer does not take
its own answer, or takes nonsense, is never drawn. Answers are untrusted: a scorer that would evaluate one as Python or
with sympy is kept from it.
Longer than most: drawing items and grading them have to agree on what an item is.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mot_core.errors import ProblemError, SpecError
from mot_core.grading.extraction import final_answer
from mot_core.grading.verdicts import UngradableGold
from mot_core.identity import canonical_json, derive_seed
from mot_core.lab.families import split_of
from mot_core.problems import Problem, normal_question
from mot_core.processes import clean_environment, die_with_parent
from mot_core.spec import Gym, nearest

# Some data sets lay their items out for a size before the first one is made: acre takes 76 s for 100,000 (measured).
_ITEMS = 10_000
# This many items of a split in a row that cannot serve mean the data set, not the item.
_FAULTS = 20
_FRUITLESS_DRAWS = 2_000
# For a data set that hangs on some seed; it would hold its step for ever.
_DRAW_SECONDS = 3600.0

# -- what scorers evaluate ---------------------------------------------------------------------------------
# Read in reasoning-gym 0.1.25. A data set whose module evaluates text and that is not listed here is refused.

# `eval(answer)`, for a part of the credit: at most 0.5, which is not right here. They lose it.
_EVALUATE_FOR_PART_OF_THE_CREDIT = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
# sympy's parser, which evaluates Python. They get formulas only.
_PARSE_FORMULAS = frozenset({
    "countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration",
})  # fmt: skip
# They evaluate text of their own, never the answer.
_EVALUATE_THEIR_OWN = frozenset({
    "basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic",
})  # fmt: skip
_EVALUATION = re.compile(r"(?<![\w.])(?:eval|exec|compile|__import__)\s*\(|(?:parse_expr|sympify)\s*\(")

_FUNCTIONS = "sqrt|sinh|cosh|tanh|asin|acos|atan|sin|cos|tan|sec|csc|cot|exp|log|ln|erf|pi"
# A name of several letters, a quote, an attribute or an underscore has no place in it, and so nothing to call but these.
_FORMULA = re.compile(
    rf"(?:[0-9+\-*/^() \n]|(?<=[0-9])\.(?=[0-9])|(?:{_FUNCTIONS})(?![A-Za-z_])|[A-Za-z](?![A-Za-z_]))+"
)
# What no scorer may take for right: with one that does, everything is.
_NONSENSE = ("?", "nan", "no answer")
# What a scorer raises on an answer that is not of its form. It took its own reference, so it is not broken.
_NOT_OF_THE_FORM = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def installed_version() -> str:
    """The version of reasoning-gym here. It stands in the identity of problems, as a hub data set's revision does: other
    versions make other items of the same seed.

    Raises:
        SpecError: it is not installed.
    """
    try:
        return importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError as error:
        raise SpecError("gym needs the package reasoning-gym; pip install reasoning-gym") from error


def gym_record(gym: Gym) -> dict[str, Any]:
    """What of a gym enters the identity of problems."""
    return {**gym.model_dump(mode="json"), "version": installed_version()}


def check_gym(gym: Gym, where: str) -> None:
    """Raise `SpecError` unless a data set is known, may be graded, and takes its settings."""
    known = _data_sets()
    if gym.dataset not in known:
        raise SpecError(
            f"{where}.dataset: reasoning-gym {installed_version()} has no {gym.dataset!r}; "
            f"{nearest(gym.dataset, known)}known: {', '.join(sorted(known))}"
        )
    if _evaluates_unread(gym.dataset):
        raise SpecError(
            f"{where}.dataset: {gym.dataset!r} evaluates text, and how it treats answers was never looked at; choose "
            "another data set"
        )
    fields = sorted(set(known[gym.dataset][1].__dataclass_fields__) - {"seed", "size"})
    for name in gym.settings:
        if name not in fields:
            own = "it follows from the source's own seed and num_problems; " if name in ("seed", "size") else ""
            raise SpecError(
                f"{where}.settings.{name}: {gym.dataset} has no such setting; {own}{nearest(name, fields)}"
                f"known: {', '.join(fields)}"
            )
    try:
        _data_set(gym.dataset, _settings_text(gym.settings), 1, 0)
    except Exception as error:  # its own checks, most of them assertions
        raise SpecError(
            f"{where}.settings: {gym.dataset} does not take {dict(gym.settings)}: {type(error).__name__}: {error}"
        ) from None


def draw_problems(gym: Mapping[str, Any], split: str, num_problems: int, seed: int) -> list[Problem]:
    """`num_problems` distinct problems of one split of a `gym_record`, in an order that the seed fixes.

    A shorter draw is a prefix of a longer one with the same seed.

    Raises:
        ProblemError: another version than the record's is installed, or the data set does not have as many that serve.
    """
    if gym["version"] != installed_version():
        raise ProblemError(
            f"gym {gym['dataset']}: this run was planned with reasoning-gym {gym['version']}, and here is "
            f"{installed_version()}; start the same command again"
        )
    asked = {"gym": dict(gym), "split": split, "num_problems": num_problems, "seed": seed}
    # Some items follow the order of a set of strings, and so the interpreter's hash seed, which is another in each process.
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mot_core.gym"], input=canonical_json(asked), capture_output=True, text=True, check=False,
            timeout=_DRAW_SECONDS,
            env=clean_environment({}, {
                "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore", "PYTHONIOENCODING": "utf-8",
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            }),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ProblemError(
            f"gym {gym['dataset']}: drawing {num_problems} problems with seed {seed} did not end in {_DRAW_SECONDS:g} s; "
            "choose another seed, other settings or another data set"
        ) from error
    if done.returncode != 0:
        raise ProblemError(
            f"gym {gym['dataset']}: the process that draws its problems ended with status {done.returncode}; it said: "
            f"{done.stderr.strip()[-500:]}"
        )
    # Data sets print what they like; the last line is ours.
    drawn = json.loads(done.stdout.splitlines()[-1])
    if "refused" in drawn:
        raise ProblemError(drawn["refused"])
    return [Problem.of(gym["dataset"], question, gold) for question, gold in drawn["problems"]]


def main() -> None:
    """Draw what standard input asks for, as `draw_problems` does, in this process, which ends with the one that asks."""
    die_with_parent()
    asked = json.load(sys.stdin)
    try:
        drawn: dict[str, Any] = {"problems": list(_drawn(**asked))}
    except ProblemError as error:
        drawn = {"refused": str(error)}
    print("", json.dumps(drawn), sep="\n")


def _drawn(gym: Mapping[str, Any], split: str, num_problems: int, seed: int) -> list[tuple[str, str]]:
    """`(question, reference)` of each problem."""
    problems: list[tuple[str, str]] = []
    seen: set[str] = set()
    fault, num_faults, fruitless = "", 0, 0
    for item in _items(gym, seed):
        key = normal_question(item.question)
        fruitless += 1
        if key not in seen and split_of(f"gym/{gym['dataset']}", key) == split:
            seen.add(key)
            found = item.fault()
            if found is None:
                fruitless, num_faults = 0, 0
                problems.append((item.question, item.gold))
            else:
                fault, num_faults = found, num_faults + 1
        if len(problems) == num_problems:
            return problems
        if num_faults == _FAULTS or fruitless == _FRUITLESS_DRAWS:
            break
    raise ProblemError(
        f"gym {gym['dataset']}, split {split!r}: expected {num_problems} distinct problems, found {len(problems)}; "
        + (f"then {num_faults} could not serve, the last: {fault}; " if num_faults else "")
        + "ask for fewer, or choose other settings or another data set"
    )


def is_right(gold: str, answer: str) -> bool:
    """Whether the data set of a reference answer scores an answer 1. The reference stands for the answer that it holds.

    Raises:
        UngradableGold: a reference that is none of ours.
    """
    try:
        held = json.loads(gold)
        name, settings, item = held["dataset"], held["settings"], {key: held[key] for key in ("answer", "metadata")}
        known = name in _data_sets()
    except (ValueError, TypeError, LookupError) as error:
        raise UngradableGold(
            f"the reference answer {gold[:80]!r} is not of a problem that gym drew; the grader gym grades no others"
        ) from error
    if not known or _evaluates_unread(name):
        raise UngradableGold(f"reasoning-gym {installed_version()} has no data set {name!r} that can be graded")
    stated = str(item["answer"]).strip() if answer == gold else answer
    if name in _PARSE_FORMULAS and not _FORMULA.fullmatch(stated):
        return False
    try:
        score = _data_set(name, _settings_text(settings), 1, 0).score_answer(stated, item)
    except _NOT_OF_THE_FORM:
        return False
    return float(score) >= 1.0


@dataclass(frozen=True)
class _Item:
    """One item of a data set."""

    question: str
    gold: str
    """Its reference answer as a problem holds it: JSON, or empty where JSON cannot say it."""
    problem: str = ""
    """Why it has none."""

    def fault(self) -> str | None:
        """Why an item cannot serve; None if it can."""
        if self.problem:
            return self.problem
        reference = json.loads(self.gold)["answer"]
        stated = final_answer(f"\\boxed{{{reference}}}")
        if stated is None:
            return f"its answer cannot be stated in a box: {reference[:60]!r}"
        if not is_right(self.gold, stated):
            return f"its scorer does not take its own answer: {reference[:60]!r}"
        taken = [text for text in _NONSENSE if is_right(self.gold, text)]
        return f"its scorer takes {taken[0]!r} for right" if taken else None


def _items(gym: Mapping[str, Any], seed: int) -> Iterator[_Item]:
    """A data set's items, one after another."""
    # It seeds item i with seed + i, so neighbouring seeds would share all items but one; numpy takes 32 bits.
    first = derive_seed("gym", gym["dataset"], seed) % 2**31
    try:
        items = _data_set(gym["dataset"], _settings_text(gym["settings"]), _ITEMS, first)
    except Exception as error:  # checks of its own
        raise ProblemError(f"gym {gym['dataset']}: it cannot be made: {type(error).__name__}: {error}") from error
    for index in range(_ITEMS):
        try:
            item = items[index]
            question, answer = str(item["question"]).strip(), item["answer"]
        except Exception as error:  # some give up on a seed
            yield _Item(f"{gym['dataset']} {index}", "", f"it cannot be made: {type(error).__name__}: {error}")
            continue
        if not isinstance(answer, str) or not answer.strip() or not question:
            yield _Item(question, "", f"it has no reference answer in text, got {answer!r}")
            continue
        held = {key: gym[key] for key in ("dataset", "settings")}
        try:
            gold = json.dumps({"answer": answer, **held, "metadata": item["metadata"]}, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            yield _Item(question, "", f"it holds what JSON cannot say: {error}")
            continue
        yield _Item(question, gold)


def _data_sets() -> Mapping[str, Any]:
    """reasoning-gym's data sets by name: class and configuration."""
    # Imported here: it takes a second or more, and reading a spec needs no generator.
    from reasoning_gym.factory import DATASETS  # type: ignore[import-untyped, unused-ignore]

    sets: Mapping[str, Any] = DATASETS
    return sets


def _evaluates_unread(name: str) -> bool:
    """Whether a data set's module evaluates text in a way that was not looked at."""
    read = _EVALUATE_FOR_PART_OF_THE_CREDIT | _PARSE_FORMULAS | _EVALUATE_THEIR_OWN
    return name not in read and _EVALUATION.search(_source(name)) is not None


@functools.cache
def _source(name: str) -> str:
    return inspect.getsource(sys.modules[_data_sets()[name][0].__module__])


def _settings_text(settings: Mapping[str, Any]) -> str:
    return canonical_json(dict(settings))


@functools.lru_cache(maxsize=64)
def _data_set(name: str, settings: str, size: int, seed: int) -> Any:
    """A data set; its scorer without what evaluates an answer."""
    from reasoning_gym import create_dataset

    made = create_dataset(name, size=size, seed=seed, **json.loads(settings))
    if name in _EVALUATE_FOR_PART_OF_THE_CREDIT:
        vars(sys.modules[type(made).__module__])["eval"] = _refuse
    return made


def _refuse(*arguments: Any) -> None:
    """Stands where a scorer would evaluate an answer."""
    raise ValueError("answers are not evaluated")


if __name__ == "__main__":
    main()
