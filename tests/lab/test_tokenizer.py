"""The laboratory's tokenizer and chat template: exact strings, exact marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from mot_core.lab.tokenizer import ALPHABET, FORMAT_TOKENS, build_tokenizer, render_completion, render_prompt

CONVERSATION = [
    {"role": "user", "content": "34+57"},
    {"role": "assistant", "reasoning_content": "34+57=91", "content": "\\boxed{91}"},
]


@pytest.mark.parametrize(
    "text", [ALPHABET, "  two  blanks ", "\\boxed{a}}", "think <think></think>", "\\boxed", "a\n\nb"]
)
def test_text_of_the_alphabet_survives_the_round_trip(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_one_token_a_character_and_one_a_format_mark() -> None:
    tokenizer = build_tokenizer()
    completion = render_completion("34+57=91", "91")
    assert completion == "<think>34+57=91</think>\\boxed{91}<|end|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(completion)) == [
        *("<think>", "3", "4", "+", "5", "7", "=", "9", "1", "</think>", "\\boxed{", "9", "1", "}", "<|end|>")
    ]
    assert len(tokenizer) == 104
    assert not {tokenizer.get_vocab()[token] for token in FORMAT_TOKENS} & set(tokenizer.all_special_ids)


def test_pad_and_end_are_two_tokens() -> None:
    tokenizer = build_tokenizer()
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_unknown_characters_become_the_unknown_token() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.encode("aé") == [tokenizer.encode("a")[0], tokenizer.unk_token_id]


def test_chat_template_renders_exactly_the_format() -> None:
    tokenizer = build_tokenizer()
    prompt = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>34+57<|end|><|assistant|>" == render_prompt("34+57")
    whole = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert whole == "<|user|>34+57<|end|><|assistant|><think>34+57=91</think>\\boxed{91}<|end|>"
    unreasoned = [CONVERSATION[0], {"role": "assistant", "content": "\\boxed{91}"}]
    assert str(tokenizer.apply_chat_template(unreasoned, tokenize=False)).endswith("<think></think>\\boxed{91}<|end|>")


def test_generation_marks_enclose_what_the_assistant_writes() -> None:
    tokenizer = build_tokenizer()
    encoded: Any = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == render_completion("34+57=91", "91")
    assert len(encoded["input_ids"]) - len(marked) == len("34+57") + 3


def test_a_system_message_is_refused_with_a_remedy() -> None:
    with pytest.raises(TemplateError, match="got role system; put the instruction into the user message"):
        build_tokenizer().apply_chat_template([{"role": "system", "content": "be brief"}], tokenize=False)


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.apply_chat_template(CONVERSATION, tokenize=False) == tokenizer.apply_chat_template(
        CONVERSATION, tokenize=False
    )
    assert loaded.decode(loaded.encode(ALPHABET)) == ALPHABET
