"""Written teachers: one always right, one never, both in the laboratory's form, and usable from a spec."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.run import outline_of
from mot_core.artifacts import Store
from mot_core.completers.base import Completion, Request, Source
from mot_core.errors import CompletionError, ModelError
from mot_core.files import read_jsonl
from mot_core.lab.families import HOME, PRIMERS, check_answer, draw_problems
from mot_core.lab.levels import boxed_answer
from mot_core.lab.styles import STYLES, write_rationale
from mot_core.lab.tokenizer import ALPHABET, END, build_tokenizer
from mot_core.lab.writers import WRITTEN_STYLES, StyleWriter, write_completion
from mot_core.spec import Sampling
from mot_core.steps import load_object, walk
from mot_core.world import resolve
from tests.contexts import run
from tests.pico import pico_experiment

FORM = re.compile(r"<think>([^<>]+)</think>\\boxed\{([0-9]+)\}")


def _answers(style: str, questions: list[str], limit: int = 96, seed: int = 1) -> list[Completion]:
    writer = StyleWriter(Source(f"lab-style/{style}", None, Sampling(max_completion_tokens=limit)))
    accepted: list[list[Completion]] = []
    requests = [Request.of({"generation": seed}, f"p-{at}", question, 0) for at, question in enumerate(questions)]
    writer.complete(requests, accepted.append, lambda tokens: None)
    return [completion for group in accepted for completion in group]


@pytest.mark.parametrize(
    ("question", "completion"),
    [
        ("34+57-12+8", "<think>8 and -12 is -4 and 57 is 53 and 34 is 87</think>\\boxed{87}"),
        (
            "4*17-23+2*31",
            "<think>2*31 or 62 and -23 is 39 and 4*17 or 68 is 107</think>\\boxed{107}",
        ),
        ("90-2*31", "<think>-2*31 or -62 and 90 is 28</think>\\boxed{28}"),
        ("5*38", "<think>5*38 or 190</think>\\boxed{190}"),
    ],
)
def test_shifted_writes_exactly_this(question: str, completion: str) -> None:
    assert write_completion("shifted", question, 1) == completion == write_completion("shifted", question, 2)


@pytest.mark.parametrize("family", [*HOME, *PRIMERS])
def test_shifted_is_always_right_and_longer_than_the_forged_styles(family: str) -> None:
    problems = draw_problems(family, "train", 1500, 41)
    for problem, completion in zip(problems, _answers("shifted", [p.question for p in problems]), strict=True):
        found = FORM.fullmatch(completion.text)
        assert found is not None and completion.finish_reason == "stop"
        assert re.findall(r"-?[0-9]+", found[1])[-1] == found[2] == problem.answer
        assert set(found[1]) <= set(ALPHABET)
        assert found[1] not in {write_rationale(style, problem) for style in STYLES}
        assert len(found[1]) > len(write_rationale("running-total", problem))


@pytest.mark.parametrize("family", [*HOME, *PRIMERS])
def test_wrong_is_never_right(family: str) -> None:
    problems = draw_problems(family, "train", 1500, 42)
    completions = _answers("wrong", [p.question for p in problems])
    for problem, completion in zip(problems, completions, strict=True):
        found = FORM.fullmatch(completion.text)
        assert found is not None and completion.finish_reason == "stop"
        assert not check_answer(family, problem.answer, found[2]), (problem, completion.text)
        assert re.findall(r"-?[0-9]+", found[1])[-1] == found[2]


def test_wrong_goes_wrong_in_one_digit_of_one_step_of_a_running_total() -> None:
    wrong_steps = set()
    for problem in draw_problems("products", "train", 500, 43):
        right = write_rationale("running-total", problem).split(";")
        text = write_completion("wrong", problem.question, int(problem.problem_id[-6:], 16))
        steps = text.removeprefix("<think>").partition("</think>")[0].split(";")
        assert len(steps) == len(right)
        false = []
        for at, step in enumerate(steps):
            left, sign, number, result = re.fullmatch(r"([0-9]+)([-+*])([0-9]+)=([0-9]+)", step).groups()  # type: ignore[union-attr]
            a, b = int(left), int(number)
            true = str({"+": a + b, "-": a - b, "*": a * b}[sign])
            if result != true:
                false.append(at)
                assert len(result) == len(true) and sum(x != y for x, y in zip(result, true, strict=True)) == 1
        assert len(false) == 1, text
        assert steps[: false[0]] == right[: false[0]]
        wrong_steps.add(false[0])
    assert wrong_steps == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("question", ["34", "0", "12-57", "10-90-20", "9-10", "99-99", "9-90"])
def test_wrong_is_wrong_on_sums_that_no_family_has(question: str) -> None:
    answer = boxed_answer(write_completion("shifted", question, 0))
    assert answer is not None
    for seed in range(200):
        assert boxed_answer(write_completion("wrong", question, seed)) not in (None, answer)


def test_the_seed_of_the_request_decides_the_error() -> None:
    question = "34+57-12+8"
    assert _answers("wrong", [question]) == _answers("wrong", [question])
    assert len({completion.text for seed in range(40) for completion in _answers("wrong", [question], seed=seed)}) > 15


def test_tokens_are_the_tokenizers_and_the_limit_cuts() -> None:
    tokenizer = build_tokenizer()
    (whole,) = _answers("shifted", ["34+57-12+8"])
    ids = tokenizer.encode(whole.text + END)
    assert whole.num_tokens == len(ids) <= 96
    for limit in (len(ids), len(ids) - 1, 12, 1):
        (cut,) = _answers("shifted", ["34+57-12+8"], limit)
        assert cut.text == tokenizer.decode(ids[:limit]).removesuffix(END)
        assert cut.num_tokens == limit
        assert cut.finish_reason == ("stop" if limit == len(ids) else "length")


@pytest.mark.parametrize("style", WRITTEN_STYLES)
@pytest.mark.parametrize("question", ["reverse planet", "7:45+1:30", "", "__import__('os')"])
def test_other_questions_are_refused(style: str, question: str) -> None:
    with pytest.raises(CompletionError, match=f"problem p-0: style '{style}' cannot reason about it: expected a sum"):
        _answers(style, [question])


@pytest.mark.parametrize("locator", ["lab-style/shift", "shifted", "lab/shifted", "lab-style/"])
def test_an_unknown_style_is_refused(locator: str) -> None:
    with pytest.raises(ModelError, match="expected one of lab-style/shifted, lab-style/wrong, got"):
        StyleWriter(Source(locator, None, Sampling()))
    with pytest.raises(ValueError, match="unknown style 'running-total': expected one of shifted, wrong"):
        write_completion("running-total", "1+2", 0)


def test_a_spec_with_written_teachers_loads_plans_and_generates(pico_models: Path, tmp_path: Path) -> None:
    completer = "mot_core.lab.writers:StyleWriter"
    document: list[dict[str, Any]] = [
        {
            "name": style,
            "model": f"lab-style/{style}",
            "completer": completer,
            "sampling": {"max_completion_tokens": 96},
        }
        for style in WRITTEN_STYLES
    ]
    spec = pico_experiment(pico_models, teachers=document)
    planned = outline_of(spec, replace(resolve(spec), removed=()))[1]
    store = Store(tmp_path / "store").open()
    verdicts = {}
    for graded in (step for step in planned if step.kind == "verdicts"):
        for step in walk([graded]):
            path = run(store, step.kind, step.spec, step.parents, step.locators).path
        verdicts[graded.facts["teacher"]] = [row["verdict"] for row in read_jsonl(path / "verdicts.jsonl")]
    assert verdicts == {"shifted": ["correct"] * 12, "wrong": ["incorrect"] * 12}


def test_writers_need_no_torch() -> None:
    code = "import sys, mot_core.lab.writers; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_the_import_path_is_the_class() -> None:
    assert load_object("mot_core.lab.writers:StyleWriter", "completer") is StyleWriter
