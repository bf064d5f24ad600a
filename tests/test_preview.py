"""The preview: exact prompts, the mask that training uses, and text that hides nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.preview import FIRST_TOKENS, LAST_TOKENS, MaskedTokens, preview_text, shown
from flows.run import outline_of
from mot_core.artifacts import Store
from mot_core.corpus.tables import write_corpus
from mot_core.errors import ModelError
from mot_core.lab.tokenizer import build_tokenizer
from mot_core.prepare import world_of
from mot_core.preview import Preview, TokenPreview
from mot_core.preview import preview as make_preview
from mot_core.prompts import assistant_message, user_messages
from mot_core.reasoning import Rationale
from mot_core.spec import Experiment
from tests.contexts import publish
from tests.pico import pico_document

SYSTEM_TEMPLATE = (
    "{%- for m in messages -%}{{- '<|user|>' if m.role != 'assistant' else '<|assistant|>' -}}"
    "{%- if m.role == 'assistant' -%}{{- '<think>' + m.reasoning_content + '</think>' -}}{%- endif -%}"
    "{{- m.content + '<|end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- if enable_thinking -%}{{- '<think>' -}}{%- endif -%}{%- endif -%}"
)


def text_of(made: Preview, *, color_system: Any = None, width: int = 200) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=color_system, force_terminal=color_system is not None)
    for part in preview_text(made):
        console.print(part)
    return out.getvalue()


def preview(spec: Experiment, store: Store | None = None) -> Preview:
    world = world_of(spec)
    return make_preview(spec, world, outline_of(spec, world)[0].corpora, store)


def test_the_first_problem_is_one_that_is_left(pico_models: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{n}+{n}", "answer": "1", "split": "train"} for n in range(9)]
    file = tmp_path / "problems.jsonl"

    def spec(held: list[str]) -> Experiment:
        asked = [{"question": question, "answer": "1", "split": s} for question in held for s in ("dev", "test")]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows + asked))
        source = {"file": str(file), "num_problems": 1}
        document = pico_document(pico_models)
        document["evaluation"]["path"]["num_problems"] = 1
        benchmarks = [{"name": "sums", "grader": "integer", "k": 1, **source}]
        evaluation = {**document["evaluation"], "benchmarks": benchmarks}
        corpus = {**document["corpus"], "grader": "integer"}
        changes = {"problems": {"file": str(file)}, "evaluation": evaluation, "corpus": corpus}
        return Experiment.model_validate({**document, **changes})

    first = preview(spec(["held+1"])).problem.question
    assert preview(spec([first])).problem.question != first


def with_teachers(models: Path, *teachers: dict[str, Any], **changes: Any) -> Experiment:
    return Experiment.model_validate({**pico_document(models), "teachers": list(teachers), **changes})


def test_before_anything_is_published(pico_spec: Experiment) -> None:
    made = preview(pico_spec)
    question, answer = made.problem.question, made.problem.answer
    for prompt in made.prompts:
        assert prompt.prompt == f"<|user|>{question}<|end|><|assistant|>"
        assert (prompt.num_tokens, prompt.request, prompt.rows) == (len(question) + 3, None, None)
    example = made.example
    assert example.made_up
    assert example.prompt == f"<|user|>{question}<|end|><|assistant|>"
    assert example.completion.endswith(f"</think>\\boxed{{{answer}}}<|end|>")
    # Exactly the completion counts, its end token included.
    assert [token.counts for token in example.tokens] == [False] * (len(question) + 3) + [True] * (
        len(example.tokens) - len(question) - 3
    )
    assert "".join(token.text for token in example.tokens) == example.prompt + example.completion
    tokenizer = build_tokenizer()
    ids = tokenizer(example.prompt + example.completion)["input_ids"]
    assert [token.text for token in example.tokens] == [tokenizer.decode([token_id]) for token_id in ids]
    text = text_of(made)
    assert "no rationale is published yet: this one is made up to show the form" in text
    assert f"<|user|>{question}<|end|><|assistant|>" in text
    assert "<|assistant|>|⟦<think>⟧⟦N⟧⟦o⟧⟦␣⟧" in text and "⟦\\boxed{⟧" in text
    assert "tests.pico:Scripted, a part of your own: it may ask otherwise" in text


def test_the_first_published_row_is_shown(pico_spec: Experiment, tmp_path: Path) -> None:
    world, store = world_of(pico_spec), Store(tmp_path / "store").open()
    problem = {"problem_id": "sums-1", "family": "sums", "question": "1+1", "answer": "2"}

    def write_corpora(directory: Path) -> None:
        for teacher, reasoning in (("ann", "1+1=2"), ("bob", "o:2")):
            message = assistant_message(Rationale(reasoning, "\\boxed{2}"))
            row = {"problem_id": "sums-1", "family": "sums", "question": "1+1", "teacher": teacher, "completion_key": "k",
                   "completion_tokens": 9, "messages": [*user_messages("1+1"), message]}  # fmt: skip
            write_corpus(directory / f"{teacher}.parquet", [row])

    publish(
        store,
        outline_of(pico_spec, world)[0].problems,
        lambda d: (d / "problems.jsonl").write_text(json.dumps(problem)),
    )
    publish(store, outline_of(pico_spec, world)[0].corpora, write_corpora)
    before = sorted(path for path in store.root.rglob("*") if path.is_file())
    made = preview(pico_spec, store)
    assert sorted(path for path in store.root.rglob("*") if path.is_file()) == before
    assert (made.problem.problem_id, made.example.teacher, made.example.made_up) == ("sums-1", "ann", False)
    assert made.example.completion == "<think>1+1=2</think>\\boxed{2}<|end|>"
    assert "rationale  ann on sums-1" in text_of(made)


def test_a_system_message_and_template_arguments(pico_models: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = SYSTEM_TEMPLATE
    directory = tmp_path / "teacher"
    directory.mkdir()
    for path in (pico_models / "ann").iterdir():
        (directory / path.name).symlink_to(path)
    for path in [*directory.glob("tokenizer*"), *directory.glob("*.jinja")]:
        path.unlink()
    tokenizer.save_pretrained(directory)
    teacher = {
        "name": "ann",
        "model": str(directory),
        "system": "Be brief.",
        "template_kwargs": {"enable_thinking": True},
    }
    made = preview(with_teachers(pico_models, teacher))
    (prompt,) = made.prompts
    assert prompt.prompt == f"<|user|>Be brief.<|end|><|user|>{made.problem.question}<|end|><|assistant|><think>"
    text = text_of(made)
    assert "yes, with <think>" in text and '{"enable_thinking": true}' in text and "Be brief." in text

    misspelt = with_teachers(pico_models, {**teacher, "template_kwargs": {"enable_thinkng": True}})
    with pytest.raises(ModelError, match="template_kwargs.enable_thinkng: the chat template never reads it"):
        preview(misspelt)


def test_an_endpoint_shows_its_request_and_rows_are_named(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREVIEW_KEY", "sk-never-shown-0123456789")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1", "rationale": "2"}\n')
    spec = with_teachers(
        pico_models,
        {"name": "far", "model": "deepseek-r1", "completer": "openai", "system": "Reason.",
         "template_kwargs": {"thinking": True}, "sampling": {"temperature": 0.6, "max_completion_tokens": 64},
         "endpoint": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "PREVIEW_KEY", "extra_body": {"effort": "high"}}},
        {"name": "known", "model": "rows", "completer": "corpus", "rationales": {"file": str(rows)}},
    )  # fmt: skip
    made = preview(spec)
    far, known = made.prompts
    assert far.request == {
        "model": "deepseek-r1",
        "messages": [{"role": "system", "content": "Reason."}, {"role": "user", "content": made.problem.question}],
        "temperature": 0.6, "top_p": 1.0, "max_tokens": 64, "chat_template_kwargs": {"thinking": True}, "effort": "high",
    }  # fmt: skip
    assert (known.prompt, known.request, known.rows) == (None, None, str(rows))
    text = text_of(made)
    assert '"role": "system"' in text and "nothing: its rationales lie in" in text and "sk-never" not in text


def test_an_example_that_is_too_long_is_told(pico_models: Path) -> None:
    document = pico_document(pico_models)
    spec = Experiment.model_validate({**document, "training": {**document["training"], "max_example_tokens": 20}})
    made = preview(spec)
    assert not made.example.fits
    assert f"{len(made.example.tokens)} of at most 20: TOO LONG: raise training.max_example_tokens" in text_of(made)


def test_untrusted_text_hides_nothing() -> None:
    assert shown("a\nb").plain == "a␊\nb"
    assert shown("[red]x[/red]\x1b[31m\u202e\t\r").plain == "[red]x[/red]␛[31m⟨U+202E⟩␉␍"


def masked(tokens: list[TokenPreview], **how: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=4000, **how).print(MaskedTokens(tokens))
    return out.getvalue()


def test_the_mask_with_and_without_colours() -> None:
    tokens = [TokenPreview("a ", False), TokenPreview("[b]\n", True), TokenPreview("c", True)]
    assert masked(tokens) == "a␣|⟦[b]␊\n⟧⟦c⟧\n"
    coloured = masked(tokens, force_terminal=True, color_system="standard")
    assert "⟦" not in coloured and "\x1b[30;42m[b]␊" in coloured and "\x1b[30;102mc\x1b[0m" in coloured
    assert masked(tokens, force_terminal=True, color_system="standard", no_color=True).startswith("a␣|⟦[b]")


def test_long_examples_show_both_ends() -> None:
    tokens = [TokenPreview("x", False)] * 3 + [TokenPreview("y", True)] * (FIRST_TOKENS + LAST_TOKENS + 12_345)
    text = masked(tokens)
    assert text.count("⟦y⟧") == FIRST_TOKENS + LAST_TOKENS
    assert "… 12,345 tokens, all of them counted …" in text
    exactly = masked([TokenPreview("y", True)] * (FIRST_TOKENS + LAST_TOKENS))
    assert exactly.count("⟦y⟧") == FIRST_TOKENS + LAST_TOKENS and "…" not in exactly
    assert masked([TokenPreview("y", True)] * (FIRST_TOKENS + 7)).count("⟦y⟧") == FIRST_TOKENS + 7
