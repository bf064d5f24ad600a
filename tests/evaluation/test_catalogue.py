"""Benchmarks by name: each entry on rows in its published columns, what a spec may change, and what reaches the model.

Rows are made up; nothing of a benchmark is here. Their columns are those of the entry's cards.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from mot_core.artifacts import Store
from mot_core.completers.base import Accept, Completion, Request, Source
from mot_core.dag import StudentAt, evaluation_step, problems_step
from mot_core.errors import ProblemError, SpecError
from mot_core.evaluation import catalogue
from mot_core.evaluation.catalogue import BOXED, CATALOGUE, LETTER
from mot_core.files import read_jsonl, write_jsonl
from mot_core.formats import FORMATS, question_with_choices, right_letter
from mot_core.grading.pool import GradingPool
from mot_core.grading.verdicts import GRADERS, GradeItem
from mot_core.problems import Problem
from mot_core.spec import Benchmark, Experiment
from mot_core.spec_files import load_spec, load_specs, overridden, spec_to_yaml
from mot_core.stages import problems_from
from mot_core.steps import Step
from mot_core.world import files_identity, resolve
from tests.contexts import publish, run
from tests.pico import pico_document

HUB = [name for name, entry in CATALOGUE.items() if "hub" in entry.fields]


def aime_row(number: int) -> dict[str, Any]:
    """AI-MO/aimo-validation-aime: id, problem, solution, answer, url, the first an int64."""
    return {"id": number, "problem": f"What is ${number}+0$?", "solution": f"\\boxed{{{number}}}", "answer": f"{number:03}",
            "url": f"https://example.org/{number}"}  # fmt: skip


def aime25_row(number: int) -> dict[str, Any]:
    """math-ai/aime25, by the card of its copy MultiturnRL/AIME25: problem, answer, id, all text."""
    return {"problem": f"What is ${number}+0$?", "answer": str(number), "id": str(number)}


def math_row(number: int) -> dict[str, Any]:
    """HuggingFaceH4/MATH-500, by the card of its copy macabdul9/MATH-500."""
    return {"problem": f"Halve ${number}$.", "solution": "s", "answer": f"\\frac{{{number}}}{{2}}", "subject": "Algebra",
            "level": 2, "unique_id": f"test/algebra/{number}.json"}  # fmt: skip


def gpqa_row(number: int) -> dict[str, Any]:
    """Idavidrein/gpqa: those of its columns that are read, and some that are not."""
    wrong = {f"Incorrect Answer {n}": f"{number} wrong, {n}" for n in (1, 2, 3)}
    return {"Question": f"Which is right of {number}?\n", "Correct Answer": f"{number} right", **wrong,
            "Explanation": "because", "Subdomain": "Optics", "Record ID": f"rec{number}", "Canary String": "made up"}  # fmt: skip


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "aime24": aime_row, "aime25": aime25_row, "math-500": math_row, "gpqa-diamond": gpqa_row,
}  # fmt: skip


def entry_of(entry: str, /, **fields: Any) -> Benchmark:
    return Benchmark.model_validate({"benchmark": entry, **fields})


def step_of(benchmark: Benchmark, split: str = "test") -> Step:
    files = {benchmark.file: files_identity(benchmark.file, "file")} if benchmark.file is not None else {}
    return problems_step(benchmark, files, role="benchmark", grader=benchmark.grader, label=benchmark.name, split=split)


def drawn_from(benchmark: Benchmark, split: str = "test") -> list[Problem]:
    return problems_from(step_of(benchmark, split).spec, benchmark.file).problems


# -- entries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HUB)
def test_an_entry_reads_a_local_file_in_its_published_columns(tmp_path: Path, name: str) -> None:
    rows = [ROWS[name](number) for number in range(90 if name == "aime24" else 3)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    benchmark = entry_of(name, file=str(tmp_path / "rows.jsonl"))
    problems = drawn_from(benchmark)
    expected = {
        "aime24": ("What is $60+0$?", "060", 30),
        "aime25": ("What is $0+0$?", "0", 3),
        "math-500": ("Halve $0$.", "\\frac{0}{2}", 3),
        "gpqa-diamond": ("Which is right of 0?\n\nA. 0 right\nB. 0 wrong, 3\nC. 0 wrong, 1\nD. 0 wrong, 2", "A", 3),
    }  # fmt: skip
    assert (problems[0].question, problems[0].answer, len(problems)) == expected[name]
    if benchmark.has_dev:
        dev = drawn_from(benchmark, "dev")
        assert len(dev) == 60 and not {one.problem_id for one in dev} & {one.problem_id for one in problems}
    else:
        with pytest.raises(ProblemError, match="splits has no entry for 'dev'"):
            drawn_from(benchmark, "dev")


@pytest.mark.parametrize("name", HUB)
def test_an_entry_asks_the_hub_for_what_it_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load(hub: str, config: str | None, *, split: str, revision: str) -> Any:
        asked.append((hub, config, split, revision))
        return datasets.Dataset.from_list([ROWS[name](number) for number in range(2)])

    monkeypatch.setattr("datasets.load_dataset", load)
    assert len(drawn_from(entry_of(name))) == 2
    ((hub, config, split, revision),) = asked
    assert (hub, config) == (CATALOGUE[name].fields["hub"], CATALOGUE[name].fields.get("config"))
    assert split == {"aime24": "train[60:]", "gpqa-diamond": "train"}.get(name, "test")
    assert len(revision) == 40, "a commit, so that a data set that changes is another benchmark"


def test_every_entry_is_complete_and_says_where_it_is_from() -> None:
    assert {"aime24", "aime25", "math-500", "gpqa-diamond"} == set(HUB)
    for name, entry in CATALOGUE.items():
        benchmark = entry_of(name)
        assert benchmark.name == name and benchmark.grader in GRADERS and entry.notes
        if name in HUB:
            assert benchmark.hub in entry.cards and set(FORMATS[str(benchmark.format)].cards) & set(entry.cards)
            sampling = benchmark.sampling
            assert (sampling.temperature, sampling.top_p, sampling.max_completion_tokens) == (0.6, 0.95, 32_768)
    assert [entry_of(name).k for name in HUB] == [16, 16, 4, 4]
    assert {name for name in HUB if entry_of(name).has_dev} == {"aime24"}


def test_every_entry_can_stand_in_one_spec(pico_models: Path) -> None:
    document = pico_document(pico_models)
    document["evaluation"]["benchmarks"] = [{"benchmark": name} for name in CATALOGUE]
    spec = Experiment.model_validate(document)
    assert len(spec.evaluation.benchmarks) == len(CATALOGUE)
    resolve(spec)


# -- what a spec changes -----------------------------------------------------------------------------------


def test_a_spec_stands_over_its_entry() -> None:
    changed = entry_of("math-500", name="math", k=1, sampling={"max_completion_tokens": 100}, prompt=None, role="home")
    assert (changed.name, changed.k, changed.role, changed.prompt) == ("math", 1, "home", None)
    assert changed.sampling.record() == {"temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 100}
    assert changed.hub == "HuggingFaceH4/MATH-500"


def test_another_source_takes_the_place_of_the_entrys() -> None:
    gpqa = CATALOGUE["gpqa-diamond"].fields
    mirror = entry_of("gpqa-diamond", hub="mine/gpqa")
    assert (mirror.hub, mirror.revision, mirror.config, mirror.splits) == ("mine/gpqa", None, None, gpqa["splits"])
    assert (mirror.format, mirror.license) == ("gpqa", None)  # a copy has its columns; whose it is, the spec says
    sums = entry_of("gpqa-diamond", families=["sums"], num_problems=4, grader="integer")
    assert (sums.splits, sums.format, sums.license) == (None, Benchmark.model_fields["format"].default, None)
    file = entry_of("aime24", file="aime.csv")
    assert (file.hub, file.revision, file.splits) == (None, None, {"dev": "train[:60]", "test": "train[60:]"})
    assert entry_of("aime25", file="aime.csv").splits == {"test": "train"}
    assert entry_of("aime24", file="aime.csv", splits={"test": "train"}).splits == {"test": "train"}


def test_a_file_may_say_by_a_column_what_is_dev(tmp_path: Path) -> None:
    rows = [{**math_row(number), "split": ("dev", "test")[number % 2]} for number in range(6)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    benchmark = entry_of(
        "math-500", file=str(tmp_path / "mine.jsonl"), splits=None, columns={"split": "split"}, role="home"
    )
    assert benchmark.has_dev
    assert [problem.question for problem in drawn_from(benchmark, "dev")] == ["Halve $0$.", "Halve $2$.", "Halve $4$."]
    assert len(drawn_from(benchmark)) == 3


def spec_with(models: Path, tmp_path: Path, *benchmarks: Mapping[str, Any]) -> Path:
    document = pico_document(models)
    document["evaluation"]["benchmarks"] += benchmarks
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ({"benchmark": "aime2024"}, r"benchmarks\.2: benchmark 'aime2024' is not in the catalogue; did you mean 'aime24'\? known: aime24, aime25, math-500, gpqa-diamond"),
        ({"benchmark": 24}, r"benchmark 24 is not in the catalogue"),
        ({"benchmark": "aime24", "kk": 3}, r"benchmarks\.2\.kk: unknown field \(value 3\); .*allowed: benchmark, hub"),
        ({"benchmrk": "aime24"}, r"benchmrk: unknown field .*did you mean 'benchmark'\?"),
        ({"benchmark": "aime24", "prompt": "{question}{choices}"}, r"no other placeholder, got \{question\}, \{choices\}"),
        ({"benchmark": "aime24", "prompt": "{question} of{choices}"}, r"no other placeholder, got \{question\}, \{choices\}"),
        ({"benchmark": "aime24", "prompt": "Solve it."}, r"prompt needs \{question\} once and no other placeholder, got none in 'Solve it\.'"),
        ({"benchmark": "aime24", "prompt": "{problem}"}, r"got \{problem\} in"),
        ({"benchmark": "aime24", "prompt": "{question} {question}"}, r"got \{question\}, \{question\} in"),
        ({"benchmark": "aime24", "prompt": "\\boxed{question}: {question}"}, r"prompt needs \{question\} once"),
        ({"benchmark": "aime24", "hub": "a/b", "file": "c.jsonl"}, r"give exactly one of families, gym, file, hub, import_path; got \['file', 'hub'\]"),
    ],
)  # fmt: skip
def test_what_is_refused(pico_models: Path, tmp_path: Path, given: dict[str, Any], phrase: str) -> None:
    with pytest.raises(SpecError, match=phrase):
        load_spec(str(spec_with(pico_models, tmp_path, given)))


def test_braces_of_tex_are_no_placeholders() -> None:
    prompt = "{question}\nGive \\frac{a}{b} as \\boxed{answer}, the set as $\\{1,2\\}$."
    assert entry_of("math-500", prompt=prompt).prompt == prompt


def test_overrides_find_an_entry_by_its_name(pico_models: Path, tmp_path: Path) -> None:
    path = spec_with(pico_models, tmp_path, {"benchmark": "aime24"}, {"benchmark": "aime24", "name": "short"})
    spec = load_spec(str(path), [
        "evaluation.benchmarks.aime24.k=1", "evaluation.benchmarks.short.sampling.max_completion_tokens=8",
    ])  # fmt: skip
    _, _, aime24, short = spec.evaluation.benchmarks
    assert (aime24.k, aime24.sampling.max_completion_tokens) == (1, 32_768)
    assert (short.k, short.sampling.record()) == (
        16, {"temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 8},
    )  # fmt: skip


# -- what a run holds --------------------------------------------------------------------------------------


def test_a_run_holds_fields_and_no_name_of_an_entry(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(str(spec_with(pico_models, tmp_path, {"benchmark": "aime24"})))
    (tmp_path / "spec.yaml").write_text(spec_to_yaml(spec))
    dumped = yaml.safe_load((tmp_path / "spec.yaml").read_text())["evaluation"]["benchmarks"][2]
    assert dumped["prompt"] == BOXED and dumped["k"] == 16 and "benchmark" not in dumped
    by_hand = Benchmark.model_validate({**CATALOGUE["aime24"].fields, "name": "another"})
    assert step_of(by_hand).identity == step_of(spec.evaluation.benchmarks[2]).identity
    later = catalogue.Entry({**CATALOGUE["aime24"].fields, "k": 99, "prompt": "{question}", "revision": None}, 30)
    monkeypatch.setitem(CATALOGUE, "aime24", later)
    assert load_spec(str(tmp_path / "spec.yaml")) == spec == overridden(spec, [])
    assert entry_of("aime24").k == 99


def test_prompt_and_system_are_identity_only_where_they_are_given(pico_models: Path) -> None:
    spec = Experiment.model_validate(pico_document(pico_models))
    world = resolve(spec)

    def evaluation(**changes: Any) -> Step:
        benchmark = spec.evaluation.benchmarks[0].model_copy(update=changes)
        return evaluation_step(spec, world, benchmark, StudentAt(world.student), on="test", label="", facts={})

    plain, prompted, told = evaluation(), evaluation(prompt=BOXED), evaluation(system="Be brief.")
    assert not {"prompt", "system"} & set(plain.spec)
    assert evaluation(prompt=None, system=None).identity == plain.identity
    assert (prompted.spec["prompt"], told.spec["system"]) == (BOXED, "Be brief.")
    assert len({plain.identity, prompted.identity, told.identity}) == 3
    assert len({step.parent("problems").identity for step in (plain, prompted, told)}) == 1, "the problems are the same"


class Recording:
    """Answers A, and writes down in `<locator>/asked.jsonl` what it was asked under which system message."""

    batched: ClassVar[bool] = True

    def __init__(self, source: Source) -> None:
        self.source = source

    def facts(self) -> dict[str, Any]:
        return {"engine": "Recording"}

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        with (Path(self.source.locator) / "asked.jsonl").open("a") as file:
            for request in requests:
                file.write(json.dumps([request.question, self.source.system, request.key, request.problem_id]) + "\n")
        accept([Completion.of(request, "<think>…</think>\\boxed{A}", 3, "stop") for request in requests])


SPEC = {
    "student": "s", "k": 1, "num_samples": 1, "sampling": {"temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 64},
    "grader": "choice", "completer": f"{__name__}:Recording", "seed": 3, "batch_size": 4, "max_failed_share": 0.0,
}  # fmt: skip


def test_prompt_and_system_reach_the_model(tmp_path: Path) -> None:
    store, place = Store(tmp_path / "store").open(), tmp_path / "student"
    place.mkdir()
    problem = Problem.of("f", "Which? {question}", "A")
    parent = publish(
        store, Step("problems", {}), lambda path: write_jsonl(path / "problems.jsonl", [problem.to_json()])
    )
    asked = []
    for more in ({}, {"prompt": LETTER}, {"system": "Be brief."}, {"prompt": LETTER, "system": "Be brief."}):
        made = run(store, "evaluation", {**SPEC, **more}, (("problems", parent),), {"student": str(place)})
        assert made.counts["avg_at_k"] == 1.0 and made.counts["num_asked"] == 1
        asked.append(json.loads((place / "asked.jsonl").read_text().splitlines()[-1]))
        rows = read_jsonl(made.path / "completions.jsonl")
        assert [(row["key"], row["problem_id"]) for row in rows] == [(asked[-1][2], problem.problem_id)]
    texts = [text for text, *_ in asked]
    assert texts[0] == texts[2] == "Which? {question}" and texts[1] == texts[3]
    assert texts[1].startswith("Which? {question}\n\nPlease reason") and texts[1].endswith("\\boxed{}.")
    assert [system for _, system, *_ in asked] == [None, None, "Be brief.", "Be brief."]
    keys = [key for _, _, key, _ in asked]
    assert len(set(keys)) == 4
    # The key of a benchmark without either is what it was before there were any.
    scope = {"benchmark": "evaluation", "sampling": SPEC["sampling"], "seed": 3}
    assert (
        keys[0] == Request.of(scope, problem.problem_id, problem.question, 0).key == "5d39da9ded4c23499b5dc9e1e362cc2f"
    )


# -- GPQA ------------------------------------------------------------------------------------------------


def cells_of(number: int) -> list[str]:
    row = gpqa_row(number)
    return [row["Question"], row["Correct Answer"], *(row[f"Incorrect Answer {n}"] for n in (1, 2, 3))]


def test_the_order_of_choices_follows_from_the_texts_alone() -> None:
    question, right, *wrong = cells_of(7)
    shown = {question_with_choices([question, right, *order]) for order in itertools.permutations(wrong)}
    letters = {right_letter([question, right, *order]) for order in itertools.permutations(wrong)}
    assert len(shown) == len(letters) == 1
    assert f"{letters.pop()}. {right}" in shown.pop().splitlines()
    # Another choice being the right one changes the letter alone.
    assert question_with_choices([question, wrong[0], right, *wrong[1:]]) == question_with_choices(cells_of(7))
    assert right_letter([question, wrong[0], right, *wrong[1:]]) != right_letter(cells_of(7))


def test_the_right_answer_stands_at_every_letter_alike() -> None:
    counts = Counter(right_letter(cells_of(number)) for number in range(400))
    assert set(counts) == set("ABCD")
    # Chi-squared with 3 degrees of freedom: 16.3 is exceeded once in a thousand by a fair order; this one is fixed.
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 16.3


def test_gpqa_as_the_repositorys_csv_has_it(tmp_path: Path) -> None:
    rows = [{**gpqa_row(1), "Correct Answer": "042", "Incorrect Answer 1": 'a, "quoted"\nsecond line'}]
    with (tmp_path / "gpqa_diamond.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (problem,) = drawn_from(entry_of("gpqa-diamond", file=str(tmp_path / "gpqa_diamond.csv")))
    assert f"{problem.answer}. 042" in problem.question.splitlines() and 'a, "quoted"\nsecond line' in problem.question
    with GradingPool(1) as pool:
        said = [f"\\boxed{{{problem.answer}}}", f"**Answer:** ({problem.answer})", "\\boxed{042}", "\\boxed{A or B}"]
        graded = pool.grade([GradeItem("choice", "gpqa", problem.answer, text) for text in said])
    assert [one.verdict.value for one in graded] == ["correct", "correct", "incorrect", "incorrect"]


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"Incorrect Answer 2": "5 right "}, r"rows\.jsonl:1: the right answer is also a wrong one: '5 right'"),
        ({"Incorrect Answer 2": ""}, r"rows\.jsonl:1: expected 4 choices, got an empty one"),
        ({"Question": " "}, r"rows\.jsonl:1: question is empty or absent"),
    ],
)
def test_a_row_of_gpqa_that_cannot_be_asked(tmp_path: Path, changes: dict[str, Any], phrase: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{**gpqa_row(5), **changes}])
    with pytest.raises(ProblemError, match=phrase):
        drawn_from(entry_of("gpqa-diamond", file=str(tmp_path / "rows.jsonl")))


def test_a_column_of_gpqa_that_is_missing_is_named(tmp_path: Path) -> None:
    row = gpqa_row(5)
    del row["Incorrect Answer 3"]
    write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ProblemError, match=r"no row has .*'Incorrect Answer 3'|'Incorrect Answer 3'"):
        drawn_from(entry_of("gpqa-diamond", file=str(tmp_path / "rows.jsonl")))


# -- the command and the presets -----------------------------------------------------------------------------


def test_mot_benchmarks_lists_every_entry() -> None:
    done = CliRunner().invoke(app, ["benchmarks"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line.split() for line in done.output.splitlines()[1:] if line.strip()}
    assert list(lines) == list(CATALOGUE)
    shown = "Idavidrein/gpqa (gpqa_diamond) 198 no 4 32,768 choice cc-by-4.0"
    assert " ".join(lines["gpqa-diamond"][1:]) == shown
    assert "Example: mot benchmarks" in CliRunner().invoke(app, ["benchmarks", "--help"]).output


@pytest.mark.parametrize(
    ("preset", "changes"),
    [("paper-qwen3-14b", [{}, {}, {}]), ("single-gpu-24gb", [{"k": 8}, {"k": 8}, {"k": 1}])],
)
def test_the_gpu_presets_ask_what_the_catalogue_says(preset: str, changes: list[dict[str, Any]]) -> None:
    asked = load_specs(preset)[0].evaluation.benchmarks[:3]
    short = {"sampling": {"max_completion_tokens": 8192}} if preset == "single-gpu-24gb" else {}
    names = ("aime24", "aime25", "math-500")
    assert list(asked) == [entry_of(name, **short, **more) for name, more in zip(names, changes, strict=True)]
