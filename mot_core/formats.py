r"""Named column mappings: how the public data sets that experiments here start from spell what a problem and a
rationale are made of.

Invariant: a mapping only reads. What a data set wraps around a question (chat marks, the standing request to box the
answer) is taken off, so that one question has one text in every source: duplicates, benchmarks and rationales are found
by it. A cell that cannot be read raises `ValueError` with the reason, and the row counts as rejected, never as empty.
Longer than most: one entry a data set.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mot_core.grading.extraction import boxed_answer

PROBLEM_COLUMNS = ("question", "answer", "family", "split", "id")
RATIONALE_COLUMNS = (
    "question", "rationale", "reasoning", "response", "messages", "sample_index", "num_tokens", "finish_reason", "id",
)  # fmt: skip
COLUMNS = tuple(dict.fromkeys((*PROBLEM_COLUMNS, *RATIONALE_COLUMNS)))

_CHAT_MARKS = re.compile(r"<[｜|](?:begin▁of▁sentence|User|Assistant)[｜|]>|<think>\s*\Z")
_INSTRUCTIONS = (
    re.compile(r"\A\s*Return your final response within \\boxed\{\}\.\s*"),
    re.compile(
        r"\s*Please reason step[ -]by[ -]step,? and put your final answer within \\boxed\{\}\.?\s*\Z", re.IGNORECASE
    ),
)


@dataclass(frozen=True)
class Column:
    """Where one of our columns lies: the first of `paths` (dots reach into records) that a row has."""

    paths: tuple[str, ...]
    transform: Callable[[Any], Any] | None = None
    """From the cell to text, or to turns; absent: the cell as text (messages: as they are)."""
    together: bool = False
    """A column that is made of several: all of `paths` must be there, and `transform` gets the list of their cells."""

    @classmethod
    def of(cls, *paths: str, transform: Callable[[Any], Any] | None = None) -> Column:
        return cls(paths, transform)


@dataclass(frozen=True)
class Format:
    """One data set's columns. `cards` are the hub ids whose cards, or whose users' code, the columns were read from."""

    cards: tuple[str, ...]
    license: str | None
    """As the cards state it; None where they state none, or where none could be read."""
    columns: Mapping[str, Column]
    unverified: str = ""
    """What could not be read from a card or from code that uses the data set."""


def as_text(cell: Any) -> str:
    """A cell as text: whole numbers without a fraction, truth values as in JSON; half surrogate pairs replaced.

    Raises:
        ValueError: lists and records, which have no one text.
    """
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        # Tables keep a column of whole and broken numbers in floats: 3 must not come back as 3.0.
        whole = math.isfinite(cell) and cell == int(cell) and abs(cell) < 2**53
        return "" if math.isnan(cell) else str(int(cell)) if whole else repr(cell)
    if isinstance(cell, (list, tuple, dict)):
        raise ValueError(f"expected text, got a {type(cell).__name__}: {str(cell)[:60]}")
    return str(cell).encode("utf-8", "replace").decode()


def without_instruction(text: str) -> str:
    r"""A question without the request to reason and to box the answer; give that with a teacher's `system`."""
    for pattern in _INSTRUCTIONS:
        text = pattern.sub("", text)
    return text.strip()


def bare_question(cell: Any) -> str:
    """The question inside a rendered prompt: without chat marks, an opened `<think>` and the instruction."""
    return without_instruction(_CHAT_MARKS.sub("", as_text(cell)))


def after_hashes(cell: Any) -> str:
    """GSM8K's reference answer: what follows `####`."""
    text = as_text(cell)
    _, mark, answer = text.rpartition("####")
    if not mark:
        raise ValueError(f"expected a solution that ends in '#### answer', got {text[-60:]!r}")
    return answer.strip()


def boxed_or_whole(cell: Any) -> str:
    """A reference solution's boxed answer; without any box the text itself, which may be the answer."""
    text = as_text(cell).strip()
    return boxed_answer(text) or text


def only_answer(cell: Any) -> str:
    r"""The one reference answer of a list such as `["\\boxed{12}"]`, without its box."""
    golds = list(cell) if isinstance(cell, (list, tuple)) else [cell]
    answers = list(dict.fromkeys(boxed_or_whole(gold) for gold in golds))
    if len(answers) > 1:
        raise ValueError(f"expected one reference answer, got {len(answers)}: {str(answers)[:80]}")
    return answers[0] if answers else ""


def joined(cell: Any) -> str:
    """A list of texts as paragraphs."""
    return "\n\n".join(map(as_text, cell)) if isinstance(cell, (list, tuple)) else as_text(cell)


_LETTERS = "ABCD"


def lettered_choices(cells: Sequence[Any]) -> list[tuple[str, str]]:
    """`(letter, choice)` of a question, its right answer and its wrong ones, in the order in which they are shown.

    The order is that of a hash of question and choice, so it follows from the texts alone: no seed, no row number, and
    nothing that says which one is right.

    Raises:
        ValueError: an empty choice, or a wrong answer that is the right one.
    """
    question, *choices = (as_text(cell).strip() for cell in cells)
    if not all(choices):
        raise ValueError(f"expected {len(choices)} choices, got an empty one")
    if choices[0] in choices[1:]:
        raise ValueError(f"the right answer is also a wrong one: {choices[0][:60]!r}")
    ordered = sorted(choices, key=lambda choice: hashlib.sha256(f"{question}\x00{choice}".encode()).hexdigest())
    return list(zip(_LETTERS, ordered, strict=True))


def question_with_choices(cells: Sequence[Any]) -> str:
    """A question and its lettered choices, one a line. Empty where there is no question."""
    question = as_text(cells[0]).strip()
    shown = "\n".join(f"{letter}. {choice}" for letter, choice in lettered_choices(cells))
    return f"{question}\n\n{shown}" if question else ""


def right_letter(cells: Sequence[Any]) -> str:
    """The letter of the right answer, which is the cell after the question's."""
    right = as_text(cells[1]).strip()
    return next(letter for letter, choice in lettered_choices(cells) if choice == right)


def turns_of(cell: Any) -> list[tuple[str, str, str]]:
    """`(role, reasoning, content)` of each turn of a chat: role and content, or from and value.

    Raises:
        ValueError: no list of turns.
    """
    if not isinstance(cell, Sequence) or isinstance(cell, str) or not all(isinstance(turn, Mapping) for turn in cell):
        raise ValueError(f"expected a list of turns, got {str(cell)[:60]!r}")
    roles = {"human": "user", "gpt": "assistant"}
    turns = []
    for turn in cell:
        role = as_text(turn.get("role") or turn.get("from"))
        content = turn.get("content") if turn.get("content") is not None else turn.get("value")
        turns.append((roles.get(role, role), as_text(turn.get("reasoning_content")), as_text(content)))
    return turns


def asked_turn(cell: Any) -> str:
    """The one question of a chat.

    Raises:
        ValueError: none, or several: an answer to the last of several questions is no answer to it alone.
    """
    asked = [content for role, _, content in turns_of(cell) if role == "user"]
    if len(asked) != 1:
        raise ValueError(f"expected one user turn, got {len(asked)}")
    return without_instruction(asked[0])


def answered_turn(cell: Any) -> tuple[str, str]:
    """`(reasoning, content)` of a chat's last assistant turn; reasoning is empty where the turn does not part it."""
    answered = [(reasoning, content) for role, reasoning, content in turns_of(cell) if role == "assistant"]
    if not answered:
        raise ValueError("expected an assistant turn, got none")
    return answered[-1]


_GPQA = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")

FORMATS: dict[str, Format] = {
    "boba": Format(
        ("inclusionAI/AReaL-boba-Data",), None,
        {
            "question": Column.of("prompt", transform=bare_question),
            "answer": Column.of("solutions", transform=only_answer),
        },
        "whether query_id is unique, so it is not read; the card's licence (inclusionAI/AReaL-RL-Data, where the file was first, states apache-2.0); columns are from "
        "the code and documents of AReaL and RLinf, which read it",
    ),
    "s1k": Format(
        ("simplescaling/s1K",), "apache-2.0",
        {
            "question": Column.of("question"),
            "answer": Column.of("solution", transform=boxed_or_whole),
            "reasoning": Column.of("thinking_trajectories", transform=joined),
            "response": Column.of("attempt"),
        },
        "columns are from a copy's card (skytliang/s1K)",
    ),
    "s1k-1.1": Format(
        ("simplescaling/s1K-1.1",), "mit",
        {
            "question": Column.of("question"),
            "answer": Column.of("solution", transform=boxed_or_whole),
            "reasoning": Column.of("deepseek_thinking_trajectory"),
            "response": Column.of("deepseek_attempt"),
        },
        "columns are from a copy's card (skytliang/s1K-1.1)",
    ),
    "s1k-1.1-gemini": Format(
        ("simplescaling/s1K-1.1",), "mit",
        {
            "question": Column.of("question"),
            "answer": Column.of("solution", transform=boxed_or_whole),
            "reasoning": Column.of("gemini_thinking_trajectory"),
            "response": Column.of("gemini_attempt"),
        },
        "columns are from a copy's card (skytliang/s1K-1.1)",
    ),
    "limo": Format(
        ("GAIR/LIMO",), "apache-2.0",
        {
            "question": Column.of("question"),
            "answer": Column.of("answer"),
            "rationale": Column.of("solution"),
        },
        "columns are from NVIDIA's code that reads it",
    ),
    "openthoughts": Format(
        ("open-thoughts/OpenThoughts-114k",), "apache-2.0",
        {
            "question": Column.of("conversations", transform=asked_turn),
            "messages": Column.of("conversations"),
        },
        "columns are from a sample's card by the same authors (ryanmarten/OpenThoughts-1k-sample)",
    ),
    "openthoughts-metadata": Format(
        ("open-thoughts/OpenThoughts-114k",), "apache-2.0",
        {
            "question": Column.of("problem", transform=bare_question),
            "answer": Column.of("ground_truth_solution", transform=boxed_or_whole),
            "reasoning": Column.of("deepseek_reasoning"),
            "response": Column.of("deepseek_solution"),
        },
        "columns are from a sample's card by the same authors (ryanmarten/OpenThoughts-1k-sample)",
    ),
    "openmathreasoning": Format(
        ("nvidia/OpenMathReasoning",), "cc-by-4.0",
        {
            "question": Column.of("problem"),
            "answer": Column.of("expected_answer"),
            "rationale": Column.of("generated_solution"),
        },
        "the values of generation_model (DeepSeek-R1, QwQ-32B) and of problem_type (has_answer_extracted, "
        "no_answer_extracted, converted_proof) are from code and documents that use the data set",
    ),
    "aime": Format(
        ("AI-MO/aimo-validation-aime", "HuggingFaceH4/aime_2024", "math-ai/aime25"), "apache-2.0",
        {
            "question": Column.of("problem", "question"),
            "answer": Column.of("answer"),
            "id": Column.of("id", "problem_idx"),
        },
        "the licence is that of AI-MO/aimo-validation-aime; HuggingFaceH4/aime_2024 states none; the card of "
        "math-ai/aime25 was not read (its columns are from code that reads it and from a copy, MultiturnRL/AIME25)",
    ),
    "math-500": Format(
        ("HuggingFaceH4/MATH-500",), None,
        {
            "question": Column.of("problem"),
            "answer": Column.of("answer"),
            "id": Column.of("unique_id"),
        },
        "the card states no licence; columns are from cards of data made from it (lewtun/bon-prm-serverless-batched)",
    ),
    "gpqa": Format(
        ("Idavidrein/gpqa",), "cc-by-4.0",
        {
            "question": Column(_GPQA, question_with_choices, together=True),
            "answer": Column(_GPQA, right_letter, together=True),
            "id": Column.of("Record ID"),
        },
        "the card's list of columns was read in a conversion of the same repository (refs/pr/3); gated",
    ),
    "gsm8k": Format(
        ("openai/gsm8k",), "mit",
        {
            "question": Column.of("question"),
            "answer": Column.of("answer", transform=after_hashes),
        },
    ),
    "nemo-skills": Format(
        (), None,
        {
            "question": Column.of("problem"),
            "answer": Column.of("expected_answer"),
            # parse_reasoning=True moves the whole text there and leaves only the answer in `generation`.
            "rationale": Column.of("_full_generation", "generation"),
            "reasoning": Column.of("reasoning_content"),
            "num_tokens": Column.of("num_generated_tokens"),
            "finish_reason": Column.of("finish_reason"),
        },
        "no card: columns are from NVIDIA/NeMo-Skills' code (0b012df); its rows are licensed as their teacher and data are",
    ),
}  # fmt: skip
"""By name. `nemo-skills` reads output-rs<seed>.jsonl, whose seed is the sample index."""
