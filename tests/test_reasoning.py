"""The reasoning format: each form that teachers write, what is never mined, and writing and parsing back."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mot_core.reasoning import (
    Rationale,
    canonical_text,
    from_parts,
    opening_mark,
    parse_completion,
    thinking_marks,
    with_opening_mark,
)

ANSWERED = [
    # DeepSeek-R1, Qwen3; the laboratory; a prompt that ends in <think> (QwQ, R1 since 2025, Qwen3-2507).
    ("<think>\nr\n</think>\n\na", "r", "a"),
    ("<think>r</think>a", "r", "a"),
    ("r\n</think>\n\na", "r", "a"),
    ("  <think>r</think>a", "r", "a"),
    ("<thinking>\nr\n</thinking>\na", "r", "a"),
    ("<THINK>r</THINK>a", "r", "a"),
    ("[THINK]r[/THINK]a", "r", "a"),
    ("<think>\n\n</think>\n\na", "", "a"),
    # OpenThoughts, Sky-T1, Bespoke-Stratos; open-r1; s1, with the phrase of its budget forcing.
    (
        "<|begin_of_thought|>\n\nr\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\na\n\n<|end_of_solution|>",
        "r",
        "a",
    ),
    ("<think>\nr\n</think>\n<answer>\n4\n</answer>", "r", "4"),
    ("<|im_start|>think\nr\n<|im_start|>answer\nFinal Answer: 4", "r", "Final Answer: 4"),
    # No thinking mark: all is answer, unless an answer mark or a heading splits it.
    ("no marks \\boxed{3}", "", "no marks \\boxed{3}"),
    ("We add. <answer>4</answer>", "We add.", "4"),
    ("We add.\n\n**Final Answer**\n\n\\[ \\boxed{4} \\]", "We add.", "**Final Answer**\n\n\\[ \\boxed{4} \\]"),
    ("We add.\n### Final answer:\n4", "We add.", "### Final answer:\n4"),
    ("We add.\nFinal Answer: The final answer is $4$.", "We add.", "Final Answer: The final answer is $4$."),
    ("a\n**Final Answer**\n1\nwait\n**Final Answer**\n2", "a\n**Final Answer**\n1\nwait", "**Final Answer**\n2"),
    ("The final answer is 4", "", "The final answer is 4"),
    ("So \\boxed{4}.\nFinal answer: four", "", "So \\boxed{4}.\nFinal answer: four"),
    ("<think>r</think>x\n**Final Answer**\n4", "r", "x\n**Final Answer**\n4"),
    # Several blocks: all before the last closing mark is reasoning, what stands between the blocks too.
    ("<think>one</think>x<think>two</think>a", "one\n\nx\n\ntwo", "a"),
    ("said <think>r</think>a", "said\n\nr", "a"),
    ("r</think>x<think>s</think>a", "r\n\nx\n\ns", "a"),
    # Marks that do not alternate stay where they were written; such a rationale is refused when rendered.
    ("r</think>a</think>b", "r</think>a", "b"),
    ("<think>r</think>a</think>b", "r</think>a", "b"),
    ("<think>out<think>in</think>still</think>a", "out<think>in</think>still", "a"),
    # Quoted in code, a mark is text.
    ("<think>r</think>Close with `</think>`.", "r", "Close with `</think>`."),
    ("<think>use `<think>` here</think>a", "use `<think>` here", "a"),
    (
        "<think>form:\n```\n<think>x</think>\n```\nso</think>a",
        "form:\n```\n<think>x</think>\n```\nso",
        "a",
    ),
    ("<think>```python\nunclosed\n</think>\n```python\nx\n```", "```python\nunclosed", "```python\nx\n```"),
    ("<think>a ` b</think>c ` d", "a ` b", "c ` d"),
    # Answer marks that enclose less than the answer are words of the teacher.
    ("<think>r</think><answer>4</answer> or so", "r", "<answer>4</answer> or so"),
    ("<think>r</think><answer>4</answer><answer>5</answer>", "r", "<answer>4</answer><answer>5</answer>"),
    ("<think>r <answer>3</answer></think>4", "r <answer>3</answer>", "4"),
]

TRUNCATED = [
    ("<think>r \\boxed{3}", "r \\boxed{3}"),
    ("<think>", ""),
    ("<think>one</think>\\boxed{3}<think>wait, \\boxed{4}", "one\n\n\\boxed{3}\n\nwait, \\boxed{4}"),
    ("<think>the mark `</think>` ends it", "the mark `\n\n` ends it"),
    ("<think>r <answer>3</answer>", "r <answer>3</answer>"),
    ("<|begin_of_thought|>r<|end_of_thought|><|begin_of_solution|>so \\boxed{3", "r"),
    ("<think>r</think><answer>\\boxed{3}", "r"),
    ("We add.\n**Final Answer**\n", "We add."),
]


@pytest.mark.parametrize(("text", "reasoning", "answer"), ANSWERED)
def test_answered(text: str, reasoning: str, answer: str) -> None:
    assert parse_completion(text) == Rationale(reasoning, answer, "answered")


@pytest.mark.parametrize(("text", "reasoning"), TRUNCATED)
def test_what_is_open_at_the_end_is_truncated_and_holds_no_answer(text: str, reasoning: str) -> None:
    parsed = parse_completion(text)
    assert parsed == Rationale(reasoning, "", "truncated")
    assert not parsed.closed


@pytest.mark.parametrize("text", ["", " \n", "<think></think>", "r</think>", "<think>r</think>\n<answer></answer>"])
def test_empty(text: str) -> None:
    parsed = parse_completion(text)
    assert (parsed.ended, parsed.answer, parsed.closed) == ("empty", "", True)


@pytest.mark.parametrize(
    ("reasoning_content", "content", "expected"),
    [
        ("r", "a", Rationale("r", "a")),
        ("\nr\n", "\n\na", Rationale("r", "a")),
        (None, "<think>r</think>a", Rationale("r", "a")),
        ("", "a", Rationale("", "a")),
        # A heading splits only what has no reasoning of its own.
        ("r", "x\n**Final Answer** 4", Rationale("r", "x\n**Final Answer** 4")),
        ("r", "<answer>4</answer>", Rationale("r", "4")),
        ("r", None, Rationale("r", "", "truncated")),
        ("r </think> \\boxed{3}", "", Rationale("r\n\n\\boxed{3}", "", "truncated")),
        ("r", "<think>more", Rationale("r\n\nmore", "", "truncated")),
        (None, None, Rationale("", "", "empty")),
    ],
)  # fmt: skip
def test_parts_of_a_server(reasoning_content: str | None, content: str | None, expected: Rationale) -> None:
    assert from_parts(reasoning_content, content) == expected


def test_the_canonical_text() -> None:
    assert canonical_text(Rationale("r", "a")) == "<think>r</think>a"
    assert canonical_text(Rationale("", "a")) == "<think></think>a"
    assert canonical_text(Rationale("r", "", "truncated")) == "<think>r"
    # Next to a backtick, the mark would look quoted.
    assert canonical_text(Rationale("so `x`", "`y`")) == "<think>so `x`\n</think>\n`y`"


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<|im_start|>think", "<|im_start|>think"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
        ("What does <think> mean?<|im_end|>", ""),
    ],
)
def test_a_prompt_that_opens_the_reasoning_is_seen(prompt: str, mark: str) -> None:
    assert opening_mark(prompt) == mark
    assert with_opening_mark(prompt, "cut in its reasoning") == mark + "cut in its reasoning"


def test_reasoning_that_the_prompt_opened_and_the_limit_cut_is_not_mined() -> None:
    text = with_opening_mark("…assistant\n<think>\n", "so far \\boxed{3}")
    assert parse_completion(text) == Rationale("so far \\boxed{3}", "", "truncated")
    # A model that opens it again has not opened two blocks.
    assert with_opening_mark("…assistant\n<think>\n", "<think>r</think>a") == "<think>r</think>a"


PIECES = [
    "<think>", "</think>", "<thinking>", "</THINK>", "[THINK]", "[/THINK]", "<|begin_of_thought|>", "<|end_of_thought|>",
    "<|im_start|>think", "<|im_start|>answer", "<answer>", "</answer>", "<|begin_of_solution|>", "<|end_of_solution|>",
    "```\n", "\n```\n", "`", "\n", " ", "~~~\n", "**Final Answer**", "Final answer: ", "\\boxed{4}", "x", "ä", "\u2028",
]  # fmt: skip
MARKED = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
# Hypothesis also draws the constants of these modules, marks among them.
PLAIN = (
    st.text(max_size=40)
    .map(str.strip)
    .filter(
        lambda text: not thinking_marks(text) and not text.lower().startswith(("<answer>", "<|begin_of_solution|>"))
    )
)


@given(MARKED)
@settings(max_examples=500, deadline=None)
def test_invariants_of_what_is_parsed(text: str) -> None:
    parsed = parse_completion(text)
    assert (parsed.ended == "answered") == bool(parsed.answer)
    assert parsed.reasoning == parsed.reasoning.strip() and parsed.answer == parsed.answer.strip()
    if parsed.ended == "truncated" or not thinking_marks(parsed.reasoning + "\n" + parsed.answer):
        assert parse_completion(canonical_text(parsed)) == parsed


@given(PLAIN, PLAIN)
@settings(max_examples=300, deadline=None)
def test_writing_then_parsing_is_the_identity(reasoning: str, answer: str) -> None:
    rationale = Rationale(reasoning, answer, "answered" if answer else "empty")
    assert parse_completion(canonical_text(rationale)) == rationale
    # However its writer sets the marks apart.
    assert parse_completion(f"<think>\n{reasoning}\n</think>\n\n{answer}") == rationale


@given(MARKED, MARKED)
@settings(max_examples=300, deadline=None)
def test_parts_are_written_and_parsed_alike(reasoning: str, content: str) -> None:
    parsed = from_parts(reasoning, content)
    if parsed.ended == "truncated" or not thinking_marks(parsed.reasoning + "\n" + parsed.answer):
        assert parse_completion(canonical_text(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [" " * 200_000 + "x", "**final" + " " * 200_000 + "answer", "`" * 200_001 + "<think>", "```x\n" * 40_000 + "<think>",
     "<think>" * 30_000, "<answer>" * 20_000 + "</answer>" * 20_000, "`<think>`" * 20_000, "**final answer**\n" * 20_000],
)  # fmt: skip
def test_hostile_text_takes_linear_time(text: str) -> None:
    started = time.thread_time()
    parse_completion(text)
    parse_completion("<think>r</think>" + text)
    assert time.thread_time() - started < 20.0  # the slowest takes 0.06 s; a quadratic pattern takes minutes
