"""The reasoning format: rendering a rationale and parsing it gives it back; nothing unclosed holds an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mot_core.errors import ModelError
from mot_core.lab.tokenizer import ALPHABET, build_tokenizer
from mot_core.prompts import Rationale, parse_completion, render_example, render_prompt, require_chat_template


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "closed"),
    [
        ("<think>r</think>a", "r", "a", True),
        ("<think></think>", "", "", True),
        ("", "", "", True),
        ("no marks \\boxed{3}", "", "no marks \\boxed{3}", True),
        ("r</think>a", "r", "a", True),
        ("r</think>a</think>b", "r</think>a", "b", True),
        ("<think>r \\boxed{3}", "r \\boxed{3}", "", False),
        ("<think>", "", "", False),
        ("  <think>r</think>a", "r", "a", True),
        ("said <think>r</think>a", "r", "said a", True),
        ("<think>one</think>x<think>two</think>a", "one</think>x<think>two", "a", True),
        ("<think>r</think>a</think>b", "r</think>a", "b", True),
    ],
)
def test_parse(text: str, reasoning: str, answer: str, closed: bool) -> None:
    assert parse_completion(text) == Rationale(reasoning, answer, closed)


def test_a_reopened_and_unclosed_block_holds_no_answer() -> None:
    parsed = parse_completion("<think>one</think>\\boxed{3}<think>wait, \\boxed{4}")
    assert parsed == Rationale("one</think>\\boxed{3}<think>wait, \\boxed{4}", "", closed=False)


def test_reasoning_that_the_prompt_opened_is_not_mined_when_the_model_thinks_again() -> None:
    assert parse_completion("r \\boxed{1}</think>x<think>s</think>a").answer == "a"


PLAIN = st.text(alphabet=ALPHABET, max_size=60)


@given(reasoning=PLAIN, answer=PLAIN)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_render_then_parse_is_the_identity_or_refused(tokenizer: Any, reasoning: str, answer: str) -> None:
    rationale = Rationale(reasoning, answer)
    prompt, completion = render_example(tokenizer, "1+1", rationale)
    assert prompt == render_prompt(tokenizer, "1+1") == "<|user|>1+1<|end|><|assistant|>"
    assert completion == f"<think>{reasoning}</think>{answer}<|end|>"
    assert parse_completion(completion.removesuffix("<|end|>")) == rationale


@pytest.mark.parametrize("answer", ["a</think>b", "x<|end|>y</think>", "a<think>b"])
def test_a_rationale_that_would_not_come_back_is_refused(tokenizer: Any, answer: str) -> None:
    with pytest.raises(ModelError, match="the chat template does not keep the rationale"):
        render_example(tokenizer, "1+1", Rationale("r", answer))


def template(text: str, eos: str = "<|end|>") -> Any:
    """The laboratory's tokenizer with another chat template."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def test_a_template_that_drops_the_reasoning_is_refused() -> None:
    dropping = template(
        "{%- for m in messages -%}{{- '<|user|>' + m['content'] + '<|end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|user|>' -}}{%- endif -%}"
    )
    with pytest.raises(ModelError, match=r"does not keep the rationale: expected Rationale\(reasoning='r'"):
        render_example(dropping, "1+1", Rationale("r", "2"))


def test_a_template_that_does_not_begin_with_its_prompt_is_refused() -> None:
    moving = template(
        "{%- if add_generation_prompt -%}{{- 'SYSTEM ' -}}{%- endif -%}"
        "{%- for m in messages -%}{{- m['content'] -}}{%- endfor -%}"
    )
    with pytest.raises(ModelError, match="does not begin an example with its own prompt.*the loss mask would be wrong"):
        render_example(moving, "1+1", Rationale("r", "2"))


def test_a_template_without_an_end_is_refused() -> None:
    endless = template(
        "{%- for m in messages -%}{%- if m['role'] == 'user' -%}{{- m['content'] -}}{%- else -%}"
        "{{- '<think>' + m['reasoning_content'] + '</think>' + m['content'] -}}{%- endif -%}{%- endfor -%}"
    )
    with pytest.raises(ModelError, match=r"ends no completion with the end token '<\|end\|>'"):
        render_example(endless, "1+1", Rationale("r", "2"))


def test_no_template_at_all_is_refused() -> None:
    with pytest.raises(ModelError, match="student: its tokenizer has no chat template; .*tokenizer.save_pretrained"):
        require_chat_template(SimpleNamespace(chat_template=None), "student")  # type: ignore[arg-type]
