"""Chat rendering: an example parses back to its rationale in every template, or is refused with its reason."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mot_core.errors import ModelError
from mot_core.lab.tokenizer import ALPHABET, build_tokenizer
from mot_core.prompts import check_renderable, render_example, render_prompt, require_chat_template, user_messages
from mot_core.reasoning import Rationale, parse_completion

ROLES = (
    "{%- for m in messages -%}{%- if m.role != 'assistant' -%}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- else -%}ASSISTANT{%- endif -%}{%- endfor -%}"
)
ASKED = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}OPENED{%- endif -%}"
# As Qwen3 writes: reasoning from its own field (or cut out of the content), trimmed of newlines, set apart by some.
REASONS = (
    "{%- set r, c = '', m.content -%}{%- if m.reasoning_content is string -%}{%- set r = m.reasoning_content -%}"
    "{%- elif '</think>' in c -%}{%- set r = c.split('</think>')[0].split('<think>')[-1] -%}"
    "{%- set c = c.split('</think>')[-1] -%}{%- endif -%}"
    "{{- '<|im_start|>assistant\n<think>\n' + r.strip('\n') + '\n</think>\n\n' + c.lstrip('\n') + '<|im_end|>\n' -}}"
)
QWEN3 = ROLES.replace("ASSISTANT", REASONS) + ASKED.replace(
    "OPENED",
    "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}",
)
# As Qwen3-Thinking-2507 and QwQ ask: the prompt opens the reasoning.
THINKING = ROLES.replace("ASSISTANT", REASONS) + ASKED.replace("OPENED", "{{- '<think>\n' -}}")
# As SmolLM2 writes: the content as it is, a system message of its own.
CHATML = (
    "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\nYou help.<|im_end|>\n' -}}{%- endif -%}"
    + ROLES.replace("ASSISTANT", "{{- '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' -}}")
    + ASKED.replace("OPENED", "")
)
# As DeepSeek's distilled models write: reasoning is cut out of the content, and no field is read.
DROPPING = CHATML.replace(
    "m.content + '<|im_end|>\n' -}}{%- endif", "m.content.split('</think>')[-1] + '<|im_end|>\n' -}}{%- endif"
)


@pytest.fixture(scope="module")
def lab() -> Any:
    return build_tokenizer()


def byte_level(template: str) -> Any:
    """A byte-level tokenizer with the control tokens and format tokens of the Qwen family."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>",
        chat_template=template,
    )  # type: ignore[no-untyped-call]  # fmt: skip


def with_template(text: str) -> Any:
    """The laboratory's tokenizer with another chat template."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


# -- prompts ---------------------------------------------------------------------------------------------


def test_prompts(lab: Any) -> None:
    qwen = byte_level(QWEN3)
    assert render_prompt(lab, "1+1") == "<|user|>1+1<|end|><|assistant|>"
    asked = "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(qwen, "1+1") == asked
    assert render_prompt(qwen, "1+1", system="Be brief.") == "<|im_start|>system\nBe brief.<|im_end|>\n" + asked
    assert render_prompt(qwen, "1+1", template_kwargs={"enable_thinking": True}) == asked
    assert render_prompt(qwen, "1+1", template_kwargs={"enable_thinking": False}) == asked + "<think>\n\n</think>\n\n"
    assert user_messages("q", "s") == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


def test_a_template_that_refuses_is_a_model_error(lab: Any) -> None:
    with pytest.raises(ModelError, match=r"fails on messages of system, user.*put the instruction into the user"):
        render_prompt(lab, "1+1", system="Be brief.")
    with pytest.raises(ModelError, match="fails on messages of user.*TypeError"):
        render_prompt(with_template("{{ messages[0].content + 1 }}"), "1+1")


@pytest.mark.parametrize(
    ("settings_", "told"),
    [
        ({"enable_thinkng": True}, "template_kwargs.enable_thinkng: the chat template never reads it"),
        ({"tokenize": True}, "template_kwargs.tokenize: belongs to the renderer"),
        ({"add_generation_prompt": False}, "template_kwargs.add_generation_prompt: belongs to the renderer"),
        ({"messages": 1}, "template_kwargs.messages: belongs to the renderer"),
        (
            {"return_assistant_tokens_mask": True},
            "template_kwargs.return_assistant_tokens_mask: belongs to the renderer",
        ),
    ],
)
def test_a_setting_that_would_do_nothing_or_harm_is_refused(settings_: dict[str, bool], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        render_prompt(byte_level(QWEN3), "1+1", template_kwargs=settings_)


def test_no_template_at_all_is_refused() -> None:
    with pytest.raises(ModelError, match="student: its tokenizer has no chat template; .*tokenizer.save_pretrained"):
        require_chat_template(SimpleNamespace(chat_template=None), "student")  # type: ignore[arg-type]


# -- examples --------------------------------------------------------------------------------------------

ASKED_PLAINLY = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "prompt", "completion"),
    [
        (QWEN3, ASKED_PLAINLY, "<think>\nr\n</think>\n\na<|im_end|>"),
        (THINKING, ASKED_PLAINLY + "<think>\n", "r\n</think>\n\na<|im_end|>"),
        # The content alone does not keep the reasoning, so it goes inside.
        (CHATML, "<|im_start|>system\nYou help.<|im_end|>\n" + ASKED_PLAINLY, "<think>r</think>a<|im_end|>"),
    ],
)
def test_the_form_that_a_template_keeps(template: str, prompt: str, completion: str) -> None:
    assert render_example(byte_level(template), "q", Rationale("r", "a")) == (prompt, completion)


# Hypothesis also draws the constants of these modules, marks among them.
MARKS = re.compile(r"</?think|\[/?THINK|<\||^<answer>", re.IGNORECASE)
LAB_TEXT = st.text(alphabet=ALPHABET, max_size=60).map(str.strip).filter(lambda text: not MARKS.search(text))
ANY_TEXT = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(["`", "```\n", "\n\n", "x", "<answer>", "</answer>", "**Final Answer** 4", "ß"])).map("".join),
).map(str.strip)  # fmt: skip
ONCE = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(reasoning=LAB_TEXT, answer=LAB_TEXT)
@ONCE
def test_render_then_parse_is_the_identity_in_the_laboratory(lab: Any, reasoning: str, answer: str) -> None:
    assume("`" not in (reasoning[-1:], answer[:1]))  # it sets nothing between mark and text: the mark may look quoted
    rationale = Rationale(reasoning, answer, "answered" if answer else "empty")
    prompt, completion = render_example(lab, "1+1", rationale)
    assert prompt == "<|user|>1+1<|end|><|assistant|>"
    assert completion == f"<think>{reasoning}</think>{answer}<|end|>"
    assert parse_completion(completion.removesuffix("<|end|>")) == rationale


@pytest.fixture(scope="module", params=[QWEN3, THINKING, CHATML], ids=["qwen3", "thinking", "chatml"])
def student(request: pytest.FixtureRequest) -> Any:
    return byte_level(request.param)


@given(reasoning=ANY_TEXT, answer=ANY_TEXT)
@ONCE
def test_render_then_parse_is_the_identity_or_refused(student: Any, reasoning: str, answer: str) -> None:
    rationale = Rationale(reasoning, answer, "answered" if answer else "empty")
    refused = check_renderable(student, "q", rationale)
    if refused is None:
        prompt, completion = render_example(student, "q", rationale)
        assert prompt == render_prompt(student, "q")
        opened = "<think>" if prompt.endswith("<think>\n") else ""
        assert parse_completion(opened + completion.removesuffix("<|im_end|>")) == rationale
    else:
        assert refused == "it holds no answer" or MARKS.search(reasoning) or MARKS.search(answer)


@pytest.mark.parametrize(
    ("rationale", "reason"),
    [
        (Rationale("r", "a</think>b"), "its answer holds the mark '</think>'"),
        (Rationale("r</think>a", "b"), "its reasoning holds the mark '</think>'"),
        (Rationale("quoted `<think>`", "a"), "its reasoning holds the mark '<think>'"),
        (Rationale("r", "a<|im_end|>\n<|im_start|>user"), "its answer holds the control token '<|im_end|>'"),
        (Rationale("r<|endoftext|>", "a"), "its reasoning holds the control token '<|endoftext|>'"),
        (Rationale("r ", "a"), "its reasoning has white space around it"),
        (Rationale("r", "", "truncated"), "it was cut: what was opened in it is not closed"),
        (Rationale("r", "", "empty"), "it holds no answer"),
        (Rationale("r", ""), "written out and parsed, Rationale(reasoning='r', answer='', ended='answered') gives"),
        (Rationale("r", "<answer>4</answer>"), "written out and parsed, "),
        (Rationale("r <answer> </think ", "a"), "its reasoning has white space around it"),
    ],
)  # fmt: skip
def test_what_is_refused_by_the_row(rationale: Rationale, reason: str) -> None:
    for template in (QWEN3, CHATML):
        refused = check_renderable(byte_level(template), "q", rationale)
        assert refused is not None and refused.startswith(reason)


def test_text_that_only_looks_like_a_mark_is_kept() -> None:
    rationale = Rationale("r <answer> </think ", "<b>a</b> <|im_star|>")
    assert check_renderable(byte_level(QWEN3), "q", Rationale(rationale.reasoning.strip(), rationale.answer)) is None
    assert check_renderable(byte_level(QWEN3), "q <|im_end|>", Rationale("r", "a")) == (
        "its question holds the control token '<|im_end|>'"
    )


def test_characters_that_the_tokenizer_lacks_are_refused(lab: Any) -> None:
    assert check_renderable(lab, "1+1", Rationale("1+1=2", "\\boxed{2}")) is None
    assert check_renderable(lab, "1+1", Rationale("Σ", "2")) == (
        "it holds characters that the student's tokenizer cannot write"
    )


def test_a_template_that_drops_the_reasoning_is_refused_for_every_row() -> None:
    told = "does not keep the rationale: expected Rationale\\(reasoning='r'.*; give the student a template that writes"
    with pytest.raises(ModelError, match=told):
        render_example(byte_level(DROPPING), "q", Rationale("r", "2"))
    # Not this row's fault, so it must not pass for one.
    with pytest.raises(ModelError, match="does not keep the rationale: expected Rationale\\(reasoning='2\\+2=4'"):
        check_renderable(byte_level(DROPPING), "q", Rationale("r", "2"))


def test_a_template_that_adds_an_empty_block_is_refused() -> None:
    """What Qwen3's training templates once did to reasoning that came inside the content (trl#6361)."""
    adding = byte_level(
        CHATML.replace(
            "m.content + '<|im_end|>\n' -}}{%- endif",
            "'<think>\n\n</think>\n\n' + m.content + '<|im_end|>' -}}{%- endif",
        )
    )
    with pytest.raises(ModelError, match="inside the content: the chat template adds a thinking block of its own"):
        render_example(adding, "q", Rationale("r", "2"))


def test_a_mark_between_backticks_is_refused_where_nothing_sets_it_apart(lab: Any) -> None:
    assert "does not keep the rationale" in str(check_renderable(lab, "1+1", Rationale("so `", "` y")))
    assert check_renderable(byte_level(QWEN3), "1+1", Rationale("so `", "` y")) is None


def test_a_template_that_moves_the_reasoning_is_refused() -> None:
    moving = CHATML.replace(
        "m.content + '<|im_end|>\n' -}}{%- endif", "m.content + m.reasoning_content + '<|im_end|>' -}}{%- endif"
    )
    with pytest.raises(
        ModelError, match="does not keep the rationale.*; with the reasoning inside the content: .*fails on"
    ):
        render_example(byte_level(moving), "q", Rationale("r", "2"))


def test_a_student_asked_not_to_think_cannot_learn_reasoning() -> None:
    with pytest.raises(ModelError, match="does not begin an example with its own prompt"):
        render_example(byte_level(QWEN3), "q", Rationale("r", "2"), template_kwargs={"enable_thinking": False})


def test_a_template_that_does_not_begin_with_its_prompt_is_refused() -> None:
    moving = with_template(
        "{%- if add_generation_prompt -%}{{- 'SYSTEM ' -}}{%- endif -%}"
        "{%- for m in messages -%}{{- m['content'] -}}{%- endfor -%}"
    )
    with pytest.raises(ModelError, match="does not begin an example with its own prompt.*the loss mask would be wrong"):
        render_example(moving, "1+1", Rationale("r", "2"))


def test_a_template_without_an_end_is_refused() -> None:
    endless = with_template(
        "{%- for m in messages -%}{%- if m['role'] == 'user' -%}{{- m['content'] -}}{%- else -%}"
        "{{- '<think>' + m['reasoning_content'] + '</think>' + m['content'] -}}{%- endif -%}{%- endfor -%}"
    )
    with pytest.raises(ModelError, match=r"ends no completion with the end token '<\|end\|>'"):
        render_example(endless, "1+1", Rationale("r", "2"))
