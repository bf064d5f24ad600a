"""What teachers will be asked and what the student will learn, before anything runs: `mot preview`.

Prompts and examples come from the code that generation and training use, with the tokenizers alone: no weights are
loaded, nothing is asked of an endpoint, and the store is only read. Invariant: a rationale that no teacher wrote is
marked as made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mot_core.artifacts import Store
from mot_core.files import read_jsonl
from mot_core.prepare import run_here, store_or_temporary
from mot_core.problems import Problem
from mot_core.prompts import assistant_message, render_example, render_prompt, user_messages
from mot_core.reasoning import Rationale
from mot_core.spec import Endpoint, Experiment, Teacher
from mot_core.steps import Step
from mot_core.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MADE_UP = "No teacher wrote this: it only shows the form."


@dataclass(frozen=True)
class PromptPreview:
    """What one teacher is asked first. One of `prompt` (rendered here), `request` (rendered by a server) and `rows`
    (nothing is asked: where its rationales lie) is given."""

    teacher: str
    completer: str
    system: str | None
    template_kwargs: Mapping[str, Any]
    prompt: str | None = None
    num_tokens: int | None = None
    request: dict[str, Any] | None = None
    rows: str | None = None


@dataclass(frozen=True)
class TokenPreview:
    """One token of an example: its part of the text, and whether the loss counts it."""

    text: str
    counts: bool


@dataclass(frozen=True)
class ExamplePreview:
    """The student's first training example, as a branch would see it."""

    teacher: str
    problem_id: str
    prompt: str
    completion: str
    tokens: tuple[TokenPreview, ...]
    max_example_tokens: int
    made_up: bool

    @property
    def fits(self) -> bool:
        return len(self.tokens) <= self.max_example_tokens


@dataclass(frozen=True)
class Preview:
    """The first problem, each teacher's first prompt, and the first training example."""

    problem: Problem
    prompts: tuple[PromptPreview, ...]
    example: ExamplePreview


def preview(spec: Experiment, world: World, corpora: Step, store: Store | None) -> Preview:
    """The preview of an experiment with its corpora step; from what its store holds already, where it does.

    Raises:
        MotError: what generation or training would stop at: a template that fails or loses the reasoning, …
    """
    from mot_core.models import load_tokenizer  # imports torch: 2 s, and the flow's process has none

    problem = first_problem(world, corpora.parent("problems"), store)
    prompts = tuple(_prompt(spec, world, teacher, problem.question) for teacher in spec.teachers)
    student = load_tokenizer(world.student.locator, world.student.revision)
    row = _first_corpus_row(spec, corpora, store)
    return Preview(problem, prompts, _example(student, spec, row or _made_up_row(spec, problem), made_up=row is None))


def first_problem(world: World, step: Step, store: Store | None) -> Problem:
    """The first training problem that no benchmark holds: a published one, else drawn into a directory that goes away."""
    drawn = step if step.kind == "problems" else step.parent("problems")
    known = store.find(drawn.identity) if store is not None else None
    with store_or_temporary(store if known is not None else None) as place:
        published = known or run_here(drawn, place)
        rows = read_jsonl(published.path / "problems.jsonl")
    row = next(row for row in rows if row["problem_id"] not in (world.removed or ()))
    return Problem(row["problem_id"], row["family"], row["question"], row["answer"])


def _prompt(spec: Experiment, world: World, teacher: Teacher, question: str) -> PromptPreview:
    from mot_core.models import load_tokenizer

    own = (teacher.name, teacher.completer, teacher.system, teacher.template_kwargs)
    model = world.models[teacher.name]
    if teacher.rationales is not None:
        return PromptPreview(*own, rows=model.locator)
    if teacher.endpoint is not None:
        return PromptPreview(*own, request=_request(spec, teacher, teacher.endpoint, question))
    tokenizer = load_tokenizer(model.locator, model.revision)
    text = render_prompt(tokenizer, question, system=teacher.system, template_kwargs=teacher.template_kwargs)
    num_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return PromptPreview(*own, prompt=text, num_tokens=num_tokens)


def _request(spec: Experiment, teacher: Teacher, endpoint: Endpoint, question: str) -> dict[str, Any]:
    """The request's body, its seed apart; an endpoint renders the prompt itself."""
    from mot_core.completers.base import Source
    from mot_core.completers.endpoint_client import request_fields

    source = Source(
        locator=teacher.model, revision=None, sampling=spec.generation.sampling_of(teacher), system=teacher.system,
        template_kwargs=teacher.template_kwargs,
    )  # fmt: skip
    return {
        "model": teacher.model,
        "messages": user_messages(question, teacher.system),
        **request_fields(source, endpoint),
    }


def _first_corpus_row(spec: Experiment, corpora: Step, store: Store | None) -> dict[str, Any] | None:
    """The first row of the published corpora; None where there is none."""
    from mot_core.corpus.tables import read_corpus

    published = store.find(corpora.identity) if store is not None else None
    if published is None:
        return None
    tables = (read_corpus(published.path / f"{teacher.name}.parquet") for teacher in spec.teachers)
    return next((rows[0] for rows in tables if rows), None)


def _made_up_row(spec: Experiment, problem: Problem) -> dict[str, Any]:
    rationale = Rationale(MADE_UP, f"\\boxed{{{problem.answer}}}")
    return {
        "problem_id": problem.problem_id,
        "question": problem.question,
        "teacher": spec.teachers[0].name,
        "messages": [*user_messages(problem.question), assistant_message(rationale)],
    }


def _example(
    tokenizer: PreTrainedTokenizerBase, spec: Experiment, row: dict[str, Any], *, made_up: bool
) -> ExamplePreview:
    """A corpus row as tokens with the labels that training gives them."""
    from mot_core.sft.layout import IGNORED, collate
    from mot_core.sft.tokens import tokenize

    example = tokenize(tokenizer, row)
    batch = collate([example], spec.training.layout, 0)
    counts = [label != IGNORED for label in batch.labels_BL[0].tolist()]
    answer = row["messages"][-1]
    prompt, completion = render_example(
        tokenizer, row["question"], Rationale(answer["reasoning_content"] or "", answer["content"])
    )
    texts = _token_texts(tokenizer, prompt + completion, example.input_ids)
    return ExamplePreview(
        row["teacher"], row["problem_id"], prompt, completion,
        tuple(map(TokenPreview, texts, counts)), spec.training.max_example_tokens, made_up,
    )  # fmt: skip


def _token_texts(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[str]:
    """Each token's own part of the text; a character of several tokens stands with the first of them."""
    if not tokenizer.is_fast:  # such a tokenizer cannot say where a token came from
        return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    texts, shown = [], 0
    for start, end in offsets:
        texts.append(text[max(start, shown) : end])
        shown = max(shown, end)
    return texts
